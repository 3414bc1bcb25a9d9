//! Who is bound to which waypoint, and which traffic it sees.
//!
//! Names follow Istio's ambient integration tests where there is one. That a proxy sees requests is told by the
//! `x-request-id` that it gives them.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::{PodSpec, eventually};
use e2e::net::http::Ask;
use e2e::net::serve::{Server, echo};
use e2e::net::{self, h2c};
use e2e::scenario::echoes;
use e2e::traffic::{Connections, Outcome, Traffic};

/// Each way to bind or not to bind: labels of the namespace, of the service, of the waypoint, and whether requests to
/// the service are seen.
type Binding = (
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
    bool,
);

const BINDINGS: [Binding; 10] = [
    // The namespace's label speaks for its services.
    (&[("istio.io/use-waypoint", "waypoint")], "{}", "{}", true),
    (&[], "{}", "{}", false),
    // The service's own label speaks first.
    (&[], "{istio.io/use-waypoint: waypoint}", "{}", true),
    (
        &[("istio.io/use-waypoint", "waypoint")],
        "{istio.io/use-waypoint: none}",
        "{}",
        false,
    ),
    // No fallback to the namespace's from a name that is nobody's.
    (
        &[("istio.io/use-waypoint", "waypoint")],
        "{istio.io/use-waypoint: bogus}",
        "{}",
        false,
    ),
    (&[("istio.io/use-waypoint", "bogus")], "{}", "{}", false),
    // What kind of traffic the waypoint is for.
    (
        &[("istio.io/use-waypoint", "waypoint")],
        "{}",
        "{istio.io/waypoint-for: all}",
        true,
    ),
    (
        &[("istio.io/use-waypoint", "waypoint")],
        "{}",
        "{istio.io/waypoint-for: workload}",
        false,
    ),
    (
        &[("istio.io/use-waypoint", "waypoint")],
        "{}",
        "{istio.io/waypoint-for: none}",
        false,
    ),
    // The namespace in which the waypoint is looked for comes from the same object.
    (
        &[
            ("istio.io/use-waypoint", "waypoint"),
            ("istio.io/use-waypoint-namespace", "clients"),
        ],
        "{istio.io/use-waypoint: waypoint}",
        "{}",
        true,
    ),
];

#[test]
fn labels_bind_services_to_waypoints() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    for (row, (namespace, service, waypoint, expected)) in BINDINGS.iter().enumerate() {
        mesh.namespace("shop", namespace)?;
        mesh.service("shop", "echo", service, "{app: echo}")?;
        mesh.waypoint("shop", "waypoint", waypoint, "")?;
        mesh.soon_at_layer7("client", to, *expected)
            .with_context(|| format!("row {row}: {namespace:?} {service} {waypoint}"))?;
    }
    Ok(())
}

#[test]
fn bogus_use_waypoint() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    mesh.service(
        "shop",
        "echo",
        "{istio.io/use-waypoint: bogus}",
        "{app: echo}",
    )?;
    // Istio's documented choice: without its waypoint a service is still reached, at layer 4.
    mesh.soon_at_layer7("client", to, false)
}

#[test]
fn other_revision_ignored() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    mesh.waypoint("shop", "waypoint", "{istio.io/rev: another}", "")?;
    mesh.soon_at_layer7("client", to, false)
}

#[test]
fn cross_namespace_waypoint() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    mesh.namespace("infra", &[])?;
    mesh.namespace(
        "shop",
        &[
            ("istio.io/use-waypoint", "shared"),
            ("istio.io/use-waypoint-namespace", "infra"),
            ("team", "shop"),
        ],
    )?;
    let to = mesh.at("echo", 80)?;
    let allowing = |namespaces: &str| format!("    allowedRoutes: {{namespaces: {namespaces}}}\n");
    for (listener, expected) in [
        (String::new(), false),
        (allowing("{from: All}"), true),
        (allowing("{from: Same}"), false),
        (
            allowing("{from: Selector, selector: {matchLabels: {team: shop}}}"),
            true,
        ),
        (
            allowing("{from: Selector, selector: {matchLabels: {team: other}}}"),
            false,
        ),
        (
            allowing(
                "{from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: shop}}}",
            ),
            true,
        ),
        (
            allowing(
                "{from: Selector, selector: {matchExpressions: [{key: team, operator: NotIn, values: [shop]}]}}",
            ),
            false,
        ),
    ] {
        mesh.waypoint("infra", "shared", "{}", &listener)?;
        mesh.soon_at_layer7("client", to, expected)
            .with_context(|| listener.clone())?;
    }
    Ok(())
}

