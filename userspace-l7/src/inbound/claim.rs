//! Whether a client called the service that it says it called. Pure. A claim is no privilege: any client may
//! call any service, and has to meet that service's demands.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::hbone::{OpeningClaim, ServiceClaim};
use crate::model::{
    AppProtocol, BackendTarget, HttpAction, HttpRouteTable, NamespacedHostname, Opening,
    PortLayer7, PortRoutes, ServiceLayer7, Side, Snapshot, Workload,
};

/// A claim that the mesh bears out.
#[derive(Clone, Debug)]
pub(super) struct Believed {
    pub(super) service: NamespacedHostname,
    /// Service port.
    pub(super) port: u16,
    pub(super) protocol: AppProtocol,
    /// Any client may go through either waypoint: which one it takes is chance.
    pub(super) side: Side,
    pub(super) layer7: Arc<ServiceLayer7>,
}

/// Believes a claim if its service selects this workload at this port, or has a route to one that does.
pub(super) fn believe(
    snapshot: &Snapshot,
    workload: &Workload,
    to: SocketAddr,
    claim: &ServiceClaim,
) -> Option<Believed> {
    let called = NamespacedHostname {
        namespace: claim.namespace.as_str().into(),
        hostname: claim.host.as_str().into(),
    };
    let layer7 = snapshot.services_layer7.get(&called)?;
    let port = layer7.ports.get(&claim.port)?;
    let serves = |service: &NamespacedHostname, port: u16| {
        selects(snapshot, workload, to.port(), service, port)
    };
    let is_true = serves(&called, claim.port) || leads_to(port, &serves);
    is_true.then(|| Believed {
        service: called,
        port: claim.port,
        protocol: port.protocol,
        side: claim.side,
        layer7: Arc::clone(layer7.at(claim.side)),
    })
}

/// As what a connection has to begin by the policy that a client's node goes by, if that policy is about this workload
/// and port and wants anything at all.
pub(super) fn opening(
    snapshot: &Snapshot,
    workload: &Workload,
    to: SocketAddr,
    claim: &OpeningClaim,
) -> Option<Opening> {
    let service = NamespacedHostname {
        namespace: claim.service.namespace.as_str().into(),
        hostname: claim.service.host.as_str().into(),
    };
    let port = claim.service.port;
    if !selects(snapshot, workload, to.port(), &service, port) {
        return None;
    }
    let traffic = snapshot.traffic.get(&service)?;
    let policy = traffic.policy_for(port, claim.subset.as_deref());
    let opening = Some(&policy.opening);
    opening.filter(|opening| !opening.is_nothing()).cloned()
}

/// The service that a client outside the mesh called by calling this workload at this port: one that wants such
/// clients to meet its demands. Nothing says which it meant if there are several: the first by name is taken.
pub(super) fn from_outside(
    snapshot: &Snapshot,
    workload: &Workload,
    to: SocketAddr,
    choose: impl FnOnce(u32) -> u32,
) -> Option<Believed> {
    let services = workload.services.iter();
    let mut called = services.filter_map(|service| {
        let layer7 = snapshot.services_layer7.get(service);
        let layer7 = layer7.filter(|layer7| layer7.ingress)?;
        let serves = |port: &u16| selects(snapshot, workload, to.port(), service, *port);
        let (port, settings) = layer7.ports.iter().find(|(port, _)| serves(port))?;
        Some((service, *port, settings.protocol, layer7))
    });
    let (service, port, protocol, layer7) = called.next()?;
    let side = layer7.choose(choose);
    Some(Believed {
        service: service.clone(),
        port,
        protocol,
        side,
        layer7: Arc::clone(layer7.at(side)),
    })
}

fn selects(
    snapshot: &Snapshot,
    workload: &Workload,
    target: u16,
    service: &NamespacedHostname,
    port: u16,
) -> bool {
    let Some(found) = snapshot.services.get(service) else {
        return false;
    };
    let mut endpoints = snapshot.endpoints_of(service).iter();
    endpoints.any(|endpoint| {
        endpoint.workload == workload.uid && endpoint.target_port(found, port) == Some(target)
    })
}

/// Whether any route of a port leads to a service port that serves.
fn leads_to(port: &PortLayer7, serves: &impl Fn(&NamespacedHostname, u16) -> bool) -> bool {
    let is_served = |target: &BackendTarget| match target {
        BackendTarget::Service { service, port, .. } => serves(service, *port),
        BackendTarget::Invalid { .. } => false,
    };
    let by_table = |table: &HttpRouteTable| {
        let mut last = std::ptr::null();
        table.entries().iter().any(|entry| {
            // Entries of one rule stand near each other.
            let rule = Arc::as_ptr(&entry.rule);
            let is_new = std::mem::replace(&mut last, rule) != rule;
            let forwards = match &entry.rule.action {
                HttpAction::Forward(backends) => backends.as_slice(),
                HttpAction::Redirect(_) | HttpAction::Respond { .. } => &[],
            };
            is_new
                && (forwards.iter().any(|backend| is_served(&backend.target))
                    || entry
                        .rule
                        .mirrors
                        .iter()
                        .any(|mirror| is_served(&mirror.target)))
        })
    };
    let mut all = std::iter::once(&port.routes).chain(port.consumer_routes.values());
    all.any(|routes| match routes {
        PortRoutes::None => false,
        PortRoutes::Http(table) => by_table(table),
        PortRoutes::Tcp(backends) => backends.iter().any(|backend| is_served(&backend.target)),
    })
}
