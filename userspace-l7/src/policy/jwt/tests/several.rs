//! Several rules on one target: any of them whose tokens are valid is enough, else none may find one.

use http::HeaderMap;
use serde_json::json;

use super::{
    Issuers, JwtKeys, JwtLocation, JwtRule, Signer, TokenError, ask, bearer, headers, rule,
};

fn of(issuer: &'static str) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        keys: JwtKeys::Inline(issuer.into()),
        ..rule()
    }
}

#[test]
fn tokens_of_either_issuer_are_accepted() {
    let (a, b) = (Signer::new("EdDSA", "k"), Signer::new("ES256", "k"));
    let issuers = Issuers::default().with("a", &[&a]).with("b", &[&b]);
    let rules = || vec![of("a"), of("b")];
    let principal = |headers: &HeaderMap| {
        let judged = ask(rules(), &issuers, headers, None);
        judged.map(|claims| claims.and_then(|claims| claims.principal()))
    };
    let says = |issuer: &str| json!({"iss": issuer, "sub": "s"});
    for (token, expected) in [
        (a.token(&says("a")), Ok("a/s")),
        (b.token(&says("b")), Ok("b/s")),
        (a.token(&says("b")), Err(TokenError::NoSuchKey)),
        (a.token(&says("c")), Err(TokenError::UnknownIssuer)),
    ] {
        let expected = expected.map(|text| Some(text.to_owned()));
        assert_eq!(principal(&bearer(&token)), expected);
    }
    assert_eq!(principal(&HeaderMap::new()), Ok(None));
}

#[test]
fn tokens_of_both_may_stand_in_different_places() {
    let (a, b) = (Signer::new("EdDSA", "k"), Signer::new("EdDSA", "k"));
    let issuers = Issuers::default().with("a", &[&a]).with("b", &[&b]);
    let second = JwtRule {
        locations: vec![JwtLocation::Header {
            name: http::HeaderName::from_static("x-b"),
            prefix: "".into(),
        }],
        ..of("b")
    };
    let judge = |first: &str, other: &str| {
        let mut all = bearer(first);
        all.extend(headers(&[("x-b", other)]));
        let judged = ask(vec![of("a"), second.clone()], &issuers, &all, None);
        judged.map(|claims| claims.and_then(|claims| claims.principal()))
    };
    let (valid_a, valid_b) = (
        a.token(&json!({"iss": "a", "sub": "s"})),
        b.token(&json!({"iss": "b", "sub": "s"})),
    );
    assert_eq!(judge(&valid_a, &valid_b), Ok(Some("a/s".to_owned())));
    // One valid token is enough for Envoy, whatever else is sent.
    assert_eq!(judge("a.b.c", &valid_b), Ok(Some("b/s".to_owned())));
    assert!(judge("a.b.c", "d.e.f").is_err());
}
