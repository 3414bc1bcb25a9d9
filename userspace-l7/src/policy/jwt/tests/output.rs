//! What the application gets.

use std::sync::Arc;

use http::header::{COOKIE, HeaderMap};
use http::request::Parts;
use http::{HeaderName, Request};
use serde_json::{Value, json};

use super::{Issuers, JwtLocation, JwtRule, Signer, ask, base64, bearer, claims, headers, rule};
use crate::policy::jwt::sanitize;

fn name(text: &'static str) -> HeaderName {
    HeaderName::from_static(text)
}

/// What becomes of a request that carries a valid token.
fn applied(rule: &JwtRule, claims: &Value, mut parts: Parts) -> Parts {
    let signer = Signer::new("EdDSA", "k");
    let issuers = Issuers::default().with("idp", &[&signer]);
    let anywhere = JwtRule {
        locations: super::rule().locations,
        ..rule.clone()
    };
    let token = bearer(&signer.token(claims));
    let accepted = ask(vec![anywhere], &issuers, &token, None)
        .unwrap()
        .unwrap();
    let accepted = crate::policy::jwt::Claims {
        rule: Arc::new(rule.clone()),
        ..accepted
    };
    accepted.apply(&mut parts);
    parts
}

fn parts(uri: &str, fields: HeaderMap) -> Parts {
    let (mut parts, ()) = Request::get(uri).body(()).unwrap().into_parts();
    parts.headers = fields;
    parts
}

#[test]
fn payload_and_claims_go_to_headers() {
    let mut all = claims();
    all["n"] = json!(7);
    all["b"] = json!(true);
    all["list"] = json!(["x"]);
    all["deep"] = json!({"er": "y"});
    all["bad"] = json!("line\nbreak");
    let to = |header: &'static str, path: &[&str]| {
        let path = path.iter().map(|part| (*part).into()).collect();
        (name(header), path)
    };
    let rule = JwtRule {
        payload_header: Some(name("x-payload")),
        claim_headers: vec![
            to("x-sub", &["sub"]),
            to("x-n", &["n"]),
            to("x-b", &["b"]),
            to("x-list", &["list"]),
            to("x-deep", &["deep", "er"]),
            to("x-bad", &["bad"]),
            to("x-missing", &["missing"]),
        ],
        ..rule()
    };
    let parts = applied(&rule, &all, parts("/", HeaderMap::new()));
    for (header, expected) in [
        ("x-payload", base64(all.to_string())),
        ("x-sub", "alice".to_owned()),
        ("x-n", "7".to_owned()),
        ("x-b", "true".to_owned()),
        ("x-list", base64("[\"x\"]")),
        ("x-deep", "y".to_owned()),
    ] {
        assert_eq!(parts.headers[header], expected, "{header}");
    }
    assert!(
        !parts.headers.contains_key("x-bad"),
        "no header can hold it"
    );
    assert!(!parts.headers.contains_key("x-missing"));
}

#[test]
fn nobody_else_sets_those_headers() {
    let rule = Arc::new(JwtRule {
        payload_header: Some(name("x-payload")),
        claim_headers: vec![(name("x-sub"), vec!["sub".into()])],
        ..rule()
    });
    let mut fields = headers(&[
        ("x-payload", "forged"),
        ("x-sub", "root"),
        ("x-sub", "admin"),
        ("x-other", "mine"),
    ]);
    sanitize(&[rule], &mut fields);
    assert_eq!(fields.len(), 1);
    assert_eq!(fields["x-other"], "mine");
}

#[test]
fn the_token_is_taken_away_unless_it_is_forwarded() {
    let places = JwtRule {
        locations: vec![
            rule().locations[0].clone(),
            rule().locations[1].clone(),
            JwtLocation::Cookie("session".into()),
        ],
        ..rule()
    };
    let sent = || {
        let fields = headers(&[
            ("authorization", "Bearer token"),
            ("authorization", "Basic YTpi"),
            ("cookie", "a=b; session=token; c=d"),
            ("cookie", "session=token"),
        ]);
        parts(
            "http://echo/p?x=%20&access_token=token&y&%61ccess_token=z",
            fields,
        )
    };
    let after = applied(&places, &claims(), sent());
    let all = |name: HeaderName| -> Vec<_> {
        let values = after.headers.get_all(name).iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(all(name("authorization")), ["Basic YTpi"]);
    assert_eq!(all(COOKIE), ["a=b; c=d"]);
    assert_eq!(after.uri, "http://echo/p?x=%20&y");

    let kept = JwtRule {
        forward_original: true,
        ..places
    };
    let after = applied(&kept, &claims(), sent());
    assert_eq!(after.uri, sent().uri);
    assert_eq!(after.headers, sent().headers);
}

#[test]
fn a_query_of_nothing_but_the_token_goes_whole() {
    let after = applied(
        &rule(),
        &claims(),
        parts("/p?access_token=t", HeaderMap::new()),
    );
    assert_eq!(after.uri, "/p");
}
