//! Which part of a request an authorizer is told.

use super::super::{grpc_question, http_question};
use super::{Request, pairs, patterns, settings};
use crate::envoy::{self, CheckRequest, CheckedHttp, Peer};
use crate::model::HttpAuthorizer;

/// Headers of the question about a request with these headers; what every question has is left out.
#[track_caller]
fn told(settings: &HttpAuthorizer, request: &[(&str, &str)], expected: &[(&str, &str)]) {
    let request = Request::with(request);
    let mut question = http_question(settings, &request.checked()).unwrap();
    let headers = question.headers_mut();
    assert_eq!(headers.remove("host").unwrap(), "shop.example:80");
    assert_eq!(headers.remove("content-length").unwrap(), "0");
    let mut found = pairs(headers);
    found.sort_unstable();
    assert_eq!(found, expected, "{settings:?}");
}

const EVERYTHING: &[(&str, &str)] = &[
    ("authorization", "Bearer x"),
    ("cookie", "a=1"),
    ("x-ext-a", "1"),
    ("x-ext-a", "2"),
    ("x-ext-b", "3"),
    ("tail-ext", "4"),
    ("content-length", "17"),
    ("transfer-encoding", "chunked"),
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("host", "other"),
    ("x-envoy-auth-partial-body", "forged"),
];

#[test]
fn by_default_an_authorizer_hears_of_authorization_only() {
    told(&settings(), EVERYTHING, &[("authorization", "Bearer x")]);
    told(&settings(), &[("x-ext-a", "1")], &[]);
}

#[test]
fn headers_are_selected_by_name_beginning_and_end() {
    for (wanted, expected) in [
        (
            &["cookie"][..],
            &[("authorization", "Bearer x"), ("cookie", "a=1")][..],
        ),
        (
            &["x-ext-*"],
            &[
                ("authorization", "Bearer x"),
                ("x-ext-a", "1"),
                ("x-ext-a", "2"),
                ("x-ext-b", "3"),
            ],
        ),
        (
            &["*-ext"],
            &[("authorization", "Bearer x"), ("tail-ext", "4")],
        ),
        (&["x-ext"], &[("authorization", "Bearer x")]),
        // Whatever is wanted, what frames a message is not passed on.
        (
            &["*"],
            &[
                ("authorization", "Bearer x"),
                ("cookie", "a=1"),
                ("tail-ext", "4"),
                ("x-ext-a", "1"),
                ("x-ext-a", "2"),
                ("x-ext-b", "3"),
            ],
        ),
    ] {
        let settings = HttpAuthorizer {
            request_headers: patterns(wanted),
            ..settings()
        };
        told(&settings, EVERYTHING, expected);
    }
}

#[test]
fn added_headers_overwrite_what_a_client_says() {
    let settings = HttpAuthorizer {
        request_headers: patterns(&["x-from"]),
        additional_headers: vec![("x-from".parse().unwrap(), "mesh".parse().unwrap())],
        ..settings()
    };
    told(
        &settings,
        &[("x-from", "me"), ("x-from", "us")],
        &[("x-from", "mesh")],
    );
}

#[test]
fn the_question_is_the_request_behind_a_prefix() {
    let request = Request::with(&[]);
    for (prefix, target) in [("", "/a?b=c"), ("/check", "/check/a?b=c")] {
        let settings = HttpAuthorizer {
            path_prefix: prefix.into(),
            ..settings()
        };
        let question = http_question(&settings, &request.checked()).unwrap();
        assert_eq!(question.method(), "POST");
        assert_eq!(question.uri(), target);
    }
    let nowhere = HttpAuthorizer {
        path_prefix: "no path".into(),
        ..settings()
    };
    assert!(http_question(&nowhere, &request.checked()).is_none());
}

#[test]
fn a_body_that_is_shown_says_whether_it_is_all() {
    let settings = HttpAuthorizer {
        request_headers: patterns(&["x-envoy-auth-partial-body"]),
        ..settings()
    };
    for (is_partial, told) in [(true, "true"), (false, "false")] {
        let request = Request::with(&[]).showing(b"abc", is_partial);
        let question = http_question(&settings, &request.checked()).unwrap();
        assert_eq!(&**question.body(), b"abc");
        assert_eq!(question.headers()["content-length"], "3");
        assert_eq!(question.headers()["x-envoy-auth-partial-body"], told);
    }
}

fn asked(request: &Request, as_bytes: bool) -> (Peer, Peer, CheckedHttp) {
    let message = grpc_question(&request.checked(), as_bytes);
    let asked: CheckRequest = envoy::decode(&message).unwrap();
    let attributes = asked.attributes.unwrap();
    (
        attributes.source.unwrap(),
        attributes.destination.unwrap(),
        attributes.request.unwrap().http.unwrap(),
    )
}

#[test]
fn a_check_has_the_attributes_of_the_request() {
    let request = Request::with(&[
        ("x-request-id", "7"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("content-length", "17"),
        ("host", "shop.example:80"),
        ("x-envoy-auth-partial-body", "forged"),
    ]);
    let (source, destination, http) = asked(&request, false);
    let address = |peer: &Peer| {
        let socket = peer.address.clone().unwrap().socket_address.unwrap();
        (socket.address, socket.port_value)
    };
    assert_eq!(source.principal, "spiffe://td/ns/web/sa/client");
    assert_eq!(address(&source), ("10.0.0.1".to_owned(), 4711));
    assert_eq!(destination.principal, "");
    assert_eq!(address(&destination), ("10.0.0.2".to_owned(), 8080));
    let headers: Vec<(&str, &str)> = http
        .headers
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(
        headers,
        [
            (":authority", "shop.example:80"),
            (":method", "POST"),
            (":path", "/a?b=c"),
            (":scheme", "http"),
            ("content-length", "17"),
            ("x-a", "1,2"),
            ("x-request-id", "7"),
        ]
    );
    assert_eq!(
        (&*http.id, &*http.method, &*http.path),
        ("7", "POST", "/a?b=c")
    );
    assert_eq!((&*http.host, &*http.scheme), ("shop.example:80", "http"));
    assert_eq!((http.size, &*http.protocol), (17, "HTTP/1.1"));
    assert_eq!(asked(&Request::with(&[]), false).2.size, -1);
}

#[test]
fn a_body_is_text_or_bytes() {
    let request = Request::with(&[]).showing(b"a\xff", true);
    let (_, _, text) = asked(&request, false);
    assert_eq!((&*text.body, &*text.raw_body), ("a\u{fffd}", &b""[..]));
    assert_eq!(text.headers["x-envoy-auth-partial-body"], "true");
    let (_, _, bytes) = asked(&request, true);
    assert_eq!((&*bytes.body, &*bytes.raw_body), ("", &b"a\xff"[..]));
}
