//! What is said of limits on requests.

use std::sync::Arc;
use std::time::Duration;

use userspace_l7::model::{
    HttpPolicy, HttpPolicyAction, RateLimit, RateLimitKey, RateLimiter, Snapshot,
};

use super::{REVIEWS, expect, mesh, policy};
use crate::admin::fixture::key;

/// The mesh with limits on the port of `reviews`.
fn limited(limits: Vec<RateLimit>, authorization: Vec<Arc<HttpPolicy>>) -> Snapshot {
    let mut snapshot = mesh(authorization);
    let key = key("bookinfo", REVIEWS);
    let mut layer7 = (*snapshot.services_layer7[&key]).clone();
    let mut port = (*layer7.ports[&80]).clone();
    port.rate_limits = limits.into_iter().map(Arc::new).collect();
    layer7.ports.insert(80, Arc::new(port));
    snapshot.services_layer7.insert(key, Arc::new(layer7));
    snapshot
}

fn limit(index: usize, route: Option<&str>, per: Vec<RateLimitKey>, by: RateLimiter) -> RateLimit {
    RateLimit {
        key: format!("bookinfo/few[{index}]").into(),
        route: route.map(Into::into),
        per,
        by,
    }
}

fn local(requests: u32) -> RateLimiter {
    RateLimiter::Local {
        requests,
        period: Duration::from_secs(60),
        burst: requests,
    }
}

#[test]
fn limits_say_whether_they_apply_and_what_a_request_costs() {
    let global = RateLimiter::Global {
        service: key("limits", "rls.limits.svc.cluster.local"),
        port: 8081,
        domain: "shop".into(),
        timeout: Duration::from_millis(20),
        fail_closed: true,
    };
    let identity = vec![RateLimitKey::ClientIdentity, RateLimitKey::Path];
    let fixed = vec![RateLimitKey::Fixed {
        key: "kind".into(),
        value: "dear".into(),
    }];
    let mesh = limited(
        vec![
            limit(0, None, fixed, global),
            limit(1, Some("bookinfo.reviews.split"), identity, local(5)),
            limit(2, Some("bookinfo.reviews.old"), Vec::new(), local(0)),
        ],
        Vec::new(),
    );
    let query = |path: &str| format!("from=default/curl&to=reviews.bookinfo:80&path={path}");
    let found = expect(
        &mesh,
        &query("/split/x?a=b"),
        None,
        "the application answers; 429 instead once bookinfo/few[1] or bookinfo/few[0] is used up",
    );
    let told: Vec<_> = found
        .limits
        .iter()
        .map(|limit| (&*limit.kept_by, &*limit.bucket, &*limit.cost))
        .collect();
    let bucket = "client_identity=spiffe://cluster.local/ns/default/sa/curl, path=/split/x";
    let (node, service) = ("client's node", "limits/rls.limits.svc.cluster.local:8081");
    assert_eq!(
        told,
        [
            (node, bucket, "1 of 5 tokens, of which 5 come back per 60s"),
            (
                node,
                "all requests",
                "nothing: only requests of rule bookinfo.reviews.old"
            ),
            (
                service,
                "kind=dear",
                "1 hit in domain shop; refuses if not answered within 20ms"
            ),
        ]
    );
    // Before the redirection that the rule would answer.
    expect(
        &mesh,
        &query("/old"),
        Some(429),
        "bookinfo/few[2] lets no request pass",
    );
    // What no rule takes is not counted.
    let found = expect(&mesh, &query("/elsewhere"), Some(404), "no route matches");
    assert_eq!(found.limits, []);
}

#[test]
fn who_may_not_ask_is_told_so_whatever_the_limits() {
    let curl = "cluster.local/ns/default/sa/curl";
    let deny = policy("nobody", HttpPolicyAction::Deny, "GET", curl);
    let mesh = limited(vec![limit(0, None, Vec::new(), local(0))], vec![deny]);
    let query = "from=default/curl&to=reviews.bookinfo:80&path=/split";
    expect(
        &mesh,
        query,
        Some(403),
        "policy bookinfo/nobody denies it by rule 0",
    );
}
