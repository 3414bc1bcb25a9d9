//! Spans of sampled requests, on their way to whoever sends them to a collector. A worker never waits: what
//! does not fit into the queue is counted and gone.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::trace::TraceContext;
use crate::model::SpanCollector;

/// Spans that wait for their exporter: the batch processor's default of OpenTelemetry's SDKs.
const QUEUE: usize = 2048;

/// What was done to a request here. Always of kind SERVER: a waypoint opens no span of its own towards the
/// application (Istio).
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Who collects it.
    pub collector: Arc<SpanCollector>,
    /// Who reports it: `<waypoint>.<namespace>`.
    pub reporter: Arc<str>,
    /// Where it stands in its trace.
    pub context: TraceContext,
    /// `tracestate` as it was received; empty if it was not.
    pub trace_state: String,
    /// The operation: `<host>:<port>/*` of the service that was called.
    pub name: String,
    /// When the request's head had been read.
    pub start: SystemTime,
    /// Until the response had ended.
    pub duration: Duration,
    /// Names and values.
    pub attributes: Vec<(Cow<'static, str>, String)>,
    /// Whether the server's side failed.
    pub is_error: bool,
}

/// Why a span did not come to its collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lost {
    /// More spans than the exporter takes.
    QueueFull,
    /// The collector could not be reached, or did not answer in time.
    Unreachable,
    /// The collector refused it.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LostLabels {
    reason: &'static str,
}

/// What became of spans. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct SpanCounts {
    exported: Counter,
    dropped: Family<LostLabels, Counter>,
}

impl SpanCounts {
    /// Makes the counters part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_spans_exported",
            "The total number of spans that their collectors took",
            self.exported.clone(),
        );
        registry.register(
            "culvert_spans_dropped",
            "The total number of spans that did not come to their collectors",
            self.dropped.clone(),
        );
    }

    /// Counts spans that a collector took.
    pub fn exported(&self, spans: u64) {
        let _before = self.exported.inc_by(spans);
    }

    /// Counts spans that are gone.
    pub fn dropped(&self, why: Lost, spans: u64) {
        let reason = match why {
            Lost::QueueFull => "queue_full",
            Lost::Unreachable => "unreachable",
            Lost::Refused => "refused",
        };
        let _before = self
            .dropped
            .get_or_create(&LostLabels { reason })
            .inc_by(spans);
    }
}

/// The workers' end of the queue.
#[derive(Clone, Debug)]
pub struct SpanSink {
    queue: mpsc::Sender<Span>,
    counts: SpanCounts,
}

impl SpanSink {
    /// A queue of 2048 spans, and its exporter's end.
    pub fn channel(counts: SpanCounts) -> (Self, mpsc::Receiver<Span>) {
        let (queue, spans) = mpsc::channel(QUEUE);
        (Self { queue, counts }, spans)
    }

    /// What became of spans.
    pub fn counts(&self) -> &SpanCounts {
        &self.counts
    }

    /// Hands a span over, or counts it as lost.
    pub(super) fn take(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.counts.dropped(Lost::QueueFull, 1);
        }
    }
}
