//! What answers come to.

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Answer, Changes, apply, grpc_answer, http_answer};
use super::{headers, pairs, patterns, settings};
use crate::envoy::{
    self, AppendAction, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption,
    HttpResponse, HttpStatus, OkHttpResponse, QueryParameter, Status,
};
use crate::model::HttpAuthorizer;

fn http(settings: &HttpAuthorizer, status: u16, told: &[(&str, &str)]) -> Answer {
    let status = StatusCode::from_u16(status).unwrap();
    http_answer(
        settings,
        status,
        &headers(told),
        &Bytes::from_static(b"words"),
    )
}

#[track_caller]
fn changes(answer: Answer) -> Changes {
    match answer {
        Answer::Allowed(changes) => changes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_status_lets_pass_refuses_or_is_a_failure() {
    for (status, expected) in [
        (200, "allowed"),
        (201, "denied"),
        (204, "denied"),
        (302, "denied"),
        (401, "denied"),
        (403, "denied"),
        (429, "denied"),
        (500, "failed"),
        (503, "failed"),
        (599, "failed"),
        // None that could end a request.
        (101, "failed"),
        (600, "failed"),
    ] {
        let found = match http(&settings(), status, &[]) {
            Answer::Allowed(_) => "allowed",
            Answer::Denied(rejection) => {
                assert_eq!(rejection.status, status);
                let has_body = status != 204;
                assert_eq!(rejection.body.is_empty(), !has_body, "{status}");
                "denied"
            }
            Answer::Failed => "failed",
        };
        assert_eq!(found, expected, "{status}");
    }
}

const ANSWER: &[(&str, &str)] = &[
    ("x-user", "alice"),
    ("x-group", "a"),
    ("x-group", "b"),
    ("set-cookie", "s=1"),
    ("set-cookie", "t=2"),
    ("content-length", "5"),
    ("location", "/login"),
    ("www-authenticate", "Basic"),
    ("content-type", "text/html"),
    ("host", "authz"),
    ("connection", "close"),
];

#[test]
fn what_an_allowing_answer_says_overwrites_what_a_client_says() {
    let wanting = HttpAuthorizer {
        upstream_headers: patterns(&["x-*"]),
        downstream_headers_on_allow: patterns(&["set-cookie"]),
        ..settings()
    };
    let changes = changes(http(&wanting, 200, ANSWER));
    let mut request = headers(&[("x-user", "root"), ("x-group", "admins"), ("x-own", "1")]);
    changes.apply_to_request(&mut request);
    let mut found = pairs(&request);
    found.sort_unstable();
    let expected = [
        ("x-group", "a"),
        ("x-group", "b"),
        ("x-own", "1"),
        ("x-user", "alice"),
    ];
    assert_eq!(found, expected);
    let mut response = headers(&[("set-cookie", "own=1")]);
    apply(&changes.response, &mut response);
    let cookies: Vec<_> = pairs(&response)
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    assert_eq!(cookies, ["own=1", "s=1", "t=2"]);
}

#[test]
fn nothing_of_an_allowing_answer_goes_further_unless_it_is_named() {
    assert_eq!(changes(http(&settings(), 200, ANSWER)), Changes::default());
    let greedy = HttpAuthorizer {
        upstream_headers: patterns(&["*"]),
        ..settings()
    };
    let names: Vec<_> = changes(http(&greedy, 200, ANSWER))
        .request
        .into_iter()
        .map(|change| change.name.to_string())
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name == "content-length" || name == "connection"),
        "{names:?}"
    );
}

#[test]
fn an_answer_may_take_headers_from_the_request() {
    let told = [(
        "x-envoy-auth-headers-to-remove",
        "x-secret, Host ,content-length",
    )];
    let changes = changes(http(&settings(), 200, &told));
    let mut request = headers(&[("x-secret", "1"), ("host", "a"), ("content-length", "3")]);
    changes.apply_to_request(&mut request);
    let mut left = pairs(&request);
    left.sort_unstable();
    assert_eq!(left, [("content-length", "3"), ("host", "a")]);
}

