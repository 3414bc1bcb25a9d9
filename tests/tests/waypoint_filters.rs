//! Filters of routes and those who judge: policies are about what the client asked for, as in Istio, whose router comes
//! after them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh};
use e2e::jwt::Issuer;
use e2e::lab::PodSpec;
use e2e::net::http::Ask;
use serde_json::json;

/// What is below `/api` is forwarded without that, in another host's name and without credentials.
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: api, namespace: shop}\nspec:\n  \
    parentRefs: [{group: '', kind: Service, name: echo, port: 80}]\n  rules:\n  \
    - matches: [{path: {value: /api}}]\n    filters:\n    \
    - {type: URLRewrite, urlRewrite: {hostname: inner, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}\n    \
    - {type: RequestHeaderModifier, requestHeaderModifier: {remove: [authorization], set: [{name: x-role, value: api}]}}\n    \
    backendRefs: [{name: echo-v1, port: 80}, {name: echo-v2, port: 80}]\n  \
    - backendRefs: [{name: echo, port: 80}]\n";

/// An AuthorizationPolicy for the service `echo`; `body` is the rest of its spec, indented by two.
fn policy(body: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: judge, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Service, group: '', name: echo}}]\n{body}"
    )
}

/// A shop with the route in force.
fn shop() -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.apply("route.yaml", ROUTE)?;
    mesh.soon("paths are rewritten", || {
        let seen = mesh.seen("client", to, &Ask::get("/api/ok?a=b"))?;
        ensure!(seen.path == "/ok?a=b" && seen.host == "inner", "{seen:?}");
        ensure!(seen.header("x-role").as_deref() == Some("api"), "{seen:?}");
        let told = seen
            .headers
            .iter()
            .find(|(name, _)| name.starts_with("x-culvert"));
        ensure!(told.is_none(), "{told:?}");
        Ok(())
    })?;
    Ok((mesh, to))
}

fn answers(mesh: &EchoMesh, to: SocketAddr, table: &[(&str, u16)]) -> Result<()> {
    for (path, status) in table {
        mesh.soon_answers("client", to, &Ask::get(path), *status)
            .with_context(|| (*path).to_owned())?;
    }
    Ok(())
}

#[test]
fn a_rewrite_leads_around_no_refusal() -> Result<()> {
    let (mesh, to) = shop()?;
    let deny =
        "  action: DENY\n  rules: [{to: [{operation: {paths: ['/api/admin*', /secret]}}]}]\n";
    mesh.apply("policy.yaml", &policy(deny))?;
    answers(
        &mesh,
        to,
        &[
            ("/api/admin/x", 403),
            ("/secret", 403),
            // It is the client's own path that counts, whatever comes of it.
            ("/api/secret", 200),
            ("/admin/x", 200),
            ("/api/ok", 200),
        ],
    )?;
    // Nobody pretends to have asked for something else.
    let forged = "L2FwaS9vawplY2hvCg";
    let ask = Ask::get("/api/admin/x").with("x-culvert-original", forged);
    mesh.soon_answers("client", to, &ask, 403)?;
    let ask = Ask::get("/ok").with("x-culvert-original", forged);
    let seen = mesh.seen("client", to, &ask)?;
    ensure!(seen.header("x-culvert-original").is_none(), "{seen:?}");
    // By what a filter sets: nobody has said that.
    let deny =
        "  action: DENY\n  rules: [{when: [{key: 'request.headers[x-role]', values: [api]}]}]\n";
    mesh.apply("policy.yaml", &policy(deny))?;
    answers(&mesh, to, &[("/api/admin/x", 200)])?;
    let ask = Ask::get("/api/ok").with("x-role", "api");
    mesh.soon_answers("client", to, &ask, 403).map(drop)
}

#[test]
fn a_rewrite_takes_no_permission_away() -> Result<()> {
    let (mesh, to) = shop()?;
    let allow = "  rules: [{to: [{operation: {paths: ['/api/*'], hosts: [shop.example]}}]}]\n";
    mesh.apply("policy.yaml", &policy(allow))?;
    let at = |path: &str| Ask::get(path).host("shop.example");
    mesh.soon_answers("client", to, &at("/ok"), 403)?;
    mesh.soon_answers("client", to, &at("/api/ok"), 200)?;
    mesh.soon_answers("client", to, &Ask::get("/api/ok"), 403)
        .map(drop)
}

