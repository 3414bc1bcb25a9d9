//! The label set of Istio's HTTP metrics.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::series::Facts;
use crate::model::{MetricOverride, SpiffeId, Workload};
use crate::telemetry::labels::Security;

/// A label's name and value.
type Label = (Arc<str>, Arc<str>);

/// Istio's labels for a request at a waypoint, with what a Telemetry object changes of them. Kept as texts:
/// two sets that print alike must be one series, whatever was left out of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestLabels(Arc<[Label]>);

impl RequestLabels {
    /// `reporter` is always `waypoint`: Culvert does the waypoint's work, wherever it does it.
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let mut labels = Labels(Vec::with_capacity(LABELS));
        let client = facts.client;
        labels.push("reporter", "waypoint");
        labels.party("source", client.workload.as_ref(), client.identity.as_ref());
        let service = facts.service;
        labels.shared(
            "destination_service",
            service.map(|found| &found.key.hostname),
        );
        labels.shared(
            "destination_service_namespace",
            service.map(|found| &found.key.namespace),
        );
        labels.shared("destination_service_name", service.map(|found| &found.name));
        let destination = facts.destination;
        let proven = destination
            .filter(|found| found.security == Security::MutualTls)
            .map(|found| found.workload.identity());
        labels.party(
            "destination",
            destination.map(|found| &found.workload),
            proven.as_ref(),
        );
        labels.push("request_protocol", facts.protocol.as_str());
        labels.push("response_code", &facts.ending.status.to_string());
        if let Some(status) = facts.ending.grpc_status {
            labels.push("grpc_response_status", &status.to_string());
        }
        labels.push("response_flags", &facts.ending.flags.to_string());
        labels.push("connection_security_policy", client.security.as_str());
        Self(labels.0.into())
    }

    /// The same labels as one metric shows them.
    pub(super) fn changed(&self, change: Option<&MetricOverride>) -> Self {
        let Some(change) = change.filter(|it| !it.remove.is_empty() || !it.set.is_empty()) else {
            return self.clone();
        };
        let replaced = |name: &Arc<str>| change.set.iter().any(|(set, _)| set == name);
        let kept = self
            .0
            .iter()
            .filter(|(name, _)| !change.remove.contains(name) && !replaced(name));
        Self(kept.chain(&change.set).cloned().collect())
    }
}

/// As many as a gRPC request has.
const LABELS: usize = 25;

struct Labels(Vec<Label>);

impl Labels {
    fn push(&mut self, name: &str, value: &str) {
        self.0.push((name.into(), value.into()));
    }

    /// An empty text is as unknown as an absent one: a workload outside Kubernetes has no cluster.
    fn shared(&mut self, name: &str, value: Option<&Arc<str>>) {
        let value = value.filter(|text| !text.is_empty()).cloned();
        self.0
            .push((name.into(), value.unwrap_or_else(|| "unknown".into())));
    }

    /// One end, in the order in which TCP metrics have it.
    fn party(&mut self, side: &str, workload: Option<&Arc<Workload>>, identity: Option<&SpiffeId>) {
        let revision = workload.map(|found| &found.canonical_revision);
        let service = workload.map(|found| &found.canonical_name);
        let principal = identity.map(|found| Arc::from(found.to_string()));
        for (name, value) in [
            ("workload", workload.map(|found| &found.workload_name)),
            ("canonical_service", service),
            ("canonical_revision", revision),
            ("workload_namespace", workload.map(|found| &found.namespace)),
            ("principal", principal.as_ref()),
            ("app", service),
            ("version", revision),
            ("cluster", workload.map(|found| &found.cluster)),
        ] {
            self.shared(&format!("{side}_{name}"), value);
        }
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(name, value)| (&**name, &**value).encode(encoder.encode_label()))
    }
}
