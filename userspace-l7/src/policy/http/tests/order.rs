//! In which order policies speak, and what the answer says.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::{Request, demands, from, pattern, policy, rule_name, to};
use crate::model::{
    Attribute, AttributeMatch, AttributeValue, ExternalAuthorizer, ExternalAuthorizerProtocol,
    HttpPolicy, HttpPolicyAction, HttpPolicyRule, NamespacedHostname, OperationMatch, PathPattern,
    SourceMatch,
};
use crate::policy::http::{HttpDecision, HttpDenial, HttpDryRun, foresee_http};

const ALLOW: HttpPolicyAction = HttpPolicyAction::Allow;
const DENY: HttpPolicyAction = HttpPolicyAction::Deny;
const AUDIT: HttpPolicyAction = HttpPolicyAction::Audit;

fn all() -> Vec<HttpPolicyRule> {
    vec![HttpPolicyRule::default()]
}

fn path(text: &str) -> HttpPolicyRule {
    to(OperationMatch {
        paths: vec![PathPattern::Text(pattern(text))],
        ..OperationMatch::default()
    })
}

fn authorizer(name: &str) -> Arc<ExternalAuthorizer> {
    Arc::new(ExternalAuthorizer {
        name: name.into(),
        service: NamespacedHostname {
            namespace: "auth".into(),
            hostname: "authz.auth".into(),
        },
        port: 9000,
        protocol: ExternalAuthorizerProtocol::Grpc,
        timeout: Duration::from_secs(600),
        fail_open: false,
        status_on_error: http::StatusCode::FORBIDDEN,
        body: None,
    })
}

#[test]
fn allow_needs_a_match_where_any_exists_and_deny_beats_it() {
    let request = Request::get("/admin");
    let denied = |name: &str| Err(HttpDenial::Explicit(rule_name(name, 0)));
    for (policies, expected) in [
        (vec![], Ok(())),
        (vec![policy("a", ALLOW, all())], Ok(())),
        (
            vec![policy("a", ALLOW, vec![])],
            Err(HttpDenial::NotAllowed),
        ),
        (vec![policy("d", DENY, all())], denied("d")),
        (vec![policy("d", DENY, vec![])], Ok(())),
        (
            vec![policy("a", ALLOW, all()), policy("d", DENY, all())],
            denied("d"),
        ),
        (
            vec![policy("a", ALLOW, vec![path("/other")])],
            Err(HttpDenial::NotAllowed),
        ),
        (
            vec![
                policy("a", ALLOW, vec![path("/other")]),
                policy("b", ALLOW, vec![path("/admin")]),
            ],
            Ok(()),
        ),
        (
            vec![
                policy("a", ALLOW, all()),
                policy("d", DENY, vec![path("/other")]),
            ],
            Ok(()),
        ),
        (vec![policy("u", AUDIT, all())], Ok(())),
        (
            vec![policy("u", AUDIT, all()), policy("a", ALLOW, vec![])],
            Err(HttpDenial::NotAllowed),
        ),
    ] {
        assert_eq!(request.decide(&policies), expected, "{policies:?}");
    }
}

#[test]
fn from_to_and_when_are_anded_and_rules_ored() {
    let mut both = path("/admin");
    both.from = vec![SourceMatch {
        principals: vec![pattern("*/sa/other")],
        ..SourceMatch::default()
    }];
    let request = Request::get("/admin");
    let one = policy("a", ALLOW, vec![both.clone()]);
    assert_eq!(request.decide(&[one]), Err(HttpDenial::NotAllowed));
    let two = policy("d", DENY, vec![both, path("/x"), path("/admin")]);
    assert_eq!(
        request.decide(&[two]),
        Err(HttpDenial::Explicit(rule_name("d", 2)))
    );
}

#[test]
fn the_answer_names_the_rule_as_envoy_does() {
    let explicit = HttpDenial::Explicit(rule_name("deny", 3));
    for (denial, details, status, body) in [
        (
            &explicit,
            "rbac_access_denied_matched_policy[ns[app]-policy[deny]-rule[3]]",
            403,
            "RBAC: access denied",
        ),
        (
            &HttpDenial::NotAllowed,
            "rbac_access_denied_matched_policy[none]",
            403,
            "RBAC: access denied",
        ),
        (
            &HttpDenial::AmbiguousPath,
            "path_normalization_failed",
            400,
            "",
        ),
    ] {
        assert_eq!(denial.to_string(), details);
        assert_eq!(denial.status(), status);
        assert_eq!(denial.body(), body);
    }
}

#[test]
fn an_allowed_request_goes_on_with_the_path_that_was_judged() {
    let verdict = Request::get("/a/%2e%2e/b%2Fc/%41").judge(&demands(&[]));
    let HttpDecision::Allowed(allowed) = verdict.decision else {
        panic!("nothing refuses it: {verdict:?}");
    };
    assert_eq!(allowed.path().as_str(), "/b%2Fc/A");
}

#[test]
fn dry_run_and_audit_report_and_never_decide() {
    let dry = |name: &str, action, rules| HttpPolicy {
        dry_run: true,
        ..policy(name, action, rules)
    };
    let request = Request::get("/admin");
    let verdict = request.judge(&demands(&[
        dry("d", DENY, vec![path("/x"), path("/admin")]),
        dry("a", ALLOW, vec![]),
        policy("u", AUDIT, all()),
        policy("v", AUDIT, vec![path("/x")]),
    ]));
    assert!(matches!(verdict.decision, HttpDecision::Allowed(_)));
    let expected = [
        HttpDryRun::WouldDeny(rule_name("d", 1)),
        HttpDryRun::WouldNotAllow,
    ];
    assert_eq!(verdict.dry_run, expected);
    assert_eq!(verdict.audited, [rule_name("u", 0)]);

    let verdict = request.judge(&demands(&[
        dry("a", ALLOW, all()),
        policy("d", DENY, all()),
        policy("u", AUDIT, all()),
    ]));
    assert!(matches!(verdict.decision, HttpDecision::Denied(_)));
    let would = [HttpDryRun::WouldAllow(rule_name("a", 0))];
    assert_eq!(verdict.dry_run, would);
    assert_eq!(
        verdict.audited,
        [rule_name("u", 0)],
        "what is denied is noted too"
    );
}

