//! Requests from outside of the cluster, through an ingress gateway that is a pod like any other: a real Envoy.
//!
//! Names follow Istio's ambient integration tests where there is one.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen};
use e2e::envoy::{Doors, Envoy};
use e2e::lab::PodSpec;
use e2e::net::http::Ask;
use e2e::net::service::Front;
use e2e::tls::Authority;

const PLAIN: u16 = 8080;
const TERMINATED: u16 = 8443;
const PASSED: u16 = 9443;
/// What browsers would ask for.
const HOST: &str = "shop.example.com";

/// A shop, and a gateway in front of it, in the pod `gateway` of namespace `ingress` on node a.
struct Entrance {
    mesh: EchoMesh,
    envoy: Envoy,
    authority: Authority,
    gateway: SocketAddr,
}

impl Entrance {
    fn new() -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        mesh.namespace("ingress", &[])?;
        let spec = PodSpec::new("a", "gateway").in_namespace("ingress");
        let pod = mesh.lab.place(&spec)?;
        mesh.lab.agent("a")?.wait_ready()?;
        let authority = Authority::new("public")?;
        let (chain, key) = authority.certificate(&[HOST])?;
        let doors = Doors {
            plain: PLAIN,
            terminated: TERMINATED,
            passed: PASSED,
            requests: mesh.at("echo", 80)?,
            bytes: mesh.at("echo-v1", 443)?,
            certificate: (&chain, &key),
        };
        let envoy = Envoy::gateway(&mesh.lab, &pod, doors)?;
        Ok(Self {
            mesh,
            envoy,
            authority,
            gateway: SocketAddr::new(pod.v4(), PLAIN),
        })
    }

    /// Waits until a request from outside is answered so.
    fn soon(&self, ask: &Ask, status: u16) -> Result<()> {
        let answered = self.mesh.soon_answers("outside", self.gateway, ask, status);
        answered.map(drop).with_context(|| self.envoy.log())
    }
}

/// A policy of namespace `shop` about the service `echo`.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: entrance, namespace: \
         shop}}\nspec:\n  targetRefs: [{{kind: Service, group: \"\", name: echo}}]\n{spec}"
    )
}

#[test]
fn ingress() -> Result<()> {
    let entrance = Entrance::new()?;
    let mesh = &entrance.mesh;
    entrance.soon(&Ask::get("/").host(HOST), 200)?;
    // What the service's routes say holds for what comes through a gateway.
    mesh.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo, namespace: \
         shop}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: echo}]\n  rules:\n  - matches: [{path: {value: \
         /books}}]\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-route, value: \
         books}]}}]\n    backendRefs: [{name: echo-v2, port: 80}]\n",
    )?;
    entrance.soon(&Ask::get("/other").host(HOST), 404)?;
    let outside = mesh.pod("outside")?;
    let answer = outside.run(|| Ask::get("/books").host(HOST).send(entrance.gateway))?;
    let seen = Seen::in_answer(&answer)?;
    ensure!(seen.pod == "echo-v2" && seen.host == HOST, "{seen:?}");
    ensure!(
        seen.header("x-route").as_deref() == Some("books"),
        "{seen:?}"
    );
    // The application hears from the gateway whom it serves.
    let forwarded = seen.header("x-forwarded-for");
    ensure!(forwarded == Some(outside.v4().to_string()), "{seen:?}");
    Ok(())
}

