//! A route table's index selects what a scan of its entries would: the lines before an empty one are
//! entries, the first after it is a request's target, and the others are its headers.

#![no_main]

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use userspace_l7::model::{
    HeaderMatch, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRouteTable, HttpRule,
    PathMatch, QueryMatch, RequestHead, RetryPolicy, TextMatch,
};
use userspace_l7::route::http::select;

fuzz_target!(|text: &str| {
    let Some((entries, request)) = text.split_once("\n\n") else {
        return;
    };
    let rule = rule();
    let entries: Vec<_> = entries
        .lines()
        .take(64)
        .filter_map(|line| {
            Some(HttpRouteEntry {
                matches: matches(line)?.into(),
                rule: Arc::clone(&rule),
            })
        })
        .collect();
    let mut lines = request.lines();
    let target = lines.next().unwrap_or_default();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers: HeaderMap = lines.take(16).filter_map(field).collect();
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "echo",
        path,
        query,
        headers: &headers,
    };
    // A table of one entry has nothing to look up.
    let alone = |entry: &HttpRouteEntry| {
        let table = HttpRouteTable::new(vec![entry.clone()], false);
        select(&table, &head).is_some()
    };
    let scanned = entries.iter().position(alone);
    let table = HttpRouteTable::new(entries, false);
    let selected = select(&table, &head).and_then(|found| {
        let mut all = table.entries().iter();
        all.position(|entry| std::ptr::eq(entry, found))
    });
    assert_eq!(selected, scanned);
});

/// `<kind of path match><path> <header>=<value> ?<parameter>=<value> …`
fn matches(line: &str) -> Option<HttpMatch> {
    let mut words = line.split(' ');
    let path = words.next()?;
    let path = match path.split_at_checked(1)? {
        ("=", path) => PathMatch::Exact(path.into()),
        ("^", path) => PathMatch::Prefix(path.trim_end_matches('/').into()),
        ("~", path) => PathMatch::TextPrefix(path.into()),
        _ => PathMatch::Any,
    };
    let mut wanted = HttpMatch {
        path,
        ..HttpMatch::default()
    };
    for word in words.take(4) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let value = if value == "*" {
            TextMatch::Present
        } else {
            TextMatch::Exact(value.into())
        };
        match name.strip_prefix('?') {
            Some(name) => wanted.query.push(QueryMatch {
                name: name.into(),
                value,
            }),
            None => wanted.headers.push(HeaderMatch {
                name: name.parse().ok()?,
                value,
            }),
        }
    }
    Some(wanted)
}

fn field(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.parse().ok()?, HeaderValue::from_str(value).ok()?))
}

fn rule() -> Arc<HttpRule> {
    Arc::new(HttpRule {
        name: "r".into(),
        origin: "HTTPRoute app/r".into(),
        action: HttpAction::Forward(vec![]),
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
        rewrite: None,
        mirrors: vec![],
        cors: None,
        fault: None,
        timeout: None,
        retry: RetryPolicy::never(),
        session: None,
        is_usable: true,
    })
}
