//! Conditions of `when`, key by key.

use serde_json::json;

use super::{Request, alice, check, exact, pattern};
use crate::model::{
    Attribute, AttributeMatch, AttributeValue, HttpPolicyRule, ServiceAccountMatch,
};

fn when(conditions: Vec<AttributeMatch>) -> HttpPolicyRule {
    HttpPolicyRule {
        when: conditions,
        ..HttpPolicyRule::default()
    }
}

/// A condition, and the condition with `notValues` in place of `values`.
#[track_caller]
fn check_both(attribute: &Attribute, value: AttributeValue, request: &Request, holds: bool) {
    let positive = AttributeMatch {
        attribute: attribute.clone(),
        values: vec![value.clone()],
        not_values: vec![],
    };
    let negative = AttributeMatch {
        attribute: attribute.clone(),
        values: vec![],
        not_values: vec![value],
    };
    check(&when(vec![positive]), request, holds);
    check(&when(vec![negative]), request, !holds);
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::Text(pattern(value))
}

fn net(value: &str) -> AttributeValue {
    AttributeValue::Net(value.parse().unwrap())
}

fn get() -> Request {
    Request::get("/")
}

#[test]
fn headers_are_one_comma_joined_value() {
    let header = Attribute::Header(http::HeaderName::from_static("x-role"));
    let admin = get().header("X-Role", "admin");
    for (value, request, holds) in [
        ("admin", admin.clone(), true),
        ("Admin", admin.clone(), false),
        ("adm*", admin.clone(), true),
        ("*min", admin.clone(), true),
        ("*", admin.clone(), true),
        ("*", get().header("x-role", ""), true),
        ("*", get(), false),
        ("admin", get(), false),
        ("admin", admin.clone().header("x-role", "b"), false),
        ("admin,b", admin.clone().header("x-role", "b"), true),
        ("admin*", admin.header("x-role", "b"), true),
        // Bytes that are no text do not hide what stands beside them.
        ("adm*", get().header("x-role", b"adm\xff"), true),
        ("*min", get().header("x-role", b"\xffmin"), true),
        ("admin", get().header("x-role", b"admin\xff"), false),
    ] {
        check_both(&header, text(value), &request, holds);
    }
}

#[test]
fn pseudo_headers_are_what_the_client_asks_for() {
    let asked = Request::get("/admin");
    for (attribute, value, holds) in [
        (Attribute::Method, text("GET"), true),
        (Attribute::Method, text("DELETE"), false),
        (Attribute::Target, text("/admin"), true),
        (Attribute::Target, text("/adm*"), true),
        (Attribute::Target, text("/other"), false),
        (Attribute::Authority, text("*"), true),
        (Attribute::Authority, text("elsewhere"), false),
    ] {
        check_both(&attribute, value, &asked, holds);
    }
}

#[test]
fn addresses_and_ports() {
    for (attribute, value, holds) in [
        (Attribute::SourceIp, net("10.0.0.1/32"), true),
        (Attribute::SourceIp, net("203.0.113.9/32"), false),
        (Attribute::RemoteIp, net("203.0.113.9/32"), false),
        (Attribute::RemoteIp, net("10.0.0.1/32"), true),
        (Attribute::DestinationIp, net("10.0.0.2/32"), true),
        (Attribute::DestinationIp, net("10.0.0.1/32"), false),
        (Attribute::DestinationPort, AttributeValue::Port(80), true),
        (
            Attribute::DestinationPort,
            AttributeValue::Port(8080),
            false,
        ),
        // A value of another kind is never the attribute's.
        (Attribute::SourceIp, text("*"), false),
        (Attribute::DestinationPort, text("80"), false),
    ] {
        check_both(&attribute, value, &get(), holds);
    }
}

