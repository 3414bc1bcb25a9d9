//! The agent's HTTP servers for operators: administration on loopback (15000) and, for what changes the agent, on a
//! socket of root's, metrics (15020) and readiness (15021), and the log that goes with them.
//!
//! Shows what the rest of the agent knows through [`AdminState`]; keeps no state but the log level and
//! changes nothing but what its three POST paths say.

mod certificate;
mod config_dump;
mod explain;
#[cfg(test)]
pub(crate) mod fixture;
mod layer7_dump;
pub mod logging;
mod metrics;
mod routes;
mod server;
mod socket;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::sample_dump;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::Snapshot;
use userspace_l7::telemetry::Reporter;

use crate::mesh::status::ObjectStatus;
pub use certificate::{CertificateEntry, CertificateState, CertificateStatus, InvalidCertificate};
pub use config_dump::{
    AddressedWaypoint, ApplicationTunnelDump, CertificateDump, CertificateEntryDump, ConfigDump,
    ConnectionDump, ConnectionsDump, EndpointDump, LoadBalancerDump, LocalityDump, MatchDump,
    PodInfoDump, PolicyDump, ServiceAccountDump, ServiceDump, StringMatchDump, VersionDump,
    WorkloadDump, WorkloadStateDump,
};
pub use explain::{
    BackendStep, ClientStep, DestinationStep, EndpointStep, Expectation, Explanation, LimitStep,
    PolicyStep, Question, RouteStep, Unanswerable, WaypointStep, explain,
};
pub use layer7_dump::{BackendDump, Layer7Dump, ListenerDump, RouteDump};
pub use metrics::register;
pub use server::{
    ADMIN_PORT, AdminServer, BindError, Endpoints, METRICS_PORT, READINESS_PORT, Services,
};

/// The socket in an agent's run directory over which root changes it.
pub const SOCKET: &str = "admin.sock";

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the composition root lends to the servers. Called on the control plane's runtime: nothing here may
/// block.
pub trait AdminState: Send + Sync + 'static {
    /// The mesh as the workers see it.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Keys of tokens that were fetched.
    fn key_sets(&self) -> Arc<KeySets>;

    /// The certificates of this node's identities.
    fn certificates(&self) -> Vec<CertificateStatus>;

    /// Every connection that is carried now, asked of each worker.
    fn connections(&self) -> BoxFuture<'_, Vec<LiveConnection>>;

    /// The agent's own condition.
    fn status(&self) -> AgentStatus;

    /// What the owner of each object is told about it.
    fn objects(&self) -> Arc<[ObjectStatus]>;

    /// The settings in force, for reading only; without keys or tokens.
    fn config(&self) -> serde_json::Value;

    /// Begins a graceful stop. Pods stay armed, so that the next agent finds them and nothing leaves in
    /// the clear meanwhile.
    fn shut_down(&self);

    /// Releases every pod, removes all that the agent put into the kernel, then begins a stop. Resolves
    /// when the removal is done.
    fn unenrol(&self) -> BoxFuture<'_, Released>;
}

/// What `POST /unenrol` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Uids of the pods that run without the mesh now.
    pub pods: Vec<String>,
    /// What could not be removed, one sentence each; empty if nothing is left behind.
    pub failures: Vec<String>,
}

/// One carried connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConnection {
    /// The local workload.
    pub workload_uid: String,
    /// Outbound or inbound, seen from the workload.
    pub reporter: Reporter,
    /// The client's address.
    pub source: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// Hostname of the service that was dialled.
    pub service: Option<String>,
    /// Where the connection goes.
    pub actual_destination: SocketAddr,
    /// How it travels.
    pub carriage: Carriage,
}

/// How a connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// In a tunnel.
    Hbone,
    /// As plain TCP, through the proxy.
    Tcp,
    /// From pod to pod of this node, without the proxy.
    Direct,
}

