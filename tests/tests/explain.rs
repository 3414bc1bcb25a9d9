//! What `culvert explain` expects is what a real request then gets.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use e2e::net::http::{Ask, Response};
use serde_json::Value;

/// A shop whose services `split`, `guarded`, `closed`, `faulty` and `rewritten` each have a rule of their own.
fn shop() -> Result<EchoMesh> {
    let mut mesh = EchoMesh::shop()?;
    for service in ["split", "guarded", "closed", "faulty", "rewritten"] {
        mesh.service("shop", service, "{}", "{app: echo}")?;
    }
    mesh.apply("rules.yaml", RULES)?;
    Ok(mesh)
}

const RULES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: split}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /shop}}]
    backendRefs: [{name: echo-v1, port: 80, weight: 90}, {name: echo-v2, port: 80, weight: 10}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /shop}}}]
  - matches: [{path: {type: Exact, value: /nowhere}}]
    backendRefs: [{name: nobody, port: 80}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: guarded}]
  jwtRules: [{issuer: nobody, jwks: '{"keys":[]}'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: guarded}]
  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: closed}]
  rules: [{from: [{source: {principals: [cluster.local/ns/clients/sa/client]}}], to: [{operation: {methods: [GET]}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faulty, namespace: shop}
spec:
  hosts: [faulty]
  http:
  - match: [{uri: {prefix: /broken}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: faulty}}]
  - route: [{destination: {host: faulty}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: rewritten, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: rewritten}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /api}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: rewritten, port: 80}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: original, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: rewritten}]
  action: DENY
  rules: [{to: [{operation: {paths: ['/api/admin*', '/hidden']}}]}]
"#;

/// Who asks, which service, how, and which status comes back.
const CALLS: [(&str, &str, &str, &str, u16); 13] = [
    ("client", "echo", "GET", "/", 200),
    ("client", "split", "GET", "/shop/cart?a=b", 200),
    ("client", "split", "GET", "/shopping", 404),
    ("client", "split", "GET", "/old", 302),
    ("client", "split", "GET", "/nowhere", 500),
    ("client", "guarded", "GET", "/", 403),
    ("client", "closed", "GET", "/", 200),
    ("client", "closed", "POST", "/", 403),
    ("stranger", "closed", "GET", "/", 403),
    ("client", "faulty", "GET", "/whole", 200),
    ("client", "rewritten", "GET", "/api/admin", 403),
    ("client", "rewritten", "GET", "/api/hidden", 200),
    // Refused before it is said that no route matches.
    ("client", "rewritten", "GET", "/hidden", 403),
];

