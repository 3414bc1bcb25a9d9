//! What operators see of the direct path itself. Connections and bytes are in Istio's metrics, as all others.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Its counters. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirectMetrics {
    pub(super) connections: Counter,
    pub(super) denied: Counter,
    pub(super) revoked: Counter,
    pub(super) verdicts: Verdicts,
}

/// How many verdicts are in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdicts(Gauge<i64, AtomicI64>);

impl Verdicts {
    pub(super) fn set(&self, count: usize) {
        let _before = self.0.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

impl DirectMetrics {
    /// Makes the counters part of what is scraped.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_direct_connections",
            "The total number of connections between pods of this node that the kernel carried by itself and that ended",
            self.connections.clone(),
        );
        registry.register(
            "culvert_direct_denied",
            "The total number of connections that the kernel refused by a policy before they began",
            self.denied.clone(),
        );
        registry.register(
            "culvert_direct_revoked",
            "The total number of direct connections that were ended because they lost their right",
            self.revoked.clone(),
        );
        registry.register(
            "culvert_direct_verdicts",
            "The number of destinations about which the kernel decides by itself now",
            self.verdicts.0.clone(),
        );
    }
}