#[test]
fn custom_asks_first_and_the_rest_is_judged_after() {
    let custom = |name: &str, who: &str, rules| {
        policy(name, HttpPolicyAction::Custom(Some(authorizer(who))), rules)
    };
    let policies = demands(&[
        policy("d", DENY, vec![path("/secret")]),
        custom("c", "one", vec![path("/x"), path("/admin*")]),
        custom("e", "two", vec![path("/other")]),
        custom("f", "one", vec![path("*")]),
    ]);
    let request = Request::get("/admin");
    let HttpDecision::Ask(ask) = request.judge(&policies).decision else {
        panic!("a CUSTOM policy matches");
    };
    let asked: Vec<_> = ask
        .authorizers
        .iter()
        .map(|asked| (&*asked.authorizer.name, asked.rule.clone()))
        .collect();
    assert_eq!(asked, [("one", rule_name("c", 1))], "each is asked once");
    // The answer may have changed the request: it is judged as it is now.
    let changed = Request::get("/secret");
    let verdict = ask.then.judge(&policies, &changed.facts());
    assert!(
        matches!(&verdict.decision, HttpDecision::Denied(HttpDenial::Explicit(rule)) if *rule == rule_name("d", 0)),
        "{verdict:?}"
    );
}

#[test]
fn a_provider_that_does_not_exist_refuses_what_it_should_judge() {
    let lost = policy("c", HttpPolicyAction::Custom(None), vec![path("/admin")]);
    let refused = Request::get("/admin").decide(std::slice::from_ref(&lost));
    assert_eq!(refused, Err(HttpDenial::NoAuthorizer(rule_name("c", 0))));
    assert_eq!(refused.unwrap_err().status(), 403);
    assert_eq!(Request::get("/x").decide(&[lost]), Ok(()));
}

#[test]
fn custom_rules_see_no_token() {
    let any_token = from(SourceMatch {
        request_principals: vec![pattern("*")],
        ..SourceMatch::default()
    });
    let custom = policy(
        "c",
        HttpPolicyAction::Custom(Some(authorizer("one"))),
        vec![any_token],
    );
    let request = Request::get("/").token(&json!({"iss": "i", "sub": "s"}));
    assert_eq!(request.decide(&[custom]), Ok(()));
}

/// A rule with one condition, which a request without that attribute fulfils.
fn without(attribute: Attribute) -> HttpPolicyRule {
    HttpPolicyRule {
        when: vec![AttributeMatch {
            attribute,
            values: vec![],
            not_values: vec![AttributeValue::Text(pattern("*"))],
        }],
        ..HttpPolicyRule::default()
    }
}

#[test]
fn what_is_denied_for_sure_is_foreseen_whoever_is_still_to_be_asked() {
    let custom = policy(
        "c",
        HttpPolicyAction::Custom(Some(authorizer("one"))),
        all(),
    );
    let nobody = from(SourceMatch {
        not_request_principals: vec![pattern("*")],
        ..SourceMatch::default()
    });
    let header = || without(Attribute::Header(http::HeaderName::from_static("x-user")));
    let claim = || without(Attribute::RequestClaim(vec!["group".into()]));
    // A rule; whether it is foreseen, as things are, with a token that cannot be checked here, and before others are asked.
    for (rule, known, unchecked, unasked) in [
        (path("/admin"), true, true, true),
        (path("/other"), false, false, false),
        (header(), true, true, false),
        (claim(), true, false, false),
        (nobody, true, false, false),
    ] {
        let deny = policy("d", DENY, vec![path("/x"), rule.clone()]);
        let allow = policy("a", ALLOW, all());
        let request = Request::get("/admin");
        for (asks, is_token_known, foreseen) in [
            (false, true, known),
            (false, false, unchecked),
            (true, true, unasked),
            (true, false, unasked),
        ] {
            let mut policies = vec![allow.clone(), deny.clone()];
            policies.extend(asks.then(|| custom.clone()));
            let found = foresee_http(&demands(&policies), &request.facts(), is_token_known);
            let expected = if foreseen {
                Err(HttpDenial::Explicit(rule_name("d", 1)))
            } else {
                Ok(())
            };
            assert_eq!(found, expected, "{rule:?} {asks} {is_token_known}");
        }
    }
}

#[test]
fn what_nothing_allows_is_foreseen_only_where_all_is_known() {
    let allow = || policy("a", ALLOW, vec![path("/other")]);
    let custom = policy(
        "c",
        HttpPolicyAction::Custom(Some(authorizer("one"))),
        all(),
    );
    let request = Request::get("/admin");
    let foresee = |policies: &[HttpPolicy], is_token_known| {
        foresee_http(&demands(policies), &request.facts(), is_token_known)
    };
    assert_eq!(foresee(&[allow()], true), Err(HttpDenial::NotAllowed));
    assert_eq!(foresee(&[allow()], false), Ok(()));
    assert_eq!(foresee(&[allow(), custom], true), Ok(()));
}