#[track_caller]
fn rejected(answer: Answer) -> (StatusCode, HeaderMap, Bytes) {
    match answer {
        Answer::Denied(rejection) => (rejection.status, rejection.headers, rejection.body),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refusing_answer_goes_to_the_client_as_far_as_its_headers_are_named() {
    let all = [
        "content-type",
        "location",
        "set-cookie",
        "set-cookie",
        "www-authenticate",
        "x-group",
        "x-group",
        "x-user",
    ];
    for (wanted, expected) in [
        (&[][..], &all[..]),
        (&["x-user"], &["location", "www-authenticate", "x-user"]),
        (
            &["*-cookie"],
            &["location", "set-cookie", "set-cookie", "www-authenticate"],
        ),
    ] {
        let settings = HttpAuthorizer {
            downstream_headers_on_deny: patterns(wanted),
            ..settings()
        };
        let (_, headers, _) = rejected(http(&settings, 302, ANSWER));
        let mut found: Vec<_> = pairs(&headers).into_iter().map(|(name, _)| name).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{wanted:?}");
    }
}

fn option(
    name: &str,
    value: &str,
    append: Option<bool>,
    action: AppendAction,
) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append,
        append_action: action.into(),
    }
}

fn grpc(code: i32, response: Option<HttpResponse>) -> Answer {
    grpc_answer(&envoy::encode(&CheckResponse {
        status: Some(Status { code }),
        http_response: response,
    }))
}

#[test]
fn each_kind_of_append_does_what_it_is_called() {
    use AppendAction::{
        AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd,
    };
    for (append, action, on_none, on_one) in [
        (None, AppendIfExistsOrAdd, &["new"][..], &["new"][..]),
        (Some(false), AppendIfExistsOrAdd, &["new"], &["new"]),
        // "append … to the matched request header": there has to be one.
        (Some(true), AppendIfExistsOrAdd, &[], &["old", "new"]),
        (None, AddIfAbsent, &["new"], &["old"]),
        (None, OverwriteIfExistsOrAdd, &["new"], &["new"]),
        (None, OverwriteIfExists, &[], &["new"]),
    ] {
        let ok = OkHttpResponse {
            headers: vec![option("x-a", "new", append, action)],
            ..OkHttpResponse::default()
        };
        let changes = changes(grpc(0, Some(HttpResponse::Ok(ok))));
        for (before, after) in [(&[][..], on_none), (&[("x-a", "old")], on_one)] {
            let mut request = headers(before);
            changes.apply_to_request(&mut request);
            let values: Vec<_> = pairs(&request)
                .into_iter()
                .map(|(_, value)| value)
                .collect();
            assert_eq!(values, after, "{append:?} {action:?} {before:?}");
        }
    }
}

#[test]
fn a_check_that_allows_changes_request_and_response() {
    let default = AppendAction::AppendIfExistsOrAdd;
    let ok = OkHttpResponse {
        headers: vec![
            option("x-user", "alice", None, default),
            option(":path", "/elsewhere", None, default),
            option("content-length", "0", None, default),
            option("x bad", "1", None, default),
        ],
        headers_to_remove: vec![
            "x-secret".to_owned(),
            "host".to_owned(),
            ":method".to_owned(),
        ],
        response_headers_to_add: vec![option("x-seen", "b", Some(true), default)],
        query_parameters_to_set: vec![QueryParameter {
            key: "as".to_owned(),
            value: "alice".to_owned(),
        }],
        query_parameters_to_remove: vec!["token".to_owned()],
    };
    let changes = changes(grpc(0, Some(HttpResponse::Ok(ok))));
    let mut request = headers(&[
        ("x-user", "root"),
        ("x-secret", "1"),
        ("host", "a"),
        ("content-length", "3"),
    ]);
    changes.apply_to_request(&mut request);
    let mut found = pairs(&request);
    found.sort_unstable();
    assert_eq!(
        found,
        [("content-length", "3"), ("host", "a"), ("x-user", "alice")]
    );
    assert_eq!(
        changes.changed_query("token=1&as=root").as_deref(),
        Some("as=alice")
    );
    let mut response = headers(&[("x-seen", "a")]);
    apply(&changes.response, &mut response);
    assert_eq!(pairs(&response), [("x-seen", "a"), ("x-seen", "b")]);
    assert_eq!(grpc(0, None), Answer::Allowed(Changes::default()));
}

