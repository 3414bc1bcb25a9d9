//! What is scraped of requests, as text.

mod logs;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};

use super::distribution::BOUNDS;
use super::series::CACHED_SERIES;
use super::{
    OpenRequest, RequestClient, RequestDestination, RequestEnd, RequestFlag, RequestFlags,
    RequestFlow, RequestProtocol,
};
use crate::model::{HttpMetric, MetricOverride, Telemetry};
use crate::telemetry::tests::{identity, scrape, service, workload};
use crate::telemetry::{Metrics, Security};

fn web() -> RequestClient {
    RequestClient {
        workload: Some(workload("web", "eu")),
        identity: Some(identity("web")),
        address: "10.0.0.1:40000".parse().unwrap(),
        dialled: "10.96.0.9:80".parse().unwrap(),
        security: Security::MutualTls,
    }
}

fn to_cart(protocol: RequestProtocol) -> RequestFlow {
    RequestFlow {
        client: Arc::new(web()),
        service: Some(service()),
        protocol,
        telemetry: Arc::default(),
        head: None,
    }
}

fn cart() -> RequestDestination {
    RequestDestination {
        workload: workload("cart", ""),
        security: Security::MutualTls,
    }
}

fn answered(status: u16) -> RequestEnd<'static> {
    RequestEnd {
        status: Some(StatusCode::from_u16(status).unwrap()),
        ..RequestEnd::default()
    }
}

#[test]
fn a_request_carries_every_label_of_istio() {
    let metrics = Metrics::new();
    let open = metrics.open_request(to_cart(RequestProtocol::Http));
    open.destination(cart());
    open.close(&answered(200));
    let expected = "istio_requests_total{reporter=\"waypoint\",source_workload=\"web\",\
        source_canonical_service=\"web\",source_canonical_revision=\"v1\",\
        source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_app=\"web\",\
        source_version=\"v1\",source_cluster=\"Kubernetes\",\
        destination_service=\"cart.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
        destination_service_name=\"cart\",destination_workload=\"cart\",\
        destination_canonical_service=\"cart\",destination_canonical_revision=\"v1\",\
        destination_workload_namespace=\"shop\",\
        destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",\
        destination_app=\"cart\",destination_version=\"v1\",destination_cluster=\"Kubernetes\",\
        request_protocol=\"http\",response_code=\"200\",response_flags=\"-\",\
        connection_security_policy=\"mutual_tls\"} 1";
    assert_eq!(scrape(&metrics, "istio_requests_total"), [expected]);
}

