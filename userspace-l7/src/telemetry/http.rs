//! HTTP requests as operators see them: Istio's standard HTTP and gRPC metrics, by the names, labels and
//! buckets that a waypoint reports.
//!
//! ```text
//!  RequestFlow ──Metrics::open_request──▶ OpenRequest ──request_bytes, response_bytes, messages──▶ close(RequestEnd)
//!   head read                             destination(..) once chosen, again after a retry            all counted here
//! ```
//!
//! All of a request is counted when it ends, because its status and flags are labels. That costs one look
//! into a cache and seven additions; nothing is formatted and nothing allocated once a label set is known.

mod access_log;
mod distribution;
mod flags;
mod labels;
mod messages;
mod record;
mod series;
mod span;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

pub use flags::{RequestFlag, RequestFlags};
pub use messages::MessageCount;

pub(super) use series::RequestMetrics;

use super::labels::Security;
use super::trace::TraceContext;
use crate::model::{NamespacedHostname, Service, SpiffeId, Telemetry, Workload};
use record::{Finished, LoggedHead};
use series::{Ending, Facts, Totals};
use span::Sampled;

/// Who sends requests on one connection. Made once for each connection.
#[derive(Clone, Debug)]
pub struct RequestClient {
    /// The client, if the mesh knows its address.
    pub workload: Option<Arc<Workload>>,
    /// The client as it was proven, by TLS or by the kernel; never taken from headers.
    pub identity: Option<SpiffeId>,
    /// Where the connection is from.
    pub address: SocketAddr,
    /// Where it was dialled to: the service's address, as the client sees it.
    pub dialled: SocketAddr,
    /// Whether the client was authenticated.
    pub security: Security,
}

/// What a request speaks, as the label `request_protocol` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// Any HTTP that is not gRPC.
    Http,
    /// gRPC, by its content type.
    Grpc,
}

impl RequestProtocol {
    /// Tells gRPC by `content-type: application/grpc`, with or without a `+` suffix (gRPC over HTTP/2,
    /// "Requests"). `application/grpc-web` is not gRPC.
    pub fn of(headers: &HeaderMap) -> Self {
        let rest = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
        match rest {
            Some([] | [b'+' | b';', ..]) => Self::Grpc,
            Some(_) | None => Self::Http,
        }
    }

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What is known of a request once its head has been read.
#[derive(Clone, Debug)]
pub struct RequestFlow {
    /// Who asks.
    pub client: Arc<RequestClient>,
    /// The service that was addressed; stays, whichever backend answers.
    pub service: Option<Arc<Service>>,
    /// What it speaks.
    pub protocol: RequestProtocol,
    /// What the service wants recorded.
    pub telemetry: Arc<Telemetry>,
    /// What the access log will say of the head.
    head: Option<Box<LoggedHead>>,
}

impl RequestFlow {
    /// Takes from a request's head what will be recorded of it: as it was received, with `x-request-id` and
    /// `x-forwarded-for` as they are passed on. Copies nothing where no access log is kept.
    pub fn new(
        client: Arc<RequestClient>,
        service: Option<Arc<Service>>,
        telemetry: Arc<Telemetry>,
        head: &http::request::Parts,
    ) -> Self {
        Self {
            client,
            service,
            protocol: RequestProtocol::of(&head.headers),
            head: LoggedHead::new(&telemetry, head),
            telemetry,
        }
    }
}

/// Who was chosen to answer.
#[derive(Clone, Debug)]
pub struct RequestDestination {
    /// The server, if the mesh knows it.
    pub workload: Arc<Workload>,
    /// Whether the server proved to be it: its service account is a label only then.
    pub security: Security,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestEnd<'a> {
    /// What the client was answered; `None`: nothing, which counts as 0.
    pub status: Option<StatusCode>,
    /// `grpc-status` of a gRPC request. A number without a meaning counts as 2, unknown.
    pub grpc_status: Option<u16>,
    /// Why it went as it did.
    pub flags: RequestFlags,
    /// In one word, where the answer is from: `via_upstream`, `route_not_found`.
    pub details: Option<&'a str>,
    /// Why the next hop could not be reached, in a sentence.
    pub failure: Option<&'a str>,
    /// The name of the rule that matched.
    pub route_name: Option<&'a str>,
    /// Who was asked last.
    pub upstream: Option<Upstream<'a>>,
    /// How many times somebody was asked: 1 without a retry, 0 if nobody was.
    pub attempts: u32,
}

/// The server that was asked last.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// The endpoint's own address.
    pub host: SocketAddr,
    /// Our end of the connection to it.
    pub local: Option<SocketAddr>,
    /// The backend that it belongs to.
    pub backend: &'a NamespacedHostname,
    /// The backend's service port.
    pub port: u16,
    /// From the request's sending to the response's head.
    pub time: Option<Duration>,
}

