//! What is counted, logged and traced of requests through a waypoint.
//!
//! Names follow Istio's ambient integration tests where there is one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use e2e::net::h2c;
use e2e::net::http::Ask;

const SOON: Duration = Duration::from_secs(5);

/// Waits until a metric with these labels exists on node a, where the clients are, and returns its value.
fn metric(mesh: &EchoMesh, name: &str, labels: &[&str]) -> Result<f64> {
    eventually(&format!("{name} {labels:?}"), SOON, || {
        let agent = mesh.lab.agent("a")?;
        let value = agent.metric(name, labels)?;
        let text = agent.get(15020, "/stats/prometheus")?.text();
        let such: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
        ensure!(value > 0.0, "there are {such:#?}");
        Ok(value)
    })
}

#[test]
fn l7_telemetry() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    for _ in 0..3 {
        mesh.seen("client", to, &Ask::get("/").wishing("bytes=1000"))
            .err()
            .context("no echo in a body of x")?;
    }
    let labels = [
        "reporter=\"waypoint\"",
        "source_workload=\"client\"",
        "source_workload_namespace=\"clients\"",
        "source_principal=\"spiffe://cluster.local/ns/clients/sa/client\"",
        "destination_workload=\"echo-v1\"",
        "destination_workload_namespace=\"shop\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/echo\"",
        "destination_service=\"echo-v1.shop.svc.cluster.local\"",
        "destination_service_name=\"echo-v1\"",
        "destination_service_namespace=\"shop\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    for name in [
        "istio_requests_total",
        "istio_request_duration_milliseconds_count",
        "istio_request_bytes_count",
        "istio_response_bytes_count",
    ] {
        let count = metric(&mesh, name, &labels)?;
        ensure!(count >= 3.0, "{name}: {count}");
    }
    let bytes = metric(&mesh, "istio_response_bytes_sum", &labels)?;
    ensure!(bytes >= 3000.0, "{bytes} bytes");
    // Istio's buckets, in milliseconds.
    let text = mesh.lab.agent("a")?.get(15020, "/stats/prometheus")?.text();
    for bucket in ["0.5", "1", "2500", "3600000", "+Inf"] {
        let has = |line: &str| {
            let le = line
                .split("le=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            line.starts_with("istio_request_duration_milliseconds_bucket")
                && le
                    .is_some_and(|le| le == bucket || le.parse::<f64>().ok() == bucket.parse().ok())
        };
        ensure!(text.lines().any(has), "no bucket {bucket}");
    }
    Ok(())
}

#[test]
fn customize_metrics() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    mesh.apply(
        "telemetry.yaml",
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: metrics, namespace: shop}\nspec:\n  \
         targetRefs: [{kind: Service, group: \"\", name: echo-v1}]\n  metrics:\n  - providers: [{name: prometheus}]\n    \
         overrides:\n    - match: {metric: REQUEST_COUNT, mode: CLIENT_AND_SERVER}\n      tagOverrides:\n        \
         custom_dimension: {value: \"'bookshop'\"}\n        source_principal: {operation: REMOVE}\n    - match: {metric: \
         RESPONSE_SIZE}\n      disabled: true\n",
    )?;
    let service = "destination_service_name=\"echo-v1\"";
    let custom = "custom_dimension=\"bookshop\"";
    let lines = |name: &str| -> Result<Vec<String>> {
        let text = mesh.lab.agent("a")?.get(15020, "/stats/prometheus")?.text();
        let own = |line: &&str| line.starts_with(name) && line.contains(service);
        Ok(text.lines().filter(own).map(str::to_owned).collect())
    };
    mesh.soon("requests are counted by the new label", || {
        let _answered = mesh.seen("client", to, &Ask::get("/"))?;
        let found = lines("istio_requests_total{")?;
        let customized = found.iter().find(|line| line.contains(custom));
        let line = customized.with_context(|| format!("{found:#?}"))?;
        ensure!(!line.contains("source_principal"), "{line}");
        Ok(())
    })?;
    // From now on all of these are counted so, none of other metrics, and of a disabled one nothing at all.
    let sums = || -> Result<[f64; 4]> {
        let agent = mesh.lab.agent("a")?;
        let requests = "istio_requests_total";
        Ok([
            agent.metric(requests, &[service, custom])?,
            agent.metric(requests, &[service])?,
            agent.metric("istio_request_duration_milliseconds_count", &[service])?,
            agent.metric("istio_response_bytes_count", &[service])?,
        ])
    };
    let before = sums()?;
    for _ in 0..5 {
        let _answered = mesh.seen("client", to, &Ask::get("/"))?;
    }
    eventually("five requests are counted", SOON, || {
        let after = sums()?;
        let grown = after.iter().zip(before).map(|(now, then)| now - then);
        let grown: Vec<f64> = grown.collect();
        // Those before may have been counted in between.
        let [custom, all, durations, sizes] = grown[..] else {
            anyhow::bail!("{grown:?}")
        };
        ensure!(custom >= 5.0 && durations >= 5.0, "{grown:?}");
        let others = (all - custom).abs().max(sizes.abs());
        ensure!(others < 0.5, "{grown:?}");
        Ok(())
    })?;
    for line in lines("istio_request_duration_milliseconds_count")? {
        ensure!(!line.contains(custom), "{line}");
        ensure!(line.contains("source_principal"), "{line}");
    }
    Ok(())
}