#[test]
fn services() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let ports = "  - {name: http, port: 80, targetPort: 8080}\n  - {port: 81, targetPort: 8080, name: unnamed}\n  \
                 - {name: tcp-http, port: 82, targetPort: 8080}\n  - {name: tcp, port: 9090, targetPort: 9090}\n  \
                 - {name: detected, port: 9091, targetPort: 9090}\n  - {name: grpc, port: 7070, targetPort: 7070}\n  \
                 - {name: local, port: 9092, targetPort: 9092}\n";
    mesh.service_with("shop", "echo", "{}", "{app: echo, version: v1}", ports)?;
    let server = mesh.pod("echo-v1")?.clone();
    let _bytes = Server::start(&server, Ipv6Addr::UNSPECIFIED, 9090, echo)?;
    let _local = Server::start(&server, Ipv4Addr::LOCALHOST, 9092, echo)?;
    // Declared, detected, and HTTP that is declared to be bytes.
    for (port, is_seen) in [(80, true), (81, true), (82, false)] {
        mesh.soon_at_layer7("client", mesh.at("echo", port)?, is_seen)?;
    }
    // The application sees the client, and nothing of the mesh's own.
    let seen = mesh.seen("client", mesh.at("echo", 80)?, &Ask::get("/"))?;
    ensure!(
        seen.peer.ip().to_canonical() == mesh.pod("client")?.v4(),
        "{seen:?}"
    );
    let leaks = |name: &str| name.starts_with("x-culvert") || name.starts_with("x-envoy-peer");
    ensure!(
        !seen.headers.iter().any(|(name, _)| leaks(name)),
        "{seen:?}"
    );
    let client = mesh.pod("client")?;
    let grpc = mesh.at("echo", 7070)?;
    let answer = client.run(|| h2c::Connection::open(grpc)?.call(&Ask::get("/shop.Books/List")))?;
    ensure!(answer.status == 0, "{answer:?}");
    for port in [9090, 9091] {
        let to = mesh.at("echo", port)?;
        client
            .run(|| echoes(&net::connect(to)?, "no HTTP at all\r\n"))
            .with_context(|| format!("port {port}"))?;
    }
    // What the application offers to its own loopback only stays there.
    let local = mesh.at("echo", 9092)?;
    let reached = client.run(|| {
        Ok(net::connect(local)
            .map_err(Into::into)
            .and_then(|stream| echoes(&stream, "x")))
    })?;
    ensure!(
        reached.is_err(),
        "a loopback port is reached from elsewhere"
    );
    Ok(())
}

