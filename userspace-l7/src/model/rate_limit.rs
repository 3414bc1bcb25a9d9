//! Limits on requests (`RateLimitPolicy`).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::service::NamespacedHostname;

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The object and the place in it, `<namespace>/<name>[<index>]`: names the buckets, so that a change of
    /// another limit leaves them alone.
    pub key: Arc<str>,
    /// Only requests that a route of this name took; `None`: all.
    pub route: Option<Arc<str>>,
    /// What shares a bucket; empty: all requests.
    pub per: Vec<RateLimitKey>,
    /// Who counts.
    pub by: RateLimiter,
}

/// What tells buckets apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateLimitKey {
    /// The client's SPIFFE ID.
    ClientIdentity,
    /// The client's address.
    ClientAddress,
    /// A header's value; a request without it shares a bucket with others without it.
    Header(HeaderName),
    /// The path without its query.
    Path,
    /// The method.
    Method,
    /// A text of the policy's own, for a global limiter.
    Fixed {
        /// Descriptor key.
        key: Arc<str>,
        /// Descriptor value.
        value: Arc<str>,
    },
}

/// Who counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateLimiter {
    /// A token bucket on each node.
    Local {
        /// Requests per `period`.
        requests: u32,
        /// The period.
        period: Duration,
        /// Size of the bucket: what may come at once.
        burst: u32,
    },
    /// A server that speaks `envoy.service.ratelimit.v3`.
    Global {
        /// Where it is.
        service: NamespacedHostname,
        /// Its service port.
        port: u16,
        /// Descriptor domain.
        domain: Arc<str>,
        /// How long it may take.
        timeout: Duration,
        /// Whether requests are refused when it does not answer.
        fail_closed: bool,
    },
}
