//! Whether a client called the service that it says it called. Pure. A claim is no privilege: any client may
//! call any service, and has to meet that service's demands.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::hbone::{OpeningClaim, ServiceClaim};
use crate::model::{
    AppProtocol, NamespacedHostname, Opening, ServiceLayer7, Side, Snapshot, SpiffeId, Workload,
};
use crate::policy::{ServedPort, Way, selects, way};

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
    /// How it leads to the workload.
    pub(super) way: Way,
}

/// Believes a claim if its service selects this workload at this port, or has a route to one that does: for every
/// client, or for those of its proven namespace.
pub(super) fn believe(
    snapshot: &Snapshot,
    workload: &Workload,
    to: SocketAddr,
    (claim, client): (&ServiceClaim, &SpiffeId),
) -> Option<Believed> {
    let called = NamespacedHostname {
        namespace: claim.namespace.as_str().into(),
        hostname: claim.host.as_str().into(),
    };
    let layer7 = snapshot.services_layer7.get(&called)?.at(claim.side);
    let port = layer7.ports.get(&claim.port)?;
    let way = way(
        snapshot,
        (workload, to.port()),
        (&called, claim.port),
        port,
        Some(client.namespace()),
    )?;
    Some(Believed {
        service: called,
        port: claim.port,
        protocol: port.protocol,
        side: claim.side,
        layer7: Arc::clone(layer7),
        way,
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
        way: Way::Producer,
    })
}

impl Believed {
    /// The waypoint that the connection went through, as far as that gives it anything: not where the client's own
    /// namespace chose the way.
    pub(super) fn waypoint(&self) -> Option<&SpiffeId> {
        (self.way == Way::Producer).then_some(&self.layer7.waypoint_identity)
    }

    /// The services whose demands have to be met besides its own.
    pub(super) fn besides(&self) -> &[ServedPort] {
        match &self.way {
            Way::Producer => &[],
            Way::Consumer(by) => by,
        }
    }
}
