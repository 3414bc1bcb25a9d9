//! Local limits on requests (RateLimitPolicy): asked where a request is decided, at its client's node.

use std::sync::Arc;

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::request;

use crate::http::{self, Refusal};
use crate::model::{HttpRule, RateLimiter, Snapshot};
use crate::route::rate_limit::{Caller, Quota, Taken, bucket_key, descriptor};

use super::client::Client;

/// What the strictest of a request's limits says of itself.
#[derive(Debug, Default)]
pub(super) struct Standing(Vec<(&'static str, u64)>);

/// Takes a token from every limit that a request falls under.
///
/// # Errors
/// [`Refusal::RateLimited`].
pub(super) fn pass(
    client: &Client,
    snapshot: &Snapshot,
    rule: Option<&Arc<HttpRule>>,
    parts: &request::Parts,
) -> Result<Standing, Refusal> {
    let Some(port) = client.port(snapshot) else {
        return Ok(Standing::default());
    };
    let identity = client.identity();
    let caller = Caller {
        identity: Some(&identity),
        address: client.source.ip(),
    };
    let head = http::head_of(parts);
    let name = rule.map(|rule| &rule.name);
    let mut strictest: Option<(u32, Vec<(&'static str, u64)>)> = None;
    for limit in port.rate_limits.iter() {
        if limit.route.is_some() && limit.route.as_ref() != name {
            continue;
        }
        let RateLimiter::Local {
            requests,
            period,
            burst,
        } = limit.by
        else {
            continue;
        };
        let quota = Quota {
            requests,
            period,
            burst,
        };
        let bucket = bucket_key(&descriptor(&limit.per, caller, &head));
        let taken = client.hub.traffic.take(limit, &bucket, quota);
        let fields = taken.fields(quota);
        let Taken::Token { remaining, .. } = taken else {
            return Err(Refusal::RateLimited(fields));
        };
        if strictest
            .as_ref()
            .is_none_or(|(least, _)| remaining < *least)
        {
            strictest = Some((remaining, fields));
        }
    }
    Ok(Standing(
        strictest.map(|(_, fields)| fields).unwrap_or_default(),
    ))
}

impl Standing {
    /// Tells a response's client, unless the application tells of limits of its own.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            let entry = headers.entry(HeaderName::from_static(name));
            let _told = entry.or_insert_with(|| HeaderValue::from(*value));
        }
    }
}
