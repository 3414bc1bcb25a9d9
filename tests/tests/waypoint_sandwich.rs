//! Waypoints of another controller that speak no HBONE: the node agent terminates it for them, and tells them who calls
//! and what in a header of the PROXY protocol.
//!
//! Names follow Istio's ambient integration tests where there is one.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh};
use e2e::lab::{Pod, PodSpec};
use e2e::net;
use e2e::net::http::{Ask, Conversation};
use e2e::net::serve::{Server, page};
use e2e::sandwich::{self, TOLD, TRAVERSED};

/// Where the waypoint listens.
const PORT: u16 = 15088;

/// A shop whose service `echo`, behind which is a pod of that name on node b, is bound to the waypoint `wp`: a captured
/// pod on node b. Clients are the pods `client` on node a and `neighbour` on node b, and `outside` on node b, which is not
/// captured.
struct Shop {
    mesh: EchoMesh,
    waypoint: Pod,
    service: SocketAddr,
}

impl Shop {
    fn new() -> Result<Self> {
        let mut mesh = EchoMesh::new()?;
        mesh.namespace("shop", &[("istio.io/use-waypoint", "wp")])?;
        mesh.namespace("clients", &[])?;
        let spec = PodSpec::new("b", "echo").in_namespace("shop");
        mesh.echo(&spec)?;
        mesh.service("shop", "echo", "{}", "{app: echo}")?;
        let spec = PodSpec::new("b", "wp").in_namespace("shop");
        let spec = spec.with_label("gateway.networking.k8s.io/gateway-name", "wp");
        let waypoint = mesh.lab.place(&spec)?;
        // As a controller would declare it: the ports that the proxy has, and no HBONE among them.
        let ports = format!("  - {{name: mesh, port: {PORT}}}\n");
        let labels = "{gateway.networking.k8s.io/gateway-name: wp}";
        mesh.service_with("shop", "wp", labels, "{app: wp}", &ports)?;
        for (node, name) in [("a", "client"), ("b", "neighbour")] {
            let spec = PodSpec::new(node, name).in_namespace("clients");
            mesh.lab.place(&spec)?;
        }
        let spec = PodSpec::new("b", "outside").in_namespace("clients");
        mesh.lab.place(&spec.uncaptured())?;
        let service = mesh.at("echo", 80)?;
        let shop = Self {
            mesh,
            waypoint,
            service,
        };
        shop.bind(&format!("PROXY/{PORT}"))?;
        Ok(shop)
    }

    /// Says how the waypoint is handed what comes for others.
    fn bind(&self, binding: &str) -> Result<()> {
        self.mesh.apply(
            "wp.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: wp\n  namespace: shop\n  \
                 annotations: {{ambient.istio.io/waypoint-inbound-binding: {binding}}}\nspec:\n  gatewayClassName: \
                 other-waypoint\n  listeners:\n  - {{name: mesh, port: {PORT}, protocol: istio.io/PROXY}}\nstatus:\n  \
                 addresses: [{{type: Hostname, value: wp.shop.svc.cluster.local}}]\n"
            ),
        )
    }

    /// Waits until requests of a client come through the waypoint, which was told who asks.
    fn soon_traversed(&self, from: &str) -> Result<()> {
        let client = self.mesh.pod(from)?;
        let (identity, address) = (client.identity(), client.v4());
        let expected = format!(
            "{identity} {address} {} echo.shop.svc.cluster.local",
            self.service
        );
        let what = format!("requests of {from} come through the waypoint");
        self.mesh.soon(&what, || {
            let seen = self.mesh.seen(from, self.service, &Ask::get("/secret"))?;
            ensure!(seen.header(TRAVERSED).is_some(), "{seen:?}");
            ensure!(seen.header(TOLD).as_ref() == Some(&expected), "{seen:?}");
            Ok(())
        })
    }
}

