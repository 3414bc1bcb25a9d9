//! What a sampled request came to, as a span: Envoy's names and values, as Istio's waypoints report them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::CONTENT_TYPE;

use super::record::{Finished, LoggedHead, cluster_name};
use super::{RequestEnd, RequestProtocol};
use crate::model::{SpanTagValue, TracingSettings};
use crate::telemetry::span::Span;
use crate::telemetry::trace::TraceContext;

/// A sampled request's place in its trace, and its head.
#[derive(Clone, Debug)]
pub(super) struct Sampled {
    pub(super) context: TraceContext,
    pub(super) head: LoggedHead,
}

/// The span of a request that ended; `None` if nobody collects it.
pub(super) fn of(request: &Finished<'_>, context: TraceContext) -> Option<Span> {
    let settings = &request.flow.telemetry.tracing;
    let collector = settings.collector.as_ref()?;
    let head = request.head;
    let trace_state = head.header("tracestate").unwrap_or_default().to_owned();
    Some(Span {
        collector: Arc::clone(collector),
        reporter: Arc::clone(&settings.reporter),
        context,
        trace_state,
        name: operation(request),
        start: SystemTime::from(head.start),
        duration: request.duration,
        attributes: attributes(request, settings),
        is_error: is_error(request.flow.protocol, request.end),
    })
}

/// As Istio names the operations of its routes.
fn operation(request: &Finished<'_>) -> String {
    let flow = request.flow;
    let port = flow.client.dialled.port();
    match &flow.service {
        Some(service) => format!("{}:{port}/*", service.key.hostname),
        None => format!("{}/*", flow.client.dialled),
    }
}

fn attributes(
    request: &Finished<'_>,
    settings: &TracingSettings,
) -> Vec<(Cow<'static, str>, String)> {
    let (flow, head, end) = (request.flow, request.head, request.end);
    let mut found = Vec::with_capacity(24 + settings.tags.len());
    let mut set = |name: &'static str, value: &str| {
        found.push((Cow::Borrowed(name), value.to_owned()));
    };
    let or_dash = |name: &str| head.header(name).unwrap_or("-");
    let status = end.status.map_or(0, |status| status.as_u16());
    set("component", "proxy");
    set("guid:x-request-id", or_dash("x-request-id"));
    set("http.url", &url(head, settings.longest_path));
    set("http.method", head.method.as_str());
    set(
        "downstream_cluster",
        or_dash("x-envoy-downstream-service-cluster"),
    );
    set("user_agent", or_dash("user-agent"));
    set("http.protocol", head.protocol());
    set("peer.address", &flow.client.address.ip().to_string());
    set("request_size", &request.request_bytes.to_string());
    set("response_size", &request.response_bytes.to_string());
    set("http.status_code", &status.to_string());
    set("response_flags", &end.flags.to_string());
    if let Some(upstream) = &end.upstream {
        let cluster = cluster_name(upstream);
        set("upstream_cluster", &cluster);
        set("upstream_cluster.name", &cluster);
        set("upstream_address", &upstream.host.to_string());
    }
    if flow.protocol == RequestProtocol::Grpc {
        set("grpc.path", head.uri.path());
        set("grpc.authority", head.authority().unwrap_or("-"));
        set("grpc.content_type", or_dash(CONTENT_TYPE.as_str()));
        set("grpc.timeout", or_dash("grpc-timeout"));
        if let Some(status) = end.grpc_status {
            set("grpc.status_code", &status.to_string());
        }
    }
    if is_error(flow.protocol, end) {
        set("error", "true");
    }
    for tag in &settings.tags {
        let value = match &tag.value {
            SpanTagValue::Literal(text) => Some(&**text),
            SpanTagValue::Header { name, default } => {
                head.header(name.as_str()).or(default.as_deref())
            }
        };
        if let Some(value) = value {
            found.push((Cow::Owned(tag.name.to_string()), value.to_owned()));
        }
    }
    found
}

