//! What asks servers in the agent's own name: the keeper of keys and the exporter of spans.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::Snapshot;
use userspace_l7::telemetry::Metrics;
use userspace_l7::telemetry::span::{Span, SpanCounts, SpanSink};

use crate::config::AgentArgs;
use crate::fetch::{Client, Trust, TrustError};
use crate::keys::{KeyKeeper, KeyMetrics, KeyStatus, Wanted};
use crate::spans::Exporter;

/// Both, and what they follow.
pub(super) struct Asking {
    keeper: KeyKeeper,
    exporter: Exporter,
    spans: mpsc::Receiver<Span>,
    wanted: watch::Sender<Wanted>,
    mesh: watch::Receiver<Arc<Snapshot>>,
}

/// The counters of traffic, and the spans of sampled requests that come with them.
pub(super) fn metrics(
    registry: &mut Registry,
) -> (Arc<Metrics>, (SpanCounts, mpsc::Receiver<Span>)) {
    let counts = SpanCounts::default();
    let (sink, spans) = SpanSink::channel(counts.clone());
    let metrics = Arc::new(Metrics::reporting(sink));
    metrics.register(registry);
    (metrics, (counts, spans))
}

impl Asking {
    /// Publishes keys into `key_sets`.
    ///
    /// # Errors
    /// [`TrustError`]: the file of `--jwks-ca` is of no use.
    pub(super) fn new(
        args: &AgentArgs,
        snapshot: &watch::Sender<Arc<Snapshot>>,
        key_sets: &Arc<KeySets>,
        (counts, spans): (SpanCounts, mpsc::Receiver<Span>),
        registry: &mut Registry,
    ) -> Result<Self, TrustError> {
        let seen = snapshot.subscribe();
        let mesh = Arc::new(move || Arc::clone(&seen.borrow()));
        let trust = Trust::open(args.jwks_ca.as_deref())?;
        let client = Client::new(mesh, trust, &args.root_namespace);
        let metrics = KeyMetrics::default();
        metrics.register(registry);
        let environment = args.otel_resource_attributes.clone();
        let published = Arc::clone(key_sets);
        Ok(Self {
            exporter: Exporter::new(client.clone(), counts, environment),
            keeper: KeyKeeper::new(client, args.jwks_pace(), published, metrics),
            spans,
            wanted: watch::Sender::new(Wanted::new()),
            mesh: snapshot.subscribe(),
        })
    }

    /// What became of key sets.
    pub(super) fn key_statuses(&self) -> watch::Receiver<Vec<KeyStatus>> {
        self.keeper.statuses()
    }

    /// Where it is said which keys are wanted.
    pub(super) fn wanted(&self) -> watch::Sender<Wanted> {
        self.wanted.clone()
    }

    /// Runs both until the set is dropped.
    pub(super) fn start(self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.keeper.run(self.wanted.subscribe(), self.mesh));
        tasks.spawn(self.exporter.run(self.spans));
        tasks
    }
}
