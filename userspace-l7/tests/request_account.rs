//! What it costs to account for a request, in allocations.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use userspace_l7::telemetry::{Metrics, RequestClient, RequestEnd, RequestFlow, Security};

#[test]
fn accounting_for_a_request_of_a_known_label_set_allocates_nothing() {
    let metrics = Metrics::new();
    let address = SocketAddr::from(([10, 0, 0, 1], 40_000));
    let client = Arc::new(RequestClient {
        workload: None,
        identity: Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()),
        address,
        dialled: address,
        security: Security::MutualTls,
    });
    let (head, ()) = http::Request::new(()).into_parts();
    let flow = RequestFlow::new(client, None, Arc::default(), &head);
    let account = |status| {
        let open = metrics.open_request(flow.clone());
        open.request_bytes(100);
        open.response_bytes(2000);
        open.close(&RequestEnd {
            status: Some(status),
            ..RequestEnd::default()
        });
    };
    account(StatusCode::OK);
    let known = allocation_counter::measure(|| (0..1000).for_each(|_| account(StatusCode::OK)));
    assert_eq!(known.count_total, 0, "{known:?}");
    let new = allocation_counter::measure(|| account(StatusCode::NOT_FOUND));
    assert!(new.count_total > 0, "the counter counts: {new:?}");
}
