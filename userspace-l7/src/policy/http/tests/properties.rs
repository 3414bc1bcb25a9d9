//! What holds for all policies and requests.

use proptest::prelude::*;

use super::{Request, demands, pattern, policy};
use crate::model::{
    Attribute, AttributeMatch, AttributeValue, HttpPolicy, HttpPolicyAction, HttpPolicyRule,
    OperationMatch, PathPattern, SourceMatch,
};
use crate::policy::http::HttpDecision;

fn text() -> impl Strategy<Value = String> {
    let words = vec![
        "*",
        "/a*",
        "/a",
        "*b",
        "web",
        "GET",
        "td/ns/web/sa/client",
        "v",
    ];
    prop::sample::select(words).prop_map(str::to_owned)
}

fn rule() -> impl Strategy<Value = HttpPolicyRule> {
    let texts = || prop::collection::vec(text(), 0..2);
    let source = (texts(), texts()).prop_map(|(principals, not_namespaces)| SourceMatch {
        principals: principals.iter().map(|text| pattern(text)).collect(),
        not_namespaces: not_namespaces.iter().map(|text| pattern(text)).collect(),
        ..SourceMatch::default()
    });
    let operation = (texts(), texts(), texts()).prop_map(|(methods, paths, not)| {
        let path = |text: &String| PathPattern::Text(pattern(text));
        OperationMatch {
            methods: methods.iter().map(|text| pattern(text)).collect(),
            paths: paths.iter().map(path).collect(),
            not_paths: not.iter().map(path).collect(),
            ..OperationMatch::default()
        }
    });
    let when = (texts(), texts()).prop_map(|(values, not_values)| {
        let value = |text: &String| AttributeValue::Text(pattern(text));
        AttributeMatch {
            attribute: Attribute::Header(http::HeaderName::from_static("x")),
            values: values.iter().map(value).collect(),
            not_values: not_values.iter().map(value).collect(),
        }
    });
    (
        prop::collection::vec(source, 0..2),
        prop::collection::vec(operation, 0..2),
        prop::collection::vec(when, 0..2),
    )
        .prop_map(|(from, to, when)| HttpPolicyRule { from, to, when })
}

fn some_policy() -> impl Strategy<Value = HttpPolicy> {
    let actions = vec![
        HttpPolicyAction::Allow,
        HttpPolicyAction::Deny,
        HttpPolicyAction::Audit,
    ];
    let rules = prop::collection::vec(rule(), 0..3);
    (prop::sample::select(actions), any::<bool>(), rules).prop_map(|(action, dry_run, rules)| {
        HttpPolicy {
            dry_run,
            ..policy("p", action, rules)
        }
    })
}

fn some_request() -> impl Strategy<Value = Request> {
    let bytes = prop::collection::vec(prop_oneof![0x80_u8.., 0x20_u8..0x7f], 0..8);
    (
        any::<bool>(),
        prop::sample::select(vec!["/", "/a", "/ab", "/b"]),
        bytes,
    )
        .prop_map(|(known, path, header)| {
            let request = Request::get(path).header("x", header);
            if known { request } else { request.anonymous() }
        })
}

fn is_allowed(request: &Request, policies: &[HttpPolicy]) -> bool {
    let verdict = request.judge(&demands(policies));
    matches!(verdict.decision, HttpDecision::Allowed(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn deny_beats_allow(
        mut policies in prop::collection::vec(some_policy(), 0..5),
        request in some_request(),
    ) {
        policies.push(policy("d", HttpPolicyAction::Deny, vec![HttpPolicyRule::default()]));
        prop_assert!(!is_allowed(&request, &policies));
    }

    #[test]
    fn one_more_deny_never_allows_more(
        mut policies in prop::collection::vec(some_policy(), 0..5),
        rules in prop::collection::vec(rule(), 0..3),
        request in some_request(),
    ) {
        let before = is_allowed(&request, &policies);
        policies.push(policy("d", HttpPolicyAction::Deny, rules));
        prop_assert!(before || !is_allowed(&request, &policies));
    }

    #[test]
    fn order_does_not_matter(
        mut policies in prop::collection::vec(some_policy(), 0..6),
        request in some_request(),
    ) {
        let before = is_allowed(&request, &policies);
        policies.reverse();
        for policy in &mut policies {
            policy.rules.reverse();
            for rule in &mut policy.rules {
                rule.from.reverse();
                rule.to.reverse();
                rule.when.reverse();
            }
        }
        prop_assert_eq!(is_allowed(&request, &policies), before);
    }

    #[test]
    fn what_is_only_watched_decides_nothing(
        policies in prop::collection::vec(some_policy(), 0..6),
        request in some_request(),
    ) {
        let enforced: Vec<_> = policies.iter().filter(|one| !one.dry_run).cloned().collect();
        prop_assert_eq!(
            is_allowed(&request, &policies),
            is_allowed(&request, &enforced)
        );
    }

    #[test]
    fn any_bytes_are_judged(
        header in prop::collection::vec(any::<u8>(), 0..64),
        path in "\\PC*",
        authority in "\\PC*",
        policies in prop::collection::vec(some_policy(), 0..5),
    ) {
        let header: Vec<u8> = header
            .into_iter()
            .filter(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f)
            .collect();
        let request = Request::get(&path).authority(&authority).header("x", header);
        let verdict = request.judge(&demands(&policies));
        if let HttpDecision::Allowed(allowed) = verdict.decision {
            prop_assert!(allowed.path().as_str().starts_with('/'));
        }
    }
}
