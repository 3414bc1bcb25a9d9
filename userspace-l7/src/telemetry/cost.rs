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

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::encoding::{
    EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::model::{Workload, WorkloadUid};

/// The costs of all pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    time: Family<PodLabels, WorkloadTime>,
    requests: Family<PodLabels, Counter>,
    bytes: Family<PodLabels, Counter>,
}

impl Costs {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_workload_cpu_seconds",
            "Time that workers spent in the tasks of a local pod's connections (unstable)",
            self.time.clone(),
        );
        registry.register(
            "culvert_workload_requests",
            "The total number of HTTP requests that a local pod made through layer 7 (unstable)",
            self.requests.clone(),
        );
        registry.register(
            "culvert_workload_bytes",
            "The total number of bytes carried for a local pod, both ways (unstable)",
            self.bytes.clone(),
        );
    }

    /// Where the time of a pod's tasks is added up.
    pub(super) fn time(&self, uid: &WorkloadUid) -> WorkloadTime {
        self.time.get_or_create_owned(&PodLabels::of(uid))
    }

    pub(super) fn requests(&self, workload: &Workload) -> Counter {
        self.requests
            .get_or_create_owned(&PodLabels::of(&workload.uid))
    }

    pub(super) fn bytes(&self, workload: &Workload) -> Counter {
        self.bytes
            .get_or_create_owned(&PodLabels::of(&workload.uid))
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PodLabels(WorkloadUid);

impl PodLabels {
    fn of(uid: &WorkloadUid) -> Self {
        Self(uid.clone())
    }
}

/// The last two parts of `<cluster>/<group>/<kind>/<namespace>/<name>`.
impl EncodeLabelSet for PodLabels {
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
}
