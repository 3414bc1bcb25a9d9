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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entry = (Precedence, Age);

    /// Few values each, so that many entries agree in all but one part.
    fn any_entry() -> impl Strategy<Value = Entry> {
        let path = prop_oneof![
            Just(PathKind::Exact),
            Just(PathKind::Prefix),
            Just(PathKind::Regex),
            Just(PathKind::Any)
        ];
        let specific = (
            path,
            (0..2_usize, 0..2_usize),
            any::<bool>(),
            0..2_usize,
            0..2_usize,
        );
        let specific =
            specific.prop_map(|(path, (first, second), method, headers, query)| Specific {
                path,
                length: (Reverse(first), Reverse(second)),
                method: Reverse(method),
                headers: Reverse(headers),
                query: Reverse(query),
            });
        let created = proptest::option::of(
            (0..2_i64).prop_map(|second| Timestamp::from_second(second).expect("within the era")),
        );
        let name = prop_oneof![Just("a"), Just("b")];
        let age = (created, name.clone(), name).prop_map(|(created, namespace, name)| Age {
            created,
            route: ObjectName {
                namespace: namespace.into(),
                name: name.into(),
            },
        });
        let place = (0..2_usize, 0..2_usize);
        (specific, place, age)
            .prop_map(|(specific, place, age)| (Precedence { specific, place }, age))
    }

    fn order(one: &Entry, other: &Entry) -> Ordering {
        Precedence::order((&one.0, &one.1), (&other.0, &other.1))
    }

    proptest! {
        #[test]
        fn it_is_a_total_order(a in any_entry(), b in any_entry(), c in any_entry()) {
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            prop_assert_eq!(order(&a, &b) == Ordering::Equal, a == b);
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }

        #[test]
        fn whatever_the_order_of_arrival_the_table_is_the_same(
            mut entries in proptest::collection::vec(any_entry(), 0..12),
            turns in 0..12_usize,
        ) {
            let mut others = entries.clone();
            let middle = turns.min(others.len());
            others.rotate_left(middle);
            entries.sort_by(order);
            others.sort_by(order);
            prop_assert_eq!(entries, others);
        }
    }
}