#[test]
fn the_clients_identity() {
    let account = AttributeValue::ServiceAccount(ServiceAccountMatch {
        namespace: "web".into(),
        service_account: "client".into(),
    });
    for (attribute, value, holds) in [
        (Attribute::SourceNamespace, text("web"), true),
        (Attribute::SourceNamespace, text("app"), false),
        (
            Attribute::SourcePrincipal,
            text("td/ns/web/sa/client"),
            true,
        ),
        (Attribute::SourcePrincipal, text("*/sa/server"), false),
        (Attribute::SourceServiceAccount, account, true),
        (Attribute::SourceTrustDomain, text("td"), true),
        (Attribute::SourceTrustDomain, text("t"), false),
    ] {
        check_both(&attribute, value.clone(), &get(), holds);
        check_both(&attribute, value, &get().anonymous(), false);
    }
}

#[test]
fn the_tokens_principal_audiences_and_presenter() {
    let one = get().token(&json!({
        "iss": "i", "sub": "s", "aud": "a", "azp": "p",
    }));
    let many = get().token(&json!({
        "iss": "i", "sub": "s", "aud": ["x", "a"], "azp": "p",
    }));
    for request in [&one, &many] {
        for (attribute, value, holds) in [
            (Attribute::RequestPrincipal, "i/s", true),
            (Attribute::RequestPrincipal, "i/t", false),
            (Attribute::RequestAudiences, "a", true),
            (Attribute::RequestAudiences, "b", false),
            (Attribute::RequestPresenter, "p", true),
            (Attribute::RequestPresenter, "a", false),
        ] {
            check_both(&attribute, text(value), request, holds);
            check_both(&attribute, text(value), &get(), false);
        }
    }
}

#[test]
fn claims_may_be_texts_lists_nested_or_lists_in_a_text() {
    let claim =
        |path: &[&str]| Attribute::RequestClaim(path.iter().map(|part| (*part).into()).collect());
    let mut claims = alice();
    claims["group"] = json!("one");
    claims["groups"] = json!(["one", "two", 3]);
    claims["scope"] = json!("read  write");
    claims["words"] = json!("read write");
    claims["deep"] = json!({"er": {"still": ["x"]}, "list": [{"name": "n"}]});
    claims["number"] = json!(7);
    claims["yes"] = json!(true);
    let request = get().token(&claims);
    for (path, value, holds) in [
        (&["group"][..], "one", true),
        (&["group"], "two", false),
        (&["group"], "o*", true),
        (&["groups"], "two", true),
        (&["groups"], "*", true),
        (&["groups"], "3", false),
        (&["scope"], "write", true),
        (&["scope"], "read  write", false),
        (&["words"], "write", false),
        (&["words"], "read write", true),
        (&["deep", "er", "still"], "x", true),
        (&["deep", "er"], "*", false),
        (&["deep", "list", "name"], "n", false),
        (&["deep", "nothing"], "*", false),
        (&["number"], "7", false),
        (&["yes"], "true", false),
        (&["missing"], "*", false),
        (&[], "*", false),
    ] {
        check_both(&claim(path), text(value), &request, holds);
        check_both(&claim(path), text(value), &get(), false);
    }
}

#[test]
fn what_nobody_can_answer_is_absent() {
    let sni = Attribute::Unanswerable("connection.sni".into());
    check_both(&sni, text("*"), &get(), false);
}

#[test]
fn conditions_are_anded_and_values_ored() {
    let namespace = |values: &[&str]| AttributeMatch {
        attribute: Attribute::SourceNamespace,
        values: values
            .iter()
            .map(|value| AttributeValue::Text(exact(value)))
            .collect(),
        not_values: vec![],
    };
    check(&when(vec![namespace(&["app", "web"])]), &get(), true);
    check(
        &when(vec![namespace(&["web"]), namespace(&["app"])]),
        &get(),
        false,
    );
    let except = AttributeMatch {
        not_values: vec![text("web")],
        ..namespace(&["web"])
    };
    check(&when(vec![except]), &get(), false);
}
