//! How soon a change of the mesh is in force everywhere: the state that each worker follows, and the time from when a change
//! was noticed until the last worker follows it.
//!
//! Measured in here because nobody outside can: whoever asks through a connection learns of its own worker only, and waits for
//! the machine's other business besides.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// Seconds. A change is to be in force within 0.05.
const BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// A change that workers are taking over. Each holds a clone of the `Arc` until it follows the new state: when the last is
/// dropped, the change is over.
#[derive(Debug)]
pub struct ChangeUnderWay {
    noticed: Instant,
    spent: Histogram,
}

impl Drop for ChangeUnderWay {
    fn drop(&mut self) {
        self.spent.observe(self.noticed.elapsed().as_secs_f64());
    }
}

/// What is counted of changes. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    spent: Histogram,
    generations: Family<WorkerLabel, Gauge>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            spent: Histogram::new(BUCKETS),
            generations: Family::default(),
        }
    }
}

impl Changes {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_change_duration_seconds",
            "Time from when a change of the mesh was noticed until every worker follows it (unstable)",
            self.spent.clone(),
        );
        registry.register(
            "culvert_worker_generation",
            "The generation of the mesh snapshot that a worker follows (unstable)",
            self.generations.clone(),
        );
    }

    pub(super) fn begin(&self, noticed: Instant) -> Arc<ChangeUnderWay> {
        Arc::new(ChangeUnderWay {
            noticed,
            spent: self.spent.clone(),
        })
    }

    pub(super) fn follow(&self, worker: usize, generation: u64) {
        let gauge = self.generations.get_or_create(&WorkerLabel { worker });
        let _before = gauge.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }
}

/// `worker`: its number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct WorkerLabel {
    worker: usize,
}

impl EncodeLabelSet for WorkerLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("worker", self.worker).encode(encoder.encode_label())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use tokio::time::Instant;

    use crate::telemetry::Metrics;
    use crate::telemetry::tests::scrape;

    #[test]
    fn a_change_is_over_when_the_last_worker_follows_it() {
        let metrics = Metrics::new();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let over = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let count = text
                .lines()
                .find_map(|line| line.strip_prefix("culvert_change_duration_seconds_count "));
            count.unwrap().to_owned()
        };
        let first = metrics.change(Instant::now());
        let second = Arc::clone(&first);
        metrics.follow(0, 7);
        drop(first);
        assert_eq!(over(), "0");
        metrics.follow(1, 7);
        drop(second);
        assert_eq!(over(), "1");
        let mut generations = scrape(&metrics, "culvert_worker_generation");
        generations.sort();
        assert_eq!(
            generations,
            [
                "culvert_worker_generation{worker=\"0\"} 7",
                "culvert_worker_generation{worker=\"1\"} 7"
            ]
        );
    }
}
