//! Which entry of a route table a request matches.

use std::borrow::Cow;

use crate::model::{
    HeaderMatch, HttpMatch, HttpRouteEntry, HttpRouteTable, PathMatch, QueryMatch, RequestHead,
    TextMatch,
};

/// The first entry, in the table's order of precedence, that the request matches.
pub fn select<'t>(table: &'t HttpRouteTable, head: &RequestHead<'_>) -> Option<&'t HttpRouteEntry> {
    table
        .candidates(head)
        .find(|entry| matches(&entry.matches, head))
}

/// Whether a request satisfies every condition of a match.
pub(super) fn matches(wanted: &HttpMatch, head: &RequestHead<'_>) -> bool {
    match_path(&wanted.path, wanted.ignore_path_case, head.path)
        && match_optional(wanted.method.as_ref(), head.method.as_str())
        && match_optional(wanted.authority.as_ref(), head.authority)
        && wanted.headers.iter().all(|one| match_header(one, head))
        && !wanted
            .without_headers
            .iter()
            .any(|one| match_header(one, head))
        && wanted.query.iter().all(|one| match_query(one, head.query))
}

fn match_path(wanted: &PathMatch, ignore_case: bool, path: &str) -> bool {
    let same = |a: &str, b: &str| {
        if ignore_case {
            a.eq_ignore_ascii_case(b)
        } else {
            a == b
        }
    };
    let after = |prefix: &str| {
        let (start, rest) = path.split_at_checked(prefix.len())?;
        same(start, prefix).then_some(rest)
    };
    match wanted {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => same(exact, path),
        PathMatch::Prefix(prefix) => {
            after(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::TextPrefix(prefix) => after(prefix).is_some(),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

fn match_optional(wanted: Option<&TextMatch>, text: &str) -> bool {
    wanted.is_none_or(|wanted| match_text(wanted, text))
}

fn match_text(wanted: &TextMatch, text: &str) -> bool {
    match wanted {
        TextMatch::Exact(exact) => **exact == *text,
        TextMatch::Prefix(prefix) => text.starts_with(&**prefix),
        TextMatch::Regex(regex) => regex.is_match(text),
        TextMatch::Present => true,
    }
}

fn match_header(wanted: &HeaderMatch, head: &RequestHead<'_>) -> bool {
    if matches!(wanted.value, TextMatch::Present) {
        return head.headers.contains_key(&wanted.name);
    }
    head.header(&wanted.name)
        .is_some_and(|value| match_text(&wanted.value, &value))
}

fn match_query(wanted: &QueryMatch, query: Option<&str>) -> bool {
    let mut parameters = parameters(query);
    parameters
        .find(|(name, _)| **name == *wanted.name)
        .is_some_and(|(_, value)| match_text(&wanted.value, &value))
}

/// The parameters of a query, percent-decoded, in their order.
fn parameters(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
}
