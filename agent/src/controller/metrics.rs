//! What is counted of writing.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The controller's counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ControllerMetrics {
    pub(super) leader: Gauge,
    pub(super) pending: Gauge,
    writes: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    what: &'static str,
    outcome: &'static str,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    /// Somebody else was quicker.
    Conflict,
    /// It will not do.
    Refused,
    /// The server does not answer, or has no time.
    Failed,
}

impl ControllerMetrics {
    /// Makes them part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_controller_leader",
            "Whether this controller is the one that writes",
            self.leader.clone(),
        );
        registry.register(
            "culvert_controller_pending",
            "The number of objects whose status says something else than it should",
            self.pending.clone(),
        );
        registry.register(
            "culvert_controller_writes",
            "The total number of requests that were to change something",
            self.writes.clone(),
        );
    }

    pub(super) fn count(&self, what: &'static str, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Written => "written",
            Outcome::Conflict => "conflict",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        };
        let labels = Labels { what, outcome };
        let _new_value = self.writes.get_or_create(&labels).inc();
    }
}
