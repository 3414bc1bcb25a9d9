//! Endpoints that fail are left alone for a while (Envoy's outlier detection). The time is passed in; one
//! worker or several behind a lock may drive it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::model::OutlierDetection;

/// No ejection lasts longer than this, or than the base time if that is longer (Envoy's default).
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// How an attempt at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response came.
    Status(StatusCode),
    /// None came: no connection, or it broke.
    LocalFailure,
}

impl Outcome {
    /// What a response says. A gRPC failure is a response with status 200 whose head tells the code.
    pub fn of_response(status: StatusCode, headers: &HeaderMap) -> Self {
        let code = headers.get("grpc-status").map(HeaderValue::as_bytes);
        Self::Status(match code {
            // UNKNOWN, INTERNAL, DATA_LOSS.
            Some(b"2" | b"13" | b"15") => StatusCode::INTERNAL_SERVER_ERROR,
            Some(b"4") => StatusCode::GATEWAY_TIMEOUT,
            Some(b"12") => StatusCode::NOT_IMPLEMENTED,
            Some(b"14") => StatusCode::SERVICE_UNAVAILABLE,
            _ => status,
        })
    }
}

/// The endpoints of one service port as they have answered lately.
#[derive(Debug, Default)]
pub struct Outliers {
    endpoints: HashMap<SocketAddr, Record>,
    swept: Duration,
}

/// ```text
///             enough failures in a row
///   in use ───────────────────────────► ejected
///      ▲        base time × ejections       │
///      └────────────────────────────────────┘
/// ```
#[derive(Debug, Default)]
struct Record {
    server_errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    ejected_at: Option<Duration>,
    /// How often in a row; each interval in use takes one off.
    ejections: u32,
}

impl Outliers {
    /// Notes how an attempt ended. `all` is how many endpoints there are. Returns whether the endpoint is
    /// ejected for it.
    pub fn record(
        &mut self,
        policy: &OutlierDetection,
        all: usize,
        endpoint: SocketAddr,
        outcome: Outcome,
        now: Duration,
    ) -> bool {
        let ejected = self.ejected();
        let record = self.endpoints.entry(endpoint).or_default();
        let fails = record.count(policy, outcome);
        // The ejected may still answer what was under way; that changes nothing.
        if !fails || record.ejected_at.is_some() || !may_eject(policy, ejected, all) {
            return false;
        }
        record.ejected_at = Some(now);
        record.ejections = record.ejections.saturating_add(1);
        true
    }

    /// Lets those back whose time is over. To be called before endpoints are chosen; does something once in
    /// an interval.
    pub fn sweep(&mut self, policy: &OutlierDetection, now: Duration) {
        if now.saturating_sub(self.swept) < policy.interval {
            return;
        }
        self.swept = now;
        for record in self.endpoints.values_mut() {
            match record.ejected_at {
                Some(since) if now >= since.saturating_add(record.sentence(policy)) => {
                    *record = Record {
                        ejections: record.ejections,
                        ..Record::default()
                    };
                }
                Some(_) => {}
                None => record.ejections = record.ejections.saturating_sub(1),
            }
        }
    }

    /// Whether no endpoint has answered yet.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Forgets endpoints that are no more.
    pub fn retain(&mut self, exists: impl Fn(&SocketAddr) -> bool) {
        self.endpoints.retain(|endpoint, _| exists(endpoint));
    }

    /// Whether an endpoint may be chosen, of `all` that there are. Where too few would be left, everybody
    /// may: a wrong guess about many is worse than some errors (Envoy's panic threshold).
    pub fn is_usable(&self, policy: &OutlierDetection, all: usize, endpoint: &SocketAddr) -> bool {
        let record = self.endpoints.get(endpoint);
        if record.is_none_or(|record| record.ejected_at.is_none()) {
            return true;
        }
        let healthy = all.saturating_sub(self.ejected());
        healthy.saturating_mul(100) < all.saturating_mul(policy.min_health_percent.into())
    }

    fn ejected(&self) -> usize {
        let out = |record: &&Record| record.ejected_at.is_some();
        self.endpoints.values().filter(out).count()
    }
}

/// One may always be ejected, more only up to the share.
fn may_eject(policy: &OutlierDetection, ejected: usize, all: usize) -> bool {
    let share = usize::from(policy.max_ejection_percent.min(100));
    ejected == 0 && share > 0 || (ejected + 1).saturating_mul(100) <= all.saturating_mul(share)
}

impl Record {
    /// Counts an outcome; whether a row is complete.
    fn count(&mut self, policy: &OutlierDetection, outcome: Outcome) -> bool {
        let apart = policy.consecutive_local_failures;
        let status = match outcome {
            Outcome::LocalFailure if apart.is_some() => {
                self.local_failures += 1;
                return is_complete(&mut self.local_failures, apart);
            }
            // Not counted apart, a failure to connect is what the client sees of it: a 503.
            Outcome::LocalFailure => StatusCode::SERVICE_UNAVAILABLE,
            Outcome::Status(status) => {
                self.local_failures = 0;
                status
            }
        };
        if !status.is_server_error() {
            self.server_errors = 0;
            self.gateway_errors = 0;
            return false;
        }
        self.server_errors += 1;
        if matches!(status.as_u16(), 502..=504) {
            self.gateway_errors += 1;
        } else {
            self.gateway_errors = 0;
        }
        let gateway = is_complete(&mut self.gateway_errors, policy.consecutive_gateway_errors);
        is_complete(&mut self.server_errors, policy.consecutive_5xx) || gateway
    }

    /// How long the present ejection lasts.
    fn sentence(&self, policy: &OutlierDetection) -> Duration {
        let times = policy.base_ejection.saturating_mul(self.ejections);
        times.min(LONGEST_EJECTION.max(policy.base_ejection))
    }
}

/// Whether a row is as long as it has to be; then the next one begins.
fn is_complete(row: &mut u32, wanted: Option<u32>) -> bool {
    let complete = wanted.is_some_and(|wanted| wanted > 0 && *row >= wanted);
    if complete {
        *row = 0;
    }
    complete
}

#[cfg(test)]
mod tests;
