//! What is changed in a request, and where redirects lead.

use http::header::{HOST, HeaderMap, HeaderName};
use http::request::Parts;
use http::{HeaderValue, StatusCode};

use super::{Request, path, prefix};
use crate::model::{
    HeaderModifier, HttpMatch, PathChange, PathMatch, Redirect, RedirectPort, Rewrite, SearchRegex,
};
use crate::route::http::{InvalidTarget, modify, redirect, rewrite};

fn pair(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

#[test]
fn a_modifier_removes_sets_and_adds() {
    let modifier = HeaderModifier {
        set: vec![pair("x-set", "set"), pair("x-new", "new")],
        add: vec![pair("x-add", "b"), pair("x-both", "added")],
        remove: vec![
            HeaderName::from_static("x-remove"),
            HeaderName::from_static("x-both"),
        ],
        authority: Some(HeaderValue::from_static("elsewhere")),
    };
    let mut headers: HeaderMap = [
        pair("x-set", "old"),
        pair("x-add", "a"),
        pair("x-remove", "1"),
        pair("x-both", "sent"),
        pair("host", "here"),
    ]
    .into_iter()
    .collect();
    headers.append("x-remove", HeaderValue::from_static("2"));
    modify(&modifier, &mut headers);
    let all = |name: &str| -> Vec<_> {
        let values = headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(all("x-set"), ["set"]);
    assert_eq!(all("x-new"), ["new"]);
    assert_eq!(all("x-add"), ["a", "b"]);
    assert_eq!(all("x-both"), ["added"]);
    assert!(all("x-remove").is_empty());
    assert_eq!(all("host"), ["here"], "the authority is the caller's");
}

fn to(change: &Redirect, target: &str, matched: &HttpMatch, port: u16) -> String {
    let (status, location) = redirect(change, matched, &Request::get(target).head(), port);
    assert_eq!(status, change.status);
    location.to_str().unwrap().to_owned()
}

fn found() -> Redirect {
    Redirect {
        scheme: None,
        hostname: None,
        path: None,
        port: RedirectPort::Derived,
        status: StatusCode::FOUND,
    }
}

fn host(name: &str) -> Redirect {
    Redirect {
        hostname: Some(name.into()),
        ..found()
    }
}

#[test]
fn a_redirect_names_a_port_only_where_its_scheme_has_another() {
    let scheme = |text: &str| Redirect {
        scheme: Some(text.into()),
        ..host("example.org")
    };
    let with_port = |port, redirect| Redirect {
        port: RedirectPort::Number(port),
        ..redirect
    };
    for (change, port, expected) in [
        (host("example.org"), 80, "http://example.org/p"),
        (host("example.org"), 8080, "http://example.org:8080/p"),
        (scheme("https"), 80, "https://example.org/p"),
        (scheme("https"), 8080, "https://example.org/p"),
        (scheme("http"), 8080, "http://example.org/p"),
        (with_port(8083, host("e.org")), 80, "http://e.org:8083/p"),
        (with_port(80, host("e.org")), 8080, "http://e.org/p"),
        (with_port(443, scheme("https")), 80, "https://example.org/p"),
        (
            with_port(80, scheme("https")),
            80,
            "https://example.org:80/p",
        ),
        (found(), 80, "http://echo/p"),
        (found(), 8080, "http://echo:8080/p"),
    ] {
        assert_eq!(to(&change, "/p", &HttpMatch::default(), port), expected);
    }
}

#[test]
fn a_redirect_of_istios_names_no_port_but_its_authoritys_or_one_that_it_wants() {
    let to = |redirect: &Redirect, authority: &'static str| {
        let mut request = Request::get("/p");
        request.authority = authority;
        let (_, location) =
            super::super::redirect(redirect, &HttpMatch::default(), &request.head(), 9080);
        location.to_str().unwrap().to_owned()
    };
    let own = |change: Redirect| Redirect {
        port: RedirectPort::OfAuthority,
        ..change
    };
    let https = |change: Redirect| Redirect {
        scheme: Some("https".into()),
        ..change
    };
    let called = Redirect {
        port: RedirectPort::Called,
        ..host("e.org")
    };
    for (change, authority, expected) in [
        (own(host("e.org")), "echo:9080", "http://e.org/p"),
        (own(host("e.org:8443")), "echo:9080", "http://e.org:8443/p"),
        (own(https(host("e.org"))), "echo:9080", "https://e.org/p"),
        (own(found()), "echo:9080", "http://echo:9080/p"),
        (own(found()), "echo", "http://echo/p"),
        (own(https(found())), "echo:9080", "https://echo:9080/p"),
        (own(https(found())), "echo:80", "https://echo/p"),
        (called, "echo", "http://e.org:9080/p"),
    ] {
        assert_eq!(to(&change, authority), expected, "{authority}");
    }
}

#[test]
fn a_redirect_keeps_the_query_and_changes_the_path() {
    let with_path = |change| Redirect {
        path: Some(change),
        ..host("e.org")
    };
    let full = with_path(PathChange::Full("/full".into()));
    let matched = prefix("/original-prefix");
    assert_eq!(
        to(&full, "/original-prefix/x?q=1", &matched, 80),
        "http://e.org/full?q=1"
    );
    let part = with_path(PathChange::Prefix("/replacement-prefix".into()));
    assert_eq!(
        to(&part, "/original-prefix/lemon?q", &matched, 80),
        "http://e.org/replacement-prefix/lemon?q"
    );
}

#[test]
fn a_host_keeps_its_brackets_and_loses_its_port() {
    for (authority, expected) in [
        ("[::1]:8080", "http://[::1]/"),
        ("[::1]", "http://[::1]/"),
        ("a.b:1", "http://a.b/"),
        ("a.b", "http://a.b/"),
    ] {
        let mut request = Request::get("/");
        request.authority = authority;
        let (_, location) = redirect(&found(), &HttpMatch::default(), &request.head(), 80);
        assert_eq!(location, expected, "{authority}");
    }
}

fn parts(uri: &str) -> Parts {
    let request = http::Request::builder().uri(uri).header(HOST, "old");
    request.body(()).unwrap().into_parts().0
}

#[test]
fn prefixes_are_replaced_as_gateway_api_tables_say() {
    for (target, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar?q=/foo", "/foo", "/x", "/x/bar?q=/foo"),
        ("/foo", "/", "/x", "/x/foo"),
        ("/", "/", "/x", "/x/"),
    ] {
        let change = Rewrite {
            hostname: None,
            path: Some(PathChange::Prefix(replacement.into())),
        };
        let mut parts = parts(target);
        rewrite(&change, &prefix(matched), &mut parts).unwrap();
        assert_eq!(parts.uri, expected, "{target} {matched} {replacement}");
    }
}

#[test]
fn a_path_is_replaced_whole_by_text_or_by_pattern() {
    let pattern = SearchRegex(regex::Regex::new("^/v([0-9]+)/").unwrap());
    for (change, matched, target, expected) in [
        (
            PathChange::Full("/one".into()),
            HttpMatch::default(),
            "/full/one?q",
            "/one?q",
        ),
        (
            PathChange::Full("one".into()),
            HttpMatch::default(),
            "/full",
            "/one",
        ),
        (
            PathChange::Prefix("/new".into()),
            path(PathMatch::TextPrefix("/old".into())),
            "/older/x",
            "/newer/x",
        ),
        (
            PathChange::Regex {
                pattern,
                replacement: "/version/${1}/".into(),
            },
            HttpMatch::default(),
            "/v2/x?v=/v3/",
            "/version/2/x?v=/v3/",
        ),
    ] {
        let change = Rewrite {
            hostname: None,
            path: Some(change),
        };
        let mut parts = parts(target);
        rewrite(&change, &matched, &mut parts).unwrap();
        assert_eq!(parts.uri, expected);
    }
}

#[test]
fn a_new_host_stands_wherever_the_old_one_stood() {
    let change = Rewrite {
        hostname: Some(HeaderValue::from_static("new.example")),
        path: None,
    };
    let mut first = parts("/p");
    rewrite(&change, &HttpMatch::default(), &mut first).unwrap();
    assert_eq!(first.uri, "/p");
    assert_eq!(first.headers[HOST], "new.example");

    let mut second = parts("http://old/p");
    second.headers.remove(HOST);
    rewrite(&change, &HttpMatch::default(), &mut second).unwrap();
    assert_eq!(second.uri, "http://new.example/p");
    assert!(!second.headers.contains_key(HOST));

    let mut both = parts("http://old/p");
    rewrite(&change, &HttpMatch::default(), &mut both).unwrap();
    assert_eq!(both.uri, "http://new.example/p");
    assert_eq!(both.headers[HOST], "new.example");
}

#[test]
fn a_target_that_is_no_uri_is_refused_and_nothing_changed() {
    let change = Rewrite {
        hostname: None,
        path: Some(PathChange::Full("/a b".into())),
    };
    let mut parts = parts("/p");
    let result = rewrite(&change, &HttpMatch::default(), &mut parts);
    assert_eq!(result, Err(InvalidTarget));
    assert_eq!(parts.uri, "/p");
}
