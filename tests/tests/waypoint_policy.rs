//! Who may make which request: AuthorizationPolicy and RequestAuthentication at a waypoint.
//!
//! Names follow Istio's ambient integration tests where there is one.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{EchoMesh, Seen};
use e2e::jwt::Issuer;
use e2e::net::http::{Ask, Conversation};
use e2e::net::serve::{Server, echo};
use e2e::net::{self, h2c};
use e2e::scenario::echoes;
use serde_json::json;

/// A policy of namespace `shop`, unless its name says another; `body` is its spec, indented by two.
fn policy(name: &str, namespace: &str, body: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: \
         {namespace}\nspec:\n{body}---\n"
    )
}

const TO_SERVICE: &str = "  targetRefs: [{kind: Service, group: \"\", name: echo}]\n";
const TO_GATEWAY: &str =
    "  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]\n";
const TO_CLASS: &str = "  targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]\n";
const CLIENT: &str = "cluster.local/ns/clients/sa/client";

/// A refusal as Istio's waypoint gives it.
fn is_refused(mesh: &EchoMesh, from: &str, to: SocketAddr, ask: &Ask) -> Result<()> {
    let answer = mesh.soon_answers(from, to, ask, 403)?;
    ensure!(answer.text() == "RBAC: access denied", "{}", answer.text());
    Ok(())
}

fn passes(mesh: &EchoMesh, from: &str, to: SocketAddr, ask: &Ask) -> Result<()> {
    mesh.soon_answers(from, to, ask, 200).map(drop)
}

#[test]
fn authorization_service_attached() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let (to, ask) = (mesh.at("echo", 80)?, Ask::get("/"));
    let rules = format!(
        "{TO_SERVICE}  rules:\n  - from: [{{source: {{principals: [{CLIENT}]}}}}]\n  - when: [{{key: \
         'request.headers[x-pass]', values: [please]}}]\n"
    );
    mesh.apply("policy.yaml", &policy("who", "shop", &rules))?;
    is_refused(&mesh, "stranger", to, &ask)?;
    passes(&mesh, "client", to, &ask)?;
    passes(&mesh, "stranger", to, &ask.clone().with("x-pass", "please"))?;
    is_refused(&mesh, "stranger", to, &ask.clone().with("x-pass", "now"))?;
    // It is about one service; another with the same pods is open.
    passes(&mesh, "stranger", mesh.at("echo-v1", 80)?, &ask)
}

