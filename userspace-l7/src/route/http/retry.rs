//! Whether a failed attempt is worth another, and when.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::model::RetryPolicy;
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
    Reset {
        /// Whether the whole request had left.
        request_sent: bool,
    },
    /// The time of one attempt was over.
    PerTryTimeout,
}

/// Pauses grow to this many times the first one (Envoy's default `max_interval`).
const LONGEST_PAUSE: u32 = 10;

/// Whether the policy wants another attempt after one that ended like this. How many are left is the
/// caller's to count.
pub fn is_worth_another(policy: &RetryPolicy, attempt: &Attempt<'_>) -> bool {
    let on = policy.on;
    match attempt {
        Attempt::Response { status, headers } => {
            policy.statuses.contains(status)
                || on.server_error && status.is_server_error()
                || on.gateway_error && matches!(status.as_u16(), 502..=504)
                || on.retriable_4xx && *status == StatusCode::CONFLICT
                || is_worth_another_grpc(policy, headers)
        }
        // Envoy's `5xx` takes every ending without a response along, a time-out of the attempt included.
        Attempt::ConnectFailure => on.connect_failure || on.server_error || on.reset,
        Attempt::RefusedStream => on.refused_stream || on.server_error || on.reset,
        Attempt::Reset { request_sent } => {
            on.reset || on.server_error || on.reset_before_request && !request_sent
        }
        // To the client it would be a 504, so `gateway-error` holds.
        Attempt::PerTryTimeout => on.server_error || on.gateway_error || on.reset,
    }
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
