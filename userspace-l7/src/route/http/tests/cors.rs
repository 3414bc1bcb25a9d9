//! Cross-origin requests, as the Fetch standard and Gateway API have them.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Request;
use crate::model::{Cors, FullRegex, OriginMatch};
use crate::route::http::cors::{decorate, preflight};

const ORIGIN: &str = "https://www.foo.com";

fn cors(origin: OriginMatch) -> Cors {
    Cors {
        allow_origins: vec![origin],
        allow_methods: vec!["GET".into(), "POST".into()],
        allow_headers: vec!["x-header-1".into(), "x-header-2".into()],
        expose_headers: vec!["x-seen".into()],
        allow_credentials: false,
        max_age: Some(Duration::from_secs(3600)),
        forward_unmatched: false,
    }
}

fn asks(origin: &str) -> Request {
    Request::get("/cors")
        .method(Method::OPTIONS)
        .header("origin", origin)
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "x-asked")
}

fn field(answer: &HeaderMap, name: HeaderName) -> Option<&str> {
    answer.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn a_preflight_is_answered_with_what_is_allowed() {
    let rules = cors(OriginMatch::Exact(ORIGIN.into()));
    let answer = preflight(&rules, &asks(ORIGIN).head()).unwrap();
    for (name, expected) in [
        (ACCESS_CONTROL_ALLOW_ORIGIN, Some(ORIGIN)),
        (ACCESS_CONTROL_ALLOW_METHODS, Some("GET, POST")),
        (ACCESS_CONTROL_ALLOW_HEADERS, Some("x-header-1, x-header-2")),
        (ACCESS_CONTROL_MAX_AGE, Some("3600")),
        (ACCESS_CONTROL_ALLOW_CREDENTIALS, None),
        (ACCESS_CONTROL_EXPOSE_HEADERS, None),
        (VARY, Some("Origin")),
    ] {
        assert_eq!(field(&answer, name.clone()), expected, "{name}");
    }
}

#[test]
fn a_preflight_from_elsewhere_is_answered_without_permission() {
    let mut rules = cors(OriginMatch::Exact(ORIGIN.into()));
    let elsewhere = asks("https://evil.example");
    let answer = preflight(&rules, &elsewhere.head()).unwrap();
    assert!(answer.is_empty(), "{answer:?}");
    rules.forward_unmatched = true;
    assert!(preflight(&rules, &elsewhere.head()).is_none());
}

#[test]
fn only_a_preflight_is_a_preflight() {
    let rules = cors(OriginMatch::Any);
    let get = asks(ORIGIN).method(Method::GET);
    assert!(preflight(&rules, &get.head()).is_none(), "not OPTIONS");
    let options = Request::get("/").method(Method::OPTIONS);
    assert!(preflight(&rules, &options.head()).is_none(), "no origin");
    let plain = options.header("origin", ORIGIN);
    assert!(
        preflight(&rules, &plain.head()).is_none(),
        "asks for no method"
    );
}

#[test]
fn origins_match_as_written() {
    let wildcard = || OriginMatch::Wildcard {
        scheme: "https://".into(),
        suffix: ".foo.com".into(),
    };
    let exact = || OriginMatch::Exact(ORIGIN.into());
    for (allowed, origin, expected) in [
        (OriginMatch::Any, "null", true),
        (exact(), ORIGIN, true),
        (exact(), "HTTPS://www.FOO.com", true),
        (exact(), "http://www.foo.com", false),
        (exact(), "https://www.foo.com:8443", false),
        (exact(), "https://www.foo.com.evil.example", false),
        (wildcard(), "https://a.foo.com", true),
        (wildcard(), "https://a.b.foo.com", true),
        (wildcard(), "https://.foo.com", false),
        (wildcard(), "https://foo.com", false),
        (wildcard(), "http://a.foo.com", false),
        (wildcard(), "https://a.foo.com.evil.example", false),
        (wildcard(), "https://a.foo.com:8443", false),
        (OriginMatch::Prefix("https://www.".into()), ORIGIN, true),
        (OriginMatch::Prefix("http://www.".into()), ORIGIN, false),
        (
            OriginMatch::Regex(FullRegex::new("https://.*\\.com").unwrap()),
            ORIGIN,
            true,
        ),
        (
            OriginMatch::Regex(FullRegex::new("https://.*\\.co").unwrap()),
            ORIGIN,
            false,
        ),
    ] {
        let rules = cors(allowed.clone());
        let answer = preflight(&rules, &asks(origin).head()).unwrap();
        assert_eq!(!answer.is_empty(), expected, "{allowed:?} {origin}");
    }
}

#[test]
fn with_credentials_a_star_is_what_was_asked_for() {
    let mut rules = cors(OriginMatch::Any);
    rules.allow_methods = vec!["*".into()];
    rules.allow_headers = vec!["*".into()];
    let without = preflight(&rules, &asks(ORIGIN).head()).unwrap();
    assert_eq!(field(&without, ACCESS_CONTROL_ALLOW_METHODS), Some("*"));
    assert_eq!(field(&without, ACCESS_CONTROL_ALLOW_HEADERS), Some("*"));
    rules.allow_credentials = true;
    let with = preflight(&rules, &asks(ORIGIN).head()).unwrap();
    for (name, expected) in [
        (ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN),
        (ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
        (ACCESS_CONTROL_ALLOW_METHODS, "PUT"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "x-asked"),
    ] {
        assert_eq!(field(&with, name.clone()), Some(expected), "{name}");
    }
}

#[test]
fn a_response_says_who_may_read_it() {
    let rules = cors(OriginMatch::Exact(ORIGIN.into()));
    let mut response = HeaderMap::new();
    response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response.insert(
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderValue::from_static("true"),
    );
    decorate(&rules, &HeaderValue::from_static(ORIGIN), &mut response);
    assert_eq!(field(&response, ACCESS_CONTROL_ALLOW_ORIGIN), Some(ORIGIN));
    assert_eq!(field(&response, ACCESS_CONTROL_ALLOW_CREDENTIALS), None);
    assert_eq!(
        field(&response, ACCESS_CONTROL_EXPOSE_HEADERS),
        Some("x-seen")
    );

    let mut untouched = HeaderMap::new();
    let elsewhere = HeaderValue::from_static("https://evil.example");
    decorate(&rules, &elsewhere, &mut untouched);
    assert!(untouched.is_empty(), "{untouched:?}");
}
