//! The counters of each label set, found by what the labels follow from.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use smallvec::SmallVec;

use super::distribution::Distribution;
use super::labels::RequestLabels;
use super::{RequestClient, RequestDestination, RequestEnd, RequestFlags, RequestProtocol};
use crate::model::{HttpMetric, Service, Telemetry};
use crate::telemetry::cost::Costs;
use crate::telemetry::span::SpanSink;

/// Label sets that are found without building them; beyond it the cache starts anew. Twice as many as for
/// connections, for a request's status is one of its labels.
pub(super) const CACHED_SERIES: usize = 8192;

type Distributions = Family<RequestLabels, Distribution, fn() -> Distribution>;

/// The request counters of every worker.
#[derive(Debug)]
pub(in crate::telemetry) struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Distributions,
    request_bytes: Distributions,
    response_bytes: Distributions,
    request_messages: Family<RequestLabels, Counter>,
    response_messages: Family<RequestLabels, Counter>,
    costs: Costs,
    spans: Option<SpanSink>,
    /// By digest of the facts; what shares a digest stands side by side.
    cache: RwLock<HashMap<u64, SmallVec<[Arc<Series>; 1]>>>,
}

impl RequestMetrics {
    pub(in crate::telemetry) fn new(costs: Costs, spans: Option<SpanSink>) -> Self {
        Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(Distribution::of_milliseconds),
            request_bytes: Family::new_with_constructor(Distribution::of_bytes),
            response_bytes: Family::new_with_constructor(Distribution::of_bytes),
            request_messages: Family::default(),
            response_messages: Family::default(),
            costs,
            spans,
            cache: RwLock::default(),
        }
    }

    /// Where spans go.
    pub(super) fn spans(&self) -> Option<&SpanSink> {
        self.spans.as_ref()
    }

    pub(in crate::telemetry) fn register(&self, registry: &mut Registry) {
        if let Some(spans) = &self.spans {
            spans.counts().register(registry);
        }
        registry.register(
            "istio_requests",
            "The total number of requests that ended",
            self.requests.clone(),
        );
        registry.register(
            "istio_request_duration_milliseconds",
            "Time from a request's head to the end of its response",
            self.duration.clone(),
        );
        registry.register(
            "istio_request_bytes",
            "Size of request bodies",
            self.request_bytes.clone(),
        );
        registry.register(
            "istio_response_bytes",
            "Size of response bodies",
            self.response_bytes.clone(),
        );
        registry.register(
            "istio_request_messages",
            "The total number of gRPC messages sent by clients, counted when their stream ended",
            self.request_messages.clone(),
        );
        registry.register(
            "istio_response_messages",
            "The total number of gRPC messages sent by servers, counted when their stream ended",
            self.response_messages.clone(),
        );
    }

    /// The counters of a request's label set: built on first use, found by pointer afterwards.
    pub(super) fn series_of(&self, facts: &Facts<'_>) -> Arc<Series> {
        let digest = facts.digest();
        let found = {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            cache.get(&digest).and_then(|same| find(same, facts))
        };
        found.unwrap_or_else(|| {
            let built = Arc::new(self.build(facts));
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= CACHED_SERIES {
                cache.clear();
            }
            let same = cache.entry(digest).or_default();
            find(same, facts).unwrap_or_else(|| {
                same.push(Arc::clone(&built));
                built
            })
        })
    }

    fn build(&self, facts: &Facts<'_>) -> Series {
        let labels = RequestLabels::of(facts);
        let overrides = facts.telemetry.metrics.iter();
        let change = |metric| overrides.clone().find(|change| change.metric == metric);
        let shown = |metric| {
            let change = change(metric);
            let is_shown = change.is_none_or(|change| !change.is_disabled);
            is_shown.then(|| labels.changed(change))
        };
        let counter = |family: &Family<RequestLabels, Counter>, metric| {
            shown(metric).map(|labels| family.get_or_create_owned(&labels))
        };
        let distribution = |family: &Distributions, metric| {
            shown(metric).map(|labels| family.get_or_create_owned(&labels))
        };
        let messages = |family, metric| match facts.protocol {
            RequestProtocol::Grpc => counter(family, metric),
            RequestProtocol::Http => None,
        };
        Series {
            requests: counter(&self.requests, HttpMetric::RequestCount),
            duration: distribution(&self.duration, HttpMetric::RequestDuration),
            request_bytes: distribution(&self.request_bytes, HttpMetric::RequestSize),
            response_bytes: distribution(&self.response_bytes, HttpMetric::ResponseSize),
            request_messages: messages(&self.request_messages, HttpMetric::GrpcRequestMessages),
            response_messages: messages(&self.response_messages, HttpMetric::GrpcResponseMessages),
            made: facts
                .client
                .workload
                .as_ref()
                .map(|workload| self.costs.requests(workload)),
            client: facts.client.clone(),
            service: facts.service.cloned(),
            destination: facts.destination.cloned(),
            protocol: facts.protocol,
            telemetry: Arc::clone(facts.telemetry),
            ending: facts.ending,
        }
    }

    #[cfg(test)]
    pub(super) fn cached(&self) -> usize {
        self.cache
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

fn find(same: &[Arc<Series>], facts: &Facts<'_>) -> Option<Arc<Series>> {
    same.iter()
        .find(|series| series.facts().is_same(facts))
        .cloned()
}

/// The counters of one label set, and what its labels followed from. `None`: switched off, or not a metric
/// of its protocol.
#[derive(Debug)]
pub(super) struct Series {
    requests: Option<Counter>,
    duration: Option<Distribution>,
    request_bytes: Option<Distribution>,
    response_bytes: Option<Distribution>,
    request_messages: Option<Counter>,
    response_messages: Option<Counter>,
    /// Requests of the client's pod, whatever their labels.
    made: Option<Counter>,
    client: RequestClient,
    service: Option<Arc<Service>>,
    destination: Option<RequestDestination>,
    protocol: RequestProtocol,
    telemetry: Arc<Telemetry>,
    ending: Ending,
}

/// What one request came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) duration: Duration,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) request_messages: u64,
    pub(super) response_messages: u64,
}

