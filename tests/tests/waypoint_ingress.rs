//! Clients outside the mesh at a service that wants them at its waypoint (`istio.io/ingress-use-waypoint`): what an
//! ingress gateway that is not captured would send to the service's pods.
//!
//! Names follow Istio's ambient integration tests where there is one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use e2e::net::http::{Ask, Conversation};

const LABEL: &str = "{istio.io/ingress-use-waypoint: 'true'}";

/// Routes of service `echo`, with these rules.
fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: echo\n  namespace: shop\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n{rules}"
    )
}

/// A shop whose `echo` wants clients outside the mesh at its waypoint; with these manifests, and where `echo-v1` is.
fn shop_with(manifests: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mut mesh = EchoMesh::shop()?;
    mesh.apply("routes.yaml", manifests)?;
    mesh.service("shop", "echo", LABEL, "{app: echo}")?;
    let to = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    mesh.soon_at_layer7("outside", to, true)?;
    Ok((mesh, to))
}

/// Waits until a request from outside is answered by this pod.
fn reaches(mesh: &EchoMesh, to: SocketAddr, ask: &Ask, pod: &str) -> Result<()> {
    mesh.soon(&format!("{ask:?} reaches {pod}"), || {
        let seen = mesh.seen("outside", to, ask)?;
        ensure!(seen.pod == pod, "{} answers", seen.pod);
        Ok(())
    })
}

/// Who answers how many of so many requests of one connection from outside.
fn answered_by(mesh: &EchoMesh, to: SocketAddr, times: usize) -> Result<BTreeMap<String, usize>> {
    mesh.pod("outside")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        let mut pods = BTreeMap::new();
        for _ in 0..times {
            let answer = conversation.ask(&Ask::get("/split"))?;
            let seen = e2e::echo::Seen::in_answer(&answer)?;
            *pods.entry(seen.pod).or_default() += 1;
        }
        Ok(pods)
    })
}

#[test]
fn ingress_to_waypoint() -> Result<()> {
    let closed = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: \
                  shop}\nspec:\n  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]\n";
    let mut mesh = EchoMesh::shop()?;
    mesh.apply("policy.yaml", closed)?;
    let pod = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    let ask = Ask::get("/");
    mesh.soon_answers("client", mesh.at("echo", 80)?, &ask, 403)?;
    mesh.soon_answers("outside", pod, &ask, 200)?;
    mesh.service("shop", "echo", LABEL, "{app: echo}")?;
    mesh.soon_answers("outside", pod, &ask, 403)?;
    mesh.service("shop", "echo", "{}", "{app: echo}")?;
    mesh.soon_answers("outside", pod, &ask, 200)?;
    let labels = [
        ("istio.io/use-waypoint", "waypoint"),
        ("istio.io/ingress-use-waypoint", "true"),
    ];
    mesh.namespace("shop", &labels)?;
    mesh.soon_answers("outside", pod, &ask, 403).map(drop)
}

/// Rules of every kind; what none of them takes is not found.
const RULES: &str = "  - matches: [{path: {type: Exact, value: /}}]
    backendRefs: [{name: echo, port: 80}]
  - matches: [{path: {value: /other}}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {value: /away}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: away.example, statusCode: 302}}]
  - matches: [{path: {value: /inner}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-way, value: routed}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-back, value: routed}]}}
    backendRefs: [{name: echo, port: 80}]
  - matches: [{path: {value: /split}}]
    backendRefs: [{name: echo-v1, port: 80, weight: 1}, {name: echo-v2, port: 80, weight: 1}]
";

#[test]
fn clients_outside_the_mesh_are_routed() -> Result<()> {
    let (mesh, to) = shop_with(&route(RULES))?;
    // Through a tunnel to the other node; the connection's own pod where it is as good as any.
    reaches(&mesh, to, &Ask::get("/other"), "echo-v2")?;
    reaches(&mesh, to, &Ask::get("/"), "echo-v1")?;
    let seen = mesh.seen("outside", to, &Ask::get("/inner/part"))?;
    ensure!(seen.path == "/part", "{}", seen.path);
    ensure!(
        seen.header("x-way").as_deref() == Some("routed"),
        "{:?}",
        seen.headers
    );
    let outside = mesh.pod("outside")?.v4();
    ensure!(seen.peer.ip().to_canonical() == outside, "{}", seen.peer);
    let answer = mesh.ask("outside", to, &Ask::get("/inner"))?;
    ensure!(answer.header("x-back") == Some("routed"), "{answer:?}");
    let answer = mesh.soon_answers("outside", to, &Ask::get("/away"), 302)?;
    ensure!(
        answer.header("location") == Some("http://away.example/away"),
        "{answer:?}"
    );
    mesh.soon_answers("outside", to, &Ask::get("/nowhere"), 404)?;
    let pods = answered_by(&mesh, to, 200)?;
    // 100 are expected of each, and the standard deviation is 7.
    let is_even = |pod: &str| {
        pods.get(pod)
            .is_some_and(|found| (65..=135).contains(found))
    };
    ensure!(is_even("echo-v1") && is_even("echo-v2"), "{pods:?}");
    is_counted(&mesh)
}

