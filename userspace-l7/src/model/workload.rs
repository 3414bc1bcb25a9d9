//! Workloads: what runs at an address, who it is, and how to reach it.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use smallvec::SmallVec;

use super::identity::{SpiffeId, TrustDomain};
use super::policy::PolicyKey;
use super::service::NamespacedHostname;

/// Names a workload once and for all: `<cluster>/<group>/<kind>/<namespace>/<name>`, for a pod
/// `Kubernetes//Pod/bookinfo/reviews-v1-abc` (the form that istiod and ztunnel use).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(Arc<str>);

impl WorkloadUid {
    /// Wraps the text as it stands.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a flat L3 network; empty where a mesh has only one.
pub type Network = Arc<str>;

/// How peers reach a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// HBONE on port 15008.
    Hbone,
    /// Plain TCP: the workload is not captured.
    Tcp,
}

/// Which data plane answers for a workload (`culvert.dev/dataplane`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Peer {
    /// A Culvert agent: route at the source, authorize at the destination.
    #[default]
    Culvert,
    /// Istio's ztunnel: HBONE, but no layer 7 at the destination.
    Ztunnel,
}

/// Whether a workload has an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// Its own network namespace and address.
    #[default]
    Standard,
    /// The node's; its address names the node, so it is never looked up by address.
    HostNetwork,
}

/// Whether a workload takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// Ready and not terminating.
    #[default]
    Healthy,
    /// Left out of load balancing unless the service publishes unready addresses.
    Unhealthy,
}

/// Where a workload runs, from the labels of its Node. Empty parts are unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

/// What somebody wrote on a workload, sorted by name. Shared with the object that it is from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct WorkloadLabels(Arc<[(Arc<str>, Arc<str>)]>);

impl WorkloadLabels {
    /// Pairs that are sorted by name, each name once.
    pub fn new(sorted: Arc<[(Arc<str>, Arc<str>)]>) -> Self {
        Self(sorted)
    }

    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(own, _)| (**own).cmp(name)).ok()?;
        self.0.get(found).map(|(_, value)| &**value)
    }
}

/// The waypoint an object is bound to, by the waypoint's own service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WaypointReference {
    /// The waypoint Gateway's service.
    pub destination: NamespacedHostname,
    /// Its HBONE port, 15008 unless the Gateway says otherwise.
    pub hbone_port: u16,
    /// Whether it is somebody else, who does the waypoint's work at that service's endpoints. Otherwise it is the node
    /// agents, and the service need not exist.
    pub is_foreign: bool,
}

/// How an application that is a waypoint is handed connections that are for others: it listens for them as for its own,
/// and the node agent terminates HBONE before it (Istio: the "application tunnel").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// Whether each begins with a header of the PROXY protocol, which says who calls and what.
    pub has_header: bool,
    /// The port that takes them; without one, the port that was called.
    pub port: Option<NonZeroU16>,
}

/// One thing that runs: a Pod, a WorkloadEntry or an inline endpoint of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its lasting name.
    pub uid: WorkloadUid,
    /// Object name (for a Pod, the pod's name).
    pub name: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Service account; `default` where the object names none.
    pub service_account: Arc<str>,
    /// Trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// Addresses, the primary one first; empty for a workload known by hostname only.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// DNS name, for a workload without addresses; otherwise empty.
    pub hostname: Arc<str>,
    /// Node name; empty outside Kubernetes.
    pub node: Arc<str>,
    /// L3 network.
    pub network: Network,
    /// Own address, or the node's.
    pub network_mode: NetworkMode,
    /// Cluster it belongs to.
    pub cluster: Arc<str>,
    /// HBONE or plain TCP.
    pub protocol: TunnelProtocol,
    /// Who answers on its node.
    pub peer: Peer,
    /// `app` label's value, or the canonical name.
    pub canonical_name: Arc<str>,
    /// `version` label's value, or `latest`.
    pub canonical_revision: Arc<str>,
    /// Owner (deployment) name, as istiod derives it from the pod.
    pub workload_name: Arc<str>,
    /// `deployment`, `cronjob`, `job` or `pod`.
    pub workload_type: Arc<str>,
    /// Its labels.
    pub labels: WorkloadLabels,
    /// Region, zone, subzone.
    pub locality: Locality,
    /// Takes traffic or not.
    pub health: Health,
    /// Relative weight among endpoints; 0 is never chosen.
    pub capacity: u32,
    /// Services that select it, by name.
    pub services: Vec<NamespacedHostname>,
    /// Policies that select it by label, besides those of its namespace and of the mesh.
    pub authorization_policies: Vec<PolicyKey>,
    /// Workload waypoint, if it is bound to one.
    pub waypoint: Option<WaypointReference>,
    /// How it takes connections for others, if it is a waypoint that does not speak HBONE.
    pub application_tunnel: Option<ApplicationTunnel>,
}

impl Workload {
    /// Who it is.
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::new(
            self.trust_domain.clone(),
            Arc::clone(&self.namespace),
            Arc::clone(&self.service_account),
        )
    }
}