/// Scheme, host, and the path up to a length, as Envoy writes it.
fn url(head: &LoggedHead, longest_path: usize) -> String {
    let path = head.path();
    let end = (0..=longest_path.min(path.len()))
        .rev()
        .find(|at| path.is_char_boundary(*at));
    let path = path.get(..end.unwrap_or_default()).unwrap_or_default();
    let scheme = head.uri.scheme_str().unwrap_or("http");
    format!("{scheme}://{}{path}", head.authority().unwrap_or_default())
}

/// No answer, one of 5xx, or a gRPC status that says that the server failed (OpenTelemetry's conventions for
/// gRPC servers: unknown, deadline exceeded, unimplemented, internal, unavailable, data loss).
fn is_error(protocol: RequestProtocol, end: &RequestEnd<'_>) -> bool {
    let by_status = end.status.is_none_or(|status| status.is_server_error());
    let by_call = || matches!(end.grpc_status, Some(2 | 4 | 12 | 13 | 14 | 15));
    by_status || (protocol == RequestProtocol::Grpc && by_call())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http::{Request, StatusCode};

    use crate::model::{
        NamespacedHostname, SpanCollector, SpanTag, SpanTagValue, SpanTransport, Telemetry,
        TracingSettings,
    };
    use crate::telemetry::span::{Span, SpanCounts, SpanSink};
    use crate::telemetry::tests::{scrape, service, workload};
    use crate::telemetry::trace::{Sampler, TraceContext};
    use crate::telemetry::{Metrics, RequestClient, RequestEnd, RequestFlow, Security, Upstream};

    fn key(hostname: &str) -> NamespacedHostname {
        NamespacedHostname {
            namespace: "observability".into(),
            hostname: hostname.into(),
        }
    }

    fn settings() -> TracingSettings {
        let literal = |text: &str| SpanTagValue::Literal(text.into());
        let header = |name, default: Option<&str>| SpanTagValue::Header {
            name: http::HeaderName::from_static(name),
            default: default.map(Arc::from),
        };
        let tag = |name: &str, value| SpanTag {
            name: name.into(),
            value,
        };
        TracingSettings {
            sampled_per_million: 1_000_000,
            collector: Some(Arc::new(SpanCollector {
                provider: "otel".into(),
                service: key("otel.observability.svc.cluster.local"),
                port: 4317,
                transport: SpanTransport::Grpc,
                timeout: Duration::from_secs(1),
                headers: Vec::new(),
                detects_environment: false,
            })),
            reporter: "waypoint.shop".into(),
            longest_path: 8,
            tags: vec![
                tag("istio.mesh_id", literal("mesh")),
                tag("tenant", header("x-tenant", None)),
                tag("tier", header("x-tier", Some("gold"))),
                tag("absent", header("x-absent", None)),
            ],
            ..TracingSettings::default()
        }
    }

    /// What is reported of a request that ended so, and what was counted of it.
    fn reported(head: &http::request::Parts, ends: &[RequestEnd<'_>]) -> (Vec<Span>, Vec<String>) {
        let (sink, mut spans) = SpanSink::channel(SpanCounts::default());
        let metrics = Metrics::reporting(sink);
        let telemetry = Arc::new(Telemetry {
            tracing: settings(),
            ..Telemetry::default()
        });
        let client = Arc::new(RequestClient {
            workload: Some(workload("web", "eu")),
            identity: None,
            address: "10.0.0.1:40000".parse().unwrap(),
            dialled: "10.96.0.9:80".parse().unwrap(),
            security: Security::MutualTls,
        });
        for end in ends {
            let flow = RequestFlow::new(
                Arc::clone(&client),
                Some(service()),
                Arc::clone(&telemetry),
                head,
            );
            let open = metrics.open_request(flow);
            let mut random = || 7;
            let settings = settings();
            let mut sampler = Sampler::new(&settings, &mut random);
            open.trace(TraceContext::of(&head.headers, &mut sampler), head);
            open.close(end);
        }
        let mut found = Vec::new();
        while let Ok(span) = spans.try_recv() {
            found.push(span);
        }
        (found, scrape(&metrics, "culvert_spans_dropped_total"))
    }

    fn head(headers: &[(&'static str, &'static str)]) -> http::request::Parts {
        let mut request = Request::get("/cart/items?page=2");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn attribute<'s>(span: &'s Span, name: &str) -> Option<&'s str> {
        let found = span.attributes.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_sampled_request_is_reported_with_envoys_attributes() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let head = head(&[
            ("host", "cart.shop"),
            ("user-agent", "curl/8"),
            ("x-request-id", "id-1"),
            ("x-tenant", "t1"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("tracestate", "vendor=1"),
        ]);
        let backend = key("cart.shop.svc.cluster.local");
        let end = RequestEnd {
            status: Some(StatusCode::OK),
            upstream: Some(Upstream {
                host: "10.0.0.2:8080".parse().unwrap(),
                local: None,
                backend: &backend,
                port: 80,
                time: None,
            }),
            ..RequestEnd::default()
        };
        let (spans, _) = reported(&head, &[end]);
        let [span] = &spans[..] else {
            panic!("{spans:?}");
        };
        assert_eq!(
            format!("{:032x}", u128::from_be_bytes(span.context.trace_id())),
            trace
        );
        let parent = span.context.parent_id().map(u64::from_be_bytes);
        assert_eq!(parent, Some(0xb7ad_6b71_6920_3331));
        assert_eq!(span.trace_state, "vendor=1");
        assert_eq!(span.name, format!("{}:80/*", service().key.hostname));
        assert!(!span.is_error);
        for (name, expected) in [
            ("component", Some("proxy")),
            ("guid:x-request-id", Some("id-1")),
            ("http.url", Some("http://cart.shop/cart/it")),
            ("http.method", Some("GET")),
            ("http.protocol", Some("HTTP/1.1")),
            ("http.status_code", Some("200")),
            ("response_flags", Some("-")),
            ("user_agent", Some("curl/8")),
            ("peer.address", Some("10.0.0.1")),
            (
                "upstream_cluster",
                Some("inbound-vip|80|http|cart.shop.svc.cluster.local"),
            ),
            ("upstream_address", Some("10.0.0.2:8080")),
            ("istio.mesh_id", Some("mesh")),
            ("tenant", Some("t1")),
            ("tier", Some("gold")),
            ("absent", None),
            ("error", None),
            ("grpc.path", None),
        ] {
            assert_eq!(attribute(span, name), expected, "{name}");
        }
    }

    #[test]
    fn failures_of_the_servers_side_are_errors() {
        let end = |status: u16| RequestEnd {
            status: StatusCode::from_u16(status).ok(),
            ..RequestEnd::default()
        };
        let call = |grpc_status| RequestEnd {
            grpc_status: Some(grpc_status),
            ..end(200)
        };
        let ends = [end(200), end(404), end(503), end(0), call(14), call(5)];
        let errors = |headers| {
            let (spans, _) = reported(&head(headers), &ends);
            spans.iter().map(|span| span.is_error).collect::<Vec<_>>()
        };
        let plain = errors(&[]);
        assert_eq!(plain, [false, false, true, true, false, false]);
        let grpc = errors(&[("content-type", "application/grpc")]);
        assert_eq!(grpc, [false, false, true, true, true, false]);
    }

    #[test]
    fn what_is_not_sampled_is_not_reported_and_what_does_not_fit_is_counted() {
        let unsampled = head(&[(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        )]);
        assert!(reported(&unsampled, &[RequestEnd::default()]).0.is_empty());
        let ends = vec![RequestEnd::default(); 2050];
        let (spans, scraped) = reported(&head(&[]), &ends);
        assert_eq!(spans.len(), 2048);
        assert_eq!(
            scraped,
            ["culvert_spans_dropped_total{reason=\"queue_full\"} 2"]
        );
    }
}
