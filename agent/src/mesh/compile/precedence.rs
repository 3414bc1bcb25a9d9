//! Which of two matches comes first (Gateway API: HTTPRoute and GRPCRoute precedence).

use std::cmp::{Ordering, Reverse};

use jiff::Timestamp;
use userspace_l7::model::{HttpMatch, PathMatch};

use crate::mesh::meta::ObjectName;

/// What one match says of its place among all of a service port; the rest its route says ([`Age`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Precedence {
    specific: Specific,
    /// "The first matching rule (in list order)", and within it the first match.
    place: (usize, usize),
}

/// How specific a match is: what is more so is smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Specific {
    path: PathKind,
    /// "Largest number of characters"; of a gRPC match, in its service and then in its method.
    length: (Reverse<usize>, Reverse<usize>),
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

/// Istio's order; the API leaves regular expressions to the implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathKind {
    Exact,
    Prefix,
    Regex,
    Any,
}

/// What a route as a whole adds to the precedence of its matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    /// "The oldest Route based on creation timestamp"; one of unknown age counts as old.
    pub(super) created: Option<Timestamp>,
    /// "The Route appearing first in alphabetical order by {namespace}/{name}".
    pub(super) route: ObjectName,
}

impl Precedence {
    /// Which of two matches is tried first, each with its route's age: the smaller. A total order, because no two
    /// matches have the same route, rule and place.
    pub(super) fn order((one, age): (&Self, &Age), (other, older): (&Self, &Age)) -> Ordering {
        let specific = one.specific.cmp(&other.specific);
        let by_age = specific.then_with(|| age.cmp(older));
        by_age.then_with(|| one.place.cmp(&other.place))
    }

    /// The place of an HTTPRoute's match.
    pub(super) fn of_http(matches: &HttpMatch, place: (usize, usize)) -> Self {
        let (path, length) = match &matches.path {
            PathMatch::Exact(path) => (PathKind::Exact, path.chars().count()),
            PathMatch::Prefix(path) | PathMatch::TextPrefix(path) => {
                (PathKind::Prefix, path.chars().count())
            }
            PathMatch::Regex(regex) => (PathKind::Regex, regex.pattern().chars().count()),
            PathMatch::Any => (PathKind::Any, 0),
        };
        Self::new(matches, path, (length, 0), place)
    }

    /// The place of a GRPCRoute's match: a service is worth more than a method.
    pub(super) fn of_grpc(
        matches: &HttpMatch,
        (service, method): (Option<&str>, Option<&str>),
        place: (usize, usize),
    ) -> Self {
        let length = |text: Option<&str>| text.map_or(0, |text| text.chars().count());
        // Exact or not says nothing here: the API only counts characters.
        let path = PathKind::Any;
        Self::new(matches, path, (length(service), length(method)), place)
    }

    fn new(
        matches: &HttpMatch,
        path: PathKind,
        (first, second): (usize, usize),
        place: (usize, usize),
    ) -> Self {
        Self {
            specific: Specific {
                path,
                length: (Reverse(first), Reverse(second)),
                method: Reverse(matches.method.is_some()),
                headers: Reverse(matches.headers.len()),
                query: Reverse(matches.query.len()),
            },
            place,
        }
    }
}
