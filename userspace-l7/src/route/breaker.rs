//! Circuit breakers: how much of one service port is in use at once (DestinationRule `connectionPool`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is counted, each against a limit of its own. Shared by all workers.
#[derive(Debug, Default)]
pub struct InUse {
    /// TCP connections.
    pub connections: Arc<Gauge>,
    /// Requests that wait for a connection.
    pub pending: Arc<Gauge>,
    /// Requests under way.
    pub requests: Arc<Gauge>,
    /// Retries under way.
    pub retries: Arc<Gauge>,
}

/// A number of things in use.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU32);

/// One thing in use, until it is dropped.
#[derive(Debug)]
#[must_use = "what is dropped is not counted"]
pub struct Permit(Arc<Gauge>);

impl Gauge {
    /// Takes one more, unless that were more than `limit`. `None`, the limit being reached, is answered with
    /// 503 and the flag `UO`.
    pub fn admit(self: &Arc<Self>, limit: Option<u32>) -> Option<Permit> {
        let limit = limit.unwrap_or(u32::MAX);
        let one_more = |used: u32| (used < limit).then(|| used + 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Permit(Arc::clone(self)))
    }

    /// How many there are.
    pub fn used(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::InUse;

    #[test]
    fn a_limit_admits_so_many_at_once() {
        let in_use = InUse::default();
        let first = in_use.requests.admit(Some(2));
        let second = in_use.requests.admit(Some(2));
        assert!(first.is_some() && second.is_some());
        assert!(in_use.requests.admit(Some(2)).is_none());
        assert!(in_use.retries.admit(Some(1)).is_some(), "counted apart");
        drop(first);
        assert_eq!(in_use.requests.used(), 1);
        assert!(in_use.requests.admit(Some(2)).is_some());
    }

    #[test]
    fn no_limit_admits_all_and_zero_none() {
        let in_use = InUse::default();
        let many: Vec<_> = (0..1_000)
            .filter_map(|_| in_use.pending.admit(None))
            .collect();
        assert_eq!(many.len(), 1_000);
        assert!(in_use.connections.admit(Some(0)).is_none());
        drop(many);
        assert_eq!(in_use.pending.used(), 0);
    }

    #[test]
    fn workers_never_pass_the_limit_together() {
        let in_use = Arc::new(InUse::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let permit = in_use.requests.admit(Some(2));
                        assert!(in_use.requests.used() <= 2);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(in_use.requests.used(), 0);
    }
}
