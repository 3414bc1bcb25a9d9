//! The label sets of Istio's standard metrics, in closed types: a label's value comes from an enum or from
//! the snapshot, never from what a peer sent. What is not known is the literal `unknown`.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::flow::Flow;
use crate::model::{NamespacedHostname, PolicyKey, SpiffeId, Workload};

/// Which end of a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The access log's word for it, relative to the local workload.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// Whether the peer was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Mutual TLS: both identities are proven.
    MutualTls,
    /// The kernel: both are pods of one node, and no byte has left it.
    Kernel,
    /// Plain TCP.
    Unknown,
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a connection failed, in Istio's closed vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// `-`: nothing to say; also failures that the list has no word for, such as a reset.
    None,
    /// An authorization policy refused it.
    Deny,
    /// The TCP connection to the next hop could not be made.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// HTTP/2 could not be agreed on.
    H2HandshakeFailure,
    /// The peer is reachable, but HBONE to it is not: a `NetworkPolicy` without port 15008
    NetworkPolicy,
    /// No certificate of our own to speak with.
    IdentityError,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl ResponseFlags {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// Who one end of a connection is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Party {
    workload: Option<WorkloadLabels>,
    /// With its `spiffe://`.
    principal: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WorkloadLabels {
    name: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    namespace: Arc<str>,
    cluster: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
}

impl Party {
    fn new(workload: Option<&Arc<Workload>>, identity: Option<&SpiffeId>) -> Self {
        Self {
            workload: workload.map(|found| WorkloadLabels {
                name: Arc::clone(&found.workload_name),
                canonical_service: Arc::clone(&found.canonical_name),
                canonical_revision: Arc::clone(&found.canonical_revision),
                namespace: Arc::clone(&found.namespace),
                cluster: Arc::clone(&found.cluster),
                region: Arc::clone(&found.locality.region),
                zone: Arc::clone(&found.locality.zone),
            }),
            principal: identity.map(|id| id.to_string().into()),
        }
    }

    fn encode(&self, side: &PartyNames, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let known = self.workload.as_ref();
        let canonical_service = known.map(|found| &found.canonical_service);
        let canonical_revision = known.map(|found| &found.canonical_revision);
        label(encoder, side.workload, known.map(|found| &found.name))?;
        label(encoder, side.canonical_service, canonical_service)?;
        label(encoder, side.canonical_revision, canonical_revision)?;
        label(encoder, side.namespace, known.map(|found| &found.namespace))?;
        label(encoder, side.principal, self.principal.as_ref())?;
        label(encoder, side.app, canonical_service)?;
        label(encoder, side.version, canonical_revision)?;
        label(encoder, side.cluster, known.map(|found| &found.cluster))
    }

    /// Locality stands in a series only where it is known, so that clusters without it keep short ones.
    fn encode_locality(&self, side: &PartyNames, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Some(found) = &self.workload else {
            return Ok(());
        };
        for (name, value) in [(side.region, &found.region), (side.zone, &found.zone)] {
            if !value.is_empty() {
                (name, &**value).encode(encoder.encode_label())?;
            }
        }
        Ok(())
    }
}

struct PartyNames {
    workload: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
    region: &'static str,
    zone: &'static str,
}

const SOURCE: PartyNames = PartyNames {
    workload: "source_workload",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
    region: "source_region",
    zone: "source_zone",
};

const DESTINATION: PartyNames = PartyNames {
    workload: "destination_workload",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
    region: "destination_region",
    zone: "destination_zone",
};

/// Istio's labels for TCP traffic, in the order in which ztunnel writes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TrafficLabels {
    reporter: Reporter,
    source: Party,
    destination: Party,
    service: Option<(NamespacedHostname, Arc<str>)>,
    flags: ResponseFlags,
    security: Security,
}

impl TrafficLabels {
    pub(super) fn of(flow: &Flow) -> Self {
        let service = flow.service.as_ref();
        Self {
            reporter: flow.reporter,
            source: Party::new(flow.source.as_ref(), flow.source_identity.as_ref()),
            destination: Party::new(
                flow.destination.as_ref(),
                flow.destination_identity.as_ref(),
            ),
            service: service.map(|found| (found.key.clone(), Arc::clone(&found.name))),
            flags: ResponseFlags::None,
            security: flow.security,
        }
    }

    pub(super) fn with_flags(&self, flags: ResponseFlags) -> Self {
        Self {
            flags,
            ..self.clone()
        }
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("reporter", self.reporter.as_str()).encode(encoder.encode_label())?;
        self.source.encode(&SOURCE, encoder)?;
        let key = self.service.as_ref().map(|(key, _name)| key);
        label(encoder, "destination_service", key.map(|key| &key.hostname))?;
        label(
            encoder,
            "destination_service_namespace",
            key.map(|key| &key.namespace),
        )?;
        let name = self.service.as_ref().map(|(_key, name)| name);
        label(encoder, "destination_service_name", name)?;
        self.destination.encode(&DESTINATION, encoder)?;
        ("request_protocol", "tcp").encode(encoder.encode_label())?;
        ("response_flags", self.flags.as_str()).encode(encoder.encode_label())?;
        ("connection_security_policy", self.security.as_str()).encode(encoder.encode_label())?;
        self.source.encode_locality(&SOURCE, encoder)?;
        self.destination.encode_locality(&DESTINATION, encoder)
    }
}

/// `reporter` alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReporterLabel {
    pub(super) reporter: Reporter,
}

impl EncodeLabelSet for ReporterLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("reporter", self.reporter.as_str()).encode(encoder.encode_label())
    }
}

/// Labels of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RefusalLabels {
    pub(super) reporter: Reporter,
    pub(super) flags: ResponseFlags,
}

impl EncodeLabelSet for RefusalLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("reporter", self.reporter.as_str()).encode(encoder.encode_label())?;
        ("response_flags", self.flags.as_str()).encode(encoder.encode_label())
    }
}

/// Labels of a question that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct QuestionLabels {
    pub(super) service: String,
    pub(super) admitted: bool,
}

impl EncodeLabelSet for QuestionLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let outcome = if self.admitted { "admitted" } else { "refused" };
        ("service", self.service.as_str()).encode(encoder.encode_label())?;
        ("outcome", outcome).encode(encoder.encode_label())
    }
}

/// The action of a policy that is only watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the API's own words")]
pub enum WatchedAction {
    Allow,
    Deny,
}

/// Labels of what a policy that is only watched would have done; action and result as Istio names them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WatchedLabels {
    pub(super) policy: Option<PolicyKey>,
    pub(super) action: WatchedAction,
    pub(super) is_denied: bool,
}

impl EncodeLabelSet for WatchedLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let action = match self.action {
            WatchedAction::Allow => "allow",
            WatchedAction::Deny => "deny",
        };
        let result = if self.is_denied { "denied" } else { "allowed" };
        let policy = self.policy.as_ref().map(ToString::to_string);
        ("policy", policy.as_deref().unwrap_or("none")).encode(encoder.encode_label())?;
        ("authz_dry_run_action", action).encode(encoder.encode_label())?;
        ("authz_dry_run_result", result).encode(encoder.encode_label())
    }
}

/// An empty text is as unknown as an absent one: a workload outside Kubernetes has no cluster.
fn label(
    encoder: &mut LabelSetEncoder<'_>,
    name: &'static str,
    value: Option<&Arc<str>>,
) -> fmt::Result {
    let value = value
        .map(|text| &**text)
        .filter(|text| !text.is_empty())
        .unwrap_or("unknown");
    (name, value).encode(encoder.encode_label())
}
