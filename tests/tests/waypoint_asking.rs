//! What is decided by asking another server: AuthorizationPolicy with action CUSTOM over HTTP and gRPC, and limits of
//! the whole mesh.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::authorizer::{Authorizer, Question};
use e2e::echo::{EchoMesh, Seen};
use e2e::lab::PodSpec;
use e2e::net::h2c;
use e2e::net::http::Ask;
use e2e::rate_limiter::RateLimiter;

/// Where the authorizer listens, for both of its protocols.
const AUTHORIZER_PORT: u16 = 9000;
const BOTH: [&str; 2] = ["http", "grpc"];

/// A shop with an authorizer in a pod of its own on node a, which is the other one than `echo-v1`'s.
fn shop() -> Result<(EchoMesh, Authorizer)> {
    let mut mesh = EchoMesh::shop()?;
    mesh.namespace("authz", &[])?;
    let spec = PodSpec::new("a", "authz").in_namespace("authz");
    let pod = mesh.lab.place(&spec)?;
    let authorizer = Authorizer::start(&pod, AUTHORIZER_PORT)?;
    let ports = format!("  - {{name: http, port: {AUTHORIZER_PORT}}}\n");
    mesh.service_with("authz", "authz", "{}", "{app: authz}", &ports)?;
    mesh.soon("the authorizer can be asked", || {
        let answer = mesh.ask("client", mesh.at("authz", AUTHORIZER_PORT)?, &Ask::get("/"))?;
        ensure!(answer.status == 403, "{answer:?}");
        Ok(())
    })?;
    authorizer.heard();
    Ok((mesh, authorizer))
}

/// The mesh's configuration with providers `http` and `grpc`, each with these settings.
fn providers(http: &str, grpc: &str) -> String {
    let service = format!("service: authz.authz.svc.cluster.local, port: {AUTHORIZER_PORT}");
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         extensionProviders:\n    - name: http\n      envoyExtAuthzHttp: {{{service}, includeRequestHeadersInCheck: \
         [x-ext-*]{http}}}\n    - name: grpc\n      envoyExtAuthzGrpc: {{{service}{grpc}}}\n"
    )
}

/// Asks a provider about what `rules` match of the requests to a service.
fn custom(service: &str, provider: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Service, group: \"\", name: {service}}}]\n  action: CUSTOM\n  provider: {{name: \
         {provider}}}\n  rules: {rules}\n"
    )
}

fn wishing(wish: &str) -> Ask {
    Ask::get("/any?with=query").with("x-ext-authz", wish)
}

/// Waits until what nobody wishes for is refused in the authorizer's words.
fn soon_asked(mesh: &EchoMesh, to: SocketAddr) -> Result<()> {
    mesh.soon("the authorizer is asked", || {
        let answer = mesh.ask("client", to, &Ask::get("/any"))?;
        let text = answer.text();
        ensure!(
            (answer.status, &*text) == (403, "denied by the authorizer"),
            "{answer:?}"
        );
        ensure!(answer.header("x-reason") == Some("no pass"), "{answer:?}");
        Ok(())
    })
}

fn last(authorizer: &Authorizer) -> Result<Question> {
    authorizer
        .heard()
        .pop()
        .context("the authorizer was not asked")
}

