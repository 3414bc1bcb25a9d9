//! Finds the few entries of a route table that a request could match, without looking at the rest.
//!
//! An entry is filed by its path, and among those of one path by its most selective exact condition. The
//! index never decides: what it names is still matched, in the table's order of precedence.

mod bucket;
mod prefixes;

use std::collections::HashMap;
use std::sync::Arc;

use bucket::Bucket;
use prefixes::Prefixes;
use smallvec::SmallVec;

use super::{HttpRouteEntry, PathMatch};
use crate::model::RequestHead;

/// Places in a table's list of entries, ascending.
type Places = Vec<u32>;

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
        let mut elements: HashMap<String, Places> = HashMap::new();
        let mut texts: HashMap<String, Places> = HashMap::new();
        let mut others = Places::new();
        for (place, entry) in (0_u32..).zip(entries) {
            let filed = match &entry.matches.path {
                _ if entry.matches.ignore_path_case => &mut others,
                PathMatch::Exact(path) => exact.entry(Arc::clone(path)).or_default(),
                PathMatch::Prefix(prefix) if !prefix.is_empty() => {
                    elements.entry(format!("{prefix}/")).or_default()
                }
                PathMatch::TextPrefix(prefix) => texts.entry(prefix.to_string()).or_default(),
                PathMatch::Any | PathMatch::Prefix(_) | PathMatch::Regex(_) => &mut others,
            };
            filed.push(place);
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
