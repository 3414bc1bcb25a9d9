//! Spans of requests through a waypoint, as a collector gets them by OTLP.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::collector::{Collector, Reported};
use e2e::echo::EchoMesh;
use e2e::lab::{PodSpec, eventually};
use e2e::net::h2c;
use e2e::net::http::Ask;

const SOON: Duration = Duration::from_secs(15);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// The shop, and a collector as `otel.observability:4317` and `:4318`, which the mesh's configuration calls `grpc`
/// and `http`.
fn shop() -> Result<(EchoMesh, Collector)> {
    let attributes = ["--otel-resource-attributes", "deployment.environment=test"];
    let mut mesh = EchoMesh::shop_with(&attributes)?;
    mesh.namespace("observability", &[])?;
    let spec = PodSpec::new("b", "otel").in_namespace("observability");
    let pod = mesh.lab.place(&spec.with_label("app", "otel"))?;
    let collector = Collector::start(&pod, 4317)?;
    let ports = "  - {name: grpc, port: 4317, targetPort: 4317}\n  - {name: http, port: 4318, targetPort: 4317}\n";
    mesh.service_with("observability", "otel", "{}", "{app: otel}", ports)?;
    mesh.apply(
        "mesh-config.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  mesh: |\n    \
         defaultConfig: {meshId: shops}\n    extensionProviders:\n    - name: grpc\n      opentelemetry:\n        service: \
         otel.observability.svc.cluster.local\n        port: 4317\n        resourceDetectors: {environment: {}}\n    - name: \
         http\n      opentelemetry:\n        service: otel.observability.svc.cluster.local\n        port: 4318\n        http: \
         {path: /v1/traces, timeout: 2s, headers: [{name: x-token, value: secret}]}\n",
    )?;
    Ok((mesh, collector))
}

/// What Telemetry of the whole mesh says about traces: one entry, in YAML's flow style.
fn trace(mesh: &EchoMesh, entry: &str) -> Result<()> {
    let head = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata:\n  name: traces\n  namespace: \
                istio-system\nspec:\n";
    mesh.apply("telemetry.yaml", &format!("{head}  tracing: [{entry}]\n"))
}

/// Asks until the collector has got a span of such a request.
fn reported(mesh: &EchoMesh, collector: &Collector, ask: &Ask) -> Result<Reported> {
    let to = mesh.at("echo-v1", 80)?;
    eventually("a span", SOON, || {
        mesh.ask("client", to, ask)?;
        let span = collector.about(&ask.target).pop();
        span.with_context(|| format!("the collector got {:?}", collector.spans()))
    })
}

#[test]
fn sampled_requests_are_reported_with_envoys_attributes() -> Result<()> {
    let (mesh, collector) = shop()?;
    trace(
        &mesh,
        "{providers: [{name: grpc}], randomSamplingPercentage: 100, customTags: {shop: {literal: {value: books}}, tenant: \
         {header: {name: x-tenant, defaultValue: nobody}}}}",
    )?;
    let ask = Ask::get("/first?page=2")
        .host("echo-v1.shop")
        .with("traceparent", &format!("00-{TRACE}-{PARENT}-01"))
        .with("tracestate", "vendor=1")
        .with("user-agent", "reader/1")
        .with("x-tenant", "t-7");
    let span = reported(&mesh, &collector, &ask)?;
    ensure!(
        (span.trace.as_str(), span.parent.as_str()) == (TRACE, PARENT),
        "{span:?}"
    );
    ensure!(
        span.state == "vendor=1" && span.kind == 2 && span.status == 0,
        "{span:?}"
    );
    ensure!(
        span.name == "echo-v1.shop.svc.cluster.local:80/*",
        "{span:?}"
    );
    ensure!(span.nanoseconds > 0, "{span:?}");
    let backend = format!("{}:8080", mesh.pod("echo-v1")?.v4());
    for (name, value) in [
        ("component", "proxy"),
        ("http.method", "GET"),
        ("http.url", "http://echo-v1.shop/first?page=2"),
        ("http.protocol", "HTTP/1.1"),
        ("http.status_code", "200"),
        ("response_flags", "-"),
        ("user_agent", "reader/1"),
        ("peer.address", &mesh.pod("client")?.v4().to_string()),
        ("upstream_address", &backend),
        (
            "upstream_cluster",
            "inbound-vip|80|http|echo-v1.shop.svc.cluster.local",
        ),
        ("istio.canonical_service", "waypoint"),
        ("istio.namespace", "shop"),
        ("istio.mesh_id", "shops"),
        ("istio.cluster_id", "Kubernetes"),
        ("shop", "books"),
        ("tenant", "t-7"),
    ] {
        let found = span.attributes.get(name).map(String::as_str);
        ensure!(
            found == Some(value),
            "{name}: {found:?} of {:#?}",
            span.attributes
        );
    }
    for (name, value) in [
        ("service.name", "waypoint.shop"),
        ("deployment.environment", "test"),
    ] {
        ensure!(
            span.resource.get(name).is_some_and(|found| found == value),
            "{span:?}"
        );
    }
    // The application continues the span that was reported.
    let seen = mesh.seen("client", mesh.at("echo-v1", 80)?, &ask)?;
    let told = seen.header("traceparent").context("no traceparent")?;
    eventually("that very span", SOON, || {
        let spans = collector.about("/first");
        ensure!(
            spans.iter().any(|span| told.contains(&span.span)),
            "{told}: {spans:?}"
        );
        Ok(())
    })?;
    // A failure is an error, and the first span of a trace has no parent.
    let failing = Ask::get("/failing").wishing("status=503");
    let span = reported(&mesh, &collector, &failing)?;
    ensure!(span.status == 2 && span.parent.is_empty(), "{span:?}");
    ensure!(span.attributes["http.status_code"] == "503", "{span:?}");
    let exported = mesh
        .lab
        .agent("a")?
        .metric("culvert_spans_exported_total", &[])?;
    ensure!(exported > 0.0, "{exported} spans are counted");
    // One request is one span, reported at its client's node only.
    let exported = mesh
        .lab
        .agent("b")?
        .metric("culvert_spans_exported_total", &[])?;
    ensure!(
        exported == 0.0,
        "{exported} spans are counted at the server's node"
    );
    Ok(())
}

