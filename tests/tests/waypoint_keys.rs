//! Keys of tokens from afar: fetched by the agents, refreshed, and kept while their server is away.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::jwt::Issuer;
use e2e::keys::KeyServer;
use e2e::lab::{PodSpec, eventually};
use e2e::net::http::Ask;
use serde_json::json;

const SOON: Duration = Duration::from_secs(15);
const PORT: u16 = 8000;

/// The shop, agents that fetch keys each second, and a server of keys as `keys.auth:8000`.
fn shop() -> Result<(EchoMesh, KeyServer)> {
    let mut mesh = EchoMesh::shop_with(&["--jwks-refresh", "1s"])?;
    mesh.namespace("auth", &[])?;
    let spec = PodSpec::new("b", "keys").in_namespace("auth");
    let pod = mesh.lab.place(&spec.with_label("app", "keys"))?;
    let keys = KeyServer::start(&pod, PORT)?;
    let ports = "  - {name: http, port: 8000, targetPort: 8000}\n";
    mesh.service_with("auth", "keys", "{}", "{app: keys}", ports)?;
    Ok((mesh, keys))
}

/// Demands tokens of these rules, one YAML object for each, from everybody who calls the service.
fn demand(mesh: &EchoMesh, rules: &[String]) -> Result<()> {
    let to = "  targetRefs: [{kind: Service, group: \"\", name: echo}]\n";
    let head = "apiVersion: security.istio.io/v1\nkind: ";
    let metadata = "metadata:\n  name: tokens\n  namespace: shop\nspec:\n";
    mesh.apply(
        "tokens.yaml",
        &format!(
            "{head}RequestAuthentication\n{metadata}{to}  jwtRules: [{}]\n---\n{head}AuthorizationPolicy\n{metadata}{to}  \
             rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}]\n",
            rules.join(", ")
        ),
    )
}

fn bearing(issuer: &Issuer) -> Result<Ask> {
    let token = issuer.token("sub", &json!({}))?;
    Ok(Ask::get("/").with("Authorization", &format!("Bearer {token}")))
}

/// Waits until tokens of an issuer are answered so, at both nodes.
fn soon(mesh: &EchoMesh, issuer: &Issuer, status: u16) -> Result<String> {
    let (to, ask) = (mesh.at("echo", 80)?, bearing(issuer)?);
    let mut text = String::new();
    eventually(
        &format!("{} is answered {status}", issuer.name()),
        SOON,
        || {
            for _ in 0..8 {
                let answer = mesh.ask("client", to, &ask)?;
                text = answer.text();
                ensure!(answer.status == status, "{}: {text}", answer.status);
            }
            Ok(())
        },
    )?;
    Ok(text)
}

/// Waits until an agent says of its key sets what these texts say.
fn soon_told(mesh: &EchoMesh, node: &str, texts: &[&str]) -> Result<()> {
    eventually(&format!("{texts:?} at node {node}"), SOON, || {
        let status = mesh.lab.node(node)?.culvert(&["status"])?;
        let status = String::from_utf8(status.stdout)?;
        let missing = texts.iter().find(|text| !status.contains(**text));
        ensure!(missing.is_none(), "no {missing:?} in {status}");
        Ok(())
    })
}

#[test]
fn keys_are_fetched_and_their_rotation_is_followed() -> Result<()> {
    let (mesh, keys) = shop()?;
    let one = Issuer::new("issuer-1")?;
    let two = Issuer::new("http://keys.auth:8000/two")?;
    keys.put("/one/keys", one.jwks()?);
    keys.put("/two/set", two.jwks()?);
    let configuration =
        json!({"issuer": two.name(), "jwks_uri": "http://keys.auth.svc:8000/two/set"});
    keys.put(
        "/two/.well-known/openid-configuration",
        configuration.to_string(),
    );
    demand(
        &mesh,
        &[
            "{issuer: issuer-1, jwksUri: 'http://keys.auth.svc.cluster.local:8000/one/keys'}"
                .to_owned(),
            // Without either, the issuer is asked where its keys are.
            format!("{{issuer: '{}'}}", two.name()),
        ],
    )?;
    soon(&mesh, &one, 200)?;
    soon(&mesh, &two, 200)?;
    let impostor = Issuer::new("issuer-1")?;
    ensure!(soon(&mesh, &impostor, 401)? == "Jwt verification fails");
    // What was an impostor's key becomes the issuer's.
    keys.put("/one/keys", impostor.jwks()?);
    soon(&mesh, &impostor, 200)?;
    soon(&mesh, &one, 401)?;
    soon_told(&mesh, "a", &["keys      2 of 2 sets fetched"])
}

