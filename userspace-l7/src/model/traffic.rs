//! How connections and requests to a service are spread and limited (DestinationRule).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::nearness::Nearness;
use super::opening::Opening;
use super::workload::WorkloadUid;

/// What a DestinationRule says about one service.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ServiceTraffic {
    /// For every port that has no own.
    pub policy: Arc<TrafficPolicy>,
    /// By service port; each complete in itself.
    pub ports: BTreeMap<u16, Arc<TrafficPolicy>>,
    /// Subsets by name.
    pub subsets: BTreeMap<Arc<str>, Subset>,
}

impl ServiceTraffic {
    /// What holds for a port, in a subset if one is named: the subset's port, the subset, the port, the rule.
    pub fn policy_for(&self, port: u16, subset: Option<&str>) -> &Arc<TrafficPolicy> {
        let subset = subset.and_then(|name| self.subsets.get(name));
        subset
            .and_then(|subset| subset.ports.get(&port).or(subset.policy.as_ref()))
            .or_else(|| self.ports.get(&port))
            .unwrap_or(&self.policy)
    }
}

/// A part of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Subset {
    /// The workloads whose labels it asks for.
    pub members: Arc<HashSet<WorkloadUid>>,
    /// Its own policy, already merged with the rule's.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Its own policies by port, already merged.
    pub ports: BTreeMap<u16, Arc<TrafficPolicy>>,
}

/// How one port's connections and requests are treated.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TrafficPolicy {
    /// Which endpoint.
    pub balance: Balance,
    /// How much at once.
    pub limits: ConnectionLimits,
    /// Which endpoints are left alone for a while.
    pub outliers: Option<OutlierDetection>,
    /// Time that a TCP connection may take; `None`: 10 s.
    pub connect_timeout: Option<Duration>,
    /// Time that an idle pooled connection is kept; `None`: one hour.
    pub idle_timeout: Option<Duration>,
    /// Upgrade requests to HTTP/2 whatever the port says (`h2UpgradePolicy: UPGRADE`).
    pub upgrade_to_http2: bool,
    /// How much a warming endpoint gets.
    pub warmup: Option<Warmup>,
    /// How much it matters where an endpoint is.
    pub nearness: Option<Nearness>,
    /// What connections to an endpoint begin with.
    pub opening: Opening,
}

/// Which endpoint takes a request.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Balance {
    /// The one with fewer active requests of two drawn at random (Istio's default).
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// The address that was dialled.
    Passthrough,
    /// The same for the same key.
    ConsistentHash {
        /// What is hashed.
        key: HashKey,
        /// How.
        algorithm: HashAlgorithm,
    },
}

/// What a consistent hash is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// A header's value.
    Header(HeaderName),
    /// A cookie; made if the client has none and `ttl` is set.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// `Path` of a cookie that is made.
        path: Option<Arc<str>>,
        /// `Max-Age` of a cookie that is made; zero: for the session.
        ttl: Option<Duration>,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter's value.
    QueryParameter(Arc<str>),
}

/// How a consistent hash chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// Ketama ring with at least this many points.
    Ring {
        /// Points on the ring.
        minimum_size: u32,
    },
    /// Maglev with this table size (a prime).
    Maglev {
        /// Slots.
        table_size: u32,
    },
}

/// Limits at one node; more is answered with 503 and the flag `UO`. `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ConnectionLimits {
    /// TCP connections to all endpoints together.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending_requests: Option<u32>,
    /// Requests at once.
    pub requests: Option<u32>,
    /// Retries at once.
    pub retries: Option<u32>,
    /// Retries at once by how much is under way, in place of `retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Requests on one connection before it is closed.
    pub requests_per_connection: Option<u32>,
    /// How old a connection gets.
    pub connection_age: Option<Duration>,
}

/// How many requests may be retried at once, as a part of those under way (Envoy's retry budget).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of a million requests under way, how many may be retries.
    pub per_million: u32,
    /// So many may be in any case.
    pub minimum: u32,
}

impl ConnectionLimits {
    /// How many retries there may be at once beside so many requests under way; `None`: any number.
    pub fn retries_among(&self, requests: u32) -> Option<u32> {
        let Some(budget) = self.retry_budget else {
            return self.retries;
        };
        let share = u64::from(requests) * u64::from(budget.per_million) / 1_000_000;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        Some(share.max(budget.minimum))
    }
}

/// When an endpoint is left alone (Envoy's outlier detection).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// 5xx in a row; `None`: not counted.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503, 504 in a row; `None`: not counted.
    pub consecutive_gateway_errors: Option<u32>,
    /// Failures to connect in a row, where they are counted apart.
    pub consecutive_local_failures: Option<u32>,
    /// How often ejections are looked at.
    pub interval: Duration,
    /// How long the first ejection lasts; the next ones are multiples.
    pub base_ejection: Duration,
    /// At most this share of the endpoints, in percent; one is always allowed.
    pub max_ejection_percent: u8,
    /// Below this share of healthy endpoints, in percent, ejection is ignored.
    pub min_health_percent: u8,
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Warmup {
    /// How long.
    pub duration: Duration,
    /// The share at the start, in percent.
    pub minimum_percent: u8,
    /// 1 is linear.
    pub aggression: f64,
}

#[cfg(test)]
mod tests {
    use super::{ConnectionLimits, RetryBudget};

    #[test]
    fn a_retry_budget_follows_the_requests_under_way() {
        let limits = |per_million, minimum| ConnectionLimits {
            retries: Some(7),
            retry_budget: Some(RetryBudget {
                per_million,
                minimum,
            }),
            ..ConnectionLimits::default()
        };
        for (per_million, minimum, requests, expected) in [
            (200_000, 3, 0, 3),
            (200_000, 3, 10, 3),
            (200_000, 3, 100, 20),
            (200_000, 0, 4, 0),
            (1_000_000, 0, u32::MAX, u32::MAX),
            (0, 0, 1_000, 0),
        ] {
            let found = limits(per_million, minimum).retries_among(requests);
            assert_eq!(found, Some(expected), "{per_million} {minimum} {requests}");
        }
        let plain = ConnectionLimits {
            retry_budget: None,
            ..limits(0, 0)
        };
        assert_eq!(plain.retries_among(1_000), Some(7));
        assert_eq!(ConnectionLimits::default().retries_among(1), None);
    }
}
