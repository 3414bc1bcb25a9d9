//! What a request was before its rule's filters, told and looked after.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::{backend, prefix, rule};
use crate::model::{
    BackendTarget, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRouteTable, HttpRule,
    Mirror, PathChange, Rewrite,
};
use crate::route::http::{Filters, Original};

fn request(target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = http::Request::get(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// A rule for paths below `/api` that strips that, takes a header and sets another, and has its backend add a third;
/// copies go to `copy`, whose host says so.
fn table() -> HttpRouteTable {
    let name = HeaderName::from_static;
    let mut to_web = backend("web", 1);
    to_web.request_headers.add = vec![(name("x-added"), HeaderValue::from_static("one"))];
    let changing = HttpRule {
        action: HttpAction::Forward(vec![to_web, backend("other", 1)]),
        request_headers: HeaderModifier {
            remove: vec![name("authorization")],
            set: vec![(name("x-set"), HeaderValue::from_static("set"))],
            ..HeaderModifier::default()
        },
        rewrite: Some(Rewrite {
            hostname: Some(HeaderValue::from_static("inner")),
            path: Some(PathChange::Prefix("/".into())),
        }),
        mirrors: vec![Mirror {
            target: backend("copy", 1).target,
            per_million: 1_000_000,
            shadow_host: true,
        }],
        ..(*rule("changing")).clone()
    };
    let entry = |matches, rule| HttpRouteEntry {
        matches: Arc::new(matches),
        rule: Arc::new(rule),
    };
    let plain = HttpRule {
        action: HttpAction::Forward(vec![backend("web", 1)]),
        ..(*rule("plain")).clone()
    };
    let entries = vec![
        entry(prefix("/api"), changing),
        entry(HttpMatch::default(), plain),
    ];
    HttpRouteTable::new(entries, false)
}

fn asked() -> Parts {
    request(
        "/api/admin?x=1",
        &[
            ("host", "web"),
            ("authorization", "Bearer one"),
            ("authorization", "Bearer two"),
            ("x-own", "1"),
        ],
    )
}

/// How the first entry leads to its backend of this name, or its mirror.
fn filters<'t>(table: &'t HttpRouteTable, to: &str) -> Filters<'t> {
    let entry = &table.entries()[0];
    let HttpAction::Forward(backends) = &entry.rule.action else {
        panic!("{entry:?}");
    };
    let mut backends = backends.iter();
    let backend = backends.find(|backend| is_named(&backend.target, to));
    Filters {
        matched: &entry.matches,
        rule: &entry.rule,
        backend: backend.map(|backend| &backend.request_headers),
        is_shadow: backend.is_none(),
    }
}

fn is_named(target: &BackendTarget, name: &str) -> bool {
    matches!(target, BackendTarget::Service { service, .. } if *service.hostname == *name)
}

/// A request as it arrives at a server of `to`, and what is told of it.
fn arrival(to: &str) -> (Parts, Original) {
    let table = table();
    let mut parts = asked();
    let main = filters(&table, "web");
    let original = Original::of(&parts, &main).unwrap();
    assert!(original.tell(&mut parts.headers));
    filters(&table, to).apply(&mut parts).unwrap();
    let told = Original::take(&mut parts.headers).unwrap();
    assert!(
        Original::take(&mut parts.headers).is_none(),
        "it is told once"
    );
    (parts, told)
}

#[test]
fn what_is_too_long_to_be_told_is_not_told_in_part() {
    let table = table();
    let mut parts = request(&format!("/api/admin?x={}", "y".repeat(13_000)), &[]);
    let original = Original::of(&parts, &filters(&table, "web")).unwrap();
    assert!(
        !original.tell(&mut parts.headers),
        "and the request is refused"
    );
    assert!(parts.headers.is_empty());
}

#[test]
fn what_was_asked_for_is_found_again_at_every_server() {
    let table = table();
    for to in ["web", "other", "copy"] {
        let (arrived, told) = arrival(to);
        assert_eq!(arrived.uri, "/admin?x=1");
        let found = told.restore(&arrived, &table, &|target| is_named(target, to));
        let (original, filters) = found.unwrap_or_else(|| panic!("{to}: {told:?}"));
        assert_eq!(original.uri, asked().uri, "{to}");
        assert_eq!(original.headers, asked().headers, "{to}");
        let mut again = original;
        filters.apply(&mut again).unwrap();
        assert_eq!(again.uri, arrived.uri, "{to}");
        assert_eq!(again.headers, arrived.headers, "{to}");
    }
}

#[test]
fn nobody_is_believed_whom_no_rule_bears_out() {
    let table = table();
    let (arrived, told) = arrival("web");
    let is_web = |target: &BackendTarget| is_named(target, "web");
    let refused = |what: &str, arrived: &Parts| {
        assert!(told.restore(arrived, &table, &is_web).is_none(), "{what}");
    };
    let mut other = arrived.clone();
    other.uri = "/elsewhere?x=1".parse().unwrap();
    refused("another path", &other);
    let mut other = arrived.clone();
    other.uri = "/admin?x=2".parse().unwrap();
    refused("another query", &other);
    for (name, value) in [
        ("authorization", "Bearer one"),
        ("x-set", "else"),
        ("host", "web"),
    ] {
        let mut other = arrived.clone();
        let name: HeaderName = name.parse().unwrap();
        drop(other.headers.insert(name.clone(), value.parse().unwrap()));
        refused(name.as_str(), &other);
    }
    let nobody = told.restore(&arrived, &table, &|_target| false);
    assert!(nobody.is_none(), "the rule leads elsewhere");
    // A header that no filter changes is what arrived.
    let mut lines = asked();
    drop(lines.headers.insert("x-own", "2".parse().unwrap()));
    let mut modifier = (*rule("lies")).clone();
    modifier.request_headers.remove = vec![HeaderName::from_static("x-own")];
    let lying = Filters {
        rule: &modifier,
        ..filters(&table, "web")
    };
    let lie = Original::of(&lines, &lying).unwrap();
    assert!(lie.restore(&arrived, &table, &is_web).is_none());
}

#[test]
fn what_changes_nothing_needs_not_be_told() {
    let table = table();
    let entry = &table.entries()[1];
    let filters = Filters {
        matched: &entry.matches,
        rule: &entry.rule,
        backend: None,
        is_shadow: false,
    };
    assert_eq!(Original::of(&asked(), &filters), None);
}

#[test]
fn what_cannot_be_read_is_as_good_as_nothing() {
    for text in ["", "!", "AA", "L2E", "L2EKd2ViCm5vIG5hbWU6"] {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-culvert-original", text.parse().unwrap());
        assert_eq!(Original::take(&mut headers), None, "{text}");
        assert!(headers.is_empty());
    }
}
