//! Sends the spans of sampled requests to their collectors by OTLP, in batches; each collector has a lane of
//! its own, so that a slow one holds up nobody else's. What a collector does not take is counted and gone:
//! spans are worth less than the memory that a long queue would cost.
//!
//! ```text
//!  workers ─▶ SpanSink (bounded) ─▶ run ─┬─▶ lane of a collector: batch ─▶ otlp (bytes) ─▶ fetch ─▶ collector
//!                                        └─▶ lane of another
//! ```

mod lane;
mod otlp;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use userspace_l7::model::SpanCollector;
use userspace_l7::telemetry::span::{Lost, Span, SpanCounts};

use crate::fetch::Client;

pub use otlp::{InvalidAttribute, ResourceAttributes};

/// Spans that wait in one lane.
const LANE: usize = 2048;

/// Sends spans.
pub struct Exporter {
    client: Client,
    counts: SpanCounts,
    /// Of the agent's environment, for collectors that want them.
    environment: ResourceAttributes,
}

impl Exporter {
    /// Counts what it sends in `counts`.
    pub fn new(client: Client, counts: SpanCounts, environment: ResourceAttributes) -> Self {
        Self {
            client,
            counts,
            environment,
        }
    }

    /// Sends what comes from `spans` until its senders are gone.
    ///
    /// # Cancel safety
    /// Dropping the future ends the lanes; spans in them are gone.
    pub async fn run(self, mut spans: mpsc::Receiver<Span>) {
        let mut lanes = HashMap::<Arc<SpanCollector>, mpsc::Sender<Span>>::new();
        let mut tasks = JoinSet::new();
        loop {
            let span = tokio::select! {
                span = spans.recv() => span,
                // A lane that has ended has been idle, or its collector is no longer named.
                Some(_ended) = tasks.join_next() => {
                    lanes.retain(|_, lane| !lane.is_closed());
                    continue;
                }
            };
            let Some(span) = span else { return };
            let lane = lanes.entry(Arc::clone(&span.collector)).or_insert_with(|| {
                let (sender, spans) = mpsc::channel(LANE);
                let lane = lane::Lane {
                    client: self.client.clone(),
                    counts: self.counts.clone(),
                    environment: self.environment.clone(),
                    collector: Arc::clone(&span.collector),
                };
                tasks.spawn(lane.run(spans));
                sender
            });
            if lane.try_send(span).is_err() {
                self.counts.dropped(Lost::QueueFull, 1);
            }
        }
    }
}