#[test]
fn namespaces_take_a_star_anywhere() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let (to, ask) = (mesh.at("echo", 80)?, Ask::get("/"));
    // At the waypoint, and at the workloads themselves.
    let at_workloads = "  selector: {matchLabels: {app: echo}}\n";
    for (place, refused) in [(TO_SERVICE, Some(403)), (at_workloads, None)] {
        let allow = |namespace: &str| {
            let rules = format!(
                "{place}  rules: [{{from: [{{source: {{namespaces: ['{namespace}']}}}}]}}]\n"
            );
            mesh.apply("policy.yaml", &policy("where", "shop", &rules))
        };
        allow("c*i*s")?;
        passes(&mesh, "client", to, &ask)?;
        allow("c*i*x")?;
        mesh.soon("nobody is of such a namespace", || {
            let answer = mesh.ask("client", to, &ask).ok();
            let status = answer.map(|answer| answer.status);
            ensure!(
                status.is_none_or(|status| Some(status) == refused || status == 503),
                "{status:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn applications_are_told_who_calls_where_the_waypoint_says_so() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    let told = "By=spiffe://cluster.local/ns/shop/sa/waypoint;URI=spiffe://cluster.local/ns/clients/sa/client";
    let forged = Ask::get("/").with(
        "x-forwarded-client-cert",
        "URI=spiffe://cluster.local/ns/a/sa/b",
    );
    let header = |ask: &Ask| {
        let seen = mesh.seen("client", to, ask)?;
        anyhow::Ok(seen.header("x-forwarded-client-cert"))
    };
    // What a client says of itself is nobody's word.
    for ask in [&Ask::get("/"), &forged] {
        let named = header(ask)?;
        ensure!(named.is_none(), "{named:?}");
    }
    let labels = "{}\n  annotations: {ambient.istio.io/xfcc-include-client-identity: 'true'}";
    mesh.waypoint("shop", "waypoint", labels, "")?;
    mesh.soon("the application is told", || {
        let named = header(&forged)?;
        ensure!(named.as_deref() == Some(told), "{named:?}");
        Ok(())
    })
}

#[test]
fn authorization_l7() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    let allow = format!(
        "{TO_GATEWAY}  action: ALLOW\n  rules:\n  - to: [{{operation: {{paths: [/allowed], methods: [GET]}}}}]\n  \
         - to: [{{operation: {{paths: ['/allowed-wildcard*'], methods: [GET]}}}}]\n  \
         - to: [{{operation: {{paths: [/allowed-identity], methods: [GET]}}}}]\n    from: [{{source: {{principals: \
         [{CLIENT}]}}}}]\n  \
         - to: [{{operation: {{paths: [/denied-identity], methods: [GET]}}}}]\n    from: [{{source: {{principals: \
         [cluster.local/ns/clients/sa/nobody]}}}}]\n  \
         - to: [{{operation: {{paths: [/header]}}}}]\n    when: [{{key: 'request.headers[x-good]', values: [yes]}}]\n  \
         - to: [{{operation: {{paths: [/not-header]}}}}]\n    when: [{{key: 'request.headers[x-bad]', notValues: \
         ['yes']}}]\n  \
         - to: [{{operation: {{paths: [/explicit-deny]}}}}]\n  \
         - to: [{{operation: {{paths: ['/template/{{*}}/end', '/rest/{{**}}']}}}}]\n"
    )
    .replace("[yes]", "['yes']");
    let deny = format!(
        "{TO_GATEWAY}  action: DENY\n  rules:\n  - to: [{{operation: {{paths: [/explicit-deny], methods: [POST]}}}}]\n"
    );
    mesh.apply(
        "policy.yaml",
        &[
            policy("allow", "shop", &allow),
            policy("deny", "shop", &deny),
        ]
        .concat(),
    )?;
    let post = |path: &str| Ask::new("POST", path);
    is_refused(&mesh, "client", to, &Ask::get("/deny"))?;
    for (ask, may) in [
        (Ask::get("/allowed"), true),
        (Ask::get("/allowed?with=query"), true),
        (post("/allowed"), false),
        (Ask::get("/allowed/not"), false),
        (Ask::get("/denied-identity"), false),
        (Ask::get("/allowed-identity"), true),
        (Ask::get("/allowed-wildcardtest"), true),
        (Ask::get("/header").with("x-good", "yes"), true),
        (Ask::get("/header"), false),
        (Ask::get("/not-header").with("x-bad", "yes"), false),
        (Ask::get("/not-header").with("x-bad", "no"), true),
        (post("/explicit-deny"), false),
        (Ask::get("/explicit-deny"), true),
        (Ask::get("/template/one/end"), true),
        (Ask::get("/template/one/two/end"), false),
        (Ask::get("/rest/one/two"), true),
        // Ways around a path that is compared as text (RFC 3986 §6.2.2).
        (Ask::get("/allowed/../deny"), false),
        (Ask::get("/%61llowed"), true),
        (Ask::get("/./allowed"), true),
        (Ask::get("/x/..\\allowed"), true),
        (Ask::get("//allowed"), false),
    ] {
        let check = if may { passes } else { is_refused };
        check(&mesh, "client", to, &ask).with_context(|| format!("{ask:?}"))?;
    }
    is_refused(&mesh, "stranger", to, &Ask::get("/allowed-identity"))
}

#[test]
fn a_policy_about_requests_without_a_waypoint_allows_nothing() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    mesh.namespace("shop", &[])?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, false)?;
    let body = "  selector: {matchLabels: {app: echo}}\n  rules:\n  - to: [{operation: {methods: [GET]}}]\n";
    mesh.apply("policy.yaml", &policy("l7-by-selector", "shop", body))?;
    mesh.soon("nothing passes", || {
        let answer = mesh.ask("client", to, &Ask::get("/"));
        ensure!(answer.is_err(), "it passes");
        Ok(())
    })
}

