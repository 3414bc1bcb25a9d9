//! Who calls.

use serde_json::json;

use super::{Request, alice, check, demands, exact, from, pattern, policy};
use crate::model::{
    Attribute, AttributeMatch, AttributeValue, Demands, HttpPolicyAction, HttpPolicyRule,
    ServiceAccountMatch, SourceMatch,
};
use crate::policy::http::HttpDecision;

fn get() -> Request {
    Request::get("/")
}

/// A rule with one field filled, and the rule with its negation filled.
macro_rules! field {
    ($field:ident, $negated:ident, $value:expr) => {
        (
            from(SourceMatch {
                $field: vec![$value],
                ..SourceMatch::default()
            }),
            from(SourceMatch {
                $negated: vec![$value],
                ..SourceMatch::default()
            }),
        )
    };
}

#[test]
fn principals_match_the_verified_identity_only() {
    let other = get().identity("spiffe://td/ns/web2/sa/client");
    for (text, client, others, nobody) in [
        ("td/ns/web/sa/client", true, false, false),
        ("spiffe://td/ns/web/sa/client", false, false, false),
        ("TD/ns/web/sa/client", false, false, false),
        ("td/ns/web/*", true, false, false),
        ("*/sa/client", true, true, false),
        ("*/sa/server", false, false, false),
        ("*", true, true, false),
    ] {
        let (positive, negative) = field!(principals, not_principals, pattern(text));
        for (request, holds) in [
            (get(), client),
            (other.clone(), others),
            (get().anonymous(), nobody),
        ] {
            check(&positive, &request, holds);
            check(&negative, &request, !holds);
        }
    }
}

#[test]
fn namespaces_take_a_star_anywhere() {
    for (text, holds) in [
        ("web", true),
        ("we", false),
        ("WEB", false),
        ("w*", true),
        ("*b", true),
        ("*", true),
        ("x*", false),
    ] {
        let (positive, negative) = field!(namespaces, not_namespaces, pattern(text));
        check(&positive, &get(), holds);
        check(&negative, &get(), !holds);
        check(&positive, &get().anonymous(), false);
        check(&negative, &get().anonymous(), true);
    }
    for (text, holds) in [
        ("w*b", true),
        ("w*e*b", true),
        ("w*x", false),
        ("we*eb", false),
    ] {
        let (positive, _) = field!(namespaces, not_namespaces, exact(text));
        check(&positive, &get(), holds);
    }
}

#[test]
fn service_accounts_are_of_a_namespace_in_any_trust_domain() {
    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    let (positive, negative) = field!(
        service_accounts,
        not_service_accounts,
        account("web", "client")
    );
    let elsewhere = get().identity("spiffe://other/ns/web/sa/client");
    for (request, holds) in [
        (get(), true),
        (elsewhere, true),
        (get().identity("spiffe://td/ns/web/sa/server"), false),
        (get().identity("spiffe://td/ns/app/sa/client"), false),
        (get().anonymous(), false),
    ] {
        check(&positive, &request, holds);
        check(&negative, &request, !holds);
    }
}

#[test]
fn trust_domains_are_of_the_identity() {
    let (positive, negative) = field!(trust_domains, not_trust_domains, exact("td"));
    let other = get().identity("spiffe://other/ns/web/sa/client");
    for (request, holds) in [(get(), true), (other, false), (get().anonymous(), false)] {
        check(&positive, &request, holds);
        check(&negative, &request, !holds);
    }
}

#[test]
fn addresses_are_the_clients_own_whatever_it_says() {
    for (net, holds) in [
        ("10.0.0.1/32", true),
        ("10.0.0.0/8", true),
        ("203.0.113.9/32", false),
        ("10.0.0.2/32", false),
        ("::/0", false),
    ] {
        let near = field!(ip_blocks, not_ip_blocks, net.parse().unwrap());
        // No client is believed that names another.
        let far = field!(remote_ip_blocks, not_remote_ip_blocks, net.parse().unwrap());
        for (positive, negative) in [near, far] {
            check(&positive, &get(), holds);
            check(&negative, &get(), !holds);
            // What a client says about itself changes nothing.
            let lying = get().header("x-forwarded-for", "203.0.113.9");
            check(&positive, &lying, holds);
        }
    }
}