#[test]
fn an_authorizer_decides_over_either_protocol() -> Result<()> {
    let (mesh, authorizer) = shop()?;
    let more = ", headersToUpstreamOnAllow: [x-user], headersToDownstreamOnAllow: [x-decided]";
    mesh.apply("config.yaml", &providers(more, ""))?;
    let to = mesh.at("echo-v1", 80)?;
    for provider in BOTH {
        mesh.apply("policy.yaml", &custom("echo-v1", provider, "[{}]"))?;
        soon_asked(&mesh, to)?;
        mesh.soon(provider, || {
            let _other = mesh.ask("client", to, &Ask::get("/any"))?;
            ensure!(last(&authorizer)?.is_grpc == (provider == "grpc"));
            Ok(())
        })?;
        let forging = wishing("allow")
            .with("x-user", "root")
            .with("x-secret", "1")
            .with("authorization", "Bearer t");
        let answer = mesh.soon_answers("client", to, &forging, 200)?;
        ensure!(answer.header("x-decided") == Some("yes"), "{answer:?}");
        ensure!(answer.header("x-hidden").is_none(), "{answer:?}");
        let seen = Seen::in_answer(&answer)?;
        // The authorizer's word in place of the client's, and what it takes away is gone.
        ensure!(
            seen.header("x-user").as_deref() == Some("alice"),
            "{seen:?}"
        );
        ensure!(seen.header("x-secret").is_none(), "{seen:?}");
        let question = last(&authorizer)?;
        let said = (&*question.method, &*question.path, &*question.host);
        ensure!(said == ("GET", "/any?with=query", "echo"), "{question:?}");
        ensure!(
            question.header("authorization") == Some("Bearer t"),
            "{question:?}"
        );
        // Over HTTP only what is configured is told.
        let is_told = question.header("x-secret").is_some();
        ensure!(is_told == question.is_grpc, "{question:?}");
        if question.is_grpc {
            let client = mesh.pod("client")?.identity();
            ensure!(question.source == client, "{question:?}");
            ensure!(
                question.destination == mesh.pod("echo-v1")?.identity(),
                "{question:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_authorizer_changes_the_query() -> Result<()> {
    let (mesh, _authorizer) = shop()?;
    mesh.apply("config.yaml", &providers("", ""))?;
    mesh.apply("policy.yaml", &custom("echo-v1", "grpc", "[{}]"))?;
    let to = mesh.at("echo-v1", 80)?;
    soon_asked(&mesh, to)?;
    let answer = mesh.soon_answers("client", to, &wishing("query"), 200)?;
    let seen = Seen::in_answer(&answer)?;
    ensure!(seen.path == "/any?user=alice", "{seen:?}");
    Ok(())
}

#[test]
fn a_refusal_is_answered_in_the_authorizers_words() -> Result<()> {
    let (mesh, _authorizer) = shop()?;
    mesh.apply("config.yaml", &providers("", ""))?;
    let to = mesh.at("echo-v1", 80)?;
    for (provider, status) in [("http", 302), ("grpc", 401)] {
        mesh.apply("policy.yaml", &custom("echo-v1", provider, "[{}]"))?;
        let answer = mesh.soon_answers("client", to, &wishing("login"), status)?;
        ensure!(answer.text() == "log in first", "{answer:?}");
        ensure!(answer.header("set-cookie") == Some("state=1"), "{answer:?}");
    }
    // A client of gRPC hears it in gRPC.
    let grpc = mesh.at("echo-v1", 7070)?;
    let call = || {
        let ask = Ask::get("/shop.Books/List").with("x-ext-authz", "login");
        mesh.pod("client")?
            .run(|| h2c::Connection::open(grpc)?.call(&ask))
    };
    mesh.soon("the call is refused", || {
        let answer = call()?;
        ensure!(
            (answer.response.status, answer.status) == (200, 16),
            "{answer:?}"
        );
        ensure!(
            answer.response.header("grpc-message") == Some("log in first"),
            "{answer:?}"
        );
        Ok(())
    })
}

#[test]
fn an_authorizer_that_fails_or_is_away_is_answered_for() -> Result<()> {
    let (mesh, authorizer) = shop()?;
    let to = mesh.at("echo-v1", 80)?;
    for provider in BOTH {
        mesh.apply("config.yaml", &providers("", ""))?;
        mesh.apply("policy.yaml", &custom("echo-v1", provider, "[{}]"))?;
        // 403 is the default, without a word of the authorizer's.
        let answer = mesh.soon_answers("client", to, &wishing("error"), 403)?;
        ensure!(answer.text().is_empty(), "{answer:?}");
        mesh.apply(
            "config.yaml",
            &providers(", statusOnError: '503'", ", statusOnError: '503'"),
        )?;
        let _status = mesh.soon_answers("client", to, &wishing("error"), 503)?;
    }
    drop(authorizer);
    let _away = mesh.soon_answers("client", to, &wishing("allow"), 503)?;
    mesh.apply(
        "config.yaml",
        &providers(", failOpen: true", ", failOpen: true"),
    )?;
    for provider in BOTH {
        mesh.apply("policy.yaml", &custom("echo-v1", provider, "[{}]"))?;
        let _passes = mesh.soon_answers("client", to, &wishing("allow"), 200)?;
    }
    for (provider, outcome) in [("http", "refused"), ("grpc", "admitted")] {
        let labels = [
            &*format!("service=\"{provider}\""),
            &*format!("outcome=\"{outcome}\""),
        ];
        let name = "culvert_questions_unanswered_total";
        mesh.soon("unanswered questions are counted", || {
            // Until then the policy of the other provider may have been in force.
            let _answer = mesh.ask("client", to, &wishing("allow"))?;
            let count = mesh.lab.agent("b")?.metric(name, &labels)?;
            ensure!(count > 0.0, "{provider} {outcome}: {count}");
            Ok(())
        })?;
    }
    // A provider that does not exist refuses whatever it is asked about, and is reported.
    mesh.apply("policy.yaml", &custom("echo-v1", "nobody", "[{}]"))?;
    let answer = mesh.soon_answers("client", to, &wishing("allow"), 403)?;
    ensure!(answer.text() == "RBAC: access denied", "{answer:?}");
    let status = mesh.lab.node("a")?.culvert(&["status"])?;
    let status = String::from_utf8_lossy(&status.stdout);
    ensure!(status.contains("extension provider `nobody`"), "{status}");
    Ok(())
}

#[test]
fn deny_and_allow_are_judged_after_the_authorizer() -> Result<()> {
    let (mesh, authorizer) = shop()?;
    let more = ", headersToUpstreamOnAllow: [x-user]";
    mesh.apply("config.yaml", &providers(more, ""))?;
    let to = mesh.at("echo-v1", 80)?;
    let policy = |name: &str, action: &str, rules: &str| {
        custom("echo-v1", "http", rules)
            .replace("name: ask,", &format!("name: {name},"))
            .replace("CUSTOM\n  provider: {name: http}", action)
    };
    let about = "[{to: [{operation: {paths: ['/admin*']}}]}]";
    let alice = "[{when: [{key: 'request.headers[x-user]', values: [alice]}]}]";
    let outside = "[{to: [{operation: {notPaths: ['/admin*']}}]}]";
    let policies = [
        custom("echo-v1", "http", about),
        policy(
            "no",
            "DENY",
            "[{to: [{operation: {paths: [/admin/secret]}}]}]",
        ),
        // Who it is only the authorizer's answer says.
        policy("alice", "ALLOW", alice),
        policy("outside", "ALLOW", outside),
    ];
    mesh.apply("policy.yaml", &policies.join("---\n"))?;
    let admin = |path: &str| Ask::get(path).with("x-ext-authz", "allow");
    let denied = mesh.soon_answers("client", to, &admin("/admin/secret"), 403)?;
    ensure!(denied.text() == "RBAC: access denied", "{denied:?}");
    let _alice = mesh.soon_answers("client", to, &admin("/admin/open"), 200)?;
    let forged = Ask::get("/admin/open").with("x-user", "alice");
    let refused = mesh.soon_answers("client", to, &forged, 403)?;
    ensure!(refused.text() == "denied by the authorizer", "{refused:?}");
    // Other paths are nobody's business, however they are spelled.
    authorizer.heard();
    let _open = mesh.soon_answers("client", to, &Ask::get("/admin/../open"), 200)?;
    ensure!(authorizer.heard().is_empty(), "it was asked");
    let _spelled = mesh.soon_answers("client", to, &Ask::get("/x/../admin/open"), 403)?;
    ensure!(last(&authorizer)?.path == "/admin/open", "the one spelling");
    Ok(())
}

#[test]
fn an_authorizer_sees_as_much_of_a_body_as_it_may() -> Result<()> {
    let (mesh, authorizer) = shop()?;
    let to = mesh.at("echo-v1", 80)?;
    let include = |partial: bool| {
        let body = format!(
            ", includeRequestBodyInCheck: {{maxRequestBytes: 10, allowPartialMessage: {partial}}}"
        );
        providers(&body, &body)
    };
    let post = |body: &str| {
        let ask = Ask::new("POST", "/any").with("x-ext-authz", "allow");
        ask.body(body.as_bytes())
    };
    for provider in BOTH {
        mesh.apply("config.yaml", &include(true))?;
        mesh.apply("policy.yaml", &custom("echo-v1", provider, "[{}]"))?;
        for (body, shown) in [("short", "short"), ("longer than ten", "longer tha")] {
            mesh.soon("a body is shown and passes", || {
                let seen = mesh.seen("client", to, &post(body))?;
                ensure!(seen.body == body, "{seen:?}");
                let question = last(&authorizer)?;
                ensure!(question.body == shown, "{question:?}");
                Ok(())
            })?;
        }
        mesh.apply("config.yaml", &include(false))?;
        let _long = mesh.soon_answers("client", to, &post("longer than ten"), 413)?;
        ensure!(mesh.seen("client", to, &post("just a few"))?.body == "just a few");
    }
    Ok(())
}

#[test]
fn an_authorizer_sees_a_body_as_bytes_where_it_wants_that() -> Result<()> {
    let (mesh, authorizer) = shop()?;
    let to = mesh.at("echo-v1", 80)?;
    let include = |more: &str| {
        providers(
            "",
            &format!(", includeRequestBodyInCheck: {{maxRequestBytes: 100{more}}}"),
        )
    };
    let body = [0xff, 0, b'a'];
    let ask = Ask::new("POST", "/any").with("x-ext-authz", "allow");
    let ask = ask.body(body);
    mesh.apply("policy.yaml", &custom("echo-v1", "grpc", "[{}]"))?;
    for (more, as_bytes) in [(", packAsBytes: true", true), ("", false)] {
        mesh.apply("config.yaml", &include(more))?;
        mesh.soon("the body is shown", || {
            let _seen = mesh.seen("client", to, &ask)?;
            let question = last(&authorizer)?;
            ensure!(!question.body.is_empty(), "{question:?}");
            let expected = if as_bytes { &body[..] } else { &[] };
            ensure!(question.raw_body == expected, "{question:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_clients_node_asks_for_destinations_that_do_not_judge() -> Result<()> {
    let (mut mesh, authorizer) = shop()?;
    let spec = PodSpec::new("b", "legacy")
        .in_namespace("shop")
        .uncaptured();
    mesh.echo(&spec.with_label("app", "legacy"))?;
    mesh.service("shop", "legacy", "{}", "{app: legacy}")?;
    let more = ", headersToUpstreamOnAllow: [x-user], headersToDownstreamOnAllow: [x-decided]";
    mesh.apply("config.yaml", &providers(more, ""))?;
    let to = mesh.at("legacy", 80)?;
    for provider in BOTH {
        mesh.apply("policy.yaml", &custom("legacy", provider, "[{}]"))?;
        soon_asked(&mesh, to)?;
        authorizer.heard();
        let forging = wishing("allow").with("x-user", "root");
        let answer = mesh.soon_answers("client", to, &forging, 200)?;
        ensure!(answer.header("x-decided") == Some("yes"), "{answer:?}");
        let seen = Seen::in_answer(&answer)?;
        ensure!(
            seen.header("x-user").as_deref() == Some("alice"),
            "{seen:?}"
        );
        let client = mesh.pod("client")?.identity();
        let question = last(&authorizer)?;
        ensure!(
            !question.is_grpc || question.source == client,
            "{question:?}"
        );
    }
    Ok(())
}

/// Where the rate limit service listens.
const LIMITER_PORT: u16 = 8081;

/// Three requests a day for each value of `x-user`, none for POST, as the service is told.
const LIMITS: &str = "domain: shop\ndescriptors:\n- key: x-user\n  rate_limit: {name: per user, unit: day, \
                      requests_per_unit: 3}\n- key: method\n  value: POST\n  rate_limit: {unit: day, \
                      requests_per_unit: 0}\n";

/// A policy whose limits a service keeps for the whole mesh.
fn global(more: &str) -> String {
    format!(
        "apiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: fair, namespace: shop}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: echo}}]\n  limits:\n  - per: [{{header: x-user}}]\n  - per: \
         [method]\n  global:\n    domain: shop\n    timeout: 5s\n    service: {{name: limiter, namespace: limits, port: \
         {LIMITER_PORT}}}\n{more}"
    )
}

#[test]
fn global_rate_limits_are_kept_by_their_service() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    mesh.namespace("limits", &[])?;
    let spec = PodSpec::new("b", "limiter").in_namespace("limits");
    let pod = mesh.lab.place(&spec)?;
    mesh.lab
        .place(&PodSpec::new("b", "neighbour").in_namespace("clients"))?;
    let limiter = RateLimiter::start(&mesh.lab, &pod, LIMITER_PORT, LIMITS)?;
    let ports = format!("  - {{name: grpc, port: {LIMITER_PORT}}}\n");
    mesh.service_with("limits", "limiter", "{}", "{app: limiter}", &ports)?;
    mesh.apply("limits.yaml", &global(""))?;
    let to = mesh.at("echo", 80)?;
    let of = |user: &str| Ask::get("/").with("x-user", user);
    for from in ["client", "neighbour"] {
        let _none = mesh.soon_answers(from, to, &Ask::new("POST", "/"), 429)?;
    }
    // One after the other, on whichever node: the third is the last one.
    for (from, left) in [("client", "2"), ("neighbour", "1"), ("client", "0")] {
        let answer = mesh.ask(from, to, &of("alice"))?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(
            answer.header("x-ratelimit-remaining") == Some(left),
            "{answer:?}"
        );
        let limit = answer.header("x-ratelimit-limit").unwrap_or_default();
        ensure!(limit.starts_with("3, 3;w=86400"), "{limit}");
        ensure!(answer.header("x-ratelimit-reset").is_some(), "{answer:?}");
        // What the service itself has to say.
        let own = answer.header("ratelimit-remaining");
        ensure!(own == Some(left), "{answer:?}");
    }
    for from in ["neighbour", "client"] {
        let answer = mesh.ask(from, to, &of("alice"))?;
        ensure!(answer.status == 429, "{answer:?}");
        ensure!(
            answer.header("x-envoy-ratelimited") == Some("true"),
            "{answer:?}"
        );
        ensure!(
            answer.header("x-ratelimit-remaining") == Some("0"),
            "{answer:?}"
        );
    }
    ensure!(
        mesh.ask("client", to, &of("bob"))?.status == 200,
        "others are counted apart"
    );
    // Without the service everything passes, unless that is forbidden.
    drop(limiter);
    let _open = mesh.soon_answers("client", to, &of("alice"), 200)?;
    mesh.apply("limits.yaml", &global("    failClosed: true\n"))?;
    let _closed = mesh.soon_answers("client", to, &of("alice"), 500)?;
    Ok(())
}
