//! L1: what the proxy tells operators about connections and requests: Istio's standard metrics by their own
//! names and labels, and one access-log event for each. Counts and logs only; carries no traffic and
//! decides nothing. How log events reach a file is the agent's affair.
//!
//! ```text
//!  Flow ──Metrics::open──▶ OpenFlow ──to_server/to_client (while copying)──▶ close(Outcome)
//!           opened +1                   byte counters move at once             closed +1, failed +1,
//!           log at DEBUG                                                       log at INFO or ERROR
//!  refused before a Flow is known ──Metrics::refused──▶ log at WARN, no TCP metric
//! ```

mod access_log;
mod change;
mod cost;
mod flow;
mod http;
mod labels;
mod limit;
pub mod span;
#[cfg(test)]
mod tests;
pub mod trace;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::HashMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::model::{PolicyKey, Workload, WorkloadUid};

pub use change::ChangeUnderWay;
pub use cost::WorkloadTime;
pub use flow::{Acquaintance, Flow, OpenFlow, Outcome};
pub use http::{
    MessageCount, OpenRequest, RequestClient, RequestDestination, RequestEnd, RequestFlag,
    RequestFlags, RequestFlow, RequestProtocol, Upstream,
};
pub use labels::{Reporter, ResponseFlags, Security, WatchedAction};

use change::Changes;
use cost::Costs;
use flow::{Ends, Series};
use http::RequestMetrics;
use labels::{QuestionLabels, RefusalLabels, ReporterLabel, TrafficLabels, WatchedLabels};
pub(crate) use limit::RateLimit;
use span::SpanSink;

/// More label sets than a node's pods use at once; beyond it the cache starts anew. The series themselves
/// stay, as Prometheus counters must.
const CACHED_SERIES: usize = 4096;

/// Log lines per second that refused peers may cause together.
const REFUSALS_LOGGED_PER_SECOND: u32 = 100;

/// The counters of every worker. Shared by reference; all methods are cheap and never block for long.
#[derive(Debug)]
pub struct Metrics {
    opened: Family<TrafficLabels, Counter>,
    closed: Family<TrafficLabels, Counter>,
    failed: Family<TrafficLabels, Counter>,
    received: Family<TrafficLabels, Counter>,
    sent: Family<TrafficLabels, Counter>,
    sockets: Family<ReporterLabel, Gauge>,
    refused: Family<RefusalLabels, Counter>,
    unanswered: Family<QuestionLabels, Counter>,
    series: RwLock<HashMap<Ends, Arc<Series>>>,
    requests: Arc<RequestMetrics>,
    costs: Costs,
    changes: Changes,
    watched: Family<WatchedLabels, Counter>,
    refusal_log: RateLimit,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counters that all stand at zero; spans go nowhere.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Counters that all stand at zero; spans of sampled requests go to `spans`.
    pub fn reporting(spans: SpanSink) -> Self {
        Self::with(Some(spans))
    }

    fn with(spans: Option<SpanSink>) -> Self {
        let costs = Costs::default();
        Self {
            opened: Family::default(),
            closed: Family::default(),
            failed: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            sockets: Family::default(),
            refused: Family::default(),
            unanswered: Family::default(),
            series: RwLock::default(),
            requests: Arc::new(RequestMetrics::new(costs.clone(), spans)),
            costs,
            changes: Changes::default(),
            watched: Family::default(),
            refusal_log: RateLimit::per_second(REFUSALS_LOGGED_PER_SECOND),
        }
    }

