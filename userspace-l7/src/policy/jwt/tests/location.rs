//! Where tokens are looked for.

use http::{HeaderMap, HeaderName, Method};

use super::{Issuers, JwtLocation, JwtRule, Signer, ask, bearer, claims, headers, now, rule};
use crate::model::RequestHead;
use crate::policy::jwt::authenticate;

/// A signer, its issuer, and a token of its.
fn issued() -> (Issuers, String) {
    let signer = Signer::new("EdDSA", "k");
    let token = signer.token(&claims());
    (Issuers::default().with("idp", &[&signer]), token)
}

fn at(locations: Vec<JwtLocation>) -> JwtRule {
    JwtRule {
        locations,
        ..rule()
    }
}

fn header(name: &'static str, prefix: &str) -> JwtLocation {
    JwtLocation::Header {
        name: HeaderName::from_static(name),
        prefix: prefix.into(),
    }
}

#[test]
fn by_default_behind_bearer_or_in_access_token() {
    let (issuers, token) = issued();
    let found = |headers: &HeaderMap, query: Option<&str>| {
        let judged = ask(vec![rule()], &issuers, headers, query);
        judged.map(|claims| claims.is_some())
    };
    let none = HeaderMap::new();
    assert_eq!(found(&bearer(&token), None), Ok(true));
    let query = format!("a=b&access_token={token}&c");
    assert_eq!(found(&none, Some(&query)), Ok(true));
    assert_eq!(found(&none, None), Ok(false));
    assert_eq!(found(&none, Some("access_tokens=x&token=y")), Ok(false));
    for value in [
        format!("bearer {token}"),
        format!("BEARER {token}"),
        format!("Bearer   {token} "),
    ] {
        let headers = headers(&[("authorization", &value)]);
        assert_eq!(found(&headers, None), Ok(true), "{value}");
    }
    for value in ["Basic YTpi", "Bearer", &token] {
        let headers = headers(&[("authorization", value)]);
        assert_eq!(found(&headers, None), Ok(false), "{value}");
    }
}

#[test]
fn a_rules_own_places_replace_the_default() {
    let (issuers, token) = issued();
    let elsewhere = at(vec![
        header("x-jwt", ""),
        header("x-goog", "Token "),
        JwtLocation::Parameter("jwt".into()),
        JwtLocation::Cookie("session".into()),
    ]);
    let found = |headers: &HeaderMap, query: Option<&str>| {
        let judged = ask(vec![elsewhere.clone()], &issuers, headers, query);
        judged.map(|claims| claims.is_some())
    };
    let none = HeaderMap::new();
    assert_eq!(found(&bearer(&token), None), Ok(false), "not its place");
    let prefixed = format!("Token {token}");
    assert_eq!(found(&headers(&[("x-goog", &prefixed)]), None), Ok(true));
    let case = format!("token {token}");
    assert_eq!(found(&headers(&[("x-goog", &case)]), None), Ok(false));
    assert_eq!(found(&headers(&[("x-jwt", &token)]), None), Ok(true));
    assert_eq!(found(&none, Some(&format!("jwt={token}"))), Ok(true));
    for cookies in [
        format!("session={token}"),
        format!("a=b; session={token}; c=d"),
        format!("session=\"{token}\""),
    ] {
        let headers = headers(&[("cookie", &cookies)]);
        assert_eq!(found(&headers, None), Ok(true), "{cookies}");
    }
    let other = headers(&[("cookie", &format!("xsession={token}; b"))]);
    assert_eq!(found(&other, None), Ok(false));
    let second = headers(&[("cookie", "a=b"), ("cookie", &format!("session={token}"))]);
    assert_eq!(found(&second, None), Ok(true), "HTTP/2 may split cookies");
}

#[test]
fn of_several_tokens_each_has_to_be_valid() {
    let (issuers, token) = issued();
    let both = |header: &str, parameter: &str| {
        let query = format!("access_token={parameter}");
        let judged = ask(vec![rule()], &issuers, &bearer(header), Some(&query));
        judged.map(|claims| claims.is_some())
    };
    assert_eq!(both(&token, &token), Ok(true));
    assert!(both(&token, "a.b.c").is_err());
    assert!(both("a.b.c", &token).is_err());
    let bad = format!("Bearer {token}x");
    let good = format!("Bearer {token}");
    let two = headers(&[("authorization", &good), ("authorization", &bad)]);
    assert!(ask(vec![rule()], &issuers, &two, None).is_err());
}

#[test]
fn a_cors_preflight_needs_no_token() {
    let preflight = headers(&[
        ("origin", "https://a"),
        ("access-control-request-method", "GET"),
        ("authorization", "Bearer nonsense"),
    ]);
    let rules = [std::sync::Arc::new(rule())];
    let asks = |method: &Method, headers: &HeaderMap| {
        let head = RequestHead {
            method,
            scheme: "http",
            authority: "echo",
            path: "/",
            query: None,
            headers,
        };
        let judged = authenticate(&rules, &|_| None, &head, now());
        judged.map(|claims| claims.is_some())
    };
    assert_eq!(asks(&Method::OPTIONS, &preflight), Ok(false));
    assert!(asks(&Method::GET, &preflight).is_err());
    let mut plain = preflight;
    plain.remove("access-control-request-method");
    assert!(asks(&Method::OPTIONS, &plain).is_err());
}