#[test]
fn a_forwarder_is_believed_about_the_last_address_and_nobody_else_is() {
    let wanted = "203.0.113.0/24".parse().unwrap();
    let far = from(SourceMatch {
        remote_ip_blocks: vec![wanted],
        ..SourceMatch::default()
    });
    let when = HttpPolicyRule {
        when: vec![AttributeMatch {
            attribute: Attribute::RemoteIp,
            values: vec![AttributeValue::Net(wanted)],
            not_values: vec![],
        }],
        ..HttpPolicyRule::default()
    };
    let near = from(SourceMatch {
        ip_blocks: vec!["10.0.0.1/32".parse().unwrap()],
        ..SourceMatch::default()
    });
    let gateway = ServiceAccountMatch {
        namespace: "web".into(),
        service_account: "client".into(),
    };
    let allows = |rule: &HttpPolicyRule, request: &Request| {
        let demanded = Demands {
            forwarders: vec![gateway.clone()],
            ..demands(&[policy("a", HttpPolicyAction::Allow, vec![rule.clone()])])
        };
        matches!(request.judge(&demanded).decision, HttpDecision::Allowed(_))
    };
    let forwarding = |values: &[&str]| {
        let add = |request: Request, value: &&str| request.header("x-forwarded-for", value);
        values.iter().fold(get(), add)
    };
    for (values, holds) in [
        (&["203.0.113.9"][..], true),
        (&["::ffff:203.0.113.9"], true),
        (&["198.51.100.1, 203.0.113.9"], true),
        (&["198.51.100.1", "203.0.113.9"], true),
        // What others have told the gateway.
        (&["203.0.113.9, 198.51.100.1"], false),
        (&["203.0.113.9", "198.51.100.1"], false),
        // No address: the gateway itself.
        (&["203.0.113.9, unknown"], false),
        (&["203.0.113.9:80"], false),
        (&[""], false),
        (&[], false),
    ] {
        let request = forwarding(values);
        for rule in [&far, &when] {
            assert_eq!(allows(rule, &request), holds, "{values:?}");
            let other = request.clone().identity("spiffe://td/ns/web/sa/other");
            assert!(!allows(rule, &other), "{values:?}");
            assert!(!allows(rule, &request.clone().anonymous()), "{values:?}");
        }
        assert!(
            allows(&near, &request),
            "it is still the gateway that calls"
        );
    }
}

#[test]
fn request_principals_are_issuer_and_subject_split_at_the_last_slash() {
    let alice = get().token(&alice());
    for (text, holds) in [
        ("https://idp.example/realms/one/alice", true),
        ("https://idp.example/realms/one/bob", false),
        ("https://idp.example/realms/one/Alice", false),
        ("https://idp.example/realms/alice", false),
        ("https://idp.example/realms/one", false),
        ("*", true),
        ("*/alice", true),
        ("*/bob", false),
        ("*/one/alice", true),
        ("*ice", true),
        ("https://idp.example/realms/one/*", true),
        ("https://idp.example/realms/one/al*", true),
        ("https://idp.example/realms/*", false),
        ("https://idp.example/*", false),
        // Without a slash it is about one half only.
        ("https:*", true),
        ("http:*", false),
    ] {
        let (positive, negative) =
            field!(request_principals, not_request_principals, pattern(text));
        check(&positive, &alice, holds);
        check(&negative, &alice, !holds);
        check(&positive, &get(), false);
        check(&negative, &get(), true);
    }
}

#[test]
fn a_token_without_a_subject_has_no_principal() {
    let (any, not_any) = field!(request_principals, not_request_principals, pattern("*"));
    for claims in [
        json!({"iss": "i"}),
        json!({"sub": "s"}),
        json!({"iss": "i", "sub": 7}),
        json!({"iss": "i", "sub": ""}),
        json!({"iss": "", "sub": "s"}),
    ] {
        check(&any, &get().token(&claims), false);
        check(&not_any, &get().token(&claims), true);
    }
}

#[test]
fn values_are_ored_fields_anded_and_sources_ored() {
    let both = SourceMatch {
        principals: vec![exact("x"), exact("td/ns/web/sa/client")],
        ip_blocks: vec!["10.0.0.0/24".parse().unwrap()],
        ..SourceMatch::default()
    };
    check(&from(both.clone()), &get(), true);
    let elsewhere = SourceMatch {
        ip_blocks: vec!["10.9.0.0/24".parse().unwrap()],
        ..both.clone()
    };
    check(&from(elsewhere.clone()), &get(), false);
    let except = SourceMatch {
        not_ip_blocks: vec!["10.0.0.1/32".parse().unwrap()],
        ..both.clone()
    };
    check(&from(except), &get(), false);
    let mut either = from(elsewhere);
    either.from.push(both);
    check(&either, &get(), true);
    check(&from(SourceMatch::default()), &get().anonymous(), true);
}
