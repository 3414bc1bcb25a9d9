//! Finds the few entries of a route table that a request could match, without looking at the rest.
//!
//! An entry is filed by its path, and among those of one path by its most selective exact condition. The
//! index never decides: what it names is still matched, in the table's order of precedence.

mod bucket;
mod prefixes;

use std::sync::Arc;

use bucket::Bucket;
use hashbrown::HashMap;
use prefixes::Prefixes;
use smallvec::SmallVec;

use super::{HttpRouteEntry, PathMatch};
use crate::model::RequestHead;

/// Places in a table's list of entries, ascending.
type Places = SmallVec<[u32; 4]>;

/// Lists that a request's candidates stand in. A path has few prefixes in a table, a request few headers
/// that a table asks for.
type Lists<'t> = SmallVec<[&'t [u32]; 8]>;

/// The places of a table's entries, by what they ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteIndex {
    /// Entries for one path.
    exact: HashMap<Arc<str>, Bucket>,
    /// Entries for a prefix by path element, filed with a slash at its end.
    elements: Prefixes,
    /// Entries for a prefix by text.
    texts: Prefixes,
    /// Entries for any path, and those whose path cannot be looked up.
    others: Bucket,
}

impl RouteIndex {
    pub(super) fn new(entries: &[HttpRouteEntry]) -> Self {
        let mut exact: HashMap<Arc<str>, Places> = HashMap::new();
        let mut elements: Vec<(Box<str>, u32)> = Vec::new();
        let mut texts: Vec<(Box<str>, u32)> = Vec::new();
        let mut others = Places::new();
        for (place, entry) in (0_u32..).zip(entries) {
            match &entry.matches.path {
                _ if entry.matches.ignore_path_case => others.push(place),
                PathMatch::Exact(path) => {
                    exact.entry(Arc::clone(path)).or_default().push(place);
                }
                PathMatch::Prefix(prefix) if !prefix.is_empty() => {
                    elements.push(([prefix, "/"].concat().into(), place));
                }
                PathMatch::TextPrefix(prefix) => texts.push((Box::from(&**prefix), place)),
                PathMatch::Any | PathMatch::Prefix(_) | PathMatch::Regex(_) => others.push(place),
            }
        }
        let bucket = |places| Bucket::new(places, entries);
        Self {
            exact: exact
                .into_iter()
                .map(|(path, places)| (path, bucket(places)))
                .collect(),
            elements: Prefixes::new(elements, bucket),
            texts: Prefixes::new(texts, bucket),
            others: bucket(others),
        }
    }

    /// Places of entries that the request could match, ascending; no place is named twice.
    pub(super) fn candidates(&self, head: &RequestHead<'_>) -> Candidates<'_> {
        let mut lists = Lists::new();
        if let Some(bucket) = self.exact.get(head.path) {
            bucket.collect(head, &mut lists);
        }
        if !self.elements.is_empty() {
            let with_slash = [head.path, "/"].concat();
            self.elements.collect(&with_slash, head, &mut lists);
        }
        self.texts.collect(head.path, head, &mut lists);
        self.others.collect(head, &mut lists);
        Candidates { lists }
    }
}

/// Several ascending lists as one.
pub(super) struct Candidates<'t> {
    lists: Lists<'t>,
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let ahead = self.lists.iter_mut().filter_map(|list| {
            let first = *list.first()?;
            Some((first, list))
        });
        let (place, list) = ahead.min_by_key(|(first, _)| *first)?;
        *list = list.get(1..).unwrap_or_default();
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    use super::RouteIndex;
    use crate::model::{
        HeaderMatch, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRule, PathMatch,
        RequestHead, RetryPolicy, TextMatch,
    };

    /// How many of a table's entries are looked at for a request that one of them is for.
    fn looked_at(size: usize, matches: &dyn Fn(usize) -> HttpMatch) -> usize {
        let rule = Arc::new(HttpRule {
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
            retry: RetryPolicy::default(),
            session: None,
            is_usable: true,
        });
        let entries: Vec<_> = (0..size)
            .map(|number| HttpRouteEntry {
                matches: matches(number).into(),
                rule: Arc::clone(&rule),
            })
            .collect();
        let index = RouteIndex::new(&entries);
        let wanted = size * 2 / 3;
        let mut headers = HeaderMap::new();
        let tenant = HeaderValue::from_str(&wanted.to_string()).unwrap();
        headers.insert(HeaderName::from_static("x-tenant"), tenant);
        let path = format!("/api/{wanted}");
        let head = RequestHead {
            method: &Method::GET,
            scheme: "http",
            authority: "things.app",
            path: &path,
            query: None,
            headers: &headers,
        };
        let found: Vec<_> = index.candidates(&head).collect();
        assert!(found.contains(&u32::try_from(wanted).unwrap()), "{found:?}");
        found.len()
    }

    #[test]
    fn of_ten_thousand_entries_no_more_are_looked_at_than_of_a_hundred() {
        let tenant = |number: usize| HeaderMatch {
            name: HeaderName::from_static("x-tenant"),
            value: TextMatch::Exact(number.to_string().into()),
        };
        let by_path = |path: PathMatch| HttpMatch {
            path,
            ..HttpMatch::default()
        };
        let path = |number: usize| format!("/api/{number}").into();
        let exact = |number| by_path(PathMatch::Exact(path(number)));
        let prefix = |number| by_path(PathMatch::Prefix(path(number)));
        let header = |number| HttpMatch {
            headers: vec![tenant(number)],
            ..HttpMatch::default()
        };
        let both = |number| HttpMatch {
            headers: vec![tenant(number)],
            ..by_path(PathMatch::Prefix("/api".into()))
        };
        let kinds: [(&str, &dyn Fn(usize) -> HttpMatch); 4] = [
            ("exact", &exact),
            ("prefix", &prefix),
            ("header", &header),
            ("prefix and header", &both),
        ];
        for (name, matches) in kinds {
            for size in [100, 1_000, 10_000] {
                assert_eq!(looked_at(size, matches), 1, "{name} among {size}");
            }
        }
    }
}
