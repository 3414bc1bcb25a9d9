//! A service whose endpoints are of several data planes: pods that other Culvert agents judge requests for, a pod outside
//! of the mesh, and one with a sidecar that ends the tunnel itself. What the service demands holds for all of them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh};
use e2e::envoy::Envoy;
use e2e::jwt::Issuer;
use e2e::lab::PodSpec;
use e2e::net;
use e2e::net::http::Ask;
use e2e::net::serve::{Server, echo};
use e2e::scenario::echoes;
use serde_json::Value;

/// Requests enough for chance to have asked each endpoint: that none of 60 goes to some one of four has one chance in eight million.
const MANY: usize = 60;

/// A shop, the service `echo` of which has two endpoints more.
struct Mixed {
    mesh: EchoMesh,
    plain: Echo,
    sidecar: Echo,
    /// Ends the tunnel in the pod `sidecar`; lets only `client` in, as a sidecar that knows nobody else.
    _envoy: Envoy,
    to: SocketAddr,
}

impl Mixed {
    fn new() -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        let spec = |name: &str| {
            let spec = PodSpec::new("b", name).in_namespace("shop");
            spec.as_account("echo")
                .with_label("app", "echo")
                .uncaptured()
        };
        let outside = mesh.lab.place(&spec("plain"))?;
        let labelled = spec("sidecar").with_label("networking.istio.io/tunnel", "http");
        let behind = mesh.lab.place(&labelled)?;
        let identity = mesh.pod("client")?.identity();
        let application = SocketAddr::new(behind.v4(), 8080);
        let envoy = Envoy::server(&mesh.lab, &behind, application, &identity)?;
        let (plain, sidecar) = (
            Echo::start(&outside, &[8080])?,
            Echo::start(&behind, &[8080])?,
        );
        let to = mesh.at("echo", 80)?;
        let mixed = Self {
            mesh,
            plain,
            sidecar,
            _envoy: envoy,
            to,
        };
        mixed.mesh.soon("all endpoints answer", || {
            let asked = (0..MANY).map(|_| Ok(mixed.mesh.seen("client", to, &Ask::get("/"))?.pod));
            let pods = asked.collect::<Result<BTreeSet<_>>>()?;
            ensure!(pods.len() == 4, "{pods:?}");
            Ok(())
        })?;
        Ok(mixed)
    }

    /// How many requests each endpoint has been asked.
    fn asked(&self) -> Result<[usize; 4]> {
        let captured = |name| self.mesh.workload(name).map(Echo::requests);
        Ok([
            captured("echo-v1")?,
            captured("echo-v2")?,
            self.plain.requests(),
            self.sidecar.requests(),
        ])
    }

    /// Many requests are all answered so, and no endpoint hears of any that is not answered 200.
    fn all_answer(&self, from: &str, ask: &Ask, status: u16) -> Result<()> {
        self.mesh.soon_answers(from, self.to, ask, status)?;
        let before = self.asked()?;
        let statuses = self.mesh.statuses(from, self.to, ask, MANY)?;
        ensure!(statuses.keys().eq(&[status]), "{from}: {statuses:?}");
        let heard = self.asked()?;
        if status == 200 {
            let all = heard.iter().zip(before).all(|(now, then)| *now > then);
            ensure!(all, "not all endpoints: {before:?}, {heard:?}");
        } else {
            ensure!(heard == before, "{from}: {before:?}, {heard:?}");
        }
        Ok(())
    }
}

#[test]
fn requests_are_judged_whoever_answers() -> Result<()> {
    let mixed = Mixed::new()?;
    let issuer = Issuer::new("https://issuer.example.com")?;
    mixed.mesh.apply(
        "policy.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: mixed, namespace: \
             shop}}\nspec:\n  targetRefs: [{{kind: Service, group: \"\", name: echo}}]\n  rules:\n  - from: [{{source: \
             {{principals: [cluster.local/ns/clients/sa/client]}}}}]\n    to: [{{operation: {{methods: [GET], paths: \
             [/open]}}}}]\n  - from: [{{source: {{requestPrincipals: ['*']}}}}]\n---\napiVersion: \
             security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: mixed, namespace: shop}}\nspec:\n  \
             targetRefs: [{{kind: Service, group: \"\", name: echo}}]\n  jwtRules: [{}]\n",
            format_args!("{{issuer: '{}', jwks: '{}'}}", issuer.name(), issuer.jwks()?)
        ),
    )?;
    let bearing = |token: &str| Ask::get("/").with("authorization", &format!("Bearer {token}"));
    mixed.all_answer("client", &Ask::get("/open"), 200)?;
    mixed.all_answer("client", &Ask::new("POST", "/open"), 403)?;
    mixed.all_answer("client", &Ask::get("/"), 403)?;
    let token = issuer.token("someone", &Value::Null)?;
    mixed.all_answer("client", &bearing(&token), 200)?;
    mixed.all_answer("client", &bearing("not.a.token"), 401)?;
    // The sidecar would not let him in, but nobody gets that far.
    mixed.all_answer("stranger", &Ask::get("/open"), 403)
}

#[test]
fn bytes_are_judged_whoever_answers() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let spec = PodSpec::new("b", "plain").in_namespace("shop");
    let spec = spec.with_label("app", "echo").uncaptured();
    let outside = mesh.lab.place(&spec)?;
    let servers = [mesh.pod("echo-v1")?, mesh.pod("echo-v2")?, &outside]
        .map(|pod| Server::start(pod, Ipv4Addr::UNSPECIFIED, 9090, echo));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let ports = "  - {name: tcp, port: 9090}\n  - {name: some, port: 9091, targetPort: 9090}\n";
    mesh.service_with("shop", "bytes", "{}", "{app: echo}", ports)?;
    let accepted = || servers.iter().map(Server::accepted).collect::<Vec<_>>();
    for port in [9090, 9091] {
        let to = mesh.at("bytes", port)?;
        let carried = |from: &str| {
            mesh.pod(from)?
                .run(|| echoes(&net::connect(to)?, "\u{1}bytes"))
        };
        mesh.soon("all endpoints answer", || {
            let before = accepted();
            (0..MANY).try_for_each(|_| carried("stranger"))?;
            let all = accepted().iter().zip(&before).all(|(now, then)| now > then);
            ensure!(all, "{before:?}, {:?}", accepted());
            Ok(())
        })?;
        mesh.apply(
            "policy.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bytes, namespace: \
             shop}\nspec:\n  targetRefs: [{kind: Service, group: \"\", name: bytes}]\n  action: DENY\n  rules: [{from: \
             [{source: {principals: [cluster.local/ns/clients/sa/stranger]}}]}]\n",
        )?;
        mesh.soon("he is refused", || {
            ensure!(carried("stranger").is_err(), "he is not");
            Ok(())
        })?;
        let before = accepted();
        for number in 0..MANY {
            ensure!(carried("stranger").is_err(), "{number} passes");
        }
        // On a port that declares nothing an agent has reached its application by the time that it knows what is said; nobody
        // reaches one that no agent stands in front of.
        let after = accepted();
        ensure!(after[2] == before[2], "{before:?}, {after:?}");
        ensure!(port == 9091 || after == before, "{before:?}, {after:?}");
        carried("client").context("others pass")?;
        mesh.lab.manifests().delete("policy.yaml")?;
    }
    Ok(())
}
