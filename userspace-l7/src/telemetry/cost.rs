//! What each local pod costs its node: time of the workers, requests, bytes. So that one tenant who takes more
//! than its share can be named.
//!
//! Time is the monotonic clock's, read before and after each poll of a connection's task: two reads of the
//! vDSO, about 50 ns together, where a thread's CPU clock would be two system calls. Two things make it
//! differ from CPU time, and both are bounded:
//!
//! - a worker that the kernel takes from its core in the middle of a poll is charged for the pause. Workers
//!   that have a core each are not; on a crowded node the sum overstates by the share of time that workers
//!   waited for a core (`schedstat`'s second number says how much that was);
//! - what the kernel does for the ring, and the tasks that drive connections shared by several pods or kept in
//!   a pool, are charged to nobody. The process's own CPU time minus the sum of all pods is that rest.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::model::{Workload, WorkloadUid};

/// How long the figures of a pod that is not served any more are shown: several scrapes, so that its last ones are seen.
const AFTERWARDS: Duration = Duration::from_secs(120);

/// The costs of all pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs(Arc<RwLock<HashMap<WorkloadUid, PodCost>>>);

/// What one pod has cost. It is served as long as a worker holds its time.
#[derive(Clone, Debug, Default)]
struct PodCost {
    time: WorkloadTime,
    requests: Counter,
    bytes: Counter,
    /// When a scrape first found it served no more.
    left: Option<Instant>,
}

impl Costs {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Where the time of a pod's tasks is added up. Held for as long as the pod is served.
    pub(super) fn time(&self, uid: &WorkloadUid) -> WorkloadTime {
        self.of(uid, |cost| cost.time.clone())
    }

    pub(super) fn requests(&self, workload: &Workload) -> Counter {
        self.of(&workload.uid, |cost| cost.requests.clone())
    }

    pub(super) fn bytes(&self, workload: &Workload) -> Counter {
        self.of(&workload.uid, |cost| cost.bytes.clone())
    }

    fn of<T>(&self, uid: &WorkloadUid, part: impl Fn(&PodCost) -> T) -> T {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(cost) = known.get(uid) {
            return part(cost);
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        part(known.entry(uid.clone()).or_default())
    }

    /// Forgets who has been served no more for a while. Whoever comes back under the same name begins at zero, which
    /// counters may.
    fn forget(&self, now: Instant) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_uid, cost| {
            if cost.time.is_held() {
                cost.left = None;
                return true;
            }
            let left = *cost.left.get_or_insert(now);
            now.duration_since(left) < AFTERWARDS
        });
    }
}

impl Collector for Costs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.forget(Instant::now());
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            return Ok(());
        }
        let mut time = encoder.encode_descriptor(
            "culvert_workload_cpu_seconds",
            "Time that workers spent in the tasks of a local pod's connections (unstable)",
            None,
            MetricType::Counter,
        )?;
        for (uid, cost) in &*known {
            cost.time.encode(time.encode_family(&PodLabels(uid))?)?;
        }
        let mut requests = encoder.encode_descriptor(
            "culvert_workload_requests",
            "The total number of HTTP requests that a local pod made through layer 7 (unstable)",
            None,
            MetricType::Counter,
        )?;
        for (uid, cost) in &*known {
            cost.requests
                .encode(requests.encode_family(&PodLabels(uid))?)?;
        }
        let mut bytes = encoder.encode_descriptor(
            "culvert_workload_bytes",
            "The total number of bytes carried for a local pod, both ways (unstable)",
            None,
            MetricType::Counter,
        )?;
        for (uid, cost) in &*known {
            cost.bytes.encode(bytes.encode_family(&PodLabels(uid))?)?;
        }
        Ok(())
    }
}

/// Time spent for one pod. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct WorkloadTime(Arc<AtomicU64>);

