//! What is said of clients that are believed about whom they forward a request for.

use std::sync::Arc;

use userspace_l7::model::{
    HttpPolicy, HttpPolicyAction, HttpPolicyRule, PolicyKey, ServiceAccountMatch, SourceMatch,
};

use super::{REVIEWS, expect, mesh};
use crate::admin::fixture::key;

#[test]
fn who_is_believed_decides_which_rule_is_named() {
    let from_partners = HttpPolicy {
        key: PolicyKey {
            namespace: "bookinfo".into(),
            name: "partners".into(),
        },
        action: HttpPolicyAction::Allow,
        dry_run: false,
        rules: vec![HttpPolicyRule {
            from: vec![SourceMatch {
                remote_ip_blocks: vec!["203.0.113.0/24".parse().unwrap()],
                ..SourceMatch::default()
            }],
            ..HttpPolicyRule::default()
        }],
    };
    let query =
        "from=default/curl&to=reviews.bookinfo:80&path=/split&header=x-forwarded-for:203.0.113.9";
    for (believed, status, why, verdict) in [
        ("curl", None, "the application answers", "matches rule 0"),
        ("other", Some(403), "none of their rules", "does not match"),
    ] {
        let mut mesh = mesh(vec![Arc::new(from_partners.clone())]);
        let reviews = key("bookinfo", REVIEWS);
        let mut layer7 = (*mesh.services_layer7[&reviews]).clone();
        let mut demands = (*layer7.demands).clone();
        demands.forwarders = vec![ServiceAccountMatch {
            namespace: "default".into(),
            service_account: believed.into(),
        }];
        layer7.demands = Arc::new(demands);
        mesh.services_layer7.insert(reviews, Arc::new(layer7));
        let found = expect(&mesh, query, status, why);
        assert_eq!(found.policies[0].verdict, verdict, "{believed}");
    }
}
