//! Which endpoint each way of spreading chooses.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Choice, ConsistentHash, Turn, choose_endpoint, hash, order, request_hash, warmed};
use crate::model::{Balance, HashAlgorithm, HashKey, RequestHead, Warmup};

fn endpoint(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 80).into()
}

/// Endpoints with these weights and active requests.
fn choices(of: &[(u32, u32)]) -> Vec<Choice> {
    let choice = |(number, (weight, active)): (u8, &(u32, u32))| Choice {
        tier: 0,
        address: endpoint(number),
        weight: *weight,
        active: *active,
    };
    (0..).zip(of).map(choice).collect()
}

/// What is chosen when the draws come out like this.
fn chosen(balance: &Balance, of: &[(u32, u32)], turn: Turn<'_>, draws: &[u32]) -> Option<usize> {
    let mut draws = draws.iter();
    let mut choose = |bound: u32| {
        let point = *draws.next().expect("no more draws than expected");
        assert!(point < bound);
        point
    };
    choose_endpoint(balance, &choices(of), turn, &mut choose)
}

#[test]
fn least_request_takes_the_idler_of_two() {
    let balance = Balance::LeastRequest;
    let turn = Turn::default();
    let of = [(1, 5), (1, 2), (1, 9)];
    for (draws, expected) in [([0, 1], 1), ([1, 0], 1), ([2, 0], 0), ([2, 2], 2)] {
        assert_eq!(chosen(&balance, &of, turn, &draws), Some(expected));
    }
    let equal = [(1, 3), (1, 3)];
    assert_eq!(
        chosen(&balance, &equal, turn, &[1, 0]),
        Some(1),
        "the first of equals"
    );
}

#[test]
fn round_robin_goes_round_by_weight() {
    let round: Vec<_> = (0..8)
        .map(|number| {
            let turn = Turn { number, hash: None };
            chosen(
                &Balance::RoundRobin,
                &[(1, 0), (2, 0), (0, 0), (1, 0)],
                turn,
                &[],
            )
            .unwrap()
        })
        .collect();
    assert_eq!(round, [0, 1, 1, 3, 0, 1, 1, 3]);
}

#[test]
fn random_draws_by_weight() {
    let of = [(1, 0), (0, 0), (3, 0)];
    let draw = |point| chosen(&Balance::Random, &of, Turn::default(), &[point]);
    assert_eq!([0, 1, 3].map(draw), [Some(0), Some(2), Some(2)]);
}

#[test]
fn without_weight_or_for_the_dialled_address_nothing_is_chosen() {
    for balance in [Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        assert_eq!(chosen(&balance, &[], Turn::default(), &[]), None);
        assert_eq!(chosen(&balance, &[(0, 0)], Turn::default(), &[]), None);
    }
    let passthrough = chosen(&Balance::Passthrough, &[(1, 0)], Turn::default(), &[]);
    assert_eq!(passthrough, None);
}

const ALGORITHMS: [HashAlgorithm; 2] = [
    HashAlgorithm::Ring {
        minimum_size: 1_024,
    },
    HashAlgorithm::Maglev { table_size: 65_537 },
];

fn balance(algorithm: HashAlgorithm) -> Balance {
    Balance::ConsistentHash {
        key: HashKey::SourceIp,
        algorithm,
    }
}

#[test]
fn a_hash_leads_to_one_endpoint_and_none_to_any() {
    for algorithm in ALGORITHMS {
        let of = [(1, 0), (1, 0), (1, 0)];
        let all: Vec<_> = choices(&of).iter().map(|one| one.address).collect();
        let table = ConsistentHash::new(algorithm, &all);
        let turn = |key: &str| Turn {
            number: 0,
            hash: Some((hash(key.as_bytes()), &table)),
        };
        let first = chosen(&balance(algorithm), &of, turn("alice"), &[]);
        assert!(first.is_some());
        assert_eq!(chosen(&balance(algorithm), &of, turn("alice"), &[]), first);
        let without = chosen(&balance(algorithm), &of, Turn::default(), &[2]);
        assert_eq!(without, Some(2));
    }
}

