//! Which limits a request falls under, and what it would cost there. Nothing is taken, and nobody is asked: how much is left
//! is not said.

use std::net::{IpAddr, Ipv4Addr};

use hyper::StatusCode;
use userspace_l7::model::{RateLimit, RateLimiter};
use userspace_l7::route::rate_limit::{Caller, descriptor};

use super::routing::Routing;
use super::{Expectation, Inquiry, LimitStep};

/// Every limit of the port that was called, those first that are asked first: the node's own.
pub(super) fn walk(inquiry: &Inquiry<'_>, routing: &Routing<'_>) -> Vec<LimitStep> {
    // Who comes no further than to the routes is not counted.
    if !routing.is_http || !routing.is_taken {
        return Vec::new();
    }
    let port = routing
        .layer7
        .and_then(|layer7| layer7.ports.get(&inquiry.dialled.port()));
    let limits = || port.into_iter().flat_map(|port| port.rate_limits.iter());
    let is_local = |limit: &RateLimit| matches!(limit.by, RateLimiter::Local { .. });
    let local = limits().filter(|limit| is_local(limit));
    let global = limits().filter(|limit| !is_local(limit));
    local
        .chain(global)
        .map(|limit| step(inquiry, routing, limit))
        .collect()
}

fn step(inquiry: &Inquiry<'_>, routing: &Routing<'_>, limit: &RateLimit) -> LimitStep {
    let identity = inquiry.client.identity();
    let address = inquiry.client.addresses.first().copied();
    let caller = Caller {
        identity: Some(&identity),
        address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let head = inquiry.head();
    let bucket = descriptor(&limit.per, caller, &head)
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(", ");
    let kept_by = match &limit.by {
        RateLimiter::Local { .. } => "client's node".to_owned(),
        RateLimiter::Global { service, port, .. } => format!("{service}:{port}"),
    };
    let other = limit
        .route
        .as_ref()
        .filter(|name| routing.rule != Some(&***name));
    LimitStep {
        name: limit.key.to_string(),
        kept_by,
        bucket: if bucket.is_empty() {
            "all requests".to_owned()
        } else {
            bucket
        },
        cost: match other {
            Some(rule) => format!("nothing: only requests of rule {rule}"),
            None => cost(&limit.by),
        },
        applies: other.is_none(),
        never_passes: other.is_none() && never_passes(&limit.by),
    }
}

fn cost(by: &RateLimiter) -> String {
    match by {
        RateLimiter::Local {
            requests,
            period,
            burst,
        } => format!("1 of {burst} tokens, of which {requests} come back per {period:?}"),
        RateLimiter::Global {
            domain,
            timeout,
            fail_closed,
            ..
        } => {
            let without = if *fail_closed { "refuses" } else { "passes" };
            format!("1 hit in domain {domain}; {without} if not answered within {timeout:?}")
        }
    }
}

fn never_passes(by: &RateLimiter) -> bool {
    match by {
        RateLimiter::Local {
            requests, burst, ..
        } => *requests == 0 || *burst == 0,
        RateLimiter::Global { .. } => false,
    }
}

/// What is expected of a request that falls under these limits, and that no policy refuses.
pub(super) fn unless_limited(limits: &[LimitStep], expected: Expectation) -> Expectation {
    if let Some(closed) = limits.iter().find(|limit| limit.never_passes) {
        let why = format!("limit {} lets no request pass", closed.name);
        return Expectation::answered(StatusCode::TOO_MANY_REQUESTS, why);
    }
    let names: Vec<&str> = limits
        .iter()
        .filter(|limit| limit.applies)
        .map(|limit| &*limit.name)
        .collect();
    let is_unconnected = expected.status.is_none() && !expected.is_delivered;
    if names.is_empty() || is_unconnected {
        return expected;
    }
    Expectation {
        why: format!(
            "{}; 429 instead once {} is used up",
            expected.why,
            names.join(" or ")
        ),
        ..expected
    }
}
