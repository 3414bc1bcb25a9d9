//! Hosts outside the mesh, behind a waypoint: ServiceEntry with routes and policies of its own.
//!
//! What is outside cannot judge requests, so the client's node does.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen};
use e2e::lab::{Pod, PodSpec, eventually};
use e2e::net::dns;
use e2e::net::http::Ask;

/// The address that the entry declares.
const ADDRESS: &str = "10.96.1.1";

/// A shop, and an echo workload outside the mesh that a ServiceEntry stands for.
struct Abroad {
    mesh: EchoMesh,
    host: Pod,
    echo: Echo,
    to: SocketAddr,
}

/// A ServiceEntry of namespace `shop`; `labels` and what follows the ports are the row's.
fn entry(labels: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: abroad\n  namespace: shop\n  labels: \
         {labels}\nspec:\n  hosts: [api.example.com]\n  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: \
         8080}}]\n{more}"
    )
}

impl Abroad {
    fn new() -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        let host = mesh.lab.place(
            &PodSpec::new("b", "abroad")
                .in_namespace("clients")
                .uncaptured(),
        )?;
        let echo = Echo::start(&host, &[8080])?;
        let to = SocketAddr::new(ADDRESS.parse()?, 80);
        Ok(Self {
            mesh,
            host,
            echo,
            to,
        })
    }

    fn with_static_endpoint(labels: &str, location: &str) -> Result<Self> {
        let abroad = Self::new()?;
        let endpoint = format!(
            "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  location: {location}\n  endpoints: [{{address: {}}}]\n",
            abroad.host.v4()
        );
        abroad.mesh.apply("entry.yaml", &entry(labels, &endpoint))?;
        Ok(abroad)
    }
}

#[test]
fn service_entry_inlined_workload_entry() -> Result<()> {
    for location in ["MESH_INTERNAL", "MESH_EXTERNAL"] {
        let abroad = Abroad::with_static_endpoint("{istio.io/use-waypoint: none}", location)?;
        // Bound to no waypoint: reached at layer 4.
        abroad.mesh.soon_at_layer7("client", abroad.to, false)?;
        let bound = Abroad::with_static_endpoint("{}", location)?;
        bound.mesh.soon_at_layer7("client", bound.to, true)?;
        ensure!(
            bound.echo.requests() > 0,
            "it is the host abroad that answers"
        );
    }
    Ok(())
}

#[test]
fn service_entry_selects_uncaptured_pod() -> Result<()> {
    let abroad = Abroad::new()?;
    // A selector is about pods of the entry's own namespace.
    let selector = format!(
        "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  workloadSelector: {{labels: {{app: \
         abroad}}}}\n"
    );
    let text = entry(
        "{istio.io/use-waypoint: waypoint, istio.io/use-waypoint-namespace: shop}",
        &selector,
    );
    let text = text.replace("namespace: shop\n  labels", "namespace: clients\n  labels");
    let mesh = &abroad.mesh;
    mesh.waypoint(
        "shop",
        "waypoint",
        "{}",
        "    allowedRoutes: {namespaces: {from: All}}\n",
    )?;
    mesh.apply("entry.yaml", &text)?;
    mesh.soon_at_layer7("client", abroad.to, true)?;
    ensure!(
        abroad.echo.requests() > 0,
        "it is the selected pod that answers"
    );
    Ok(())
}

#[test]
fn service_entry_selects_workload_entry() -> Result<()> {
    let abroad = Abroad::new()?;
    let selector = format!(
        "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  workloadSelector: {{labels: {{app: \
         far}}}}\n"
    );
    abroad.mesh.apply("entry.yaml", &entry("{}", &selector))?;
    abroad.mesh.apply(
        "workload.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: far\n  namespace: shop\nspec:\n  \
             address: {}\n  labels: {{app: far}}\n",
            abroad.host.v4()
        ),
    )?;
    abroad.mesh.soon_at_layer7("client", abroad.to, true)?;
    ensure!(
        abroad.echo.requests() > 0,
        "it is the workload entry that answers"
    );
    Ok(())
}

#[test]
fn service_entry_dns_with_auto_assign() -> Result<()> {
    let abroad = Abroad::new()?;
    let endpoint = format!(
        "  resolution: STATIC\n  location: MESH_EXTERNAL\n  endpoints: [{{address: {}}}]\n",
        abroad.host.v4()
    );
    abroad.mesh.apply("entry.yaml", &entry("{}", &endpoint))?;
    let client = abroad.mesh.pod("client")?;
    // Any address that a resolver could have: the agent answers in its place.
    let resolver = SocketAddr::new(abroad.host.v4(), 53);
    let address = eventually(
        "an address of the mesh's own",
        Duration::from_secs(5),
        || {
            let answer = client.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.send_to(&dns::query(7, "api.example.com", dns::Kind::A), resolver)?;
                let mut datagram = [0; 512];
                let length = socket.recv(&mut datagram)?;
                dns::parse(&datagram[..length])
            })?;
            answer.addresses.first().copied().context("no address")
        },
    )?;
    ensure!(address.to_string().starts_with("240.240."), "{address}");
    abroad
        .mesh
        .soon_at_layer7("client", SocketAddr::new(address, 80), true)
}

#[test]
fn waypoint_as_egress_gateway() -> Result<()> {
    let abroad = Abroad::with_static_endpoint("{}", "MESH_EXTERNAL")?;
    let (mesh, to) = (&abroad.mesh, abroad.to);
    let target = "{group: networking.istio.io, kind: ServiceEntry, name: abroad}";
    mesh.apply(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: abroad\n  namespace: \
             shop\nspec:\n  parentRefs: [{target}]\n  rules:\n  - matches: [{{path: {{value: /api}}}}]\n    filters: \
             [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-egress, value: 'yes'}}]}}}}]\n    \
             backendRefs: [{{group: networking.istio.io, kind: Hostname, name: api.example.com, port: 80}}]\n"
        ),
    )?;
    mesh.soon("the route is in force", || {
        let answer = mesh.ask("client", to, &Ask::get("/api").host("api.example.com"))?;
        let seen = Seen::in_answer(&answer)?;
        ensure!(
            seen.header("x-egress").as_deref() == Some("yes"),
            "{seen:?}"
        );
        ensure!(seen.host == "api.example.com", "{seen:?}");
        Ok(())
    })?;
    mesh.soon_answers("client", to, &Ask::get("/other"), 404)?;
    // Who may leave, and for what.
    mesh.apply(
        "policy.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: abroad\n  namespace: \
             shop\nspec:\n  targetRefs: [{target}]\n  rules:\n  - from: [{{source: {{principals: \
             [cluster.local/ns/clients/sa/client]}}}}]\n    to: [{{operation: {{methods: [GET]}}}}]\n"
        ),
    )?;
    mesh.soon_answers("stranger", to, &Ask::get("/api"), 403)?;
    mesh.soon_answers("client", to, &Ask::new("POST", "/api"), 403)?;
    mesh.soon_answers("client", to, &Ask::get("/api"), 200)?;
    Ok(())
}

#[test]
fn outbound_policy_allow_any() -> Result<()> {
    let abroad = Abroad::new()?;
    // What nobody declared is passed through.
    let itself = SocketAddr::new(abroad.host.v4(), 8080);
    abroad.mesh.soon_at_layer7("client", itself, false)
}