#[test]
fn tokens_are_seen_before_a_filter_takes_them_away() -> Result<()> {
    let (mesh, to) = shop()?;
    let issuer = Issuer::new("issuer-1")?;
    let (name, keys) = (issuer.name(), issuer.jwks()?);
    mesh.apply(
        "tokens.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: shop}}\nspec:\n  \
             targetRefs: [{{kind: Service, group: '', name: echo}}]\n  jwtRules:\n  - issuer: {name}\n    jwks: '{keys}'\n    \
             forwardOriginalToken: true\n    outputClaimToHeaders: [{{header: x-sub, claim: sub}}]\n"
        ),
    )?;
    let allow = "  rules: [{from: [{source: {requestPrincipals: [issuer-1/sub-1]}}]}]\n";
    mesh.apply("policy.yaml", &policy(allow))?;
    let token = issuer.token("sub-1", &json!({}))?;
    answers(&mesh, to, &[("/api/ok", 403), ("/ok", 403)])?;
    let ask = Ask::get("/api/ok").with("Authorization", &format!("Bearer {token}"));
    mesh.soon_answers("client", to, &ask, 200)?;
    let seen = mesh.seen("client", to, &ask)?;
    let got = ["authorization", "x-sub"].map(|name| seen.header(name));
    ensure!(got == [None, Some("sub-1".to_owned())], "{got:?}");
    Ok(())
}

/// A route of the clients' own namespace that makes something else of what is below `/public`.
const CONSUMER_ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: mine, namespace: clients}\nspec:\n  \
    parentRefs: [{group: '', kind: Service, name: echo, namespace: shop, port: 80}]\n  rules:\n  \
    - matches: [{path: {value: /public}}]\n    filters:\n    \
    - {type: URLRewrite, urlRewrite: {hostname: inner, path: {type: ReplacePrefixMatch, replacePrefixMatch: /admin}}}\n    \
    backendRefs:\n    - {name: echo, namespace: shop, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: \
    {set: [{name: x-role, value: boss}]}}]}\n  \
    - backendRefs: [{name: echo, namespace: shop, port: 80}]\n";

/// Policies are about what the client's side has made of a request: nobody else has asked for that.
fn a_consumer_route_pretends_nothing(mesh: &EchoMesh, to: SocketAddr) -> Result<()> {
    mesh.apply("mine.yaml", CONSUMER_ROUTE)?;
    mesh.soon("the clients' own route is in force", || {
        let seen = mesh.seen("client", to, &Ask::get("/public/x"))?;
        let role = seen.header("x-role");
        ensure!(
            (seen.path.as_str(), role.as_deref()) == ("/admin/x", Some("boss")),
            "{seen:?}"
        );
        Ok(())
    })?;
    let public = "  rules: [{to: [{operation: {paths: ['/public/*']}}]}]\n";
    mesh.apply("policy.yaml", &policy(public))?;
    answers(mesh, to, &[("/public/x", 403), ("/admin/x", 403)])?;
    let no_admin = "  action: DENY\n  rules: [{to: [{operation: {paths: ['/admin/*']}}]}]\n";
    mesh.apply("policy.yaml", &policy(no_admin))?;
    answers(mesh, to, &[("/else", 200), ("/public/x", 403)])?;
    let no_boss =
        "  action: DENY\n  rules: [{when: [{key: 'request.headers[x-role]', values: [boss]}]}]\n";
    mesh.apply("policy.yaml", &policy(no_boss))?;
    answers(mesh, to, &[("/else", 200), ("/public/x", 403)])?;
    // What is allowed is what arrives.
    let admin = "  rules: [{to: [{operation: {paths: ['/admin/*'], hosts: [inner]}}]}]\n";
    mesh.apply("policy.yaml", &policy(admin))?;
    answers(mesh, to, &[("/else", 403), ("/public/x", 200)])
}

#[test]
fn a_route_of_the_clients_namespace_pretends_nothing() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    a_consumer_route_pretends_nothing(&mesh, to)?;
    let explained = mesh.lab.node("a")?.culvert(&[
        "explain",
        "--from",
        "clients/client",
        "--to",
        &to.to_string(),
        "GET",
        "/public/x",
    ])?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(explained.contains("the application answers"), "{explained}");
    mesh.apply(
        "policy.yaml",
        &policy("  rules: [{to: [{operation: {paths: ['/public/*']}}]}]\n"),
    )?;
    mesh.soon_answers("client", to, &Ask::get("/public/x"), 403)
        .map(drop)
}

/// Where nobody else judges, the client's node does.
#[test]
fn a_route_of_the_clients_namespace_pretends_nothing_outside_the_mesh_either() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    for name in ["echo-v1", "echo-v2"] {
        let pod = mesh.pod(name)?;
        let unready = pod.manifest_as(true, false);
        mesh.apply(&pod.file(), &unready)?;
    }
    let spec = PodSpec::new("b", "plain").in_namespace("shop");
    let spec = spec.as_account("echo").with_label("app", "echo");
    let pod = mesh.lab.place(&spec.uncaptured())?;
    let _echo = Echo::start(&pod, &[8080])?;
    let to = mesh.at("echo", 80)?;
    mesh.soon("the pod outside of the mesh answers", || {
        let seen = mesh.seen("client", to, &Ask::get("/"))?;
        ensure!(seen.pod == "plain", "{} answers", seen.pod);
        Ok(())
    })?;
    a_consumer_route_pretends_nothing(&mesh, to)
}
