//! When an attempt is made again, and which requests suffer on purpose.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::model::{
    AbortAnswer, BackendTarget, Fault, FaultAbort, FaultDelay, Mirror, RetryOn, RetryPolicy,
};
use crate::route::http::fault::{Injected, inject, is_mirrored};
use crate::route::http::retry::{Attempt, is_worth_another, pause};

fn grpc(status: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", status.parse().unwrap());
    headers
}

fn on(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        on,
        ..RetryPolicy::default()
    }
}

/// Whether a policy tries again after a status, the endings without a response, and gRPC statuses.
#[track_caller]
fn check(policy: &RetryPolicy, statuses: &[u16], endings: &[&str], grpc_statuses: &[&str]) {
    for status in [200, 409, 429, 500, 502, 503, 504] {
        let attempt = Attempt::Response {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &HeaderMap::new(),
        };
        let again = is_worth_another(policy, &attempt);
        assert_eq!(again, statuses.contains(&status), "{status}");
    }
    for (name, attempt) in [
        ("connect", Attempt::ConnectFailure),
        ("refused", Attempt::RefusedStream),
        ("reset", Attempt::Reset),
        ("unfinished", Attempt::Unfinished),
        ("timeout", Attempt::PerTryTimeout),
    ] {
        let again = is_worth_another(policy, &attempt);
        assert_eq!(again, endings.contains(&name), "{name}");
    }
    for status in ["0", "1", "4", "8", "13", "14", "2", "nonsense"] {
        let attempt = Attempt::Response {
            status: StatusCode::OK,
            headers: &grpc(status),
        };
        let again = is_worth_another(policy, &attempt);
        assert_eq!(again, grpc_statuses.contains(&status), "grpc {status}");
    }
}

#[test]
fn by_default_only_what_cannot_have_been_processed_is_tried_again() {
    check(
        &RetryPolicy::default(),
        &[],
        &["connect", "refused"],
        &["1", "14"],
    );
}

#[test]
fn each_condition_means_what_envoys_word_means() {
    let none = RetryOn::default();
    check(&on(none), &[], &[], &[]);
    check(
        &on(RetryOn {
            server_error: true,
            ..none
        }),
        &[500, 502, 503, 504],
        &["connect", "refused", "reset", "timeout"],
        &[],
    );
    check(
        &on(RetryOn {
            gateway_error: true,
            ..none
        }),
        &[502, 503, 504],
        &["connect", "refused", "reset", "timeout"],
        &[],
    );
    check(
        &on(RetryOn {
            reset: true,
            ..none
        }),
        &[],
        &["connect", "refused", "reset", "timeout"],
        &[],
    );
    check(
        &on(RetryOn {
            reset_before_request: true,
            ..none
        }),
        &[],
        &["connect"],
        &[],
    );
}

#[test]
fn answers_are_tried_again_where_they_are_named() {
    let none = RetryOn::default();
    check(
        &on(RetryOn {
            retriable_4xx: true,
            ..none
        }),
        &[409],
        &[],
        &[],
    );
    check(
        &on(RetryOn {
            grpc_deadline_exceeded: true,
            grpc_internal: true,
            grpc_resource_exhausted: true,
            ..none
        }),
        &[],
        &[],
        &["4", "8", "13"],
    );
    let listed = RetryPolicy {
        statuses: vec![StatusCode::TOO_MANY_REQUESTS],
        ..on(none)
    };
    check(&listed, &[429], &[], &[]);
}

#[test]
fn an_answer_that_is_one_of_too_many_is_tried_again_where_that_is_named_and_nowhere_else() {
    let mut headers = HeaderMap::new();
    headers.insert("x-envoy-ratelimited", "true".parse().unwrap());
    let attempt = Attempt::Response {
        status: StatusCode::SERVICE_UNAVAILABLE,
        headers: &headers,
    };
    let none = RetryOn::default();
    for (policy, expected) in [
        (
            RetryOn {
                server_error: true,
                ..none
            },
            false,
        ),
        (
            RetryOn {
                rate_limited: true,
                ..none
            },
            true,
        ),
    ] {
        assert_eq!(is_worth_another(&on(policy), &attempt), expected);
    }
}

#[test]
fn pauses_double_up_to_ten_times_the_first_with_full_jitter() {
    let policy = RetryPolicy::default();
    let bound = |attempt| {
        let mut seen = 0;
        let drawn = pause(&policy, attempt, &mut |bound| {
            seen = bound;
            bound - 1
        });
        assert!(drawn < Duration::from_micros(seen.into()));
        Duration::from_micros(seen.into())
    };
    let bounds = [1, 2, 3, 4, 5, 6, 40, u32::MAX].map(bound);
    let millis = [25, 50, 100, 200, 250, 250, 250, 250].map(Duration::from_millis);
    assert_eq!(bounds, millis);
}

#[test]
fn no_backoff_is_no_pause() {
    let policy = RetryPolicy {
        backoff: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let drawn = pause(&policy, 1, &mut |_| panic!("nothing to draw from"));
    assert_eq!(drawn, Duration::ZERO);
}

#[test]
fn faults_hit_their_share_each_on_its_own() {
    let fault = Fault {
        delay: Some(FaultDelay {
            duration: Duration::from_secs(1),
            per_million: 500_000,
        }),
        abort: Some(FaultAbort {
            answer: AbortAnswer::Grpc(14),
            per_million: 100_000,
        }),
    };
    let delay = Some(Duration::from_secs(1));
    let abort = Some(AbortAnswer::Grpc(14));
    for (point, expected) in [
        (0, Injected { delay, abort }),
        (99_999, Injected { delay, abort }),
        (100_000, Injected { delay, abort: None }),
        (499_999, Injected { delay, abort: None }),
        (500_000, Injected::default()),
    ] {
        assert_eq!(inject(&fault, &mut |_| point), expected, "{point}");
    }
    let mut never = |_| panic!("nothing to draw for");
    assert_eq!(inject(&Fault::default(), &mut never), Injected::default());
}

#[test]
fn all_and_none_need_no_luck() {
    let mirror = |per_million| Mirror {
        target: BackendTarget::Invalid { why: "test".into() },
        per_million,
        shadow_host: true,
    };
    let mut never = |_| panic!("nothing to draw for");
    assert!(is_mirrored(&mirror(1_000_000), &mut never));
    assert!(!is_mirrored(&mirror(0), &mut never));
    assert!(is_mirrored(&mirror(1), &mut |_| 0));
    assert!(!is_mirrored(&mirror(1), &mut |_| 1));
}
