//! Whatever bytes a client sends as headers, every decision about them comes to an end of its own: none panics, and none
//! takes for proven what is not.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version, request};
use proptest::prelude::*;

use crate::http::receive;
use crate::model::{
    Cors, FullRegex, HashKey, HeaderMatch, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry,
    HttpRouteTable, HttpRule, JwtKeys, JwtLocation, JwtRule, OriginMatch, PathChange, PathMatch,
    QueryMatch, RateLimitKey, RequestHead, RetryPolicy, Rewrite, SessionCarrier,
    SessionPersistence, TextMatch, TracingSettings,
};
use crate::policy::jwt;
use crate::route::http::session::Session;
use crate::route::http::{Filters, Original, cors, select};
use crate::route::rate_limit::{Caller, bucket_key, descriptor};
use crate::route::spread;
use crate::telemetry::trace::{Sampler, TraceContext};

/// Names that something here asks for.
const ASKED: &[&str] = &[
    "host",
    "cookie",
    "authorization",
    "origin",
    "access-control-request-method",
    "access-control-request-headers",
    "content-length",
    "transfer-encoding",
    "expect",
    "x-token",
    "x-session",
    "x-tenant",
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-client-cert",
    "x-culvert-original",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "grpc-timeout",
];

/// Beginnings and separators that parsers look for.
const MEANINGFUL: &[&str] = &[
    "",
    "Bearer ",
    "bearer",
    "session=",
    "token=",
    "; ",
    ";",
    "=",
    ",",
    "\"",
    "%",
    "%2f",
    "..",
    "|",
    "18446744073709551615",
    "-1",
    "1S",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
    "eyJhbGciOiJub25lIn0.e30.",
    "eyJhbGciOiJFUzI1NiJ9.eyJleHAiOjk5OTk5OTk5OTk5OTk5OTk5OTk5fQ.AA",
    "https://shop.example.com",
    "*",
    "\t",
];

/// What `http` lets stand in a value: visible, blank, and whatever is above ASCII.
fn any_value() -> impl Strategy<Value = HeaderValue> {
    let bytes = prop::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| {
        let may_stand = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
        bytes.into_iter().filter(may_stand).collect::<Vec<u8>>()
    });
    let meaningful = || prop::sample::select(MEANINGFUL).prop_map(|text| text.as_bytes().to_vec());
    // A session as we would write it, but for its numbers.
    let session = (any::<u64>(), any::<u64>()).prop_map(|(began, seen)| {
        let text = format!("10.0.0.1:8080|{began}|{seen}");
        format!("session={}", BASE64URL_NOPAD.encode(text.as_bytes())).into_bytes()
    });
    let encoded = prop::collection::vec(any::<u8>(), 0..24)
        .prop_map(|bytes| BASE64URL_NOPAD.encode(&bytes).into_bytes());
    let part = prop_oneof![4 => meaningful(), 3 => bytes, 1 => session, 1 => encoded];
    prop::collection::vec(part, 0..6).prop_map(|parts| {
        let joined = parts.concat();
        HeaderValue::from_bytes(&joined).unwrap_or_else(|_bad| HeaderValue::from_static("?"))
    })
}

fn any_name() -> impl Strategy<Value = HeaderName> {
    let token = "[!#$%&'*+.^_`|~0-9a-z-]{1,12}".prop_map(|text| text.parse::<HeaderName>());
    let asked = prop::sample::select(ASKED).prop_map(str::parse::<HeaderName>);
    prop_oneof![4 => asked, 1 => token].prop_map(|name| name.unwrap_or(HOST))
}

/// A head as it comes out of a parser of HTTP, with anything that one lets through.
pub(crate) fn any_head() -> impl Strategy<Value = request::Parts> {
    let methods = vec!["GET", "POST", "OPTIONS", "CONNECT", "QUERY"];
    let target = "/[!-~]{0,24}(\\?[!-~]{0,24})?";
    let headers = prop::collection::vec((any_name(), any_value()), 0..16);
    let versions = vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];
    (
        prop::sample::select(methods),
        target,
        headers,
        prop::sample::select(versions),
    )
        .prop_map(|(method, target, headers, version)| {
            let target: http::Uri = target.parse().unwrap_or_default();
            let request = Request::builder().uri(target).version(version).body(());
            let (mut parts, ()) = request.unwrap().into_parts();
            parts.method = Method::from_bytes(method.as_bytes()).unwrap();
            for (name, value) in headers {
                let _more = parts.headers.append(name, value);
            }
            parts
        })
}

