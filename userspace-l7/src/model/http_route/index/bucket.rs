//! Entries of one path, told apart by a header, a query parameter or the host that they ask for exactly.

use std::sync::Arc;

use hashbrown::HashMap;
use http::HeaderName;
use smallvec::SmallVec;

use super::{Lists, Places};
use crate::model::{HttpMatch, HttpRouteEntry, RequestHead, TextMatch};

/// Fewer entries than this are matched one by one: that costs less than looking one up.
const SMALLEST_INDEXED: usize = 8;

/// Values that are asked for, and the entries that ask.
type ByValue = HashMap<Arc<str>, Places>;

/// Entries of one path.
#[derive(Clone, Debug)]
pub(super) enum Bucket {
    Few(Places),
    Many(Box<Conditional>),
}

/// Entries by one exact condition each.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditional {
    headers: HashMap<HeaderName, ByValue>,
    parameters: HashMap<Arc<str>, ByValue>,
    authorities: ByValue,
    /// Entries without such a condition.
    rest: Places,
}

/// A condition that only one value satisfies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Condition {
    Header(HeaderName, Arc<str>),
    Parameter(Arc<str>, Arc<str>),
    Authority(Arc<str>),
}

impl Default for Bucket {
    fn default() -> Self {
        Self::Few(Places::new())
    }
}

impl Bucket {
    pub(super) fn new(places: Places, entries: &[HttpRouteEntry]) -> Self {
        if places.len() < SMALLEST_INDEXED {
            return Self::Few(places);
        }
        Self::Many(Box::new(Conditional::new(places, entries)))
    }

    /// Names the entries that the request could match.
    pub(super) fn collect<'t>(&'t self, head: &RequestHead<'_>, lists: &mut Lists<'t>) {
        match self {
            Self::Few(places) if places.is_empty() => {}
            Self::Few(places) => lists.push(places),
            Self::Many(conditional) => conditional.collect(head, lists),
        }
    }
}

impl Conditional {
    /// Files entries by the condition that the fewest others share.
    fn new(places: Places, entries: &[HttpRouteEntry]) -> Self {
        let mut bucket = Self::default();
        let conditions_at = |place: &u32| {
            let entry = usize::try_from(*place).ok().and_then(|at| entries.get(at));
            entry
                .map(|entry| conditions(&entry.matches))
                .unwrap_or_default()
        };
        let mut shared: HashMap<Condition, usize> = HashMap::new();
        for condition in places.iter().flat_map(conditions_at) {
            *shared.entry(condition).or_default() += 1;
        }
        for place in places {
            let own = conditions_at(&place).into_iter();
            let rarest = own.min_by_key(|condition| shared.get(condition).copied());
            bucket.file(rarest, place);
        }
        bucket
    }

    fn file(&mut self, condition: Option<Condition>, place: u32) {
        let places = match condition {
            Some(Condition::Header(name, value)) => {
                let values = self.headers.entry(name).or_default();
                values.entry(value).or_default()
            }
            Some(Condition::Parameter(name, value)) => {
                let values = self.parameters.entry(name).or_default();
                values.entry(value).or_default()
            }
            Some(Condition::Authority(value)) => self.authorities.entry(value).or_default(),
            None => &mut self.rest,
        };
        places.push(place);
    }

    fn collect<'t>(&'t self, head: &RequestHead<'_>, lists: &mut Lists<'t>) {
        self.collect_by_header(head, lists);
        self.collect_by_parameter(head.query, lists);
        if let Some(places) = self.authorities.get(head.authority) {
            lists.push(places);
        }
        if !self.rest.is_empty() {
            lists.push(&self.rest);
        }
    }

    fn collect_by_header<'t>(&'t self, head: &RequestHead<'_>, lists: &mut Lists<'t>) {
        let mut add = |name: &HeaderName, values: &'t ByValue| {
            let value = head.header(name);
            if let Some(places) = value.and_then(|value| values.get(&*value)) {
                lists.push(places);
            }
        };
        // Whichever is less work; a request has few headers, a table may ask for many.
        if self.headers.len() <= head.headers.keys_len() {
            for (name, values) in &self.headers {
                add(name, values);
            }
        } else {
            for name in head.headers.keys() {
                if let Some(values) = self.headers.get(name) {
                    add(name, values);
                }
            }
        }
    }

    fn collect_by_parameter<'t>(&'t self, query: Option<&str>, lists: &mut Lists<'t>) {
        if self.parameters.is_empty() {
            return;
        }
        let Some(query) = query else {
            return;
        };
        // The first of several parameters of one name counts.
        let mut seen: SmallVec<[&ByValue; 4]> = SmallVec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let Some(values) = self.parameters.get(&*name) else {
                continue;
            };
            if seen.iter().any(|one| std::ptr::eq(*one, values)) {
                continue;
            }
            seen.push(values);
            if let Some(places) = values.get(&*value) {
                lists.push(places);
            }
        }
    }
}

fn conditions(wanted: &HttpMatch) -> Vec<Condition> {
    let headers = wanted.headers.iter().filter_map(|one| {
        let value = exact(&one.value)?;
        Some(Condition::Header(one.name.clone(), value))
    });
    let parameters = wanted.query.iter().filter_map(|one| {
        let value = exact(&one.value)?;
        Some(Condition::Parameter(Arc::clone(&one.name), value))
    });
    let authority = wanted.authority.as_ref().and_then(exact);
    headers
        .chain(parameters)
        .chain(authority.map(Condition::Authority))
        .collect()
}

fn exact(wanted: &TextMatch) -> Option<Arc<str>> {
    match wanted {
        TextMatch::Exact(value) => Some(Arc::clone(value)),
        TextMatch::Prefix(_) | TextMatch::Regex(_) | TextMatch::Present => None,
    }
}