#[test]
fn keys_spread_evenly_and_mostly_stay_when_an_endpoint_goes() {
    const KEYS: u32 = 10_000;
    for algorithm in ALGORITHMS {
        let ten: Vec<_> = (0..10).map(endpoint).collect();
        let (before, after) = (
            ConsistentHash::new(algorithm, &ten),
            ConsistentHash::new(algorithm, &ten[1..]),
        );
        let mut hits: HashMap<SocketAddr, u32> = HashMap::new();
        let mut moved = 0;
        for key in 0..KEYS {
            let key = hash(&key.to_be_bytes());
            let found = before.find(key).unwrap();
            *hits.entry(found).or_default() += 1;
            moved += u32::from(found != endpoint(0) && after.find(key) != Some(found));
        }
        assert_eq!(hits.len(), 10, "{algorithm:?}");
        for (endpoint, hits) in hits {
            assert!(
                (600..=1_500).contains(&hits),
                "{algorithm:?} {endpoint}: {hits}"
            );
        }
        assert!(
            moved < KEYS / 20,
            "{algorithm:?}: {moved} moved without need"
        );
    }
}

#[test]
fn tables_do_not_depend_on_the_order_of_endpoints() {
    for algorithm in ALGORITHMS {
        let mut all: Vec<_> = (0..5).map(endpoint).collect();
        let one = ConsistentHash::new(algorithm, &all);
        all.reverse();
        let other = ConsistentHash::new(algorithm, &all);
        for key in 0..1_000_u32 {
            let key = hash(&key.to_be_bytes());
            assert_eq!(one.find(key), other.find(key));
        }
        assert_eq!(ConsistentHash::new(algorithm, &[]).find(7), None);
    }
    // A size that is no prime is rounded up to one, so that every slot is filled.
    let odd = ConsistentHash::new(HashAlgorithm::Maglev { table_size: 100 }, &[endpoint(1)]);
    assert!((0..200).all(|key| odd.find(key) == Some(endpoint(1))));
}

#[test]
fn a_request_is_hashed_by_what_the_rule_names() {
    let mut headers = HeaderMap::new();
    headers.insert("x-user", HeaderValue::from_static("alice"));
    headers.insert("cookie", HeaderValue::from_static("a=b; user=alice"));
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "echo",
        path: "/",
        query: Some("user=alice&user=bob"),
        headers: &headers,
    };
    let source = "::ffff:10.0.0.1".parse().unwrap();
    let of = |key: &HashKey| request_hash(key, &head, source);
    let cookie = |name: &str| HashKey::Cookie {
        name: name.into(),
        path: None,
        ttl: None,
    };
    let alice = Some(hash(b"alice"));
    assert_eq!(
        of(&HashKey::Header(HeaderName::from_static("x-user"))),
        alice
    );
    assert_eq!(of(&HashKey::QueryParameter("user".into())), alice);
    assert_eq!(of(&cookie("user")), alice);
    assert_eq!(of(&HashKey::SourceIp), Some(hash(&[10, 0, 0, 1])));
    assert_eq!(
        of(&HashKey::Header(HeaderName::from_static("x-none"))),
        None
    );
    assert_eq!(of(&HashKey::QueryParameter("none".into())), None);
    assert_eq!(of(&cookie("none")), None);
}

#[test]
fn an_order_names_each_endpoint_once_and_a_hash_only_its_own() {
    let mut choices = choices(&[(1, 0), (0, 0), (1, 0), (1, 0), (1, 0)]);
    let places = order(
        &Balance::Random,
        &mut choices,
        Turn::default(),
        &mut |bound| bound - 1,
    );
    assert_eq!(places.as_slice(), [4, 3, 2]);
    let algorithm = HashAlgorithm::Ring { minimum_size: 16 };
    let table = ConsistentHash::new(algorithm, &[endpoint(0), endpoint(1)]);
    let balance = Balance::ConsistentHash {
        key: HashKey::SourceIp,
        algorithm,
    };
    let turn = Turn {
        number: 0,
        hash: Some((3, &table)),
    };
    let mut two = super::tests::choices(&[(1, 0), (1, 0)]);
    let places = order(&balance, &mut two, turn, &mut |_| 0);
    assert_eq!(places.len(), 1);
}

#[test]
fn a_new_endpoint_grows_into_its_weight() {
    let linear = Warmup {
        duration: Duration::from_secs(100),
        minimum_percent: 10,
        aggression: 1.0,
    };
    let eager = Warmup {
        aggression: 2.0,
        ..linear.clone()
    };
    for (warmup, age, weight) in [
        (&linear, 0, 20),
        (&linear, 5, 20),
        (&linear, 50, 100),
        (&linear, 100, 200),
        (&eager, 25, 100),
    ] {
        let grown = warmed(2, warmup, Duration::from_secs(age));
        assert_eq!(grown, weight, "{warmup:?} at {age} s");
    }
}
