//! The decision as people read it.

use super::text;
use crate::admin::{
    BackendStep, ClientStep, DestinationStep, EndpointStep, Expectation, Explanation, LimitStep,
    PolicyStep, RouteStep, WaypointStep,
};

fn explanation() -> Explanation {
    Explanation {
        client: ClientStep {
            namespace: "default".into(),
            pod: "curl-1".into(),
            node: "node-a".into(),
            identity: "spiffe://cluster.local/ns/default/sa/curl".into(),
            address: "10.1.0.9".into(),
            capture: "captured by this node's agent".into(),
        },
        destination: DestinationStep {
            asked: "reviews.bookinfo:80".into(),
            address: "10.96.0.9:80".into(),
            service: Some("bookinfo/reviews".into()),
            meaning: "service bookinfo/reviews".into(),
        },
        waypoint: WaypointStep {
            name: Some("bookinfo/waypoint".into()),
            protocol: Some("http".into()),
            why: "bound".into(),
        },
        route: Some(RouteStep {
            origin: Some("HTTPRoute bookinfo/reviews".into()),
            rule: Some("bookinfo.reviews.0".into()),
            matched: Some("everything".into()),
            filters: vec!["times out after 1s".into()],
            outcome: "forwarded by weight".into(),
        }),
        limits: vec![LimitStep {
            name: "bookinfo/few[0]".into(),
            kept_by: "client's node".into(),
            bucket: "path=/reviews".into(),
            cost: "1 of 5 tokens".into(),
            applies: true,
            never_passes: false,
        }],
        backends: vec![BackendStep {
            name: "bookinfo/reviews-v1".into(),
            port: Some(80),
            weight: Some(90),
            share: "90.0".into(),
            endpoints: vec![EndpointStep {
                workload: "bookinfo/reviews-v1-x".into(),
                node: "node-b".into(),
                address: "10.1.0.1:8080".into(),
                health: "Healthy".into(),
                carriage: "HBONE".into(),
                takes_requests: true,
                verdict: "allowed".into(),
            }],
        }],
        policies: vec![PolicyStep {
            name: "bookinfo/readers".into(),
            action: "ALLOW".into(),
            layer: "L7".into(),
            at: "node-b".into(),
            verdict: "does not match".into(),
            is_match: false,
        }],
        expected: Expectation {
            status: Some(403),
            is_delivered: false,
            why: "RBAC: access denied".into(),
        },
    }
}

#[test]
fn the_whole_decision_fits_a_screen() {
    assert_eq!(
        text(&explanation()),
        "client       default/curl-1 on node-a, 10.1.0.9, spiffe://cluster.local/ns/default/sa/curl\n\
         \u{20}            captured by this node's agent\n\
         destination  reviews.bookinfo:80 is 10.96.0.9:80, service bookinfo/reviews\n\
         waypoint     bookinfo/waypoint (http): bound\n\
         route        HTTPRoute bookinfo/reviews, rule bookinfo.reviews.0\n\
         \u{20}            matches everything\n\
         \u{20}            times out after 1s\n\
         \u{20}            forwarded by weight\n\
         \n\
         LIMIT           KEPT BY       BUCKET        COST\n\
         bookinfo/few[0] client's node path=/reviews 1 of 5 tokens\n\
         \n\
         BACKEND             PORT WEIGHT SHARE ENDPOINTS\n\
         bookinfo/reviews-v1 80   90     90.0% 1/1\n\
         \n\
         BACKEND             ENDPOINT              NODE   ADDRESS       HEALTH  CARRIAGE CHOSEN LAYER 4\n\
         bookinfo/reviews-v1 bookinfo/reviews-v1-x node-b 10.1.0.1:8080 Healthy HBONE    yes    allowed\n\
         \n\
         POLICY           ACTION LAYER ENFORCED AT VERDICT\n\
         bookinfo/readers ALLOW  L7    node-b      does not match\n\
         \n\
         expected     403: RBAC: access denied\n"
    );
}

#[test]
fn what_others_named_cannot_move_the_terminals_cursor() {
    let mut explanation = explanation();
    explanation.destination.asked = "\u{1b}[2J".into();
    explanation.expected.status = None;
    let text = text(&explanation);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(
        text.ends_with("expected     refused: RBAC: access denied\n"),
        "{text}"
    );
}
