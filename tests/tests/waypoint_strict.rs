//! `culvert.dev/strict-waypoint`: pods behind a waypoint are reached through their service, and in no other way.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use e2e::net;
use e2e::net::http::{Ask, Conversation};
use e2e::net::serve::{Server, echo};
use e2e::scenario::echoes;

const SOON: Duration = Duration::from_secs(5);
/// A port of the pods that no service leads to.
const UNSERVED: u16 = 7999;
/// One that services declare to speak something else than HTTP.
const BYTES: u16 = 9090;

/// Declares the shop's namespace anew.
fn strict(mesh: &EchoMesh, value: &str) -> Result<()> {
    mesh.namespace(
        "shop",
        &[
            ("istio.io/use-waypoint", "waypoint"),
            ("culvert.dev/strict-waypoint", value),
        ],
    )
}

fn is_open(mesh: &EchoMesh, from: &str, to: SocketAddr) -> bool {
    mesh.ask(from, to, &Ask::get("/"))
        .is_ok_and(|answer| answer.status == 200)
}

fn soon_is_open(mesh: &EchoMesh, from: &str, to: SocketAddr, expected: bool) -> Result<()> {
    let what = format!("{to} is open to {from}: {expected}");
    mesh.soon(&what, || {
        ensure!(is_open(mesh, from, to) == expected, "it is not so");
        Ok(())
    })
}

#[test]
fn pods_of_a_strict_namespace_are_reached_through_their_service_only() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let service = mesh.at("echo", 80)?;
    let pod = |name: &str| anyhow::Ok(SocketAddr::new(mesh.pod(name)?.v4(), 8080));
    // Of another node, by HBONE; and of the client's own, straight.
    let (far, near) = (pod("echo-v1")?, pod("echo-v2")?);
    let _unserved = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, UNSERVED, echo)?;
    for to in [service, far, near] {
        soon_is_open(&mesh, "client", to, true)?;
    }
    soon_is_open(&mesh, "outside", far, true)?;
    let (mut through, mut around) = mesh.pod("client")?.run(|| {
        let around = [far, near].map(Conversation::open).into_iter();
        Ok((
            Conversation::open(service)?,
            around.collect::<Result<Vec<_>>>()?,
        ))
    })?;
    for conversation in around.iter_mut().chain([&mut through]) {
        ensure!(conversation.ask(&Ask::get("/"))?.status == 200);
    }

    strict(&mesh, "true")?;
    for to in [far, near] {
        soon_is_open(&mesh, "client", to, false)?;
    }
    soon_is_open(&mesh, "outside", far, false)?;
    // Whoever went around is cut off, whoever did not goes on.
    for conversation in &mut around {
        ensure!(conversation.ask(&Ask::get("/")).is_err(), "it lives on");
    }
    ensure!(through.ask(&Ask::get("/"))?.status == 200);
    let statuses = mesh.statuses("client", service, &Ask::get("/"), 20)?;
    ensure!(statuses.get(&200) == Some(&20), "{statuses:?}");
    mesh.pod("client")?.run(|| {
        let open = net::connect(SocketAddr::new(far.ip(), UNSERVED))?;
        echoes(&open, "no service leads here")
    })?;
    let agent = mesh.lab.agent("b")?;
    let why = "around the waypoint of shop/echo";
    eventually("the log says why", SOON, || {
        let log = agent.log()?;
        ensure!(log.contains(why), "{log}");
        Ok(())
    })?;
    let explained = mesh.lab.node("a")?.culvert(&[
        "explain",
        "--from",
        "clients/client",
        "--to",
        &near.to_string(),
    ])?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(explained.contains(why), "{explained}");

    strict(&mesh, "false")?;
    for to in [far, near] {
        soon_is_open(&mesh, "client", to, true)?;
    }
    Ok(())
}