fn tenant() -> HeaderName {
    HeaderName::from_static("x-tenant")
}

/// Entries that look at every part of a head, in every way.
fn table() -> HttpRouteTable {
    let regex = |pattern| FullRegex::new(pattern).unwrap();
    let header = |value| HeaderMatch {
        name: tenant(),
        value,
    };
    let paths = [
        PathMatch::Exact("/a".into()),
        PathMatch::Prefix("/a".into()),
        PathMatch::TextPrefix("/b".into()),
        PathMatch::Regex(regex("/[a-z%]+(/.*)?")),
        PathMatch::Any,
    ];
    let values = [
        TextMatch::Exact("*".into()),
        TextMatch::Prefix("Bearer ".into()),
        TextMatch::Regex(regex("(.|\u{fffd})+")),
        TextMatch::Present,
    ];
    let rule = Arc::new(rule());
    let entry = |matches: HttpMatch| HttpRouteEntry {
        matches: matches.into(),
        rule: Arc::clone(&rule),
    };
    let mut entries = Vec::new();
    for path in &paths {
        for value in &values {
            entries.push(entry(HttpMatch {
                path: path.clone(),
                ignore_path_case: matches!(value, TextMatch::Present),
                authority: Some(value.clone()),
                headers: vec![header(value.clone())],
                ..HttpMatch::default()
            }));
            entries.push(entry(HttpMatch {
                path: path.clone(),
                without_headers: vec![header(value.clone())],
                query: vec![QueryMatch {
                    name: "q".into(),
                    value: value.clone(),
                }],
                ..HttpMatch::default()
            }));
        }
    }
    entries.push(entry(HttpMatch::default()));
    HttpRouteTable::new(entries, false)
}

/// Changes whatever a filter can change.
fn rule() -> HttpRule {
    let value = HeaderValue::from_static("set");
    HttpRule {
        name: "r".into(),
        origin: "HTTPRoute shop/r".into(),
        action: HttpAction::Forward(vec![]),
        request_headers: HeaderModifier {
            set: vec![(tenant(), value.clone())],
            add: vec![(HeaderName::from_static("cookie"), value)],
            remove: vec![HeaderName::from_static("authorization")],
            authority: None,
        },
        response_headers: HeaderModifier::default(),
        rewrite: Some(Rewrite {
            hostname: None,
            path: Some(PathChange::Prefix("/new".into())),
        }),
        mirrors: vec![],
        cors: None,
        fault: None,
        timeout: None,
        retry: RetryPolicy::default(),
        session: None,
        is_usable: true,
    }
}

fn jwt_rule() -> Arc<JwtRule> {
    let header = |name: &str, prefix: &str| JwtLocation::Header {
        name: name.parse().unwrap(),
        prefix: prefix.into(),
    };
    Arc::new(JwtRule {
        origin: "shop/jwt".into(),
        issuer: "".into(),
        audiences: vec![],
        keys: JwtKeys::Inline("{}".into()),
        locations: vec![
            header("authorization", "Bearer "),
            header("x-token", ""),
            JwtLocation::Parameter("token".into()),
            JwtLocation::Cookie("token".into()),
        ],
        forward_original: false,
        payload_header: Some(tenant()),
        claim_headers: vec![(HeaderName::from_static("x-sub"), vec!["sub".into()])],
        space_delimited_claims: vec![],
    })
}

