//! What is counted of issuing.

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The authority's counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct AuthorityMetrics {
    requests: Family<Labels, Counter>,
    root_ends: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
}

impl AuthorityMetrics {
    /// Makes them part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_authority_requests",
            "The total number of requests for a certificate",
            self.requests.clone(),
        );
        registry.register(
            "culvert_authority_root_expiry_seconds",
            "The time at which the certificate that signs is over, in seconds since 1970; 0: there is none yet",
            self.root_ends.clone(),
        );
    }

    pub(super) fn count(&self, outcome: &'static str) {
        let _new_value = self.requests.get_or_create(&Labels { outcome }).inc();
    }

    pub(super) fn root_ends(&self, at: Timestamp) {
        self.root_ends.set(at.as_second());
    }
}