/// What the agent of the client's node expects.
fn explain(mesh: &EchoMesh, from: &str, to: &str, how: &[&str]) -> Result<Value> {
    let from = format!("clients/{from}");
    let mut arguments = vec!["explain", "--from", &from, "--to", to, "-o", "json"];
    arguments.extend(how);
    let output = mesh.lab.node("a")?.culvert(&arguments)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {complaint}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The status that is expected: the application's own is 200.
fn expected(explanation: &Value) -> Result<u64> {
    let expected = &explanation["expected"];
    if expected["isDelivered"] == true {
        return Ok(200);
    }
    expected["status"]
        .as_u64()
        .with_context(|| format!("no status in {explanation}"))
}

#[test]
fn a_request_gets_what_is_expected_of_it() -> Result<()> {
    let mesh = shop()?;
    for (from, service, method, path, status) in CALLS {
        let to = mesh.at(service, 80)?;
        mesh.soon_answers(from, to, &Ask::new(method, path), status)
            .with_context(|| format!("{from} to {service}"))?;
        let host = format!("{service}.shop:80");
        let explanation = explain(&mesh, from, &host, &[method, path])?;
        let found = expected(&explanation)?;
        ensure!(
            found == u64::from(status),
            "{from} gets {status} from {method} {host}{path}, and {found} is expected: {explanation}"
        );
    }
    Ok(())
}

#[test]
fn shares_and_rules_are_told() -> Result<()> {
    let mesh = shop()?;
    let to = mesh.at("split", 80)?;
    mesh.soon_answers("client", to, &Ask::get("/shop"), 200)?;
    let explanation = explain(&mesh, "client", "split.shop:80", &["GET", "/shop"])?;
    let backends = explanation["backends"].as_array().context("backends")?;
    let shares: Vec<_> = backends
        .iter()
        .map(|backend| (backend["name"].as_str(), backend["weight"].as_u64()))
        .collect();
    ensure!(
        shares
            == [
                (Some("shop/echo-v1.shop.svc.cluster.local"), Some(90)),
                (Some("shop/echo-v2.shop.svc.cluster.local"), Some(10))
            ],
        "{explanation}"
    );
    ensure!(
        explanation["waypoint"]["name"] == "shop/waypoint",
        "{explanation}"
    );
    ensure!(
        explanation["route"]["origin"] == "HTTPRoute shop/split",
        "{explanation}"
    );
    Ok(())
}

#[test]
fn limits_are_told_and_not_used_up() -> Result<()> {
    let mesh = shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.apply(
        "limits.yaml",
        "apiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: few, namespace: shop}\nspec:\n  \
         targetRefs: [{group: '', kind: Service, name: echo}]\n  limits:\n  - {requests: 3, period: 1h, burst: 3, per: \
         [clientIdentity]}\n",
    )?;
    let told = || {
        let explanation = explain(&mesh, "client", "echo.shop:80", &["GET", "/"])?;
        let limit = &explanation["limits"][0];
        ensure!(
            limit["name"] == "shop/few[0]"
                && limit["keptBy"] == "client's node"
                && limit["bucket"] == "client_identity=spiffe://cluster.local/ns/clients/sa/client"
                && limit["cost"] == "1 of 3 tokens, of which 3 come back per 3600s",
            "{explanation}"
        );
        let why = explanation["expected"]["why"].as_str();
        let names = |why: &str| why.ends_with("429 instead once shop/few[0] is used up");
        ensure!(why.is_some_and(names), "{explanation}");
        ensure!(expected(&explanation)? == 200, "{explanation}");
        Ok(())
    };
    mesh.soon("the limit is told", told)?;
    // What is asked before a worker knows of the limit is not counted.
    let left = |answer: &Response| answer.header("x-ratelimit-remaining").map(str::to_owned);
    eventually("the limit is in force", Duration::from_secs(5), || {
        let answer = mesh.ask("client", to, &Ask::get("/"))?;
        ensure!(left(&answer).as_deref() == Some("2"), "{answer:?}");
        Ok(())
    })?;
    for remaining in ["1", "0"] {
        (0..5).try_for_each(|_| told())?;
        let answer = mesh.ask("client", to, &Ask::get("/"))?;
        ensure!(
            answer.status == 200 && left(&answer).as_deref() == Some(remaining),
            "{answer:?}"
        );
    }
    let answer = mesh.ask("client", to, &Ask::get("/"))?;
    ensure!(answer.status == 429, "{answer:?}");
    Ok(())
}

#[test]
fn an_injected_fault_is_told_and_expected() -> Result<()> {
    let mesh = shop()?;
    let to = mesh.at("faulty", 80)?;
    mesh.soon_answers("client", to, &Ask::get("/broken/x"), 418)?;
    let explanation = explain(&mesh, "client", "faulty.shop:80", &["GET", "/broken/x"])?;
    let filters = explanation["route"]["filters"].as_array();
    let aborts = |filter: &Value| filter == "aborts 100 % of requests with 418 I'm a teapot";
    ensure!(
        filters.is_some_and(|filters| filters.iter().any(aborts)),
        "{explanation}"
    );
    ensure!(expected(&explanation)? == 418, "{explanation}");
    Ok(())
}

#[test]
fn a_plain_connection_is_explained_as_one() -> Result<()> {
    let mesh = shop()?;
    let pod = mesh.pod("echo-v1")?.v4();
    let to = format!("{pod}:8080");
    let explanation = explain(&mesh, "client", &to, &[])?;
    ensure!(
        explanation["expected"]["isDelivered"] == true,
        "{explanation}"
    );
    ensure!(explanation["waypoint"]["name"].is_null(), "{explanation}");
    mesh.soon_answers("client", (pod, 8080).into(), &Ask::get("/"), 200)?;
    // Layer 4 refuses by connection: no status is expected, and none comes.
    mesh.apply(
        "layer4.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: layer4, namespace: shop}\nspec:\n  \
         selector: {matchLabels: {app: echo}}\n  action: DENY\n  rules: [{from: [{source: {namespaces: [clients]}}]}]\n",
    )?;
    mesh.soon("the connection is refused", || {
        let answer = mesh.ask("client", (pod, 8080).into(), &Ask::get("/"));
        ensure!(answer.is_err(), "it is answered");
        Ok(())
    })?;
    let explanation = explain(&mesh, "client", &to, &[])?;
    let expected = &explanation["expected"];
    ensure!(
        expected["isDelivered"] == false && expected["status"].is_null(),
        "{explanation}"
    );
    Ok(())
}