#[test]
fn telemetry_decides_which_requests_are_reported_and_whereto() -> Result<()> {
    let (mesh, collector) = shop()?;
    let to = mesh.at("echo-v1", 80)?;
    let http = |more: &str| trace(&mesh, &format!("{{providers: [{{name: http}}], {more}}}"));
    http("randomSamplingPercentage: 100, enableIstioTags: false")?;
    let span = reported(&mesh, &collector, &Ask::get("/all"))?;
    ensure!(
        span.path == "/v1/traces" && span.token.as_deref() == Some("secret"),
        "{span:?}"
    );
    ensure!(!span.attributes.contains_key("istio.mesh_id"), "{span:?}");
    let sampled = |header: &str| format!("00-{TRACE}-{PARENT}-{header}");
    // All of a hundred, of which those that somebody decided against are none.
    for number in 0..20 {
        let ask = Ask::get(&format!("/every/{number}/"));
        mesh.ask("client", to, &ask)?;
        mesh.ask(
            "client",
            to,
            &ask.clone().with("traceparent", &sampled("00")),
        )?;
    }
    eventually("every one of them", SOON, || {
        let got = collector.about("/every/").len();
        ensure!(got == 20, "{got} of 20");
        Ok(())
    })?;
    // None by lot; the sender's decision holds all the same.
    http("randomSamplingPercentage: 0")?;
    mesh.soon("0 % is in force", || {
        let seen = mesh.seen("client", to, &Ask::get("/probe"))?;
        let told = seen.header("traceparent").context("no traceparent")?;
        ensure!(told.ends_with("-00"), "{told}");
        Ok(())
    })?;
    for _ in 0..20 {
        mesh.ask("client", to, &Ask::get("/none"))?;
    }
    let b3 = Ask::get("/decided-b3").with("b3", &format!("{TRACE}-{PARENT}-1"));
    for ask in [Ask::get("/decided").with("traceparent", &sampled("01")), b3] {
        let span = reported(&mesh, &collector, &ask)?;
        ensure!(span.trace == TRACE && span.parent == PARENT, "{span:?}");
    }
    // The batch that held those would have held these: they are earlier.
    ensure!(collector.about("/none").is_empty(), "0 % reports some");
    http("randomSamplingPercentage: 100, disableSpanReporting: true")?;
    mesh.soon("nothing is reported, and the context goes on", || {
        let seen = mesh.seen("client", to, &Ask::get("/silent"))?;
        let told = seen.header("traceparent").context("no traceparent")?;
        ensure!(told.ends_with("-01"), "{told}");
        Ok(())
    })?;
    let before = collector.about("/silent-now").len();
    mesh.ask("client", to, &Ask::get("/silent-now"))?;
    http("randomSamplingPercentage: 100, match: {mode: SERVER}")?;
    reported(&mesh, &collector, &Ask::get("/loud-again"))?;
    ensure!(
        collector.about("/silent-now").len() == before,
        "it is reported"
    );
    Ok(())
}

#[test]
fn calls_are_reported_with_their_status_and_lost_spans_are_counted() -> Result<()> {
    let (mesh, collector) = shop()?;
    trace(
        &mesh,
        "{providers: [{name: grpc}], randomSamplingPercentage: 100}",
    )?;
    let to = mesh.at("echo-v1", 7070)?;
    let span = eventually("a span of a call", SOON, || {
        let ask = Ask::get("/shop.Books/List").wishing("grpc=14");
        let call = || h2c::Connection::open(to)?.call(&ask);
        mesh.pod("client")?.run(call)?;
        collector.about("/shop.Books/List").pop().context("no span")
    })?;
    for (name, value) in [
        ("grpc.path", "/shop.Books/List"),
        ("grpc.status_code", "14"),
        ("http.protocol", "HTTP/2"),
    ] {
        ensure!(
            span.attributes
                .get(name)
                .is_some_and(|found| found == value),
            "{span:?}"
        );
    }
    ensure!(span.status == 2, "unavailable is an error: {span:?}");
    drop(collector);
    eventually("what nobody collects is counted", SOON, || {
        mesh.ask("client", mesh.at("echo-v1", 80)?, &Ask::get("/lost"))?;
        let labels = ["reason=\"unreachable\""];
        let lost = mesh
            .lab
            .agent("a")?
            .metric("culvert_spans_dropped_total", &labels)?;
        ensure!(lost > 0.0, "{lost} spans are lost");
        Ok(())
    })
}