impl Series {
    /// Counts one request.
    pub(super) fn add(&self, totals: &Totals) {
        for (counter, count) in [
            (&self.requests, 1),
            (&self.made, 1),
            (&self.request_messages, totals.request_messages),
            (&self.response_messages, totals.response_messages),
        ] {
            if let Some(counter) = counter {
                let _before = counter.inc_by(count);
            }
        }
        if let Some(duration) = &self.duration {
            duration.observe_duration(totals.duration);
        }
        for (sizes, bytes) in [
            (&self.request_bytes, totals.request_bytes),
            (&self.response_bytes, totals.response_bytes),
        ] {
            if let Some(sizes) = sizes {
                sizes.observe(bytes);
            }
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            client: &self.client,
            service: self.service.as_ref(),
            destination: self.destination.as_ref(),
            protocol: self.protocol,
            telemetry: &self.telemetry,
            ending: self.ending,
        }
    }
}

/// The labels that a request's end decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ending {
    /// HTTP status, 0 without one.
    pub(super) status: u16,
    /// gRPC only.
    pub(super) grpc_status: Option<u16>,
    pub(super) flags: RequestFlags,
}

/// The highest code that gRPC gives a meaning to: UNAUTHENTICATED.
const HIGHEST_GRPC_STATUS: u16 = 16;
/// UNKNOWN, also for codes without a meaning and for streams that ended without one.
const GRPC_UNKNOWN: u16 = 2;

impl Ending {
    pub(super) fn of(protocol: RequestProtocol, end: &RequestEnd<'_>) -> Self {
        let known = end
            .grpc_status
            .filter(|status| *status <= HIGHEST_GRPC_STATUS);
        Self {
            status: end.status.map_or(0, |status| status.as_u16()),
            grpc_status: match protocol {
                RequestProtocol::Grpc => Some(known.unwrap_or(GRPC_UNKNOWN)),
                RequestProtocol::Http => None,
            },
            flags: end.flags,
        }
    }
}

/// What the labels follow from. Snapshot objects are immutable, so their addresses stand for their content;
/// a series in the cache holds them, which keeps their addresses from being given to others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) client: &'a RequestClient,
    pub(super) service: Option<&'a Arc<Service>>,
    pub(super) destination: Option<&'a RequestDestination>,
    pub(super) protocol: RequestProtocol,
    pub(super) telemetry: &'a Arc<Telemetry>,
    pub(super) ending: Ending,
}

impl Facts<'_> {
    /// Leaves the client's identity out: it follows from the workload nearly always, and is long.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.client
            .workload
            .as_ref()
            .map(Arc::as_ptr)
            .hash(&mut hasher);
        self.service.map(Arc::as_ptr).hash(&mut hasher);
        self.destination
            .map(|found| Arc::as_ptr(&found.workload))
            .hash(&mut hasher);
        self.protocol.hash(&mut hasher);
        self.ending.hash(&mut hasher);
        hasher.finish()
    }

    fn is_same(&self, other: &Facts<'_>) -> bool {
        let (client, others) = (self.client, other.client);
        self.ending == other.ending
            && self.protocol == other.protocol
            && client.security == others.security
            && same_object(client.workload.as_ref(), others.workload.as_ref())
            && same_object(self.service, other.service)
            && same_destination(self.destination, other.destination)
            && same_changes(self.telemetry, other.telemetry)
            && client.identity == others.identity
    }
}

fn same_destination(one: Option<&RequestDestination>, other: Option<&RequestDestination>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => {
            one.security == other.security && Arc::ptr_eq(&one.workload, &other.workload)
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Only what changes labels matters; it is the same object for most services, and usually empty.
fn same_changes(one: &Arc<Telemetry>, other: &Arc<Telemetry>) -> bool {
    Arc::ptr_eq(&one.metrics, &other.metrics) || one.metrics == other.metrics
}

fn same_object<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}