/// A request that is being accounted for. All methods may be called from the tasks of either direction.
/// Dropping it without [`OpenRequest::close`] accounts for a client that went away: status 0, flag `DC`.
#[derive(Debug)]
pub struct OpenRequest {
    flow: RequestFlow,
    metrics: Arc<RequestMetrics>,
    start: Instant,
    destination: Mutex<Option<RequestDestination>>,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
    sampled: OnceLock<Box<Sampled>>,
    is_closed: AtomicBool,
}

impl OpenRequest {
    pub(super) fn start(flow: RequestFlow, metrics: Arc<RequestMetrics>) -> Self {
        Self {
            flow,
            metrics,
            start: Instant::now(),
            destination: Mutex::new(None),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            request_messages: AtomicU64::new(0),
            response_messages: AtomicU64::new(0),
            sampled: OnceLock::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Counts bytes of the request's body.
    pub fn request_bytes(&self, bytes: u64) {
        let _before = self.request_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of the response's body.
    pub fn response_bytes(&self, bytes: u64) {
        let _before = self.response_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts gRPC messages that the client sent ([`MessageCount`] finds them).
    pub fn request_messages(&self, messages: u64) {
        let _before = self.request_messages.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts gRPC messages that the server sent.
    pub fn response_messages(&self, messages: u64) {
        let _before = self
            .response_messages
            .fetch_add(messages, Ordering::Relaxed);
    }

    /// Who was chosen; the last one counts.
    pub fn destination(&self, destination: RequestDestination) {
        *self.lock_destination() = Some(destination);
    }

    /// Where the request stands in its trace. If it is sampled and somebody collects spans, it becomes one,
    /// with `head` as it is now; else nothing is kept.
    pub fn trace(&self, context: TraceContext, head: &http::request::Parts) {
        let tracing = &self.flow.telemetry.tracing;
        let is_collected = tracing.collector.is_some() && tracing.is_reported;
        if context.is_sampled() && is_collected && self.metrics.spans().is_some() {
            let head = LoggedHead::of(head);
            // Of two calls the first counts: a request is in one trace.
            let _second = self.sampled.set(Box::new(Sampled { context, head }));
        }
    }

    /// What was said when it opened.
    pub fn flow(&self) -> &RequestFlow {
        &self.flow
    }

    /// Ends the account. Only the first call counts.
    pub fn close(&self, end: &RequestEnd<'_>) {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let destination = self.lock_destination();
        let facts = Facts {
            client: &self.flow.client,
            service: self.flow.service.as_ref(),
            destination: destination.as_ref(),
            protocol: self.flow.protocol,
            telemetry: &self.flow.telemetry,
            ending: Ending::of(self.flow.protocol, end),
        };
        let totals = Totals {
            duration: self.start.elapsed(),
            request_bytes: self.request_bytes.load(Ordering::Relaxed),
            response_bytes: self.response_bytes.load(Ordering::Relaxed),
            request_messages: self.request_messages.load(Ordering::Relaxed),
            response_messages: self.response_messages.load(Ordering::Relaxed),
        };
        self.metrics.series_of(&facts).add(&totals);
        let finished = |head| Finished {
            flow: &self.flow,
            head,
            end,
            duration: totals.duration,
            request_bytes: totals.request_bytes,
            response_bytes: totals.response_bytes,
        };
        if let Some(head) = &self.flow.head {
            access_log::write(&finished(head));
        }
        if let (Some(sampled), Some(sink)) = (self.sampled.get(), self.metrics.spans())
            && let Some(span) = span::of(&finished(&sampled.head), sampled.context)
        {
            sink.take(span);
        }
    }

    fn lock_destination(&self) -> std::sync::MutexGuard<'_, Option<RequestDestination>> {
        self.destination
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.close(&RequestEnd {
            flags: RequestFlag::DownstreamReset.into(),
            details: Some("downstream_remote_disconnect"),
            ..RequestEnd::default()
        });
    }
}