#[test]
fn server_first_protocols_need_a_declared_port() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let ports = "  - {name: tcp, port: 9090, targetPort: 9090}\n  - {port: 3306, targetPort: 9090, name: db}\n";
    mesh.service_with("shop", "echo", "{}", "{app: echo, version: v1}", ports)?;
    let greet = |mut stream: &std::net::TcpStream| Ok(stream.write_all(b"hello")?);
    let _server = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, 9090, greet)?;
    for port in [9090, 3306] {
        let to = mesh.at("echo", port)?;
        mesh.soon(&format!("a greeting from port {port}"), || {
            let client = mesh.pod("client")?;
            let greeting = client.run(|| net::read_exactly(&net::connect(to)?, 5))?;
            ensure!(greeting == b"hello", "{greeting:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn bytes_on_an_undeclared_port_do_not_wait_for_long() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let ports = "  - {port: 3306, targetPort: 9090, name: db}\n";
    mesh.service_with("shop", "echo", "{}", "{app: echo, version: v1}", ports)?;
    let _server = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, 9090, echo)?;
    let to = mesh.at("echo", 3306)?;
    // What could begin a request and hardly does, and what cannot.
    for text in ["hello", "\u{1}hello"] {
        mesh.soon(&format!("{text:?} comes back at once"), || {
            let begun = Instant::now();
            mesh.pod("client")?
                .run(|| echoes(&net::connect(to)?, text))?;
            let took = begun.elapsed();
            ensure!(took < Duration::from_secs(2), "{took:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn pod_ip() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    // A pod of its own waypoint, which is for workloads.
    let spec = PodSpec::new("b", "addressed").in_namespace("shop");
    let spec = spec.with_label("istio.io/use-waypoint", "for-pods");
    let addressed = mesh.echo(&spec)?;
    mesh.waypoint("shop", "for-pods", "{istio.io/waypoint-for: workload}", "")?;
    mesh.service(
        "shop",
        "addressed",
        "{istio.io/use-waypoint: none}",
        "{app: addressed}",
    )?;
    mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-post\n  namespace: \
         shop\nspec:\n  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: for-pods}]\n  action: \
         DENY\n  rules: [{to: [{operation: {methods: [POST]}}]}]\n",
    )?;
    let at = |address: IpAddr| SocketAddr::new(address, 8080);
    let post = Ask::new("POST", "/");
    let judged = |from: &str, to: SocketAddr, status: u16| {
        mesh.soon_answers(from, to, &post, status).map(drop)
    };
    // The waypoint for workloads judges what is sent to the pod's address, over either family.
    judged("client", at(addressed.v4()), 403)?;
    judged("client", at(addressed.v6()), 403)?;
    mesh.soon_answers("client", at(addressed.v4()), &Ask::get("/"), 200)?;
    // And, which Istio's does not, what comes by way of a service that is bound to none: nobody gets around it.
    judged("client", mesh.at("addressed", 80)?, 403)?;
    // A pod that calls itself by its own address is nobody's business.
    judged("addressed", at(addressed.v4()), 200)?;
    // The waypoint for services does not see what is sent to a pod's address.
    let plain = mesh.pod("echo-v1")?.v4();
    mesh.soon_at_layer7("client", at(plain), false)?;
    mesh.soon_at_layer7("client", mesh.at("echo-v1", 80)?, true)
}

#[test]
fn server_side_lb() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let pods = |is_bound: bool| {
        mesh.soon(&format!("bound: {is_bound}"), || {
            let mut pods = std::collections::BTreeSet::new();
            let client = mesh.pod("client")?;
            client.run(|| {
                let mut conversation = net::http::Conversation::open(to)?;
                for _ in 0..20 {
                    let answer = conversation.ask(&Ask::get("/"))?;
                    pods.insert(e2e::echo::Seen::in_answer(&answer)?.pod);
                }
                Ok(())
            })?;
            let expected = if is_bound { 2 } else { 1 };
            ensure!(pods.len() == expected, "{pods:?}");
            Ok(())
        })
    };
    // Requests of one connection are balanced one by one; without a waypoint the connection is.
    pods(true)?;
    mesh.namespace("shop", &[])?;
    pods(false)
}

#[test]
fn remove_add_waypoint() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let client = mesh.pod("client")?;
    let traffic = [Connections::Kept, Connections::New]
        .map(|connections| Traffic::start(client, to, Ask::get("/"), connections));
    for _ in 0..3 {
        mesh.namespace("shop", &[])?;
        mesh.soon_at_layer7("client", to, false)?;
        mesh.namespace("shop", &[("istio.io/use-waypoint", "waypoint")])?;
        mesh.soon_at_layer7("client", to, true)?;
    }
    // The object goes, and then the label names nobody.
    mesh.lab.manifests().delete("waypoint-shop-waypoint.yaml")?;
    mesh.soon_at_layer7("client", to, false)?;
    traffic
        .map(Traffic::end)
        .iter()
        .try_for_each(Outcome::all_good)
}

#[test]
fn service_restart() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let traffic = Traffic::start(mesh.pod("client")?, to, Ask::get("/"), Connections::New);
    for name in ["echo-v1", "echo-v2", "echo-v1", "echo-v2"] {
        // As a rolling restart does it: the endpoint leaves first, and then the process.
        let pod = mesh.pod(name)?.clone();
        mesh.apply(&pod.file(), &pod.manifest_as(true, false))?;
        mesh.soon(&format!("{name} gets nothing"), || {
            let seen = mesh.seen("client", to, &Ask::get("/"))?;
            ensure!(seen.pod != name, "it still does");
            Ok(())
        })?;
        mesh.restart_workload(name)?;
        mesh.apply(&pod.file(), &pod.manifest())?;
        eventually(&format!("{name} is back"), Duration::from_secs(5), || {
            let seen = mesh.seen("client", to, &Ask::get("/"))?;
            ensure!(seen.pod == name, "not yet");
            Ok(())
        })?;
    }
    traffic.end().all_good()
}

#[test]
fn agent_restart() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    for node in ["a", "b"] {
        mesh.lab.take_agent(node)?.stop()?;
        mesh.lab.start_agent(node)?;
        mesh.lab.agent(node)?.wait_ready()?;
        mesh.soon_at_layer7("client", to, true)?;
    }
    Ok(())
}

#[test]
fn waypoint_dns() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    // Both families of a service's address are bound.
    mesh.soon_at_layer7("client", mesh.at("echo-v1", 80)?, true)?;
    mesh.soon_at_layer7("client", mesh.at_v6("echo-v1", 80)?, true)?;
    mesh.namespace("shop", &[])?;
    mesh.soon_at_layer7("client", mesh.at("echo-v1", 80)?, false)?;
    mesh.soon_at_layer7("client", mesh.at_v6("echo-v1", 80)?, false)
}

#[test]
fn clients_outside_the_mesh_reach_pods_without_layer_7() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let itself = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    mesh.soon_at_layer7("outside", itself, false)
}