#[test]
fn a_request_that_reached_nobody_says_so() {
    let metrics = Metrics::new();
    let open = metrics.open_request(to_cart(RequestProtocol::Http));
    open.close(&RequestEnd {
        flags: RequestFlag::NoRoute.into(),
        ..answered(404)
    });
    let line = only(&metrics, "istio_requests_total");
    for part in [
        "destination_service_name=\"cart\"",
        "destination_workload=\"unknown\"",
        "destination_principal=\"unknown\"",
        "response_code=\"404\",response_flags=\"NR\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn a_server_that_did_not_prove_itself_has_no_principal() {
    let metrics = Metrics::new();
    let open = metrics.open_request(to_cart(RequestProtocol::Http));
    open.destination(RequestDestination {
        security: Security::Unknown,
        ..cart()
    });
    open.close(&answered(200));
    let line = only(&metrics, "istio_requests_total");
    assert!(line.contains("destination_workload=\"cart\""), "{line}");
    assert!(line.contains("destination_principal=\"unknown\""), "{line}");
}

#[test]
fn a_client_that_goes_away_counts_once_with_its_flag() {
    let metrics = Metrics::new();
    drop(metrics.open_request(to_cart(RequestProtocol::Http)));
    let line = only(&metrics, "istio_requests_total");
    assert!(
        line.contains("response_code=\"0\",response_flags=\"DC\"") && line.ends_with(" 1"),
        "{line}"
    );
    let closed = metrics.open_request(to_cart(RequestProtocol::Http));
    closed.close(&answered(200));
    closed.close(&answered(500));
    drop(closed);
    assert_eq!(
        scrape(&metrics, "istio_requests_total").len(),
        2,
        "only the first end of an account counts"
    );
}

#[test]
fn sizes_and_times_fall_into_istios_buckets() {
    let metrics = Metrics::new();
    for bytes in [0, 1, 2, 7_200_000] {
        let open = metrics.open_request(to_cart(RequestProtocol::Http));
        open.request_bytes(bytes);
        open.response_bytes(10);
        open.response_bytes(15);
        open.close(&answered(200));
    }
    let bounds = |name: &str| -> Vec<String> {
        let buckets = scrape(&metrics, &format!("{name}_bucket"));
        let bound = |line: &String| {
            line.split("le=\"")
                .nth(1)?
                .split('"')
                .next()
                .map(str::to_owned)
        };
        buckets.iter().filter_map(bound).collect()
    };
    let mut expected: Vec<String> = BOUNDS[..19].iter().map(|le| format!("{le:?}")).collect();
    expected.push("+Inf".to_owned());
    for name in [
        "istio_request_duration_milliseconds",
        "istio_request_bytes",
        "istio_response_bytes",
    ] {
        assert_eq!(bounds(name), expected, "{name}");
        assert_eq!(value(&only(&metrics, &format!("{name}_count"))), "4");
    }
    let counts: Vec<String> = scrape(&metrics, "istio_request_bytes_bucket")
        .iter()
        .map(|line| value(line))
        .collect();
    assert_eq!(counts[..3], ["1", "2", "3"], "0, 1 and 2 bytes");
    assert_eq!(counts[18..], ["3", "4"], "7.2 MB are beyond the last bound");
    assert_eq!(value(&only(&metrics, "istio_response_bytes_sum")), "100.0");
}

#[test]
fn grpc_is_counted_in_messages_and_has_its_own_status() {
    let metrics = Metrics::new();
    let open = metrics.open_request(to_cart(RequestProtocol::Grpc));
    open.request_messages(1);
    open.response_messages(2);
    open.response_messages(3);
    open.close(&RequestEnd {
        grpc_status: Some(14),
        ..answered(200)
    });
    let line = only(&metrics, "istio_response_messages_total");
    assert!(
        line.contains(
            "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"14\""
        ),
        "{line}"
    );
    assert_eq!(value(&line), "5");
    assert_eq!(value(&only(&metrics, "istio_request_messages_total")), "1");
}

#[test]
fn a_grpc_status_without_a_meaning_makes_no_series_of_its_own() {
    let metrics = Metrics::new();
    for grpc_status in [None, Some(2), Some(17), Some(60_000)] {
        let open = metrics.open_request(to_cart(RequestProtocol::Grpc));
        open.close(&RequestEnd {
            grpc_status,
            ..answered(200)
        });
    }
    let line = only(&metrics, "istio_requests_total");
    assert!(
        line.contains("grpc_response_status=\"2\"") && line.ends_with(" 4"),
        "{line}"
    );
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (content_type, expected) in [
        ("application/grpc", RequestProtocol::Grpc),
        ("application/grpc+proto", RequestProtocol::Grpc),
        ("application/grpc;charset=utf-8", RequestProtocol::Grpc),
        ("application/grpc-web", RequestProtocol::Http),
        ("application/json", RequestProtocol::Http),
    ] {
        let mut headers = HeaderMap::new();
        let _old = headers.insert("content-type", HeaderValue::from_static(content_type));
        assert_eq!(RequestProtocol::of(&headers), expected, "{content_type}");
    }
    assert_eq!(
        RequestProtocol::of(&HeaderMap::new()),
        RequestProtocol::Http
    );
}

#[test]
fn a_telemetry_object_changes_labels_and_switches_metrics_off() {
    let on = |metric, is_disabled| MetricOverride {
        metric,
        is_disabled,
        remove: vec!["source_principal".into()],
        set: vec![
            ("tier".into(), "gold".into()),
            ("source_app".into(), "front".into()),
        ],
    };
    let telemetry = Arc::new(Telemetry {
        metrics: Arc::new([
            on(HttpMetric::RequestCount, false),
            on(HttpMetric::RequestSize, true),
        ]),
        ..Telemetry::default()
    });
    let metrics = Metrics::new();
    for account in ["web", "other"] {
        let client = RequestClient {
            identity: Some(identity(account)),
            ..web()
        };
        let flow = RequestFlow {
            client: Arc::new(client),
            telemetry: Arc::clone(&telemetry),
            ..to_cart(RequestProtocol::Http)
        };
        metrics.open_request(flow).close(&answered(200));
    }
    let line = only(&metrics, "istio_requests_total");
    assert!(!line.contains("source_principal"), "{line}");
    assert!(
        line.contains("tier=\"gold\",source_app=\"front\"} 2"),
        "two principals without that label are one series: {line}"
    );
    assert_eq!(line.matches("source_app").count(), 1, "{line}");
    assert!(scrape(&metrics, "istio_request_bytes_count").is_empty());
    assert_eq!(
        scrape(&metrics, "istio_response_bytes_count").len(),
        2,
        "the other metrics keep the label"
    );
}

#[test]
fn the_series_cache_is_bounded_and_shares_what_is_equal() {
    let metrics = Metrics::new();
    let client = Arc::new(web());
    let flow = RequestFlow {
        client,
        ..to_cart(RequestProtocol::Http)
    };
    for _ in 0..3 {
        metrics.open_request(flow.clone()).close(&answered(200));
    }
    assert_eq!(metrics.requests.cached(), 1);
    for _ in 0..CACHED_SERIES {
        let rebuilt = RequestFlow {
            service: Some(service()),
            ..flow.clone()
        };
        metrics.open_request(rebuilt).close(&answered(200));
    }
    assert!(metrics.requests.cached() <= CACHED_SERIES);
    let line = only(&metrics, "istio_requests_total");
    assert_eq!(value(&line), (CACHED_SERIES + 3).to_string());
}

#[test]
fn both_directions_may_count_from_tasks_of_their_own() {
    fn shareable<T: Send + Sync>(_value: &T) {}
    let metrics = Metrics::new();
    let open: OpenRequest = metrics.open_request(to_cart(RequestProtocol::Http));
    shareable(&open);
    open.close(&RequestEnd {
        flags: RequestFlags::NONE,
        ..answered(200)
    });
    assert_eq!(value(&only(&metrics, "istio_requests_total")), "1");
}

#[track_caller]
fn only(metrics: &Metrics, name: &str) -> String {
    let mut lines = scrape(metrics, name);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines.remove(0)
}

fn value(line: &str) -> String {
    line.rsplit(' ').next().unwrap().to_owned()
}
