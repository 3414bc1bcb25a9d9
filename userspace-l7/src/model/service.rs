//! Services: names and virtual addresses that stand for a set of endpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::workload::{Health, WaypointReference, WorkloadUid};

/// `<namespace>/<hostname>`: what names a service. Two namespaces may each declare one hostname
/// (two ServiceEntries for `api.example.com`), so the hostname alone does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// Kubernetes namespace of the declaring object.
    pub namespace: Arc<str>,
    /// Fully qualified, lower case, no trailing dot; may start with `*.`.
    pub hostname: Arc<str>,
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name; empty if it has none.
    pub name: Arc<str>,
    /// The number that endpoints without a port of their own use; 0 where a named target port has to be
    /// resolved per endpoint.
    pub target_port: u16,
    /// `appProtocol`, lower case; empty if unset.
    pub app_protocol: Arc<str>,
}

/// What endpoints have to share with the client to be preferred, most significant first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoutingScope {
    /// The same L3 network.
    Network,
    /// The same region.
    Region,
    /// The same zone.
    Zone,
    /// The same subzone.
    Subzone,
    /// The same node.
    Node,
    /// The same cluster.
    Cluster,
}

/// How strictly the scopes apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LoadBalancerMode {
    /// All endpoints alike.
    #[default]
    Any,
    /// Only endpoints that match every scope (`internalTrafficPolicy: Local`).
    Strict,
    /// The best-matching endpoints there are (`trafficDistribution`).
    Failover,
    /// No choice: the address that was dialled (ServiceEntry `resolution: NONE`).
    Passthrough,
    /// No endpoints: what the name leads to that a client says (ServiceEntry `resolution: DYNAMIC_DNS`).
    ByName,
}

/// Which endpoints take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HealthPolicy {
    /// Ready endpoints only.
    #[default]
    OnlyHealthy,
    /// All of them (`publishNotReadyAddresses`).
    AllowAll,
}

/// How a service spreads its connections.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadBalancer {
    /// Strictness of the scopes.
    pub mode: LoadBalancerMode,
    /// Scopes, most significant first.
    pub scopes: SmallVec<[RoutingScope; 4]>,
    /// Whether unready endpoints take part.
    pub health: HealthPolicy,
    /// Whether all addresses of a name are dialled at once, for the first that answers.
    pub is_raced: bool,
}

/// Address families that a service is served in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum IpFamilies {
    /// As its addresses and endpoints have them.
    #[default]
    Automatic,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
    /// Both.
    Dual,
}

/// A service without its endpoints: those change far more often and live beside it in the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Object name.
    pub name: Arc<str>,
    /// What it is called and where it is declared.
    pub key: NamespacedHostname,
    /// Virtual addresses; empty for headless services.
    pub vips: SmallVec<[IpAddr; 2]>,
    /// ServiceEntry addresses that are ranges.
    pub cidr_vips: Vec<IpNet>,
    /// Service port → what it means.
    pub ports: BTreeMap<u16, ServicePort>,
    /// Spreading.
    pub load_balancer: LoadBalancer,
    /// Families it is served in.
    pub ip_families: IpFamilies,
    /// Identities that its endpoints may have besides their own, as full SPIFFE URIs.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Waypoint it is bound to.
    pub waypoint: Option<WaypointReference>,
    /// Declared by a Kubernetes Service rather than a ServiceEntry: preferred among equals.
    pub canonical: bool,
    /// Whether only clients of its own namespace see it (`exportTo: ["."]`).
    pub namespace_private: bool,
    /// The name that it only stands for (`type: ExternalName`): DNS answers with it, nothing is routed.
    pub alias: Option<Arc<str>>,
}

/// One endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload that answers.
    pub workload: WorkloadUid,
    /// Service port → port of this endpoint, where it differs from the service's target port.
    pub ports: SmallVec<[(u16, u16); 2]>,
    /// Ready or not, as the EndpointSlice or the Pod says.
    pub health: Health,
}

impl Endpoint {
    /// The endpoint's own port for a service port, or the service's if it has none.
    pub fn target_port(&self, service: &Service, port: u16) -> Option<u16> {
        let own = self
            .ports
            .iter()
            .find(|(from, _)| *from == port)
            .map(|(_, to)| *to);
        own.or_else(|| service.ports.get(&port).map(|found| found.target_port))
            .filter(|target| *target != 0)
    }
}