fn persistence(name: &str, carrier: SessionCarrier) -> SessionPersistence {
    SessionPersistence {
        name: name.into(),
        carrier,
        absolute_timeout: Some(Duration::from_secs(3600)),
        idle_timeout: Some(Duration::from_secs(60)),
    }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_route_takes_it_and_filters_change_it(mut parts in any_head()) {
        // An empty authority and none are told alike.
        if parts.headers.get(HOST).is_some_and(HeaderValue::is_empty) {
            drop(parts.headers.remove(HOST));
        }
        let table = table();
        let found = select(&table, &RequestHead::of(&parts));
        let entry = found.expect("the last entry takes everything");
        let filters = Filters {
            matched: &entry.matches,
            rule: &entry.rule,
            backend: None,
            is_shadow: false,
        };
        let original = Original::of(&parts, &filters);
        let mut changed = parts.clone();
        if filters.apply(&mut changed).is_ok() {
            prop_assert_eq!(changed.headers.get_all(tenant()).iter().count(), 1);
            prop_assert!(!changed.headers.contains_key("authorization"));
        }
        // What the next node is told of it is what it was, unless it is too long to tell.
        if let Some(original) = original {
            drop(changed.headers.remove("x-culvert-original"));
            let is_told = original.tell(&mut changed.headers);
            let told = Original::take(&mut changed.headers);
            prop_assert_eq!(told, is_told.then_some(original));
        }
    }

    #[test]
    fn it_has_one_form_or_none(mut parts in any_head()) {
        if receive(&mut parts).is_ok() {
            prop_assert!(parts.headers.get_all(HOST).iter().count() <= 1);
            prop_assert!(parts.uri.authority().is_none());
        }
        // What is told in the name of another agent is read, or is nothing.
        let _told = Original::take(&mut parts.headers);
        prop_assert!(!parts.headers.contains_key("x-culvert-original"));
    }

    #[test]
    fn no_token_is_believed_without_keys(mut parts in any_head()) {
        let rules = [jwt_rule()];
        let head = RequestHead::of(&parts);
        let nobody = |_: &JwtKeys| None;
        let claims = jwt::authenticate(&rules, &nobody, &head, now());
        prop_assert!(!matches!(claims, Ok(Some(_))), "{:?}", claims);
        jwt::sanitize(&rules, &mut parts.headers);
        prop_assert!(!parts.headers.contains_key(tenant()));
    }

    #[test]
    fn a_session_is_read_and_written_again(parts in any_head()) {
        let head = RequestHead::of(&parts);
        for (name, carrier) in [
            ("session", SessionCarrier::SessionCookie),
            ("session", SessionCarrier::PermanentCookie),
            ("x-session", SessionCarrier::Header),
        ] {
            let rules = persistence(name, carrier);
            if let Some(session) = Session::of(&rules, &head, now()) {
                let (_, value) = session.field(&rules, now());
                prop_assert!(!value.is_empty());
            }
        }
        for key in [
            HashKey::Header(tenant()),
            HashKey::Cookie { name: "session".into(), path: None, ttl: None },
            HashKey::QueryParameter("q".into()),
        ] {
            let address = IpAddr::from([10, 0, 0, 1]);
            let hash = spread::request_hash(&key, &head, address);
            prop_assert_eq!(hash, spread::request_hash(&key, &head, address));
        }
    }

    #[test]
    fn different_callers_of_a_limit_have_different_buckets(one in any_head(), other in any_head()) {
        let per = [
            RateLimitKey::ClientAddress,
            RateLimitKey::Header(tenant()),
            RateLimitKey::Header(HOST),
            RateLimitKey::Path,
            RateLimitKey::Method,
        ];
        let caller = Caller { identity: None, address: [10, 0, 0, 1].into() };
        let heads = [RequestHead::of(&one), RequestHead::of(&other)];
        let [first, second] = heads.each_ref().map(|head| descriptor(&per, caller, head));
        prop_assert_eq!(first.len(), per.len());
        prop_assert_eq!(bucket_key(&first) == bucket_key(&second), first == second);
    }

    #[test]
    fn its_trace_goes_on_and_its_preflight_is_answered(mut parts in any_head()) {
        let settings = TracingSettings::default();
        let mut random = || 7;
        let context = TraceContext::of(&parts.headers, &mut Sampler::new(&settings, &mut random));
        context.inject(&mut parts.headers);
        let again = TraceContext::of(&parts.headers, &mut Sampler::new(&settings, &mut random));
        let mut headers = HeaderMap::new();
        again.inject(&mut headers);
        prop_assert!(!headers.is_empty(), "what was passed on cannot be read");
        let shared = Cors {
            allow_origins: vec![OriginMatch::Exact("https://shop.example.com".into())],
            allow_methods: vec!["*".into()],
            allow_headers: vec!["*".into()],
            allow_credentials: true,
            ..Cors::default()
        };
        let answer = cors::preflight(&shared, &RequestHead::of(&parts));
        let allowed = answer.and_then(|answer| answer.get("access-control-allow-origin").cloned());
        prop_assert!(allowed.is_none_or(|allowed| allowed == "https://shop.example.com"));
    }
}
