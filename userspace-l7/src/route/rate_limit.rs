//! Local limits on requests: token buckets that all workers share, and what the answers say about them.
//! The time is passed in.

pub mod global;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::model::{RateLimitKey, RequestHead, SpiffeId};

/// Buckets of one limit at once. Clients choose the keys, so their number has to end somewhere.
const MOST_BUCKETS: usize = 10_000;

/// Time between two looks for buckets that may be forgotten: each is at all of them, and newcomers are what clients make.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

/// A bucket's size, and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests per `period`.
    pub requests: u32,
    /// The period.
    pub period: Duration,
    /// Requests that may come at once.
    pub burst: u32,
}

impl Quota {
    /// Time in which one token comes, in nanoseconds; `None` if none ever does.
    fn token_ns(self) -> Option<u64> {
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        Some(period.checked_div(self.requests.into())?.max(1))
    }
}

/// What a bucket says to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It passes.
    Token {
        /// Tokens that are left.
        remaining: u32,
        /// When the bucket is full again.
        full_in: Duration,
    },
    /// It is refused with 429.
    Nothing {
        /// When the next token comes.
        retry_after: Duration,
        /// When the bucket is full again.
        full_in: Duration,
    },
}

impl Taken {
    /// `x-ratelimit-limit`, `x-ratelimit-remaining`, `x-ratelimit-reset` and, for a refusal, `retry-after`
    /// (draft-ietf-httpapi-ratelimit-headers-03; RFC 9110 §10.2.3). Seconds are rounded up: a client that
    /// comes when it was told to is served.
    pub fn fields(self, quota: Quota) -> Vec<(&'static str, u64)> {
        let (remaining, full_in, retry_after) = match self {
            Self::Token { remaining, full_in } => (remaining, full_in, None),
            Self::Nothing {
                retry_after,
                full_in,
            } => (0, full_in, Some(retry_after)),
        };
        let mut fields = vec![
            ("x-ratelimit-limit", quota.burst.into()),
            ("x-ratelimit-remaining", remaining.into()),
            ("x-ratelimit-reset", whole_seconds(full_in)),
        ];
        fields.extend(retry_after.map(|after| ("retry-after", whole_seconds(after).max(1))));
        fields
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A token bucket as one number, the time at which it will be full (the generic cell rate algorithm). Any
/// number of workers may take from it.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at_ns: AtomicU64,
}

impl Bucket {
    /// Takes a token. `now` may have any origin, the same for all calls.
    pub fn take(&self, quota: Quota, now: Duration) -> Taken {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let Some(token) = quota.token_ns() else {
            return Taken::Nothing {
                retry_after: quota.period,
                full_in: quota.period,
            };
        };
        let size = token.saturating_mul(quota.burst.into());
        // What is missing once this token is gone, if there is one.
        let missing = |full_at: u64| full_at.saturating_sub(now).saturating_add(token);
        let filled =
            self.full_at_ns
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                    let missing = missing(full_at);
                    (missing <= size).then(|| now.saturating_add(missing))
                });
        match filled {
            Ok(before) => {
                let missing = missing(before);
                let remaining = (size - missing) / token;
                Taken::Token {
                    remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
                    full_in: Duration::from_nanos(missing),
                }
            }
            Err(before) => Taken::Nothing {
                retry_after: Duration::from_nanos(missing(before).saturating_sub(size)),
                full_in: Duration::from_nanos(before.saturating_sub(now)),
            },
        }
    }

    fn is_full(&self, now: Duration) -> bool {
        let full_at = Duration::from_nanos(self.full_at_ns.load(Ordering::Relaxed));
        full_at <= now
    }
}

/// The buckets of one limit, by key. A bucket that is full is as good as none, so it may be forgotten.
#[derive(Debug, Default)]
pub struct Buckets {
    known: RwLock<Known>,
    /// Shared by the keys that found no room.
    crowd: Arc<Bucket>,
}

#[derive(Debug, Default)]
struct Known {
    by_key: HashMap<Box<str>, Arc<Bucket>>,
    /// Before then there is no room to be found.
    next_sweep: Duration,
}

impl Known {
    fn has_no_room(&self, now: Duration) -> bool {
        self.by_key.len() >= MOST_BUCKETS && now < self.next_sweep
    }
}

impl Buckets {
    /// Takes a token from the bucket of `key`.
    pub fn take(&self, key: &str, quota: Quota, now: Duration) -> Taken {
        self.bucket(key, now).take(quota, now)
    }

    /// Whether forgetting them all would change nothing.
    pub fn are_full(&self, now: Duration) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut buckets = known.by_key.values();
        self.crowd.is_full(now) && buckets.all(|bucket| bucket.is_full(now))
    }

    fn bucket(&self, key: &str, now: Duration) -> Arc<Bucket> {
        // A panic elsewhere leaves the map as it was: nothing in here is half done.
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.by_key.get(key) {
            return Arc::clone(bucket);
        }
        if known.has_no_room(now) {
            return Arc::clone(&self.crowd);
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.by_key.len() >= MOST_BUCKETS && now >= known.next_sweep {
            known.by_key.retain(|_, bucket| !bucket.is_full(now));
            known.next_sweep = now.saturating_add(BETWEEN_SWEEPS);
        }
        if known.by_key.len() >= MOST_BUCKETS {
            return Arc::clone(&self.crowd);
        }
        Arc::clone(known.by_key.entry(key.into()).or_default())
    }
}

/// Whom a request is from, for keys.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The verified identity.
    pub identity: Option<&'a SpiffeId>,
    /// The client's address.
    pub address: IpAddr,
}

/// Names and values that tell a request's bucket apart: a global limiter's descriptor. A header that the
/// request does not have is empty.
pub fn descriptor<'a>(
    per: &'a [RateLimitKey],
    caller: Caller<'_>,
    head: &'a RequestHead<'_>,
) -> Vec<(Cow<'a, str>, Cow<'a, str>)> {
    let entry = |key: &'a RateLimitKey| -> (Cow<'a, str>, Cow<'a, str>) {
        match key {
            RateLimitKey::ClientIdentity => {
                let identity = caller.identity.map(SpiffeId::to_string);
                (
                    "client_identity".into(),
                    identity.unwrap_or_default().into(),
                )
            }
            RateLimitKey::ClientAddress => (
                "remote_address".into(),
                caller.address.to_canonical().to_string().into(),
            ),
            RateLimitKey::Header(name) => {
                (name.as_str().into(), head.header(name).unwrap_or_default())
            }
            RateLimitKey::Path => ("path".into(), head.path.into()),
            RateLimitKey::Method => ("method".into(), head.method.as_str().into()),
            RateLimitKey::Fixed { key, value } => ((&**key).into(), (&**value).into()),
        }
    };
    per.iter().map(entry).collect()
}

/// A descriptor as one text, which no two descriptors share.
pub fn bucket_key(descriptor: &[(Cow<'_, str>, Cow<'_, str>)]) -> String {
    let mut key = String::new();
    for (_, value) in descriptor {
        // With its length in front, a value cannot pass for two.
        key.push_str(&value.len().to_string());
        key.push(':');
        key.push_str(value);
    }
    key
}

#[cfg(test)]
mod tests;
