//! Who is ejected, for how long, and who not.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::{Outcome, Outliers};
use crate::model::OutlierDetection;

/// Istio's defaults, three endpoints of ten at most.
fn policy() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(5),
        consecutive_gateway_errors: None,
        consecutive_local_failures: None,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: 30,
        min_health_percent: 0,
    }
}

fn endpoint(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 80).into()
}

fn status(code: u16) -> Outcome {
    Outcome::Status(StatusCode::from_u16(code).unwrap())
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Which of the outcomes ejects endpoint 1 of ten.
fn ejects(policy: &OutlierDetection, outcomes: &[Outcome]) -> Vec<bool> {
    let mut outliers = Outliers::default();
    let record = |outcome: &Outcome| outliers.record(policy, 10, endpoint(1), *outcome, at(0));
    outcomes.iter().map(record).collect()
}

#[test]
fn errors_in_a_row_eject() {
    let five = [500, 502, 503, 504, 599].map(status);
    assert_eq!(ejects(&policy(), &five), [false, false, false, false, true]);
    let interrupted = [500, 500, 500, 500, 404, 500].map(status);
    assert!(!ejects(&policy(), &interrupted).contains(&true));
    let silent = [Outcome::LocalFailure; 5];
    assert!(ejects(&policy(), &silent).contains(&true), "as a 503");
    let off = OutlierDetection {
        consecutive_5xx: None,
        ..policy()
    };
    assert!(!ejects(&off, &[status(500); 100]).contains(&true));
}

#[test]
fn gateway_errors_and_local_failures_have_rows_of_their_own() {
    let gateway = OutlierDetection {
        consecutive_5xx: None,
        consecutive_gateway_errors: Some(2),
        ..policy()
    };
    assert_eq!(ejects(&gateway, &[502, 503].map(status)), [false, true]);
    assert_eq!(ejects(&gateway, &[502, 500, 503].map(status)), [false; 3]);
    let local = OutlierDetection {
        consecutive_local_failures: Some(2),
        ..policy()
    };
    let failure = Outcome::LocalFailure;
    assert_eq!(ejects(&local, &[failure, failure]), [false, true]);
    assert_eq!(ejects(&local, &[failure, status(200), failure]), [false; 3]);
    assert!(!ejects(&local, &[500, 500, 500, 500].map(status)).contains(&true));
}

fn eject(outliers: &mut Outliers, number: u8, now: Duration) -> bool {
    let mut record = || outliers.record(&policy(), 10, endpoint(number), status(500), now);
    (0..5).any(|_| record())
}

#[test]
fn an_ejection_lasts_longer_each_time() {
    let mut outliers = Outliers::default();
    let policy = policy();
    let usable = |outliers: &Outliers| outliers.is_usable(&policy, 10, &endpoint(1));
    assert!(usable(&outliers));
    assert!(eject(&mut outliers, 1, at(0)));
    assert!(!usable(&outliers));
    outliers.sweep(&policy, at(29));
    assert!(!usable(&outliers), "30 s are not over");
    outliers.sweep(&policy, at(39));
    assert!(usable(&outliers));
    assert!(eject(&mut outliers, 1, at(40)));
    outliers.sweep(&policy, at(80));
    assert!(!usable(&outliers), "the second takes 60 s");
    outliers.sweep(&policy, at(100));
    assert!(usable(&outliers));
    // Two intervals of good behaviour, and the next is a first again.
    outliers.sweep(&policy, at(110));
    outliers.sweep(&policy, at(120));
    assert!(eject(&mut outliers, 1, at(121)));
    outliers.sweep(&policy, at(151));
    assert!(usable(&outliers));
}

#[test]
fn most_stay_and_one_may_always_go() {
    let mut outliers = Outliers::default();
    let gone: Vec<bool> = (1..=5)
        .map(|number| eject(&mut outliers, number, at(0)))
        .collect();
    assert_eq!(gone, [true, true, true, false, false], "30 % of ten");
    let mut few = Outliers::default();
    let mut record = || few.record(&policy(), 2, endpoint(1), status(500), at(0));
    assert!((0..5).any(|_| record()), "one of two, though 30 % is less");
    let mut none = Outliers::default();
    let never = OutlierDetection {
        max_ejection_percent: 0,
        ..policy()
    };
    let mut record = || none.record(&never, 2, endpoint(1), status(500), at(0));
    assert!(!(0..5).any(|_| record()));
}

#[test]
fn where_too_few_are_left_everybody_is_used() {
    let careful = OutlierDetection {
        min_health_percent: 80,
        ..policy()
    };
    let mut outliers = Outliers::default();
    eject(&mut outliers, 1, at(0));
    eject(&mut outliers, 2, at(0));
    assert!(
        !outliers.is_usable(&careful, 10, &endpoint(1)),
        "80 % are left"
    );
    eject(&mut outliers, 3, at(0));
    assert!(
        outliers.is_usable(&careful, 10, &endpoint(1)),
        "70 % are left"
    );
}

#[test]
fn endpoints_that_are_gone_are_forgotten() {
    let mut outliers = Outliers::default();
    eject(&mut outliers, 1, at(0));
    outliers.retain(|address| *address != endpoint(1));
    assert!(outliers.is_usable(&policy(), 10, &endpoint(1)));
}

proptest! {
    #[test]
    fn never_more_than_the_share_or_one(
        steps in prop::collection::vec((1..=10_u8, 0..3_u8, 0..20_u64), 0..200),
    ) {
        let mut outliers = Outliers::default();
        let mut now = 0;
        for (number, kind, pause) in steps {
            now += pause;
            let outcome = [status(500), status(200), Outcome::LocalFailure][usize::from(kind)];
            outliers.sweep(&policy(), at(now));
            outliers.record(&policy(), 10, endpoint(number), outcome, at(now));
            let usable = |number: &u8| outliers.is_usable(&policy(), 10, &endpoint(*number));
            prop_assert!((1..=10).filter(usable).count() >= 7);
        }
    }
}

#[test]
fn a_grpc_failure_counts_by_its_code() {
    for (code, expected) in [("0", 200), ("5", 200), ("13", 500), ("14", 503), ("4", 504)] {
        let mut headers = HeaderMap::new();
        drop(headers.insert("grpc-status", HeaderValue::from_static(code)));
        let outcome = Outcome::of_response(StatusCode::OK, &headers);
        assert_eq!(outcome, status(expected), "{code}");
    }
    let plain = Outcome::of_response(StatusCode::BAD_GATEWAY, &HeaderMap::new());
    assert_eq!(plain, status(502));
}
