//! Limits on requests (RateLimitPolicy): asked where a request is decided, at its client's node. Those of the node
//! first: what they refuse, nobody else has to count.

use std::borrow::Cow;
use std::sync::Arc;

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::request;

use crate::asking;
use crate::http::{self, OverLimit, Refusal};
use crate::model::{HttpRule, RateLimit, RateLimiter, RequestHead, Snapshot};
use crate::route::rate_limit::global::{self, Ruling};
use crate::route::rate_limit::{Caller, Quota, Taken, bucket_key, descriptor};

use super::client::Client;

/// What a request's limits say of themselves.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The strictest one.
    strictest: Option<(u32, Vec<(HeaderName, HeaderValue)>)>,
    /// What a rate limit service has to say besides.
    said: HeaderMap,
}

/// Takes a token from every limit that a request falls under; what a rate limit service has to say to the application
/// is in `parts` then.
///
/// # Errors
/// [`Refusal::RateLimited`], [`Refusal::OverLimit`], [`Refusal::NoRuling`].
///
/// # Cancel safety
/// Dropping the future gives no token back.
pub(super) async fn pass(
    client: &Client,
    snapshot: &Snapshot,
    rule: Option<&Arc<HttpRule>>,
    parts: &mut request::Parts,
) -> Result<Standing, Refusal> {
    let mut standing = Standing::default();
    let Some(port) = client.port(snapshot) else {
        return Ok(standing);
    };
    let name = rule.map(|rule| &rule.name);
    let applies = |limit: &&Arc<RateLimit>| limit.route.is_none() || limit.route.as_ref() == name;
    let limits = || port.rate_limits.iter().filter(applies);
    for limit in limits() {
        take(client, limit, &RequestHead::of(parts), &mut standing)?;
    }
    let mut asked: Vec<&RateLimiter> = Vec::new();
    for limit in limits() {
        let is_global = matches!(limit.by, RateLimiter::Global { .. });
        // One question is about all limits that one service keeps.
        if is_global && !asked.contains(&&limit.by) {
            asked.push(&limit.by);
            let same: Vec<_> = limits().filter(|other| other.by == limit.by).collect();
            Box::pin(ask(client, &same, parts, &mut standing)).await?;
        }
    }
    Ok(standing)
}

fn descriptor_of<'a>(
    client: &Client,
    limit: &'a RateLimit,
    head: &'a RequestHead<'_>,
) -> Vec<(Cow<'a, str>, Cow<'a, str>)> {
    let identity = client.identity();
    let caller = Caller {
        identity: identity.as_ref(),
        address: client.source.ip(),
    };
    descriptor(&limit.per, caller, head)
}

/// Takes a token from a limit of the node's.
fn take(
    client: &Client,
    limit: &RateLimit,
    head: &RequestHead<'_>,
    standing: &mut Standing,
) -> Result<(), Refusal> {
    let RateLimiter::Local {
        requests,
        period,
        burst,
    } = limit.by
    else {
        return Ok(());
    };
    let quota = Quota {
        requests,
        period,
        burst,
    };
    let bucket = bucket_key(&descriptor_of(client, limit, head));
    let taken = client.hub.traffic.take(limit, &bucket, quota);
    let fields = taken.fields(quota);
    let Taken::Token { remaining, .. } = taken else {
        return Err(Refusal::RateLimited(fields));
    };
    let fields = fields
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from(value)));
    standing.consider(remaining, || fields.collect());
    Ok(())
}

/// Asks the service that keeps these limits.
async fn ask(
    client: &Client,
    limits: &[&Arc<RateLimit>],
    parts: &mut request::Parts,
    standing: &mut Standing,
) -> Result<(), Refusal> {
    let Some(RateLimiter::Global {
        service,
        port,
        domain,
        timeout,
        fail_closed,
    }) = limits.first().map(|limit| &limit.by)
    else {
        return Ok(());
    };
    let head = RequestHead::of(parts);
    let descriptors = limits.iter();
    let descriptors = descriptors.map(|limit| descriptor_of(client, limit, &head));
    let question = global::question(domain, descriptors.collect());
    let asked = asking::ask_limiter(client.asker(), (service, *port), *timeout, &question);
    let ruling = match asked.await {
        Ok(ruling) => ruling,
        Err(error) => {
            client.asker().report(service, &error, !fail_closed);
            return if *fail_closed {
                Err(Refusal::NoRuling)
            } else {
                Ok(())
            };
        }
    };
    if ruling.is_over {
        return Err(Refusal::OverLimit(Box::new(over_limit(ruling))));
    }
    if let Some(told) = ruling.standing {
        standing.consider(told.remaining, || told.fields);
    }
    standing.said.extend(ruling.response_headers);
    http::replace(&mut parts.headers, &ruling.request_headers);
    Ok(())
}

fn over_limit(ruling: Ruling) -> OverLimit {
    let mut headers = ruling.response_headers;
    let fields = ruling.standing.into_iter().flat_map(|told| told.fields);
    headers.extend(fields);
    // Envoy's word for it: proxies in front of us shall not try again.
    let limited = HeaderName::from_static("x-envoy-ratelimited");
    drop(headers.insert(limited, HeaderValue::from_static("true")));
    OverLimit {
        headers,
        body: ruling.body,
    }
}

impl Standing {
    /// One more limit that the request is under.
    fn consider(
        &mut self,
        remaining: u32,
        fields: impl FnOnce() -> Vec<(HeaderName, HeaderValue)>,
    ) {
        let is_stricter = |(least, _): &(u32, _)| remaining < *least;
        if self.strictest.as_ref().is_none_or(is_stricter) {
            self.strictest = Some((remaining, fields()));
        }
    }

    /// Tells a response's client, unless the application tells of limits of its own.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let fields = self.strictest.iter().flat_map(|(_, fields)| fields);
        for (name, value) in fields {
            let entry = headers.entry(name);
            let _told = entry.or_insert_with(|| value.clone());
        }
        for (name, value) in &self.said {
            let _more = headers.append(name, value.clone());
        }
    }
}
