//! What is logged of requests.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use proptest::prelude::*;

use super::{RequestEnd, RequestFlag, RequestFlow, web};
use crate::model::{AccessLog, AccessLogFormat, CelExpression, NamespacedHostname, Telemetry};
use crate::telemetry::tests::{logged, service};
use crate::telemetry::{Metrics, Upstream};
use crate::tests::any_head;

fn telemetry(format: AccessLogFormat, filter: Option<&str>) -> Arc<Telemetry> {
    let filter = filter.map(|text| CelExpression::new(text).unwrap());
    Arc::new(Telemetry {
        access_logs: vec![AccessLog { format, filter }],
        ..Telemetry::default()
    })
}

fn request(user_agent: &str) -> http::request::Parts {
    let request = Request::get("/cart?item=7")
        .header("host", "cart.shop")
        .header("user-agent", user_agent)
        .header("x-request-id", "5e1c")
        .header("x-forwarded-for", "10.0.0.1");
    request.body(()).unwrap().into_parts().0
}

/// Logs one GET that reviews answered with 503, and says what was written.
fn log(telemetry: &Arc<Telemetry>, head: &http::request::Parts) -> Vec<String> {
    let backend = NamespacedHostname {
        namespace: "shop".into(),
        hostname: "cart-v2.shop.svc.cluster.local".into(),
    };
    logged(|| {
        let flow = RequestFlow::new(
            Arc::new(web()),
            Some(service()),
            Arc::clone(telemetry),
            head,
        );
        let open = Metrics::new().open_request(flow);
        open.request_bytes(3);
        open.response_bytes(17);
        open.close(&RequestEnd {
            status: Some(StatusCode::SERVICE_UNAVAILABLE),
            flags: RequestFlag::UpstreamConnectionFailure | RequestFlag::RetriesExhausted,
            details: Some("upstream_reset_before_response_started"),
            failure: Some("connection refused"),
            route_name: Some("shop.cart.0"),
            upstream: Some(Upstream {
                host: "10.0.0.2:8080".parse().unwrap(),
                local: None,
                backend: &backend,
                port: 80,
                time: Some(Duration::from_millis(12)),
            }),
            ..RequestEnd::default()
        });
    })
}

#[test]
fn the_text_line_is_envoys() {
    let lines = log(&telemetry(AccessLogFormat::Text, None), &request("curl/8"));
    let line = lines[0]
        .strip_prefix("INFO access::line message=[")
        .unwrap();
    let (start, rest) = line.split_once("] ").unwrap();
    assert!(
        start.len() == "2026-01-01T00:00:00.000Z".len() && start.ends_with('Z'),
        "{start}"
    );
    let expected = "\"GET /cart?item=7 HTTP/1.1\" 503 UF,URX \
        upstream_reset_before_response_started - \"connection refused\" 3 17 ? 12 \"10.0.0.1\" \
        \"curl/8\" \"5e1c\" \"cart.shop\" \"10.0.0.2:8080\" \
        inbound-vip|80|http|cart-v2.shop.svc.cluster.local - 10.96.0.9:80 10.0.0.1:40000 - shop.cart.0";
    let words: Vec<&str> = rest.split(' ').collect();
    let duration = expected.split(' ').position(|word| word == "?").unwrap();
    assert!(words[duration].parse::<u64>().is_ok(), "{rest}");
    let mut words = words;
    words[duration] = "?";
    assert_eq!(words.join(" "), expected);
    assert_eq!(lines.len(), 1);
}

#[test]
fn the_json_line_has_envoys_keys_in_envoys_order() {
    let lines = log(&telemetry(AccessLogFormat::Json, None), &request("a \"b\""));
    let line = lines[0].strip_prefix("INFO access::line message=").unwrap();
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(value["response_code"], 503);
    assert_eq!(value["user_agent"], "a \"b\"");
    assert_eq!(value["bytes_sent"], 17);
    assert_eq!(value["requested_server_name"], serde_json::Value::Null);
    let keys = [
        "start_time",
        "method",
        "path",
        "protocol",
        "response_code",
        "response_flags",
        "response_code_details",
        "connection_termination_details",
        "upstream_transport_failure_reason",
        "bytes_received",
        "bytes_sent",
        "duration",
        "upstream_service_time",
        "x_forwarded_for",
        "user_agent",
        "request_id",
        "authority",
        "upstream_host",
        "upstream_cluster",
        "upstream_local_address",
        "downstream_local_address",
        "downstream_remote_address",
        "requested_server_name",
        "route_name",
    ];
    assert_eq!(value.as_object().unwrap().len(), keys.len());
    let places: Vec<usize> = keys
        .iter()
        .map(|key| line.find(&format!("\"{key}\":")).expect(key))
        .collect();
    assert!(places.is_sorted(), "{line}");
}

#[test]
fn a_header_cannot_forge_a_field_or_a_line() {
    let lines = log(
        &telemetry(AccessLogFormat::Text, None),
        &request("x\" \"forged\"\tz"),
    );
    assert!(
        lines[0].contains(r#""x\" \"forged\"\tz""#),
        "quotes and controls are escaped: {}",
        lines[0]
    );
}

#[test]
fn a_filter_chooses_by_the_requests_attributes() {
    for (filter, expected) in [
        ("response.code >= 400", true),
        ("response.code == 200", false),
        ("response.flags == 0x8020", true),
        (
            "request.method == 'GET' && request.url_path == '/cart'",
            true,
        ),
        ("request.path.startsWith('/cart?item=')", true),
        ("request.headers['user-agent'] == 'curl/8'", true),
        ("request.headers['x-absent'] == 'on'", false),
        ("!('x-absent' in request.headers)", true),
        ("connection.mtls", true),
        (
            "source.namespace == 'shop' && source.workload == 'web'",
            true,
        ),
        (
            "source.principal == 'spiffe://cluster.local/ns/shop/sa/web'",
            true,
        ),
        ("destination.port == 80 && upstream.port == 8080", true),
        ("xds.route_name.matches('^shop[.]')", true),
        ("request.size + response.size == 20", true),
        ("response.code", false),
    ] {
        let lines = log(
            &telemetry(AccessLogFormat::Text, Some(filter)),
            &request("curl/8"),
        );
        assert_eq!(!lines.is_empty(), expected, "{filter}");
    }
}

#[test]
fn nothing_is_kept_of_a_request_that_nobody_logs() {
    let lines = log(&Arc::default(), &request("curl/8"));
    assert!(lines.is_empty(), "{lines:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_head_is_one_line_of_either_form(head in any_head()) {
        let filter = "request.headers['x-tenant'] != 'nobody' || request.path != ''";
        let lines = log(&telemetry(AccessLogFormat::Json, None), &head);
        prop_assert_eq!(lines.len(), 1);
        let line = lines[0].strip_prefix("INFO access::line message=").unwrap();
        prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
        let read: serde_json::Value = serde_json::from_str(line).unwrap();
        prop_assert_eq!(&read["method"], head.method.as_str());

        let lines = log(&telemetry(AccessLogFormat::Text, Some(filter)), &head);
        // A header that is not there makes the filter undecidable, and nothing is logged.
        prop_assert!(lines.len() <= 1);
        for line in &lines {
            prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
        }
    }
}