#[test]
fn simple_http_sandwich() -> Result<()> {
    let mut shop = Shop::new()?;
    shop.mesh.start()?;
    let _proxy = sandwich::serve(&shop.waypoint, PORT)?;
    // Who calls the application is the waypoint, and nobody else may.
    shop.mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: waypoint-only, namespace: \
         shop}\nspec:\n  selector: {matchLabels: {app: echo}}\n  rules: [{from: [{source: {principals: \
         [cluster.local/ns/shop/sa/wp]}}]}]\n",
    )?;
    let sniffer = shop.mesh.lab.sniff()?;
    shop.soon_traversed("client")?;
    shop.soon_traversed("neighbour")?;
    let traffic = sniffer.stop()?;
    ensure!(traffic.tls_records_to(15008) > 0, "it went through HBONE");
    ensure!(
        !traffic.contains(b"/secret"),
        "a request crossed the link in the clear"
    );
    let around = SocketAddr::new(shop.mesh.pod("echo")?.v4(), 8080);
    shop.mesh.soon("nobody goes around the waypoint", || {
        let answer = shop.mesh.ask("client", around, &Ask::get("/"));
        ensure!(answer.is_err(), "it is answered: {answer:?}");
        Ok(())
    })?;
    // The waypoint's own policies are about who calls it.
    shop.mesh.apply(
        "own.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: own, namespace: shop}\nspec:\n  \
         selector: {matchLabels: {app: wp}}\n  action: DENY\n  rules: [{from: [{source: {principals: \
         [cluster.local/ns/clients/sa/client]}}]}]\n",
    )?;
    shop.mesh.soon("one client is refused", || {
        let answer = shop.mesh.ask("client", shop.service, &Ask::get("/"));
        ensure!(answer.is_err(), "it is answered: {answer:?}");
        Ok(())
    })?;
    shop.soon_traversed("neighbour")
}

#[test]
fn nobody_tells_a_sandwiched_waypoint_who_he_is_but_the_mesh() -> Result<()> {
    let mut shop = Shop::new()?;
    shop.mesh.start()?;
    let _proxy = sandwich::serve(&shop.waypoint, PORT)?;
    shop.soon_traversed("neighbour")?;
    let to = SocketAddr::new(shop.waypoint.v4(), PORT);
    let SocketAddr::V4(service) = shop.service else {
        anyhow::bail!("{} is not IPv4", shop.service);
    };
    let admin = b"spiffe://cluster.local/ns/admin/sa/admin";
    let mut forged = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    forged.extend(u16::try_from(12 + 3 + admin.len())?.to_be_bytes());
    forged.extend([10, 0, 0, 1]);
    forged.extend(service.ip().octets());
    forged.extend([1, 2]);
    forged.extend(service.port().to_be_bytes());
    forged.push(0xd0);
    forged.extend(u16::try_from(admin.len())?.to_be_bytes());
    forged.extend(admin);
    forged.extend(Ask::get("/").wire());
    let served = shop.mesh.workload("echo")?.requests();
    for from in ["outside", "neighbour", "client"] {
        shop.mesh.pod(from)?.run(|| {
            // Whether it is refused or makes no sense behind the true header: there is no answer.
            let answered = net::connect(to)
                .map_err(anyhow::Error::from)
                .and_then(|stream| {
                    (&stream).write_all(&forged)?;
                    Conversation::over(stream).answer("GET")
                });
            let is_served = answered.as_ref().is_ok_and(|answer| answer.status == 200);
            ensure!(!is_served, "{from}: {answered:?}");
            Ok(())
        })?;
    }
    ensure!(shop.mesh.workload("echo")?.requests() == served);
    Ok(())
}

#[test]
fn a_sandwiched_waypoint_without_a_header_gets_what_is_for_others_as_it_is() -> Result<()> {
    let mut shop = Shop::new()?;
    shop.bind("NONE/8080")?;
    shop.mesh.start()?;
    let _application = Echo::start(&shop.waypoint, &[8080])?;
    shop.mesh.soon("the waypoint answers", || {
        let seen = shop.mesh.seen("client", shop.service, &Ask::get("/"))?;
        ensure!(seen.pod == "wp", "{seen:?}");
        Ok(())
    })?;
    // Without a binding, a pod takes what it is the very waypoint of, on the port that was called.
    shop.mesh.apply(
        "wp.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: shop}\nspec: \
         {gatewayClassName: other-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: \
         {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}\n",
    )?;
    let ports = "  - {name: mesh, port: 15008, targetPort: 15008}\n";
    shop.mesh
        .service_with("shop", "wp", "{}", "{app: wp}", ports)?;
    let _page = Server::start(&shop.waypoint, Ipv6Addr::UNSPECIFIED, 80, page("here"))?;
    shop.mesh
        .soon("the waypoint answers on the port that was called", || {
            let answer = shop.mesh.ask("client", shop.service, &Ask::get("/"))?;
            ensure!(answer.text() == "here", "{answer:?}");
            Ok(())
        })
        .context("without a binding")
}