#[test]
fn the_kernel_refuses_by_itself_who_goes_around_a_waypoint_within_the_node() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let near = SocketAddr::new(mesh.pod("echo-v2")?.v4(), 8080);
    let agent = mesh.lab.agent("a")?;
    let counted = |name: &str| agent.metric(name, &[]);
    eventually("the kernel carries it", SOON, || {
        ensure!(is_open(&mesh, "client", near), "it is closed");
        let carried = counted("culvert_direct_connections_total")?;
        ensure!(carried >= 1.0, "the proxy carries it");
        Ok(())
    })?;
    strict(&mesh, "true")?;
    soon_is_open(&mesh, "client", near, false)?;
    eventually("the kernel refuses it", SOON, || {
        ensure!(!is_open(&mesh, "client", near), "it is open");
        let denied = counted("culvert_direct_denied_total")?;
        ensure!(denied >= 1.0, "the proxy refuses it");
        Ok(())
    })?;
    soon_is_open(&mesh, "client", mesh.at("echo-v2", 80)?, true)
}

#[test]
fn bytes_and_clients_outside_the_mesh_have_a_way_in_as_well() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let pod = mesh.pod("echo-v1")?.v4();
    let _bytes = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, BYTES, echo)?;
    strict(&mesh, "true")?;
    let at = |to: SocketAddr| {
        mesh.pod("client")?
            .run(|| echoes(&net::connect(to)?, "bytes"))
    };
    let service = mesh.at("echo-v1", BYTES)?;
    mesh.soon("only the service leads there", || {
        ensure!(at(SocketAddr::new(pod, BYTES)).is_err(), "the pod is open");
        at(service)
    })?;
    let ask = Ask::get("/");
    let pod = SocketAddr::new(pod, 8080);
    soon_is_open(&mesh, "outside", pod, false)?;
    // What the service demands is met where the label says so: then nothing is gone around.
    let label = "{istio.io/ingress-use-waypoint: 'true'}";
    mesh.service("shop", "echo", label, "{app: echo}")?;
    mesh.soon_answers("outside", pod, &ask, 200)?;
    mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: shop}\n\
         spec:\n  targetRefs: [{kind: Service, group: \"\", name: echo}]\n  action: DENY\n  rules: [{}]\n",
    )?;
    mesh.soon_answers("outside", pod, &ask, 403).map(drop)
}

/// A route of namespace `clients` that sends calls of `shop/echo-v2` to `shop/echo-v1`.
const DETOUR: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: detour, namespace: clients}\n\
    spec:\n  parentRefs: [{group: \"\", kind: Service, name: echo-v2, namespace: shop, port: 80}]\n  rules:\n  \
    - backendRefs: [{name: echo-v1, namespace: shop, port: 80}]\n";

#[test]
fn a_route_of_the_clients_namespace_lends_no_rights() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let (to, ask) = (mesh.at("echo-v2", 80)?, Ask::get("/"));
    mesh.apply("detour.yaml", DETOUR)?;
    mesh.soon("the route leads elsewhere", || {
        let seen = mesh.seen("client", to, &ask)?;
        ensure!(seen.version == "v1", "{}", seen.version);
        Ok(())
    })?;
    // What the service demands that answers.
    let spec = "  targetRefs: [{kind: Service, group: \"\", name: echo-v1}]\n  action: DENY\n  rules: [{}]\n";
    mesh.apply("policy.yaml", &authorization(spec))?;
    mesh.soon_answers("client", to, &ask, 403)?;
    mesh.lab.manifests().delete("policy.yaml")?;
    mesh.soon_answers("client", to, &ask, 200)?;
    // What its pods demand, whom only the waypoint may call.
    let spec = "  selector: {matchLabels: {version: v1}}\n  rules: [{from: [{source: {principals: \
        [cluster.local/ns/shop/sa/waypoint]}}]}]\n";
    mesh.apply("policy.yaml", &authorization(spec))?;
    mesh.soon_answers("client", to, &ask, 503)?;
    mesh.soon_answers("client", mesh.at("echo-v1", 80)?, &ask, 200)?;
    let explained = mesh.lab.node("a")?.culvert(&[
        "explain",
        "--from",
        "clients/client",
        "--to",
        &to.to_string(),
    ])?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(explained.contains("503"), "{explained}");
    mesh.lab.manifests().delete("policy.yaml")?;
    mesh.soon_answers("client", to, &ask, 200)?;
    // What the namespace demands.
    strict(&mesh, "true")?;
    mesh.soon_answers("client", to, &ask, 503)?;
    mesh.soon_answers("client", mesh.at("echo-v1", 80)?, &ask, 200)
        .map(drop)
}

/// An AuthorizationPolicy of the shop.
fn authorization(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy, namespace: shop}}\nspec:\n{spec}"
    )
}
