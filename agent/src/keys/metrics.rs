//! How often key sets were fetched.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The keeper's counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct KeyMetrics {
    fetches: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
}

impl KeyMetrics {
    /// Makes the counters part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_jwks_fetches",
            "The total number of fetches of key sets for tokens",
            self.fetches.clone(),
        );
    }

    pub(super) fn count(&self, succeeded: bool) {
        let outcome = if succeeded { "success" } else { "failure" };
        let _new_value = self.fetches.get_or_create(&Labels { outcome }).inc();
    }
}