#[test]
fn authorization_waypoint_default_deny() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    mesh.namespace("istio-system", &[])?;
    let (to, ask) = (mesh.at("echo", 80)?, Ask::get("/"));
    // Of the class, from the root namespace, and of the waypoint: each allows nothing.
    for (namespace, target) in [("istio-system", TO_CLASS), ("shop", TO_GATEWAY)] {
        mesh.apply("policy.yaml", &policy("nothing", namespace, target))?;
        is_refused(&mesh, "client", to, &ask)?;
        // A service opens what it needs.
        let open =
            format!("{TO_SERVICE}  rules: [{{from: [{{source: {{principals: [{CLIENT}]}}}}]}}]\n");
        mesh.apply("open.yaml", &policy("open", "shop", &open))?;
        passes(&mesh, "client", to, &ask)?;
        is_refused(&mesh, "stranger", to, &ask)?;
        mesh.lab.manifests().delete("open.yaml")?;
        mesh.lab.manifests().delete("policy.yaml")?;
        passes(&mesh, "stranger", to, &ask)?;
    }
    Ok(())
}

#[test]
fn authorization_l4() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let (to, ask) = (mesh.at("echo", 80)?, Ask::get("/"));
    let only = |principal: &str| {
        let body = format!(
            "  selector: {{matchLabels: {{app: echo}}}}\n  rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]\n"
        );
        policy("only", "shop", &body)
    };
    // Two styles of policy that users wrote for pods behind a waypoint: its account, or the real clients'.
    mesh.apply("policy.yaml", &only("cluster.local/ns/shop/sa/waypoint"))?;
    passes(&mesh, "client", to, &ask)?;
    passes(&mesh, "stranger", to, &ask)?;
    // Around the waypoint nobody gets in.
    let itself = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    mesh.soon("the pod's own address is closed", || {
        ensure!(mesh.ask("client", itself, &ask).is_err(), "it is open");
        Ok(())
    })?;
    mesh.apply("policy.yaml", &only(CLIENT))?;
    passes(&mesh, "client", to, &ask)?;
    mesh.soon("a stranger is kept out", || {
        let answer = mesh.ask("stranger", to, &ask);
        let is_out = answer.map_or(true, |answer| matches!(answer.status, 403 | 503));
        ensure!(is_out, "it gets in");
        Ok(())
    })?;
    ensure!(
        mesh.ask("outside", itself, &ask).is_err(),
        "no identity, no entry"
    );
    Ok(())
}

#[test]
fn a_refused_call_is_answered_in_grpc() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 7070)?;
    let body = format!(
        "{TO_SERVICE}  action: DENY\n  rules: [{{to: [{{operation: {{paths: [/shop.Books/Burn]}}}}]}}]\n"
    );
    mesh.apply("policy.yaml", &policy("no-fire", "shop", &body))?;
    let call = |path: &str| {
        let ask = Ask::get(path);
        mesh.pod("client")?
            .run(|| h2c::Connection::open(to)?.call(&ask))
    };
    mesh.soon("the call is refused", || {
        let answer = call("/shop.Books/Burn")?;
        // PERMISSION_DENIED, in a response that is HTTP's 200.
        ensure!(
            (answer.response.status, answer.status) == (200, 7),
            "{answer:?}"
        );
        Ok(())
    })?;
    ensure!(call("/shop.Books/List")?.status == 0, "others pass");
    Ok(())
}

#[test]
fn a_dry_run_policy_refuses_nobody() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let (to, ask) = (mesh.at("echo", 80)?, Ask::get("/"));
    let real = policy(
        "nobody",
        "shop",
        &format!("{TO_SERVICE}  action: DENY\n  rules: [{{}}]\n"),
    );
    mesh.apply("policy.yaml", &real)?;
    is_refused(&mesh, "client", to, &ask)?;
    let dry = real.replace(
        "metadata:\n",
        "metadata:\n  annotations: {istio.io/dry-run: 'true'}\n",
    );
    mesh.apply("policy.yaml", &dry)?;
    passes(&mesh, "client", to, &ask)
}

#[test]
fn a_policy_change_holds_for_requests_of_live_connections() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        ensure!(conversation.ask(&Ask::get("/"))?.status == 200);
        let deny = format!("{TO_SERVICE}  action: DENY\n  rules: [{{}}]\n");
        mesh.apply("policy.yaml", &policy("nobody", "shop", &deny))?;
        mesh.soon("the next request is refused", || {
            let answer = mesh.ask("client", to, &Ask::get("/"))?;
            ensure!(answer.status == 403, "{}", answer.status);
            Ok(())
        })?;
        // The connection lives: what is refused is the request.
        let answer = conversation.ask(&Ask::get("/"))?;
        ensure!(answer.status == 403, "{}", answer.status);
        Ok(())
    })
}

