//! Services as Kubernetes and Istio declare them: whom a connection to one reaches.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, Pod, PodSpec};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::scenario::echoes;

const PORT: u16 = 8080;
const VIP: &str = "10.96.0.2:80";
const SECRET: &str = "nobody on the link may read this";
/// Enough connections for chance to show an endpoint that it may choose.
const MANY: usize = 20;

/// A client on node a, and the same application on either node.
struct Shop {
    lab: Lab,
    client: Pod,
    near: Server,
    far: Server,
}

impl Shop {
    /// With the Service's `spec` besides its address, selector and port, known to both nodes.
    fn new(spec: &str) -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let client = lab.pod("a", "client")?;
        let shop = |node: &str, name: &str| PodSpec::new(node, name).with_label("app", "shop");
        let (near, far) = (lab.add(&shop("a", "near"))?, lab.add(&shop("b", "far"))?);
        lab.manifests().apply(
            "service-shop.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: shop\n  namespace: app\nspec:\n  clusterIP: 10.96.0.2\n  \
                 selector:\n    app: shop\n  ports:\n  - port: 80\n    targetPort: {PORT}\n{spec}"
            ),
        )?;
        lab.start()?;
        let serve = |pod: &Pod| Server::start(pod, Ipv6Addr::UNSPECIFIED, PORT, echo);
        Ok(Self {
            near: serve(&near)?,
            far: serve(&far)?,
            lab,
            client,
        })
    }

    /// Connections that the near and the far endpoint get of many.
    fn visits(&self) -> Result<[usize; 2]> {
        let before = [self.near.accepted(), self.far.accepted()];
        self.client.run(|| {
            (0..MANY).try_for_each(|number| {
                echoes(&net::connect(VIP.parse()?)?, "hello")
                    .with_context(|| format!("connection {number}"))
            })
        })?;
        let after = [self.near.accepted(), self.far.accepted()];
        Ok([after[0] - before[0], after[1] - before[1]])
    }
}

#[test]
fn without_a_preference_every_endpoint_is_chosen() -> Result<()> {
    let [near, far] = Shop::new("")?.visits()?;
    ensure!(near > 0 && far > 0 && near + far == MANY, "{near}, {far}");
    Ok(())
}

#[test]
fn traffic_distribution_keeps_connections_close() -> Result<()> {
    // The lab's nodes are zones of their own.
    for distribution in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        let shop = Shop::new(&format!("  trafficDistribution: {distribution}\n"))?;
        let visits = shop.visits()?;
        ensure!(visits == [MANY, 0], "{distribution}: {visits:?}");
        // A preference is no more than that.
        let near = shop.lab.pods().iter().find(|pod| pod.spec().name == "near");
        let near = near.context("the near pod")?;
        shop.lab
            .manifests()
            .apply(&near.file(), &near.manifest_as(true, false))?;
        known(&shop.lab, "a", "Unhealthy")?;
        let visits = shop.visits()?;
        ensure!(visits == [0, MANY], "{distribution}: {visits:?}");
    }
    Ok(())
}

/// Waits until a node's dump says a word about the endpoints of a service.
fn known(lab: &Lab, node: &str, word: &str) -> Result<()> {
    e2e::lab::eventually(
        &format!("node {node} knows of {word}"),
        std::time::Duration::from_secs(5),
        || {
            let services = lab.agent(node)?.config_dump()?["services"].to_string();
            ensure!(services.contains(word), "{services}");
            Ok(())
        },
    )
}

#[test]
fn a_local_traffic_policy_never_leaves_the_node() -> Result<()> {
    let shop = Shop::new("  internalTrafficPolicy: Local\n")?;
    let visits = shop.visits()?;
    ensure!(visits == [MANY, 0], "{visits:?}");
    let near = shop.lab.pods().iter().find(|pod| pod.spec().name == "near");
    let near = near.context("the near pod")?;
    shop.lab
        .manifests()
        .apply(&near.file(), &near.manifest_as(true, false))?;
    known(&shop.lab, "a", "Unhealthy")?;
    let before = shop.far.accepted();
    let passes = shop
        .client
        .run(|| echoes(&net::connect(VIP.parse()?)?, "hello"));
    ensure!(passes.is_err(), "it was served although nobody is near");
    ensure!(shop.far.accepted() == before, "it left the node");
    Ok(())
}

#[test]
fn unready_endpoints_serve_where_they_are_published() -> Result<()> {
    let shop = Shop::new("  publishNotReadyAddresses: true\n")?;
    for pod in shop.lab.pods() {
        if pod.spec().name != "client" {
            shop.lab
                .manifests()
                .apply(&pod.file(), &pod.manifest_as(true, false))?;
        }
    }
    known(&shop.lab, "a", "Unhealthy")?;
    let [near, far] = shop.visits()?;
    ensure!(near > 0 && far > 0, "{near}, {far}");
    Ok(())
}