/// The agent's own condition, as `GET /status` serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Node name.
    pub node: String,
    /// Generation of the snapshot in force.
    pub generation: u64,
    /// `io_uring` or `epoll`.
    pub ring_backend: String,
    /// Worker threads.
    pub workers: usize,
    /// Capabilities that the process still holds.
    pub capabilities: Vec<String>,
    /// What has to happen before the agent is ready; empty if it is.
    pub pending: Vec<String>,
    /// This node's pods.
    pub pods: Vec<PodStatus>,
    /// How many of them run outside of the mesh, because something is in the way of their capture.
    #[serde(default)]
    pub pods_hindered: usize,
    /// Manifests that could not be taken over; the last good state is in force.
    pub problems: Vec<ManifestProblem>,
    /// Manifests that are in force and probably not meant so: what they name is not there, or has no effect.
    #[serde(default)]
    pub warnings: Vec<ManifestProblem>,
    /// Keys of tokens that are fetched.
    #[serde(default)]
    pub key_sets: Vec<KeySetStatus>,
    /// How the cluster fares whose API the objects come from; absent where they come from a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// How istiod fares that layer 4 comes from; absent where it comes from the objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub istiod: Option<IstiodStatus>,
    /// How the CNI plugin fares; absent where the agent was not told to keep it in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_plugin: Option<PluginStatus>,
    /// How istio-cni fares that names the node's pods; absent where it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub istio_cni: Option<IstioCniStatus>,
    /// Repairs of the kernel's state since the start, by kind.
    pub repairs: BTreeMap<String, u64>,
    /// Pods armed since the start.
    pub pods_started: u64,
    /// Pods released since the start.
    pub pods_stopped: u64,
}

/// How the CNI plugin fares that keeps pods from starting before they are captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginStatus {
    /// Why it is not in place, in one sentence; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How istio-cni fares that names the node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IstioCniStatus {
    /// Where it listens.
    pub socket: String,
    /// Why it is not known now which pods it has in the mesh, in one sentence; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Workload uid.
    pub uid: String,
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Whether its traffic is captured.
    pub state: PodState,
    /// Why it is not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether its traffic within the node is encrypted, too.
    #[serde(default)]
    pub encrypted_within_node: bool,
}

/// Whether a pod's traffic is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodState {
    /// Captured, both ways.
    Up,
    /// Not yet.
    Pending,
    /// Not any more, but for connections that it had.
    Draining,
}

/// How a cluster fares that is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// URL of its API server.
    pub server: String,
    /// Whether it answers.
    pub reachable: bool,
    /// Objects in use, by the collections of the API.
    pub objects: BTreeMap<String, usize>,
    /// Collections that have not been listed yet; nothing is in force before they are.
    pub waiting: Vec<String>,
    /// Collections that the cluster does not have.
    pub not_installed: Vec<String>,
    /// What is in the way.
    pub troubles: Vec<ClusterTrouble>,
    /// Requests that failed since the start.
    pub refusals: u64,
}

/// Something that is in the way of collections of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterTrouble {
    /// When it began (RFC 3339).
    pub since: String,
    /// What it is, to be read after "the API server".
    pub message: String,
    /// Which collections stay as they are until it is over.
    pub resources: Vec<String>,
}

/// How istiod fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IstiodStatus {
    /// Where it is asked.
    pub address: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Since when there is none (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// What is in the way, to be read after "istiod".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Resources in use, by their types.
    pub resources: BTreeMap<String, usize>,
    /// Types of which nothing has been told yet; nothing is in force before.
    pub waiting: Vec<String>,
    /// Resources that are not taken over, each in a sentence.
    pub refused: Vec<String>,
    /// Connections that failed since the start.
    pub failures: u64,
    /// Resources that were refused since the start.
    pub refusals: u64,
}

/// One set of keys that tokens are signed with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeySetStatus {
    /// Where it is fetched from.
    pub source: String,
    /// How many keys are in force; `None`: there are none yet, and tokens of the issuer are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<usize>,
    /// When it was fetched last with success (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<String>,
    /// Why the last fetch failed, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the next fetch begins (RFC 3339); `None`: one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestProblem {
    /// The file.
    pub path: String,
    /// Line in the file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Kind and name of the object, `Service app/shop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Path of the field, `spec.ports[0].port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, in one sentence.
    pub message: String,
}