/// The server's node counts requests of clients outside the mesh as a waypoint does.
fn is_counted(mesh: &EchoMesh) -> Result<()> {
    let labels = [
        "reporter=\"waypoint\"",
        "source_workload=\"outside\"",
        "source_principal=\"unknown\"",
        "destination_service=\"echo.shop.svc.cluster.local\"",
        "response_code=\"200\"",
    ];
    let agent = mesh.lab.agent("b")?;
    eventually("requests are counted", Duration::from_secs(5), || {
        let count = agent.metric("istio_requests_total", &labels)?;
        let text = agent.get(15020, "/stats/prometheus")?.text();
        let such: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("istio_requests_total"))
            .collect();
        ensure!(count >= 200.0, "{count}: {such:#?}");
        Ok(())
    })
}

/// A fault for some requests.
const FAULTS: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: shop}
spec:
  hosts: [echo.shop.svc.cluster.local]
  http:
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: echo.shop.svc.cluster.local}}]
  - route: [{destination: {host: echo.shop.svc.cluster.local}}]
";

const LIMITS: &str = "apiVersion: culvert.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: few, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: echo}]
  limits:
  - {requests: 3, period: 60s, burst: 3, per: [{header: x-user}]}
";

#[test]
fn clients_outside_the_mesh_get_faults_and_limits() -> Result<()> {
    let (mesh, to) = shop_with(FAULTS)?;
    mesh.soon_answers("outside", to, &Ask::get("/fault"), 418)?;
    mesh.apply("limits.yaml", LIMITS)?;
    let ask = Ask::get("/").with("x-user", "one");
    let answer = mesh.soon_answers("outside", to, &ask, 429)?;
    ensure!(answer.text() == "local_rate_limited", "{}", answer.text());
    Ok(())
}

/// A pod that takes no plain text.
const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec:
  selector: {matchLabels: {version: v2}}
  mtls: {mode: STRICT}
";

/// A pod that lets in those of its own kind.
const OWN: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: own, namespace: shop}
spec:
  selector: {matchLabels: {version: v2}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/echo]}}]}]
";

#[test]
fn clients_outside_the_mesh_get_no_further_by_a_route_than_by_themselves() -> Result<()> {
    let (mesh, to) = shop_with(&route(RULES))?;
    let (here, other) = (Ask::get("/"), Ask::get("/other"));
    reaches(&mesh, to, &other, "echo-v2")?;
    mesh.apply("policy.yaml", STRICT)?;
    let answer = mesh.soon_answers("outside", to, &other, 503)?;
    ensure!(!answer.text().contains("strict"), "{}", answer.text());
    reaches(&mesh, to, &here, "echo-v1")?;
    let barred = [
        "reporter=\"waypoint\"",
        "response_code=\"503\"",
        "response_flags=\"UF\"",
    ];
    let count = mesh
        .lab
        .agent("b")?
        .metric("istio_requests_total", &barred)?;
    ensure!(count > 0.0, "nothing of it is counted");
    // What the pod that passes it on may do is nothing to its client.
    mesh.apply("policy.yaml", OWN)?;
    mesh.soon_answers("outside", to, &other, 503)?;
    mesh.apply("policy.yaml", "")?;
    reaches(&mesh, to, &other, "echo-v2")
}

#[test]
fn weighted_waypoint_ingress_traffic_shift() -> Result<()> {
    let (mesh, to) = shop_with("")?;
    mesh.waypoint("shop", "next", "{}", "")?;
    let canary = |weight: &str| {
        mesh.apply(
            "namespace-shop.yaml",
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    istio.io/dataplane-mode: \
                 ambient\n    istio.io/use-waypoint: waypoint\n    istio.io/use-waypoint-canary: next\n  annotations:\n    \
                 istio.io/use-waypoint-canary-weight: \"{weight}\"\n"
            ),
        )
    };
    // Which waypoint a connection went through shows in who its policies are.
    let closed = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: \
                  shop}\nspec:\n  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: next}]\n";
    mesh.apply("policy.yaml", closed)?;
    let ask = Ask::get("/");
    canary("100")?;
    mesh.soon_answers("outside", to, &ask, 403)?;
    canary("0")?;
    mesh.soon_answers("outside", to, &ask, 200)?;
    canary("50")?;
    eventually(
        "both waypoints are gone through",
        Duration::from_secs(10),
        || {
            let mut found = BTreeMap::<u16, usize>::new();
            for _ in 0..60 {
                let statuses = mesh.statuses("outside", to, &ask, 3)?;
                ensure!(statuses.len() == 1, "{statuses:?}");
                let (status, _) = statuses.first_key_value().context("no answer")?;
                *found.entry(*status).or_default() += 1;
            }
            // 30 are expected of each, and the standard deviation is 4.
            let is_near = |status: u16| {
                found
                    .get(&status)
                    .is_some_and(|times| (14..=46).contains(times))
            };
            ensure!(is_near(200) && is_near(403), "{found:?}");
            Ok(())
        },
    )
}