#[test]
fn a_policy_change_ends_connections_of_bytes_that_it_refuses() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let _bytes = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, 9090, echo)?;
    let to = mesh.at("echo-v1", 9090)?;
    let about = "  targetRefs: [{kind: Service, group: \"\", name: echo-v1}]\n";
    mesh.pod("client")?.run(|| {
        let carried = || echoes(&net::connect(to)?, "bytes");
        mesh.soon("bytes are carried", carried)?;
        let live = net::connect(to)?;
        echoes(&live, "before")?;
        let allow =
            format!("{about}  rules: [{{from: [{{source: {{principals: [{CLIENT}]}}}}]}}]\n");
        mesh.apply("policy.yaml", &policy("who", "shop", &allow))?;
        mesh.soon("a stranger is refused", || {
            let stranger = mesh.pod("stranger")?;
            let carried = stranger.run(|| echoes(&net::connect(to)?, "bytes"));
            ensure!(carried.is_err(), "its bytes are carried");
            Ok(())
        })?;
        echoes(&live, "allowed")?;
        let deny = format!("{about}  action: DENY\n  rules: [{{}}]\n");
        mesh.apply("policy.yaml", &policy("who", "shop", &deny))?;
        mesh.soon("the live connection ends", || {
            ensure!(echoes(&live, "after").is_err(), "it lives");
            Ok(())
        })?;
        ensure!(carried().is_err(), "another one is let in");
        Ok(())
    })
}

#[test]
fn silence_hides_no_request() -> Result<()> {
    const UNDECLARED: u16 = 5555;
    const BYTES: u16 = 9090;
    let mut mesh = EchoMesh::shop()?;
    let ports =
        format!("  - {{name: other, port: {UNDECLARED}}}\n  - {{name: tcp, port: {BYTES}}}\n");
    let selector = "{app: echo, version: v1}";
    mesh.service_with("shop", "echo-v1", "{}", selector, &ports)?;
    let pod = mesh.pod("echo-v1")?;
    let start = |port| Server::start(pod, Ipv6Addr::UNSPECIFIED, port, echo);
    let _servers = [start(UNDECLARED)?, start(BYTES)?];
    let are_carried = |port: u16, expected: bool| {
        let to = mesh.at("echo-v1", port)?;
        let client = mesh.pod("client")?;
        mesh.soon(&format!("bytes to {port} are carried: {expected}"), || {
            // No request begins like that.
            let carried = client.run(|| echoes(&net::connect(to)?, "\0bytes"));
            ensure!(carried.is_ok() == expected, "{carried:?}");
            Ok(())
        })
    };
    are_carried(UNDECLARED, true)?;
    are_carried(BYTES, true)?;
    let about = "  targetRefs: [{kind: Service, group: \"\", name: echo-v1}]\n";
    // A token that nobody looks at might be a bad one, where requests may be spoken.
    mesh.apply(
        "policy.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: shop}}\n\
             spec:\n{about}  jwtRules: [{{issuer: nobody, jwks: '{{\"keys\":[]}}'}}]\n"
        ),
    )?;
    are_carried(UNDECLARED, false)?;
    are_carried(BYTES, true)?;
    // Which requests these are cannot be seen, wherever they are.
    let deny =
        format!("{about}  action: DENY\n  rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]\n");
    mesh.apply("policy.yaml", &policy("admin", "shop", &deny))?;
    are_carried(UNDECLARED, false)?;
    are_carried(BYTES, false)
}

/// RequestAuthentication for the service, trusting two issuers.
fn trusting(issuers: &[&Issuer]) -> Result<String> {
    let head = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata:\n  name: tokens\n  namespace: \
         shop\nspec:\n{TO_SERVICE}  jwtRules:\n"
    );
    let rule = |issuer: &&Issuer| {
        let (name, keys) = (issuer.name(), issuer.jwks()?);
        Ok(format!(
            "  - issuer: {name}\n    jwks: '{keys}'\n    outputClaimToHeaders: [{{header: x-sub, claim: sub}}]\n"
        ))
    };
    let rules = issuers.iter().map(rule).collect::<Result<Vec<_>>>()?;
    Ok(head + &rules.concat())
}

