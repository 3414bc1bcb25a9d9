//! Whether a failed attempt is worth another, and when.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::model::{RetryOn, RetryPolicy};
use crate::route::Choose;

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'a> {
    /// A response came.
    Response {
        /// Its status.
        status: StatusCode,
        /// Its header fields; a gRPC failure without a body tells its status here.
        headers: &'a HeaderMap,
    },
    /// No connection could be made.
    ConnectFailure,
    /// The server refused the stream before processing it (RFC 9113 §8.7).
    RefusedStream,
    /// The connection or stream ended without a response.
    Reset,
    /// The client did not send its request to the end, or not as one.
    Unfinished,
    /// The time of one attempt was over.
    PerTryTimeout,
}

/// A server's word that it refuses because of a limit (Envoy's).
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Pauses grow to this many times the first one (Envoy's default `max_interval`).
const LONGEST_PAUSE: u32 = 10;

/// Whether the policy wants another attempt after one that ended like this. How many are left is the
/// caller's to count.
pub fn is_worth_another(policy: &RetryPolicy, attempt: &Attempt<'_>) -> bool {
    let on = policy.on;
    match attempt {
        // Who says so has counted more than this request (Envoy: nothing else is asked then).
        Attempt::Response { headers, .. } if headers.contains_key(RATE_LIMITED) => on.rate_limited,
        Attempt::Response { status, headers } => {
            policy.statuses.contains(status)
                || on.server_error && status.is_server_error()
                || on.gateway_error && matches!(status.as_u16(), 502..=504)
                || on.retriable_4xx && *status == StatusCode::CONFLICT
                || is_worth_another_grpc(policy, headers)
        }
        Attempt::ConnectFailure => {
            on.connect_failure || on.reset_before_request || is_worth_another_unanswered(on)
        }
        Attempt::RefusedStream => on.refused_stream || is_worth_another_unanswered(on),
        Attempt::Reset | Attempt::PerTryTimeout => is_worth_another_unanswered(on),
        Attempt::Unfinished => false,
    }
}

/// Whether any ending without a response is: to the client it would be a 503 or 504.
fn is_worth_another_unanswered(on: RetryOn) -> bool {
    on.reset || on.server_error || on.gateway_error
}

/// A response that is nothing but its head carries the gRPC status among its header fields.
fn is_worth_another_grpc(policy: &RetryPolicy, headers: &HeaderMap) -> bool {
    let status = headers.get("grpc-status");
    match status.map(http::HeaderValue::as_bytes) {
        Some(b"1") => policy.on.grpc_cancelled,
        Some(b"4") => policy.on.grpc_deadline_exceeded,
        Some(b"8") => policy.on.grpc_resource_exhausted,
        Some(b"13") => policy.on.grpc_internal,
        Some(b"14") => policy.on.grpc_unavailable,
        _ => false,
    }
}

/// How long to wait before the `attempt`-th retry, counted from 1: drawn evenly below a bound that doubles
/// each time, up to ten times the first (Envoy: exponential back-off with full jitter).
pub fn pause(policy: &RetryPolicy, attempt: u32, choose: &mut Choose<'_>) -> Duration {
    let doubled = 2_u32
        .checked_pow(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX);
    let bound = policy.backoff.saturating_mul(doubled.min(LONGEST_PAUSE));
    let micros = u32::try_from(bound.as_micros()).unwrap_or(u32::MAX);
    if micros == 0 {
        return Duration::ZERO;
    }
    Duration::from_micros(choose(micros).into())
}