#[test]
fn a_check_that_denies_is_answered_in_its_words() {
    let denied = |code: Option<i32>, body: &str| {
        grpc(
            7,
            Some(HttpResponse::Denied(DeniedHttpResponse {
                status: code.map(|code| HttpStatus { code }),
                headers: vec![
                    option("set-cookie", "a", None, AppendAction::AppendIfExistsOrAdd),
                    option("set-cookie", "b", None, AppendAction::AppendIfExistsOrAdd),
                ],
                body: body.to_owned(),
            })),
        )
    };
    let (status, headers, body) = rejected(denied(Some(401), "who are you?"));
    assert_eq!((status.as_u16(), &*body), (401, &b"who are you?"[..]));
    assert_eq!(pairs(&headers), [("set-cookie", "a"), ("set-cookie", "b")]);
    for (code, expected) in [(None, 403), (Some(0), 403), (Some(302), 302)] {
        assert_eq!(rejected(denied(code, "")).0.as_u16(), expected, "{code:?}");
    }
    for code in [-1, 100, 600, 1_000_000] {
        assert_eq!(denied(Some(code), ""), Answer::Failed, "{code}");
    }
    assert_eq!(rejected(grpc(7, None)).0.as_u16(), 403);
}

#[test]
fn contradictions_are_decided_by_the_status() {
    let ok = || Some(HttpResponse::Ok(OkHttpResponse::default()));
    let denied = || Some(HttpResponse::Denied(DeniedHttpResponse::default()));
    assert_eq!(rejected(grpc(13, ok())).0.as_u16(), 403);
    assert_eq!(grpc(0, denied()), Answer::Allowed(Changes::default()));
    // proto3: no status is status 0. An empty answer lets pass, as it does in Envoy.
    assert_eq!(grpc_answer(b""), Answer::Allowed(Changes::default()));
    assert_eq!(grpc_answer(b"\xff"), Answer::Failed);
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer(message: Vec<u8>) {
        let _answer = grpc_answer(&message);
    }

    #[test]
    fn an_answer_in_which_a_byte_is_wrong_is_an_answer(place: prop::sample::Index, byte: u8) {
        let mut message = envoy::encode(&CheckResponse {
            status: Some(Status { code: 7 }),
            http_response: Some(HttpResponse::Denied(DeniedHttpResponse {
                status: Some(HttpStatus { code: 401 }),
                headers: vec![option("x-a", "b", Some(true), AppendAction::AddIfAbsent)],
                body: "words".to_owned(),
            })),
        });
        let place = place.index(message.len());
        message[place] = byte;
        let _answer = grpc_answer(&message);
    }
}

#[test]
fn query_parameters_are_set_and_removed() {
    let changed = |set: &[(&str, &str)], remove: &[&str], query: &str| {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let changes = Changes {
            set_parameters: set.iter().map(owned).collect(),
            remove_parameters: remove.iter().map(|name| (*name).to_owned()).collect(),
            ..Changes::default()
        };
        changes.changed_query(query)
    };
    assert_eq!(changed(&[], &[], "a=1"), None);
    for (set, remove, query, expected) in [
        (&[("a", "2")][..], &[][..], "", "a=2"),
        (&[("a", "2")], &[], "a=1&b=%20&a=3", "a=2&b=%20"),
        (&[("b", "x y&z")], &[], "a=1", "a=1&b=x+y%26z"),
        (&[("a", "2"), ("c", "")], &["b"], "b=1&b&a", "a=2&c="),
        (&[], &["a"], "a=1&%61=2&aa=3", "aa=3"),
        (&[("a", "1")], &["a"], "x", "x"),
        (&[], &["a"], "a", ""),
    ] {
        let found = changed(set, remove, query);
        assert_eq!(found.as_deref(), Some(expected), "{query}");
    }
}
