//! ztunnel's DNS metrics, under its names.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use userspace_l7::model::Workload;

use super::Transport;

/// Seconds: a cache on the node, a resolver in the cluster, one far away, and what times out.
const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// The proxy's counters. Clones share them.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    requests: Family<Labels, Counter>,
    upstream_requests: Family<Labels, Counter>,
    upstream_failures: Family<Labels, Counter>,
    upstream_duration: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl DnsMetrics {
    /// Counters that all stand at zero.
    pub fn new() -> Self {
        Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        }
    }

    /// Makes the counters part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "istio_dns_requests",
            "The total number of DNS queries of pods (unstable)",
            self.requests.clone(),
        );
        registry.register(
            "istio_dns_upstream_requests",
            "The total number of DNS queries passed on to a resolver (unstable)",
            self.upstream_requests.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "The total number of DNS queries that a resolver did not answer (unstable)",
            self.upstream_failures.clone(),
        );
        registry.register_with_unit(
            "istio_dns_upstream_request_duration",
            "How long resolvers take to answer (unstable)",
            Unit::Seconds,
            self.upstream_duration.clone(),
        );
    }

    pub(super) fn request(&self, labels: &Labels) {
        let _new_value = self.requests.get_or_create(labels).inc();
    }

    pub(super) fn upstream(&self, labels: &Labels, answered: bool, took: Duration) {
        let _new_value = self.upstream_requests.get_or_create(labels).inc();
        if answered {
            self.upstream_duration
                .get_or_create(labels)
                .observe(took.as_secs_f64());
        } else {
            let _new_value = self.upstream_failures.get_or_create(labels).inc();
        }
    }
}

/// What a query is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    query_type: &'static str,
    protocol: &'static str,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
}

impl Labels {
    pub(super) fn new(
        client: &Workload,
        query_type: Option<RecordType>,
        transport: Transport,
    ) -> Self {
        Self {
            query_type: query_type.map_or("unknown", type_name),
            protocol: match transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            },
            canonical_service: Arc::clone(&client.canonical_name),
            canonical_revision: Arc::clone(&client.canonical_revision),
        }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("request_query_type", self.query_type).encode(encoder.encode_label())?;
        ("request_protocol", self.protocol).encode(encoder.encode_label())?;
        ("source_canonical_service", &*self.canonical_service).encode(encoder.encode_label())?;
        ("source_canonical_revision", &*self.canonical_revision).encode(encoder.encode_label())
    }
}

/// A pod chooses the type, so only those in use have a label of their own.
fn type_name(query_type: RecordType) -> &'static str {
    match query_type {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::CNAME => "CNAME",
        RecordType::HTTPS => "HTTPS",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}
