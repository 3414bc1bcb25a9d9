//! The index never changes what a table means.

use std::sync::Arc;

use http::Method;
use proptest::prelude::*;

use super::{Request, exactly, header, query, rule};
use crate::model::{FullRegex, HttpMatch, HttpRouteEntry, HttpRouteTable, PathMatch, TextMatch};
use crate::route::http::matching::matches;
use crate::route::http::select;

/// Few words, so that tables and requests meet.
fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "ab", "A", "", "a,b"]).prop_map(str::to_owned)
}

fn any_path() -> impl Strategy<Value = String> {
    let joined =
        prop::collection::vec(word(), 1..5).prop_map(|words| format!("/{}", words.join("/")));
    prop_oneof![9 => joined, 1 => Just("*".to_owned())]
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        6 => word().prop_map(|text| exactly(&text)),
        1 => word().prop_map(|text| TextMatch::Prefix(text.into())),
        1 => Just(TextMatch::Present),
        1 => Just(TextMatch::Regex(FullRegex::new("a.*").unwrap())),
    ]
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        2 => Just(PathMatch::Any),
        3 => any_path().prop_map(|path| PathMatch::Exact(path.into())),
        4 => any_path().prop_map(|path| PathMatch::Prefix(path.trim_end_matches('/').into())),
        3 => any_path().prop_map(|path| PathMatch::TextPrefix(path.into())),
        1 => Just(PathMatch::Regex(FullRegex::new("/a/.*").unwrap())),
    ]
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let named = || (prop::sample::select(vec!["x", "y", "z"]), text_match());
    let some = || prop::collection::vec(named(), 0..3);
    (
        path_match(),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.2, text_match()),
        (some(), prop::collection::vec(named(), 0..2), some()),
    )
        .prop_map(
            |(path, ignore_path_case, authority, (headers, without, parameters))| {
                let header = |(name, value): (&str, TextMatch)| header(name, value);
                HttpMatch {
                    path,
                    ignore_path_case,
                    method: None,
                    authority,
                    headers: headers.into_iter().map(header).collect(),
                    without_headers: without.into_iter().map(header).collect(),
                    query: parameters
                        .into_iter()
                        .map(|(name, value)| query(name, value))
                        .collect(),
                }
            },
        )
}

fn request() -> impl Strategy<Value = Request> {
    let pairs = || prop::collection::vec((prop::sample::select(vec!["x", "y", "z"]), word()), 0..4);
    let authority = prop::sample::select(vec!["a", "b", "ab"]);
    (any_path(), authority, pairs(), pairs()).prop_map(|(path, authority, headers, parameters)| {
        let parameters: Vec<_> = parameters
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut request = Request::get(&format!("{path}?{}", parameters.join("&")));
        request.authority = authority;
        request.method = Method::GET;
        headers.into_iter().fold(request, |request, (name, value)| {
            request.header(name, &value)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_index_selects_what_a_scan_selects(
        wanted in prop::collection::vec(http_match(), 0..60),
        request in request(),
    ) {
        let shared = rule("r");
        let entries: Vec<_> = wanted
            .into_iter()
            .map(|matches| HttpRouteEntry { matches: matches.into(), rule: Arc::clone(&shared) })
            .collect();
        let head = request.head();
        let scanned = entries.iter().position(|entry| matches(&entry.matches, &head));
        let table = HttpRouteTable::new(entries, false);
        let selected = select(&table, &head).map(|found| {
            table.entries().iter().position(|entry| std::ptr::eq(entry, found)).unwrap()
        });
        prop_assert_eq!(selected, scanned);
    }
}