#[test]
fn ingress_tls() -> Result<()> {
    let entrance = Entrance::new()?;
    let mesh = &entrance.mesh;
    let outside = mesh.pod("outside")?;
    let terminated = SocketAddr::new(entrance.gateway.ip(), TERMINATED);
    let ask = Ask::get("/").host(HOST);
    mesh.soon("TLS ends at the gateway", || {
        let answer = outside.run(|| entrance.authority.ask(HOST, terminated, &ask))?;
        let seen = Seen::in_answer(&answer)?;
        ensure!(seen.tls.is_none() && seen.host == HOST, "{seen:?}");
        Ok(())
    })
    .with_context(|| entrance.envoy.log())?;

    let front = Front {
        tls: Some(entrance.authority.server(&["own.example.com"], None)?),
        ..Front::default()
    };
    let _own = Echo::start_behind(front, mesh.pod("echo-v1")?, &[8443])?;
    let passed = SocketAddr::new(entrance.gateway.ip(), PASSED);
    let through = || {
        let ask = Ask::get("/").host("own.example.com");
        let answer = outside.run(|| entrance.authority.ask("own.example.com", passed, &ask))?;
        let seen = Seen::in_answer(&answer)?;
        ensure!(seen.tls.is_some() && seen.pod == "echo-v1", "{seen:?}");
        Ok(())
    };
    mesh.soon("TLS ends at the application", through)
        .with_context(|| entrance.envoy.log())?;
    // Bytes they are, and whose they are is known.
    let closed = policy("  action: DENY\n  rules: [{from: [{source: {namespaces: [ingress]}}]}]\n");
    mesh.apply(
        "policy.yaml",
        &closed.replace("name: echo}", "name: echo-v1}"),
    )?;
    mesh.soon("the gateway is let in no more", || {
        ensure!(through().is_err(), "it is");
        Ok(())
    })
}

#[test]
fn authorization_gateway() -> Result<()> {
    let entrance = Entrance::new()?;
    let (mesh, to) = (&entrance.mesh, entrance.mesh.at("echo", 80)?);
    mesh.apply(
        "policy.yaml",
        &policy(
            "  rules:\n  - from: [{source: {principals: [cluster.local/ns/ingress/sa/gateway]}}]\n    to: [{operation: \
             {paths: [/allowed]}}]\n",
        ),
    )?;
    entrance.soon(&Ask::get("/deny"), 403)?;
    entrance.soon(&Ask::get("/allowed"), 200)?;
    // It is the gateway that is let in, whatever others ask for.
    mesh.soon_answers("client", to, &Ask::get("/allowed"), 403)?;
    // Nor is a pod that is called by its own address open to whoever calls it so.
    mesh.apply(
        "workload.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: pods, namespace: \
         shop}\nspec:\n  selector: {matchLabels: {app: echo}}\n  rules: [{from: [{source: {principals: \
         [cluster.local/ns/ingress/sa/gateway]}}]}]\n",
    )?;
    let pod = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    for from in ["client", "outside"] {
        mesh.soon(&format!("{from} does not get to the pod"), || {
            let answer = mesh.ask(from, pod, &Ask::get("/allowed"));
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })?;
    }
    entrance.soon(&Ask::get("/allowed"), 200)
}

#[test]
fn a_gateway_is_believed_whom_it_serves_where_the_waypoint_says_so() -> Result<()> {
    let entrance = Entrance::new()?;
    let mesh = &entrance.mesh;
    let outside = mesh.pod("outside")?.v4();
    let blocks = |address: std::net::IpAddr| {
        format!("  rules: [{{from: [{{source: {{remoteIpBlocks: ['{address}']}}}}]}}]\n")
    };
    mesh.apply("policy.yaml", &policy(&blocks(outside)))?;
    // To its own address the gateway is the client.
    entrance.soon(&Ask::get("/"), 403)?;
    let waypoint = |account: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  namespace: shop\n  \
             annotations: {{culvert.dev/trust-forwarded-for: {account}}}\nspec:\n  gatewayClassName: istio-waypoint\n  \
             listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n"
        )
    };
    mesh.apply("waypoint-shop-waypoint.yaml", &waypoint("ingress/gateway"))?;
    entrance.soon(&Ask::get("/"), 200)?;
    // What the gateway was told itself is not what it says.
    let forged =
        |address: std::net::IpAddr| Ask::get("/").with("x-forwarded-for", &address.to_string());
    entrance.soon(&forged(mesh.pod("client")?.v4()), 200)?;
    mesh.apply("policy.yaml", &policy(&blocks([203, 0, 113, 9].into())))?;
    entrance.soon(&forged([203, 0, 113, 9].into()), 403)?;
    // Nor is anybody else believed.
    let to = mesh.at("echo", 80)?;
    mesh.soon_answers("client", to, &forged([203, 0, 113, 9].into()), 403)?;
    mesh.apply("waypoint-shop-waypoint.yaml", &waypoint("clients/client"))?;
    mesh.soon_answers("client", to, &forged([203, 0, 113, 9].into()), 200)?;
    mesh.soon_answers("stranger", to, &forged([203, 0, 113, 9].into()), 403)
        .map(drop)
}
