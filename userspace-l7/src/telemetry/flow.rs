//! One connection's account, from its opening to its end.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::access_log::{self, End, Line, Totals};
use super::labels::{Reporter, ResponseFlags, Security, TrafficLabels};
use crate::model::{Service, SpiffeId, Workload};

/// What is known of a connection when it opens.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Our end.
    pub reporter: Reporter,
    /// The client, if the mesh knows its address.
    pub source: Option<Arc<Workload>>,
    /// The client as TLS proved it; never taken from headers or addresses.
    pub source_identity: Option<SpiffeId>,
    /// The chosen server, if the mesh knows it.
    pub destination: Option<Arc<Workload>>,
    /// The server as TLS proved it.
    pub destination_identity: Option<SpiffeId>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// The client's address.
    pub source_address: SocketAddr,
    /// The next hop's address: port 15008 for HBONE.
    pub destination_address: SocketAddr,
    /// What an HBONE request asks for: the application's address, or a hostname and port.
    pub hbone_target: Option<String>,
    /// Whether the peer was authenticated.
    pub security: Security,
}

/// What connections between the same two ends have in common, found once for all of them.
#[derive(Clone, Debug)]
pub struct Acquaintance {
    pub(super) series: Arc<Series>,
    pub(super) hbone_target: Option<String>,
}

/// How a connection ended.
#[derive(Clone, Copy)]
pub enum Outcome<'a> {
    /// Both sides said so.
    Complete,
    /// It broke, or was not allowed to go on.
    Failed {
        /// The metric's word for it.
        flags: ResponseFlags,
        /// The log's sentence for it.
        error: &'a dyn fmt::Display,
    },
}

/// A connection that is being accounted for. Dropping it (the worker stops, the pod leaves) closes the
/// account too, so counters of opened and closed connections always meet.
///
/// Of its [`Flow`] it keeps what its series does not know: there are as many of these as connections.
#[derive(Debug)]
pub struct OpenFlow {
    series: Arc<Series>,
    source_address: SocketAddr,
    destination_address: SocketAddr,
    hbone_target: Option<String>,
    start: Instant,
    to_server: AtomicU64,
    to_client: AtomicU64,
    settled: bool,
}

impl OpenFlow {
    /// `addresses` are the client's and the next hop's.
    pub(super) fn start(
        series: Arc<Series>,
        addresses: (SocketAddr, SocketAddr),
        hbone_target: Option<String>,
    ) -> Self {
        let _new_value = series.opened.inc();
        let _new_value = series.sockets.inc();
        let (source_address, destination_address) = addresses;
        let opened = Self {
            series,
            source_address,
            destination_address,
            hbone_target,
            start: Instant::now(),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            settled: false,
        };
        access_log::opened(&opened.line());
        opened
    }

    fn line(&self) -> Line<'_> {
        Line {
            ends: &self.series.ends,
            source_address: self.source_address,
            destination_address: self.destination_address,
            hbone_target: self.hbone_target.as_deref(),
        }
    }

    /// Counts bytes that went from the client to the server, on whichever node this is.
    ///
    /// Istio counts them as `istio_tcp_received_bytes_total` for both reporters, also for the client's own
    /// (istio/istio#32399): "received" is the server's view of a request. The access log counts as the
    /// local workload sees it.
    pub fn to_server(&self, bytes: u64) {
        let _before = self.to_server.fetch_add(bytes, Ordering::Relaxed);
        let _new_value = self.series.received.inc_by(bytes);
        self.series.carry(bytes);
    }

    /// Counts bytes that went from the server to the client: `istio_tcp_sent_bytes_total`.
    pub fn to_client(&self, bytes: u64) {
        let _before = self.to_client.fetch_add(bytes, Ordering::Relaxed);
        let _new_value = self.series.sent.inc_by(bytes);
        self.series.carry(bytes);
    }

    /// Ends the account: counts the connection as closed, a failed one also as failed, and logs it.
    pub fn close(self, outcome: Outcome<'_>) {
        let duration = self.start.elapsed();
        self.close_after(duration, outcome);
    }

    /// As [`OpenFlow::close`], for a connection whose `duration` somebody else has measured.
    pub fn close_after(mut self, duration: Duration, outcome: Outcome<'_>) {
        self.settle();
        match outcome {
            Outcome::Complete => self.log(duration, End::Complete),
            Outcome::Failed { flags, error } => {
                let labels = self.series.labels.with_flags(flags);
                let _new_value = self.series.failed.get_or_create(&labels).inc();
                self.log(duration, End::Failed(error));
            }
        }
    }

    fn settle(&mut self) {
        self.settled = true;
        let _new_value = self.series.closed.inc();
        let _new_value = self.series.sockets.dec();
    }

    fn log(&self, duration: Duration, end: End<'_>) {
        let (to_server, to_client) = (
            self.to_server.load(Ordering::Relaxed),
            self.to_client.load(Ordering::Relaxed),
        );
        let (sent, received) = match self.series.ends.reporter {
            Reporter::Source => (to_server, to_client),
            Reporter::Destination => (to_client, to_server),
        };
        let totals = Totals {
            sent,
            received,
            duration,
        };
        access_log::closed(&self.line(), &totals, end);
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        if !self.settled {
            self.settle();
            self.log(self.start.elapsed(), End::Abandoned);
        }
    }
}

/// The counters of one label set, so that a connection finds them once and copying only adds.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) ends: Ends,
    pub(super) opened: Counter,
    pub(super) closed: Counter,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) sockets: Gauge,
    /// Failures are rare and carry one label more: looked up when they happen.
    pub(super) failed: Family<TrafficLabels, Counter>,
    /// Bytes of the local pod; `None` if the mesh does not know it.
    pub(super) carried: Option<Counter>,
    pub(super) labels: TrafficLabels,
}

impl Series {
    /// Adds bytes to the server and to the client.
    pub(super) fn add(&self, to_server: u64, to_client: u64) {
        let _before = self.received.inc_by(to_server);
        let _before = self.sent.inc_by(to_client);
        self.carry(to_server.saturating_add(to_client));
    }

    fn carry(&self, bytes: u64) {
        if let Some(carried) = &self.carried {
            let _before = carried.inc_by(bytes);
        }
    }
}

/// What is the same for all connections of one series, which is found by it. Snapshot objects are immutable, so their
/// addresses stand for their content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) reporter: Reporter,
    pub(super) security: Security,
    pub(super) source: Option<ByAddress<Workload>>,
    pub(super) destination: Option<ByAddress<Workload>>,
    pub(super) service: Option<ByAddress<Service>>,
    pub(super) source_identity: Option<SpiffeId>,
    pub(super) destination_identity: Option<SpiffeId>,
}

impl Ends {
    pub(super) fn of(flow: &Flow) -> Self {
        Self {
            reporter: flow.reporter,
            security: flow.security,
            source: flow.source.clone().map(ByAddress),
            destination: flow.destination.clone().map(ByAddress),
            service: flow.service.clone().map(ByAddress),
            source_identity: flow.source_identity.clone(),
            destination_identity: flow.destination_identity.clone(),
        }
    }
}

/// Compares by identity. Holding the object keeps its address from being given to another one.
#[derive(Debug)]
pub(super) struct ByAddress<T>(Arc<T>);

impl<T> Deref for ByAddress<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Clone for ByAddress<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> PartialEq for ByAddress<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for ByAddress<T> {}

impl<T> Hash for ByAddress<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}