#[test]
fn refusals_and_failures_are_counted_by_their_flags() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: \
         shop\nspec:\n  targetRefs: [{kind: Service, group: \"\", name: echo}]\n",
    )?;
    mesh.soon_answers("client", mesh.at("echo", 80)?, &Ask::get("/"), 403)?;
    metric(
        &mesh,
        "istio_requests_total",
        &["reporter=\"waypoint\"", "response_code=\"403\""],
    )?;
    mesh.service("shop", "empty", "{}", "{app: nobody}")?;
    mesh.soon_answers("client", mesh.at("empty", 80)?, &Ask::get("/"), 503)?;
    let unhealthy = [
        "reporter=\"waypoint\"",
        "response_code=\"503\"",
        "response_flags=\"UH\"",
    ];
    metric(&mesh, "istio_requests_total", &unhealthy)?;
    Ok(())
}

#[test]
fn calls_are_counted_with_their_grpc_status() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 7070)?;
    mesh.soon("a call", || {
        let ask = Ask::get("/shop.Books/List").wishing("grpc=5");
        let answer = mesh
            .pod("client")?
            .run(|| h2c::Connection::open(to)?.call(&ask))?;
        ensure!(answer.status == 5, "{answer:?}");
        Ok(())
    })?;
    let labels = [
        "reporter=\"waypoint\"",
        "request_protocol=\"grpc\"",
        "response_code=\"200\"",
        "grpc_response_status=\"5\"",
    ];
    metric(&mesh, "istio_requests_total", &labels)?;
    Ok(())
}

#[test]
fn traces_are_continued() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let ask = Ask::get("/").with("traceparent", &format!("00-{trace}-b7ad6b7169203331-01"));
    let seen = mesh.seen("client", to, &ask.with("tracestate", "vendor=1"))?;
    let parent = seen.header("traceparent").context("no traceparent")?;
    ensure!(parent.contains(trace), "{parent}");
    ensure!(
        seen.header("tracestate").as_deref() == Some("vendor=1"),
        "{seen:?}"
    );
    let b3 = Ask::get("/")
        .with("x-b3-traceid", trace)
        .with("x-b3-spanid", "b7ad6b7169203331");
    let seen = mesh.seen("client", to, &b3.with("x-b3-sampled", "1"))?;
    ensure!(
        seen.header("x-b3-traceid").as_deref() == Some(trace),
        "{seen:?}"
    );
    Ok(())
}

#[test]
fn requests_are_logged_where_telemetry_asks_for_it() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.apply(
        "telemetry.yaml",
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata:\n  name: log\n  namespace: shop\nspec:\n  \
         targetRefs: [{kind: Service, group: \"\", name: echo-v1}]\n  accessLogging:\n  - providers: [{name: envoy}]\n    \
         filter: {expression: response.code >= 400}\n",
    )?;
    eventually("a line for what failed", SOON, || {
        mesh.ask("client", to, &Ask::get("/logged").wishing("status=418"))?;
        mesh.ask("client", to, &Ask::get("/not-logged"))?;
        let log = mesh.lab.agent("a")?.log()?;
        let line = log.lines().find(|line| line.contains("/logged"));
        let line = line.context("no line")?;
        ensure!(line.contains("418"), "{line}");
        ensure!(!log.contains("/not-logged"), "what went well is logged too");
        Ok(())
    })
}
