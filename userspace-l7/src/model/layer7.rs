//! What layer 7 does for one service or workload that is bound to a waypoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::app_protocol::AppProtocol;
use super::http_policy::HttpPolicy;
use super::http_route::{HttpRouteTable, WeightedBackend};
use super::identity::SpiffeId;
use super::jwt::JwtRule;
use super::policy::ServiceAccountMatch;
use super::rate_limit::RateLimit;
use super::service::NamespacedHostname;
use super::snapshot::Map;
use super::telemetry::Telemetry;

/// `<namespace>/<name>` of a Gateway that is a waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaypointKey {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Object name.
    pub name: Arc<str>,
}

impl std::fmt::Display for WaypointKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Layer 7 of a service that is bound to a waypoint. The client's node routes by it, the server's node
/// authorizes by it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceLayer7 {
    /// The waypoint that the service is bound to.
    pub waypoint: WaypointKey,
    /// Who the waypoint would be as a pod of its own: what L4 policies of the form "only the waypoint may
    /// call" name.
    pub waypoint_identity: SpiffeId,
    /// What each service port does. Every port of the service is here.
    pub ports: BTreeMap<u16, Arc<PortLayer7>>,
    /// What is demanded of requests.
    pub demands: Arc<Demands>,
    /// What is recorded of requests.
    pub telemetry: Arc<Telemetry>,
    /// Whether requests of clients outside the mesh, which no agent of theirs routes, meet its demands, too.
    pub ingress: bool,
    /// The second waypoint that some connections go through instead.
    pub canary: Option<CanaryLayer7>,
}

/// A second waypoint of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryLayer7 {
    /// Of a hundred connections, how many go through it: 1 to 100.
    pub weight: u8,
    /// What it does; without a canary of its own.
    pub layer7: Arc<ServiceLayer7>,
}

/// Which of a service's waypoints a connection goes through: chosen once, where the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that the service is bound to.
    #[default]
    Primary,
    /// The second one.
    Canary,
}

impl ServiceLayer7 {
    /// What holds for a connection on this side. One whose canary is gone is the primary's.
    pub fn at(self: &Arc<Self>, side: Side) -> &Arc<Self> {
        match (side, &self.canary) {
            (Side::Canary, Some(canary)) => &canary.layer7,
            _ => self,
        }
    }

    /// The side of a new connection; `choose` gives a number below its argument, each as likely as the other.
    pub fn choose(&self, choose: impl FnOnce(u32) -> u32) -> Side {
        match &self.canary {
            Some(canary) if choose(100) < u32::from(canary.weight) => Side::Canary,
            _ => Side::Primary,
        }
    }
}

/// One port of a service with layer 7.
#[derive(Clone, Debug, PartialEq)]
pub struct PortLayer7 {
    /// What it speaks.
    pub protocol: AppProtocol,
    /// Routes for every client (producer routes): of the service's own namespace, or of its waypoint's.
    pub routes: PortRoutes,
    /// Routes of a client's own namespace, in place of the producer's (GEP-1324: consumer routes; "no
    /// merging across the groups").
    pub consumer_routes: BTreeMap<Arc<str>, PortRoutes>,
    /// Limits on requests and connections to this port, at the client's node.
    pub rate_limits: Arc<[Arc<RateLimit>]>,
}

impl PortLayer7 {
    /// The routes that hold for a client of this namespace.
    pub fn routes_for(&self, client_namespace: &str) -> &PortRoutes {
        self.consumer_routes
            .get(client_namespace)
            .unwrap_or(&self.routes)
    }

    /// Whether those are of the client's own making.
    pub fn has_consumer_routes(&self, client_namespace: &str) -> bool {
        self.consumer_routes.contains_key(client_namespace)
    }
}

/// Which routes are attached to a port. Of several kinds only the first applies: GRPCRoute, HTTPRoute,
/// TLSRoute, TCPRoute (GEP-1294).
#[derive(Clone, Debug, PartialEq, Default)]
pub enum PortRoutes {
    /// None: everything goes to the service's own endpoints.
    #[default]
    None,
    /// HTTPRoutes, GRPCRoutes or a VirtualService's `http`. What matches none of them is answered with 404.
    Http(Arc<HttpRouteTable>),
    /// A TCPRoute or TLSRoute: connections are spread by weight. Empty, all zero or invalid: refused.
    Tcp(Arc<[WeightedBackend]>),
}

/// What is demanded of requests to a service or workload, wherever it is enforced.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Demands {
    /// Policies that speak about it: by targetRef to itself, to its waypoint, or to the waypoint's class.
    /// In no order: DENY beats ALLOW.
    pub authorization: Vec<Arc<HttpPolicy>>,
    /// JWT rules of all RequestAuthentications that speak about it.
    pub authentication: Vec<Arc<JwtRule>>,
    /// Whether the application is told who calls (`x-forwarded-client-cert`).
    pub names_clients: bool,
    /// Clients that are believed when they say whom they forward a request for (`x-forwarded-for`): ingress gateways.
    pub forwarders: Vec<ServiceAccountMatch>,
}

impl Demands {
    /// Whether every request passes.
    pub fn is_empty(&self) -> bool {
        self.authorization.is_empty() && self.authentication.is_empty()
    }
}

/// Layer 7 of a workload that is bound to a waypoint for workloads: traffic to its own address.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadLayer7 {
    /// The waypoint that the workload is bound to.
    pub waypoint: WaypointKey,
    /// As for services.
    pub waypoint_identity: SpiffeId,
    /// What is demanded of requests to the workload's own address.
    pub demands: Arc<Demands>,
}

/// Layer 7 by service.
pub type ServicesLayer7 = Map<NamespacedHostname, Arc<ServiceLayer7>>;