#[test]
fn endpoint_slices_count_instead_of_the_selector() -> Result<()> {
    let shop = Shop::new("")?;
    let far = shop.lab.pods().iter().find(|pod| pod.spec().name == "far");
    let far = far.context("the far pod")?;
    shop.lab.manifests().apply(
        "slice.yaml",
        &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: shop-1\n  namespace: app\n  labels:\n    \
             kubernetes.io/service-name: shop\naddressType: IPv4\nports:\n- port: {PORT}\nendpoints:\n- addresses: [{}]\n  \
             targetRef:\n    kind: Pod\n    name: far\n",
            far.v4()
        ),
    )?;
    e2e::lab::eventually(
        "the slice is known",
        std::time::Duration::from_secs(5),
        || {
            let dump = shop.lab.agent("a")?.config_dump()?;
            let services = dump["services"].as_array().context("services")?;
            let known = services.iter().find(|one| one["name"] == "shop");
            let endpoints = known.context("the shop")?["endpoints"].to_string();
            ensure!(!endpoints.contains("near"), "{endpoints}");
            Ok(())
        },
    )?;
    let visits = shop.visits()?;
    ensure!(visits == [0, MANY], "{visits:?}");
    Ok(())
}

/// A lab in which a captured client meets a machine outside the mesh, and a captured pod.
fn with_a_machine() -> Result<(Lab, Pod, Pod, Pod)> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let machine = lab.add(&PodSpec::new("b", "machine").uncaptured())?;
    let inside = lab.add(&PodSpec::new("b", "inside").with_label("app", "legacy"))?;
    Ok((lab, client, machine, inside))
}

const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: legacy\n  namespace: app\nspec:\n  \
     hosts: [legacy.example.com]\n  addresses: [10.97.0.1]\n  resolution: STATIC\n  ports:\n  - number: 80\n    name: tcp\n    \
     protocol: TCP\n    targetPort: 8080\n";

#[test]
fn a_service_entry_with_static_endpoints_is_reached_at_its_address() -> Result<()> {
    let (mut lab, client, machine, _) = with_a_machine()?;
    // The machine is no pod that the mesh knows of.
    let address = machine.v4();
    lab.manifests().delete(&machine.file())?;
    let endpoints = format!(
        "  location: MESH_EXTERNAL\n  endpoints:\n  - address: {address}\n    ports:\n      tcp: 9090\n"
    );
    lab.manifests()
        .apply("entry.yaml", &format!("{ENTRY}{endpoints}"))?;
    lab.start()?;
    let server = Server::start(&machine, address, 9090, echo)?;
    let to: SocketAddr = "10.97.0.1:80".parse()?;
    client.run(|| echoes(&net::connect(to)?, "hello"))?;
    ensure!(server.accepted() == 1, "the endpoint's own port was used");
    let refused = client.run(|| {
        let other = SocketAddr::new(to.ip(), 81);
        Ok(net::connect(other)
            .map_err(Into::into)
            .and_then(|stream| echoes(&stream, "hello"))
            .is_err())
    })?;
    ensure!(refused, "a port that the entry does not have was served");
    Ok(())
}

#[test]
fn a_service_entry_selects_pods_and_workload_entries() -> Result<()> {
    let (mut lab, client, machine, inside) = with_a_machine()?;
    lab.manifests().delete(&machine.file())?;
    let selector =
        "  location: MESH_INTERNAL\n  workloadSelector:\n    labels:\n      app: legacy\n";
    lab.manifests()
        .apply("entry.yaml", &format!("{ENTRY}{selector}"))?;
    lab.manifests().apply(
        "workload.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: machine\n  namespace: app\nspec:\n  \
             address: {}\n  labels:\n    app: legacy\n",
            machine.v4()
        ),
    )?;
    lab.start()?;
    let servers = [
        Server::start(&machine, machine.v4(), PORT, echo)?,
        Server::start(&inside, inside.v4(), PORT, echo)?,
    ];
    let sniffer = lab.sniff()?;
    client.run(|| {
        (0..MANY).try_for_each(|_| echoes(&net::connect("10.97.0.1:80".parse()?)?, SECRET))
    })?;
    let accepted = servers.each_ref().map(Server::accepted);
    ensure!(
        accepted.iter().all(|count| *count > 0) && accepted.iter().sum::<usize>() == MANY,
        "{accepted:?}"
    );
    let traffic = sniffer.stop()?;
    ensure!(
        traffic.tls_records_to(15008) > 0,
        "the pod was reached by HBONE"
    );
    let plain = traffic
        .flows()
        .any(|(flow, bytes)| flow.destination == (machine.v4(), PORT) && !bytes.is_empty());
    ensure!(
        plain,
        "the machine, which speaks no HBONE, was reached plainly"
    );
    Ok(())
}
