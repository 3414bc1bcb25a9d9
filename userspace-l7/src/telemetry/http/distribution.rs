//! A histogram over Istio's buckets that workers may add to without a lock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Istio's upper bounds, in milliseconds for durations and in bytes for sizes; the last is unbounded.
pub(super) const BOUNDS: [f64; 20] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
    f64::INFINITY,
];

/// What one observation is a number of. Sums are kept in whole ones, so that adding needs no loop.
#[derive(Clone, Copy, Debug)]
enum Unit {
    /// Observed in microseconds, shown in milliseconds: the sum overflows after 580,000 years.
    Milliseconds,
    /// Observed and shown in bytes.
    Bytes,
}

impl Unit {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a size or time above 2^53 is shown rounded, as every Prometheus value is"
    )]
    fn show(self, observed: u64) -> f64 {
        match self {
            Self::Milliseconds => observed as f64 / 1000.0,
            Self::Bytes => observed as f64,
        }
    }
}

/// The histogram of one label set. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Distribution(Arc<Cells>);

#[derive(Debug)]
struct Cells {
    unit: Unit,
    sum: AtomicU64,
    /// Observations that fell into each bucket, and into no lower one.
    counts: [AtomicU64; BOUNDS.len()],
}

impl Distribution {
    fn new(unit: Unit) -> Self {
        Self(Arc::new(Cells {
            unit,
            sum: AtomicU64::new(0),
            counts: [const { AtomicU64::new(0) }; BOUNDS.len()],
        }))
    }

    pub(super) fn of_milliseconds() -> Self {
        Self::new(Unit::Milliseconds)
    }

    pub(super) fn of_bytes() -> Self {
        Self::new(Unit::Bytes)
    }

    /// Adds one duration.
    pub(super) fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds one value: two additions.
    pub(super) fn observe(&self, observed: u64) {
        let shown = self.0.unit.show(observed);
        let bucket = BOUNDS.partition_point(|bound| *bound < shown);
        if let Some(count) = self.0.counts.get(bucket) {
            let _before = count.fetch_add(1, Ordering::Relaxed);
        }
        let _before = self.0.sum.fetch_add(observed, Ordering::Relaxed);
    }
}

impl EncodeMetric for Distribution {
    /// A scrape in the middle of an observation may see its count and not yet its sum; the next one has both.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets = [(0.0, 0); BOUNDS.len()];
        let mut total = 0;
        for ((bucket, bound), count) in buckets.iter_mut().zip(BOUNDS).zip(&self.0.counts) {
            let count = count.load(Ordering::Relaxed);
            total += count;
            *bucket = (bound, count);
        }
        let sum = self.0.unit.show(self.0.sum.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Distribution {
    const TYPE: MetricType = MetricType::Histogram;
}