#[test]
fn the_last_good_keys_hold_while_their_server_is_away_and_none_means_401() -> Result<()> {
    let (mesh, mut keys) = shop()?;
    let (one, late) = (Issuer::new("issuer-1")?, Issuer::new("issuer-2")?);
    keys.put("/one", one.jwks()?);
    let rules = [("issuer-1", "one"), ("issuer-2", "late")].map(|(issuer, path)| {
        format!("{{issuer: {issuer}, jwksUri: 'http://keys.auth:8000/{path}'}}")
    });
    demand(&mesh, &rules)?;
    soon(&mesh, &one, 200)?;
    ensure!(soon(&mesh, &late, 401)? == "Jwks remote fetch is failed");
    for node in ["a", "b"] {
        soon_told(&mesh, node, &["keys      1 of 2 sets fetched"])?;
    }
    keys.go_away();
    for node in ["a", "b"] {
        let told = [
            "keys      1 of 2 sets fetched",
            "cannot connect to",
            "stay in force",
            "tokens of its issuer are refused",
        ];
        soon_told(&mesh, node, &told)?;
        let agent = mesh.lab.agent(node)?;
        let missing = agent.metric("culvert_jwks_missing", &[])?;
        ensure!(
            (missing - 1.0).abs() < 0.5,
            "{missing} key sets are missing"
        );
        let failures = agent.metric("culvert_jwks_fetches_total", &["outcome=\"failure\""])?;
        ensure!(failures > 0.0, "{failures} fetches failed");
    }
    soon(&mesh, &one, 200)?;
    let token = late.token("sub", &json!({}))?;
    let header = format!("Authorization: Bearer {token}");
    let question = [
        "explain",
        "--from",
        "clients/client",
        "--to",
        "echo.shop:80",
        "GET",
        "/",
    ];
    let told = mesh
        .lab
        .node("a")?
        .culvert(&[&question[..], &["-H", &header]].concat())?;
    let told = String::from_utf8(told.stdout)?;
    ensure!(
        told.contains("the keys of its issuer are missing"),
        "{told}"
    );
    keys.put("/late", late.jwks()?);
    keys.come_back()?;
    soon(&mesh, &late, 200)?;
    soon(&mesh, &one, 200)
        .map(drop)
        .context("and the other one again")
}

#[test]
fn a_pod_that_demands_mtls_refuses_agents_of_other_nodes_and_that_is_told() -> Result<()> {
    let (mesh, keys) = shop()?;
    let one = Issuer::new("issuer-1")?;
    keys.put("/one", one.jwks()?);
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: strict\n  namespace: \
                  auth\nspec:\n  mtls: {mode: STRICT}\n";
    mesh.apply("strict.yaml", strict)?;
    let server = SocketAddr::new(mesh.pod("keys")?.v4(), PORT);
    mesh.soon("plaintext is refused", || {
        let answer = mesh.ask("outside", server, &Ask::get("/one"));
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })?;
    let rule = "{issuer: issuer-1, jwksUri: 'http://keys.auth:8000/one'}".to_owned();
    demand(&mesh, &[rule])?;
    let told = [
        "keys      0 of 1 sets fetched",
        "tokens of its issuer are refused",
    ];
    soon_told(&mesh, "a", &told)?;
    // On its own node the agent is let in as the kubelet is (ADR 0003).
    soon_told(&mesh, "b", &["keys      1 of 1 sets fetched"])?;
    let (to, ask) = (mesh.at("echo", 80)?, bearing(&one)?);
    let seen = mesh.statuses("client", to, &ask, 64)?;
    ensure!(seen.len() == 2 && seen.contains_key(&401), "{seen:?}");
    // As Istio advises: the port that istiod, or an agent, has to reach is left open to plaintext.
    mesh.lab.manifests().delete("strict.yaml")?;
    soon(&mesh, &one, 200).map(drop)
}
