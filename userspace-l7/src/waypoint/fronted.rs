//! What clients of other data planes ask a waypoint for, which were told that the waypoint is a pod of this node: they
//! come through HBONE and name a service, by address or by hostname, or a workload (Istio's waypoints are asked so by
//! ztunnel). Requests to services are served as the pod's own, with two differences: they are judged here, by what the
//! client proved to be, and go on in the waypoint's own name, since the client's key is on its own node and nobody here
//! can prove to be it.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use super::client::{Client, Requester};
use super::serve_tracked;
use crate::hbone::Authority;
use crate::http::{Version, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, Service, Side, Snapshot, SpiffeId, WaypointReference, Workload};
use crate::pod::Pod;
use crate::route::OWN_PORTS;
use crate::telemetry::{RequestClient, Security};

/// What a waypoint is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Fronted {
    pub(crate) what: Behind,
    /// The address that was asked for; a service's own where it was asked for by name.
    pub(crate) dialled: SocketAddr,
}

/// What is behind a waypoint.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    /// A port of a service, and what it speaks.
    Service(Arc<Service>, AppProtocol),
    /// A workload's own address.
    Workload(Arc<Workload>),
}

/// Why a waypoint does not serve an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
    /// The service has no such port.
    #[error("the service has no port {0}")]
    Port(u16),
    /// The service is nothing but a name.
    #[error("{0} has no address of its own")]
    Nameless(String),
}

/// What a request means at a local pod that arrived on an address of its family; `None`: nothing that the pod is the
/// waypoint of. A pod is a waypoint if it is an endpoint of the Service of the waypoint's name, which the agents play.
///
/// # Errors
/// [`Unserved`]: it is, and this is not one to ask for.
pub(crate) fn fronted(
    snapshot: &Snapshot,
    pod: &Workload,
    wanted: &Authority,
    arrived_at: IpAddr,
) -> Result<Option<Fronted>, Unserved> {
    let (service, named, port) = match wanted {
        Authority::Host { host, port } => {
            (snapshot.service_named(host, &pod.namespace), None, *port)
        }
        Authority::Address(address) => {
            let ip = address.ip().to_canonical();
            if let Some(workload) = snapshot.workload_at(ip) {
                let dialled = SocketAddr::new(ip, address.port());
                return Ok(fronted_workload(snapshot, pod, workload, dialled));
            }
            let service = snapshot.service_at(ip, &pod.namespace);
            (service, Some(ip), address.port())
        }
    };
    let Some((service, layer7)) = service.and_then(|service| {
        let layer7 = snapshot.services_layer7.get(&service.key);
        let is_here = is_waypoint_of(snapshot, pod, service.waypoint.as_ref());
        layer7.filter(|_| is_here).map(|layer7| (service, layer7))
    }) else {
        return Ok(None);
    };
    let protocol = layer7
        .ports
        .get(&port)
        .ok_or(Unserved::Port(port))?
        .protocol;
    let of_family = |vip: &&IpAddr| vip.is_ipv4() == arrived_at.to_canonical().is_ipv4();
    let vips = || service.vips.iter();
    let address = named
        .or_else(|| vips().find(of_family).or_else(|| vips().next()).copied())
        .ok_or_else(|| Unserved::Nameless(service.key.to_string()))?;
    Ok(Some(Fronted {
        what: Behind::Service(Arc::clone(service), protocol),
        dialled: SocketAddr::new(address, port),
    }))
}

fn fronted_workload(
    snapshot: &Snapshot,
    pod: &Workload,
    workload: &Arc<Workload>,
    dialled: SocketAddr,
) -> Option<Fronted> {
    let is_served = workload.uid != pod.uid
        && snapshot.workloads_layer7.contains_key(&workload.uid)
        && is_waypoint_of(snapshot, pod, workload.waypoint.as_ref())
        && !OWN_PORTS.contains(&dialled.port());
    is_served.then(|| Fronted {
        what: Behind::Workload(Arc::clone(workload)),
        dialled,
    })
}

fn is_waypoint_of(
    snapshot: &Snapshot,
    pod: &Workload,
    reference: Option<&WaypointReference>,
) -> bool {
    reference.is_some_and(|reference| {
        let mut instances = snapshot.endpoints_of(&reference.destination).iter();
        !reference.is_foreign && instances.any(|instance| instance.workload == pod.uid)
    })
}

/// Who asks, and for what.
pub(crate) struct Another {
    pub(crate) source: SocketAddr,
    pub(crate) identity: SpiffeId,
    pub(crate) service: Arc<Service>,
    pub(crate) dialled: SocketAddr,
    /// Through which of the service's waypoints.
    pub(crate) side: Side,
}

/// Serves the requests of a stream to its end.
///
/// # Cancel safety
/// Dropping the future resets the stream and drops its requests.
pub(crate) async fn serve_another(
    hub: &Rc<Hub>,
    pod: &Pod,
    workload: Arc<Workload>,
    another: Another,
    (version, wire): (Version, Wire),
) {
    let Another {
        source,
        identity,
        service,
        dialled,
        side,
    } = another;
    let recorded = Arc::new(RequestClient {
        workload: hub.snapshot().workload_at(source.ip()).map(Arc::clone),
        identity: Some(identity.clone()),
        address: source,
        dialled,
        security: Security::MutualTls,
    });
    let client = Client {
        hub: Rc::clone(hub),
        pod: pod.clone(),
        workload,
        side,
        requester: Requester::Another(identity),
        service,
        source,
        dialled,
        recorded,
    };
    serve_tracked(client, version, wire).await;
}

#[cfg(test)]
mod tests;
