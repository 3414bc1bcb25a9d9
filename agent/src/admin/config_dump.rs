//! `/config_dump` in ztunnel's shape, which `istioctl ztunnel-config` and `culvert get` read.
//!
//! These types are the contract: the server writes them one by one (a mesh's dump is never held as values),
//! the command line reads them back. Readers tolerate absent and unknown keys, so that a dump of another
//! version, or of a ztunnel, can be looked at too.

mod build;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use build::{Sources, write};

/// The whole dump, for reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigDump {
    /// Everything that runs.
    pub workloads: Vec<WorkloadDump>,
    /// Every service.
    pub services: Vec<ServiceDump>,
    /// Every L4 policy.
    pub policies: Vec<PolicyDump>,
    /// This node's identities.
    pub certificates: Vec<CertificateDump>,
    /// This node's pods by uid.
    pub workload_state: BTreeMap<String, WorkloadStateDump>,
    /// Settings in force.
    pub config: serde_json::Value,
    /// What is running.
    pub version: VersionDump,
}

/// One workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::Workload"
)]
pub struct WorkloadDump {
    pub uid: String,
    pub workload_ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<AddressedWaypoint>,
    pub protocol: String,
    pub network_mode: String,
    pub name: String,
    pub namespace: String,
    pub trust_domain: String,
    pub service_account: String,
    pub network: String,
    pub workload_name: String,
    pub workload_type: String,
    pub canonical_name: String,
    pub canonical_revision: String,
    pub hostname: String,
    pub node: String,
    pub native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_tunnel: Option<ApplicationTunnelDump>,
    pub authorization_policies: Vec<String>,
    pub status: String,
    pub cluster_id: String,
    pub locality: LocalityDump,
    pub services: Vec<String>,
    pub capacity: u32,
}

/// How a waypoint is handed connections for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplicationTunnelDump {
    /// `PROXY` or `NONE`.
    pub protocol: String,
    /// The port that takes them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A waypoint by `<namespace>/<hostname>` of its service, or by `<network>/<ip>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressedWaypoint {
    /// Which one.
    pub destination: String,
    /// Its HBONE port.
    pub hbone_mtls_port: u16,
}

/// Known parts only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::Locality"
)]
pub struct LocalityDump {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subzone: String,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::Service"
)]
pub struct ServiceDump {
    pub name: String,
    pub namespace: String,
    pub hostname: String,
    /// `<network>/<ip>`.
    pub vips: Vec<String>,
    /// `<network>/<cidr>`.
    pub cidr_vips: Vec<String>,
    /// Service port → target port; 0 where each endpoint has its own.
    pub ports: BTreeMap<u16, u16>,
    /// By workload uid.
    pub endpoints: BTreeMap<String, EndpointDump>,
    pub subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<AddressedWaypoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_families: Option<String>,
    pub canonical: bool,
    pub visibility: String,
}

/// One endpoint of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointDump {
    /// The workload that answers.
    pub workload_uid: String,
    /// Service port → port of the endpoint.
    pub port: BTreeMap<u16, u16>,
    /// `Healthy` or `Unhealthy`.
    pub status: String,
}

/// How a service spreads connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::LoadBalancer"
)]
pub struct LoadBalancerDump {
    pub mode: String,
    pub routing_preferences: Vec<String>,
    pub health_policy: String,
}

/// One policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::AuthorizationPolicy"
)]
pub struct PolicyDump {
    pub name: String,
    pub namespace: String,
    pub scope: String,
    pub action: String,
    pub dry_run: bool,
    /// Rules (or) of clauses (and) of matches (or).
    pub rules: Vec<Vec<Vec<MatchDump>>>,
}

/// One match; empty fields are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::Match"
)]
pub struct MatchDump {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatchDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatchDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatchDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatchDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
}

/// `{"Exact": "x"}` and so on, `{"Presence": []}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::StringMatch"
)]
pub enum StringMatchDump {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence([(); 0]),
}

/// A service account of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by model::ServiceAccountMatch"
)]
pub struct ServiceAccountDump {
    pub namespace: String,
    pub service_account: String,
}

/// One identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateDump {
    /// SPIFFE URI.
    pub identity: String,
    /// `Available`, `Initializing` or `Unavailable: <why>`.
    pub state: String,
    /// Leaf first.
    pub cert_chain: Vec<CertificateEntryDump>,
    /// Trusted roots.
    pub root_certs: Vec<CertificateEntryDump>,
}

/// One certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateEntryDump {
    /// Base64 of the PEM text.
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expiration_time: String,
}

/// One local pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStateDump {
    /// `Up` or `Pending`.
    pub state: String,
    /// Who it is.
    pub info: PodInfoDump,
    /// What it talks to.
    pub connections: ConnectionsDump,
}

/// Who a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own, documented by admin::PodStatus"
)]
pub struct PodInfoDump {
    pub name: String,
    pub namespace: String,
    pub trust_domain: String,
    pub service_account: String,
}

/// A pod's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionsDump {
    /// To the pod.
    pub inbound: Vec<ConnectionDump>,
    /// From the pod.
    pub outbound: Vec<ConnectionDump>,
}

/// One connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionDump {
    /// The client's address.
    pub src: String,
    /// Outbound: the address that was dialled. Inbound: the service that was dialled, if it is known.
    pub original_dst: Option<String>,
    /// Where it goes.
    pub actual_dst: String,
    /// `HBONE` or `TCP`.
    pub protocol: String,
}

/// What is running.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the keys are ztunnel's own and say what they mean"
)]
pub struct VersionDump {
    pub version: String,
    pub git_revision: String,
    pub rust_version: String,
    pub build_profile: String,
    pub build_status: String,
    pub istio_version: String,
    pub crypto_provider: String,
}
