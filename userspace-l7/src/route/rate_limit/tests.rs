//! How many requests pass, and what they are told.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::{Bucket, Buckets, Caller, MOST_BUCKETS, Quota, Taken, bucket_key, descriptor};
use crate::model::{RateLimitKey, RequestHead};

/// Two requests a second, three at once.
const QUOTA: Quota = Quota {
    requests: 2,
    period: Duration::from_secs(1),
    burst: 3,
};

fn passes(taken: Taken) -> bool {
    matches!(taken, Taken::Token { .. })
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_burst_passes_and_then_one_for_each_token() {
    let bucket = Bucket::default();
    let start = ms(10_000);
    for (at, expected) in [
        (
            0,
            Taken::Token {
                remaining: 2,
                full_in: ms(500),
            },
        ),
        (
            0,
            Taken::Token {
                remaining: 1,
                full_in: ms(1_000),
            },
        ),
        (
            0,
            Taken::Token {
                remaining: 0,
                full_in: ms(1_500),
            },
        ),
        (
            0,
            Taken::Nothing {
                retry_after: ms(500),
                full_in: ms(1_500),
            },
        ),
        (
            499,
            Taken::Nothing {
                retry_after: ms(1),
                full_in: ms(1_001),
            },
        ),
        (
            500,
            Taken::Token {
                remaining: 0,
                full_in: ms(1_500),
            },
        ),
        (
            9_000,
            Taken::Token {
                remaining: 2,
                full_in: ms(500),
            },
        ),
    ] {
        assert_eq!(bucket.take(QUOTA, start + ms(at)), expected, "{at}");
    }
}

#[test]
fn fields_are_whole_seconds_rounded_up() {
    let token = Taken::Token {
        remaining: 1,
        full_in: ms(1_001),
    };
    assert_eq!(
        token.fields(QUOTA),
        [
            ("x-ratelimit-limit", 3),
            ("x-ratelimit-remaining", 1),
            ("x-ratelimit-reset", 2)
        ]
    );
    let nothing = Taken::Nothing {
        retry_after: ms(1),
        full_in: ms(1_000),
    };
    assert_eq!(
        nothing.fields(QUOTA),
        [
            ("x-ratelimit-limit", 3),
            ("x-ratelimit-remaining", 0),
            ("x-ratelimit-reset", 1),
            ("retry-after", 1)
        ]
    );
}

#[test]
fn nothing_passes_a_quota_of_nothing() {
    for quota in [
        Quota {
            requests: 0,
            ..QUOTA
        },
        Quota { burst: 0, ..QUOTA },
    ] {
        assert!(!passes(Bucket::default().take(quota, ms(5))), "{quota:?}");
    }
}

#[test]
fn workers_together_take_no_more_than_there_is() {
    let bucket = Bucket::default();
    let quota = Quota {
        burst: 1_000,
        ..QUOTA
    };
    let taken = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    if passes(bucket.take(quota, ms(1))) {
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 1_000);
}

#[test]
fn each_key_has_its_bucket_until_there_are_too_many() {
    let buckets = Buckets::default();
    let one = Quota { burst: 1, ..QUOTA };
    assert!(passes(buckets.take("a", one, ms(1))));
    assert!(!passes(buckets.take("a", one, ms(1))));
    assert!(passes(buckets.take("b", one, ms(1))));
    for number in 2..MOST_BUCKETS {
        assert!(passes(buckets.take(&number.to_string(), one, ms(1))));
    }
    assert!(
        passes(buckets.take("crowd", one, ms(1))),
        "the shared bucket"
    );
    assert!(
        !passes(buckets.take("more", one, ms(1))),
        "and it is empty now"
    );
    // Half a second later all are full again; whether they make room is looked at once a second.
    assert!(passes(buckets.take("more", one, ms(501))));
    assert!(!passes(buckets.take("yet more", one, ms(501))));
    assert!(passes(buckets.take("more", one, ms(1001))));
    assert!(passes(buckets.take("yet more", one, ms(1001))));
}

#[test]
fn a_descriptor_is_what_its_limit_asks_for() {
    let mut headers = HeaderMap::new();
    headers.insert("x-tenant", HeaderValue::from_static("t"));
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "echo",
        path: "/p",
        query: None,
        headers: &headers,
    };
    let identity = "spiffe://td/ns/web/sa/client".parse().unwrap();
    let caller = Caller {
        identity: Some(&identity),
        address: "::ffff:10.0.0.1".parse().unwrap(),
    };
    let per = [
        RateLimitKey::ClientIdentity,
        RateLimitKey::ClientAddress,
        RateLimitKey::Header(HeaderName::from_static("x-tenant")),
        RateLimitKey::Header(HeaderName::from_static("x-none")),
        RateLimitKey::Path,
        RateLimitKey::Method,
        RateLimitKey::Fixed {
            key: "k".into(),
            value: "v".into(),
        },
    ];
    let found = descriptor(&per, caller, &head);
    let found: Vec<_> = found
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    assert_eq!(
        found,
        [
            ("client_identity", "spiffe://td/ns/web/sa/client"),
            ("remote_address", "10.0.0.1"),
            ("x-tenant", "t"),
            ("x-none", ""),
            ("path", "/p"),
            ("method", "GET"),
            ("k", "v"),
        ]
    );
}

proptest! {
    #[test]
    fn different_descriptors_have_different_keys(
        a in prop::collection::vec("[a:0-9]{0,4}", 0..4),
        b in prop::collection::vec("[a:0-9]{0,4}", 0..4),
    ) {
        let key = |values: &[String]| {
            let entries: Vec<_> = values.iter().map(|value| ("k".into(), value.into())).collect();
            bucket_key(&entries)
        };
        prop_assert_eq!(key(&a) == key(&b), a == b);
    }

    #[test]
    fn no_window_passes_more_than_burst_and_rate(pauses in prop::collection::vec(0..700_u64, 1..60)) {
        let bucket = Bucket::default();
        let mut at = 0;
        let mut passed = 0;
        for pause in pauses {
            at += pause;
            passed += u64::from(passes(bucket.take(QUOTA, ms(at))));
        }
        prop_assert!(passed <= 3 + at / 500);
    }
}
