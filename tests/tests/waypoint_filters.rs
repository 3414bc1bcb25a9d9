//! Filters of routes and those who judge: policies are about what the client asked for, as in Istio, whose router comes
//! after them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::jwt::Issuer;
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