#[test]
fn l7_jwt() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    let [one, two, three] = ["issuer-1", "issuer-2", "issuer-3"].map(Issuer::new);
    let (one, two, three) = (one?, two?, three?);
    let needs_a_token = format!(
        "{TO_SERVICE}  rules:\n  - from: [{{source: {{requestPrincipals: [issuer-1/sub-1]}}}}]\n  - to: [{{operation: \
         {{paths: [/healthz]}}}}]\n  - when: [{{key: 'request.auth.claims[groups]', values: [admins]}}]\n"
    );
    mesh.apply("tokens.yaml", &trusting(&[&one, &two])?)?;
    mesh.apply("policy.yaml", &policy("tokens", "shop", &needs_a_token))?;
    let bearing = |token: &str| Ask::get("/").with("Authorization", &format!("Bearer {token}"));
    let no_more = json!({});
    is_refused(&mesh, "client", to, &Ask::get("/"))?;
    passes(
        &mesh,
        "client",
        to,
        &bearing(&one.token("sub-1", &no_more)?),
    )?;
    // Known, but not allowed.
    is_refused(
        &mesh,
        "client",
        to,
        &bearing(&two.token("sub-2", &no_more)?),
    )?;
    passes(
        &mesh,
        "client",
        to,
        &bearing(&two.token("sub-2", &json!({"groups": ["users", "admins"]}))?),
    )?;
    // Unknown, expired, tampered with, no token at all.
    let good = one.token("sub-1", &no_more)?;
    let (head, signature) = good.rsplit_once('.').context("a token has three parts")?;
    let tampered = format!("{head}A.{signature}");
    for (token, why) in [
        (
            three.token("sub-1", &no_more)?,
            "Jwt issuer is not configured",
        ),
        (one.expired_token("sub-1")?, "Jwt is expired"),
        (tampered, "Jwt"),
        ("no.token".to_owned(), "Jwt"),
    ] {
        let answer = mesh.soon_answers("client", to, &bearing(&token), 401)?;
        ensure!(answer.text().starts_with(why), "{}", answer.text());
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        ensure!(challenge.contains("invalid_token"), "{challenge}");
    }
    passes(&mesh, "client", to, &Ask::get("/healthz"))?;
    // The application gets the claim and not the token.
    let seen: Seen = mesh.seen("client", to, &bearing(&good))?;
    ensure!(seen.header("x-sub").as_deref() == Some("sub-1"), "{seen:?}");
    ensure!(seen.header("authorization").is_none(), "{seen:?}");
    Ok(())
}

#[test]
fn clients_outside_the_mesh_bring_tokens_where_the_label_says_so() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let [known, unknown] = ["issuer-1", "issuer-2"].map(Issuer::new);
    let (known, unknown) = (known?, unknown?);
    let rules = format!(
        "{TO_SERVICE}  rules: [{{from: [{{source: {{requestPrincipals: [issuer-1/sub-1]}}}}]}}]\n"
    );
    mesh.apply("tokens.yaml", &trusting(&[&known])?)?;
    mesh.apply("policy.yaml", &policy("tokens", "shop", &rules))?;
    let label = "{istio.io/ingress-use-waypoint: 'true'}";
    mesh.service("shop", "echo", label, "{app: echo}")?;
    let to = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    let bearing = |token: &str| Ask::get("/").with("Authorization", &format!("Bearer {token}"));
    is_refused(&mesh, "outside", to, &Ask::get("/"))?;
    let good = bearing(&known.token("sub-1", &json!({}))?);
    passes(&mesh, "outside", to, &good)?;
    let seen = mesh.seen("outside", to, &good)?;
    ensure!(seen.header("x-sub").as_deref() == Some("sub-1"), "{seen:?}");
    is_refused(
        &mesh,
        "outside",
        to,
        &bearing(&known.token("sub-2", &json!({}))?),
    )?;
    let forged = bearing(&unknown.token("sub-1", &json!({}))?);
    mesh.soon_answers("outside", to, &forged, 401).map(drop)
}