impl WorkloadTime {
    /// A task whose polls are charged to the pod.
    ///
    /// # Cancel safety
    /// As `task`'s own.
    pub fn meter<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        Metered {
            task: Box::pin(task),
            time: self.clone(),
        }
    }

    /// What was spent so far.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Whether anybody but its pod's cost has it.
    fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn add(&self, spent: Duration) {
        let nanoseconds = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        let _before = self.0.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl EncodeMetric for WorkloadTime {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, f64, u64>(&self.spent().as_secs_f64(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for WorkloadTime {
    const TYPE: MetricType = MetricType::Counter;
}

/// The task lies on the heap, where a connection's task is put anyway: pinning it in place would take
/// `unsafe` or a macro.
struct Metered<F> {
    task: Pin<Box<F>>,
    time: WorkloadTime,
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let start = Instant::now();
        let polled = self.task.as_mut().poll(context);
        self.time.add(start.elapsed());
        polled
    }
}

/// `namespace` and `pod`.
#[derive(Debug)]
struct PodLabels<'a>(&'a WorkloadUid);

/// The last two parts of `<cluster>/<group>/<kind>/<namespace>/<name>`.
impl EncodeLabelSet for PodLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut parts = self.0.as_str().rsplitn(3, '/');
        let (pod, namespace) = (parts.next(), parts.next());
        ("namespace", namespace.unwrap_or("unknown")).encode(encoder.encode_label())?;
        ("pod", pod.unwrap_or("unknown")).encode(encoder.encode_label())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use tokio::time::Instant;

    use crate::model::WorkloadUid;
    use crate::telemetry::Metrics;
    use crate::telemetry::tests::scrape;

    fn pod(name: &str) -> WorkloadUid {
        WorkloadUid::new(format!("Kubernetes//Pod/shop/{name}"))
    }

    fn run<F: Future>(task: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(task)
    }

    #[test]
    fn time_in_polls_is_charged_and_time_between_them_is_not() {
        const BUSY: Duration = Duration::from_millis(5);
        let metrics = Metrics::new();
        let time = metrics.workload_time(&pod("web-1"));
        let mut polls = 0;
        let start = Instant::now();
        run(time.meter(poll_fn(|context| {
            let begun = Instant::now();
            while begun.elapsed() < BUSY {}
            polls += 1;
            context.waker().wake_by_ref();
            if polls == 4 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })));
        let spent = time.spent();
        assert!(spent >= 4 * BUSY && spent <= start.elapsed(), "{spent:?}");
        assert_eq!(
            metrics.workload_time(&pod("idle-1")).spent(),
            Duration::ZERO
        );
    }

    #[test]
    fn each_pod_has_a_series_of_its_own() {
        let metrics = Metrics::new();
        let _time = metrics.workload_time(&pod("web-1"));
        let lines = || scrape(&metrics, "culvert_workload_cpu_seconds_total");
        assert_eq!(
            lines(),
            ["culvert_workload_cpu_seconds_total{namespace=\"shop\",pod=\"web-1\"} 0.0"]
        );
        let _time = metrics.workload_time(&pod("web-2"));
        assert_eq!(lines().len(), 2);
    }

    #[test]
    fn a_pod_that_left_is_shown_for_a_while() {
        let costs = super::Costs::default();
        let begin = Instant::now();
        let later = |seconds| begin + Duration::from_secs(seconds);
        let shown = || costs.0.read().unwrap().len();
        let time = costs.time(&pod("web-1"));
        costs.forget(later(0));
        costs.forget(later(1_000));
        assert_eq!(shown(), 1, "a worker serves it");
        drop(time);
        costs.forget(later(1_000));
        costs.forget(later(1_119));
        assert_eq!(shown(), 1);
        let again = costs.time(&pod("web-1"));
        costs.forget(later(1_121));
        drop(again);
        costs.forget(later(1_122));
        assert_eq!(shown(), 1, "it came back meanwhile");
        costs.forget(later(1_242));
        assert_eq!(shown(), 0);
    }
}