    /// Makes the counters part of what is scraped. The encoder appends `_total` to counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "istio_tcp_connections_opened",
            "The total number of TCP connections opened",
            self.opened.clone(),
        );
        registry.register(
            "istio_tcp_connections_closed",
            "The total number of TCP connections closed",
            self.closed.clone(),
        );
        registry.register(
            "istio_tcp_connections_failed",
            "The total number of TCP connections that ended with an error (unstable)",
            self.failed.clone(),
        );
        registry.register(
            "istio_tcp_received_bytes",
            "The total number of bytes that clients sent to servers",
            self.received.clone(),
        );
        registry.register(
            "istio_tcp_sent_bytes",
            "The total number of bytes that servers sent to clients",
            self.sent.clone(),
        );
        registry.register(
            "istio_tcp_sockets_open",
            "The number of application connections carried now (unstable)",
            self.sockets.clone(),
        );
        registry.register(
            "culvert_connections_refused",
            "The total number of connections refused before a destination was known",
            self.refused.clone(),
        );
        registry.register(
            "culvert_questions_unanswered",
            "The total number of questions about requests that an authorizer or rate limit service did not answer",
            self.unanswered.clone(),
        );
        registry.register(
            "culvert_authorization_dry_run",
            "The total number of judgements by policies that are only watched, and what they would have done",
            self.watched.clone(),
        );
        self.requests.register(registry);
        self.costs.register(registry);
        self.changes.register(registry);
    }

    /// Starts to account for a connection: counts it as opened and logs that at DEBUG.
    pub fn open(&self, flow: Flow) -> OpenFlow {
        let series = self.series_of(&flow);
        let addresses = (flow.source_address, flow.destination_address);
        OpenFlow::start(series, addresses, flow.hbone_target)
    }

    /// What a connection will have in common with every later one between its two ends, as the mesh is now.
    pub fn acquaint(&self, flow: Flow) -> Acquaintance {
        Acquaintance {
            series: self.series_of(&flow),
            hbone_target: flow.hbone_target,
        }
    }

    /// As [`Metrics::open`], for a connection of which only its addresses, the client's and the next hop's, are new.
    pub fn open_known(
        &self,
        known: &Acquaintance,
        addresses: (SocketAddr, SocketAddr),
    ) -> OpenFlow {
        OpenFlow::start(
            Arc::clone(&known.series),
            addresses,
            known.hbone_target.clone(),
        )
    }

    /// Adds connections that were opened and closed without having been told one by one, and the bytes that they
    /// carried to the server and to the client. They leave no line in the access log.
    pub fn add_untold(&self, flow: &Flow, connections: u64, (to_server, to_client): (u64, u64)) {
        let series = self.series_of(flow);
        let _before = series.opened.inc_by(connections);
        let _before = series.closed.inc_by(connections);
        series.add(to_server, to_client);
    }

    /// Starts to account for a request whose head has been read. It is counted when it ends.
    pub fn open_request(&self, flow: RequestFlow) -> OpenRequest {
        OpenRequest::start(flow, Arc::clone(&self.requests))
    }

    /// Where the time of a local pod's tasks is added up.
    pub fn workload_time(&self, uid: &WorkloadUid) -> WorkloadTime {
        self.costs.time(uid)
    }

    /// A change of the mesh, noticed then, that workers are about to take over.
    pub fn change(&self, noticed: Instant) -> Arc<ChangeUnderWay> {
        self.changes.begin(noticed)
    }

    /// Notes which state of the mesh a worker follows from now on.
    pub fn follow(&self, worker: usize, generation: u64) {
        self.changes.follow(worker, generation);
    }

    /// Counts what a policy that is only watched (`istio.io/dry-run`) would have done, `None` being all its ALLOW
    /// policies together, of which none matched.
    pub fn watched(&self, policy: Option<&PolicyKey>, action: WatchedAction, is_denied: bool) {
        let labels = WatchedLabels {
            policy: policy.cloned(),
            action,
            is_denied,
        };
        let _new_value = self.watched.get_or_create(&labels).inc();
    }

    /// Accounts for a connection that was turned away before its destination or its peer were known. Such
    /// refusals stand in the log (WARN, at most 100 lines a second) and in a counter of Culvert's own,
    /// never in the TCP metrics.
    pub fn refused(
        &self,
        reporter: Reporter,
        source: SocketAddr,
        destination: SocketAddr,
        flags: ResponseFlags,
        error: &dyn fmt::Display,
    ) {
        let _new_value = self
            .refused
            .get_or_create(&RefusalLabels { reporter, flags })
            .inc();
        if let Some(suppressed) = self.refusal_log.admit(Instant::now()) {
            access_log::refused(reporter, source, destination, error, suppressed);
        }
    }

    /// Counts a question about a request that a service has not answered, `admitted` being what became of the request.
    pub fn unanswered(&self, service: &dyn fmt::Display, admitted: bool) {
        let labels = QuestionLabels {
            service: service.to_string(),
            admitted,
        };
        let _new_value = self.unanswered.get_or_create(&labels).inc();
    }

    /// The counters of a flow's label set: built on first use, found by pointer afterwards.
    fn series_of(&self, flow: &Flow) -> Arc<Series> {
        let ends = Ends::of(flow);
        let cached = self
            .series
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&ends)
            .cloned();
        cached.unwrap_or_else(|| {
            let built = Arc::new(self.build_series(flow, ends.clone()));
            let mut cache = self.series.write().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= CACHED_SERIES {
                cache.clear();
            }
            Arc::clone(cache.entry(ends).or_insert(built))
        })
    }

    fn build_series(&self, flow: &Flow, ends: Ends) -> Series {
        let labels = TrafficLabels::of(flow);
        let reporter = ReporterLabel {
            reporter: flow.reporter,
        };
        Series {
            ends,
            opened: self.opened.get_or_create_owned(&labels),
            closed: self.closed.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            sockets: self.sockets.get_or_create_owned(&reporter),
            failed: self.failed.clone(),
            carried: local(flow).map(|workload| self.costs.bytes(workload)),
            labels,
        }
    }
}

/// The pod of ours that a connection is for.
fn local(flow: &Flow) -> Option<&Workload> {
    match flow.reporter {
        Reporter::Source => flow.source.as_deref(),
        Reporter::Destination => flow.destination.as_deref(),
    }
}
