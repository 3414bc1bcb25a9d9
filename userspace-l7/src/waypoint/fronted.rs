//! Clients of other data planes, which were told that the waypoint is a pod of this node: they come through
//! HBONE and ask for the address of a service (Istio's waypoints are asked so by ztunnel).
//!
//! Requests are judged here, by what the client proved to be, and go on in the waypoint's own name: the client's
//! key is on its own node, so nobody here can prove to be it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::client::{Client, Requester};
use super::serve;
use crate::hbone::{ErrorCode, Stream};
use crate::http::{self, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, Service, Snapshot, SpiffeId, Workload};
use crate::pod::Pod;
use crate::ring::RecvBuf;
use crate::telemetry::{RequestClient, Security};

/// A port of a service that a waypoint is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Fronted {
    service: Arc<Service>,
    dialled: SocketAddr,
    protocol: AppProtocol,
}

/// Why a waypoint does not serve an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
    /// The service has no such port.
    #[error("the service has no port {0}")]
    Port(u16),
    /// Only requests are served for clients of other data planes.
    #[error("port {0} speaks no HTTP")]
    Bytes(u16),
}

/// What `wanted` means at a local pod; `None`: nothing that the pod is the waypoint of. A pod is a waypoint if it is
/// an endpoint of the Service of the waypoint's name, which the agents play.
///
/// # Errors
/// [`Unserved`]: it is, and the address is not one to ask for.
pub(crate) fn fronted(
    snapshot: &Snapshot,
    pod: &Workload,
    wanted: SocketAddr,
) -> Result<Option<Fronted>, Unserved> {
    let dialled = SocketAddr::new(wanted.ip().to_canonical(), wanted.port());
    let found = snapshot
        .service_at(dialled.ip(), &pod.namespace)
        .and_then(|service| {
            let waypoint = service.waypoint.as_ref().filter(|one| !one.is_foreign)?;
            let mut endpoints = snapshot.endpoints_of(&waypoint.destination).iter();
            let is_here = endpoints.any(|endpoint| endpoint.workload == pod.uid);
            let layer7 = snapshot.services_layer7.get(&service.key);
            layer7.filter(|_| is_here).map(|layer7| (service, layer7))
        });
    let Some((service, layer7)) = found else {
        return Ok(None);
    };
    let port = dialled.port();
    let protocol = layer7
        .ports
        .get(&port)
        .ok_or(Unserved::Port(port))?
        .protocol;
    if !protocol.is_http() && protocol != AppProtocol::Detect {
        return Err(Unserved::Bytes(port));
    }
    Ok(Some(Fronted {
        service: Arc::clone(service),
        dialled,
        protocol,
    }))
}

/// Serves a stream to its end.
///
/// # Cancel safety
/// Dropping the future resets the stream and drops its requests.
pub(crate) async fn serve_another(
    hub: &Rc<Hub>,
    pod: &Pod,
    workload: Arc<Workload>,
    (source, identity): (SocketAddr, SpiffeId),
    (fronted, mut stream): (Fronted, Stream),
) {
    let receive = async || {
        let received = stream.recv().await.map_err(std::io::Error::from)?;
        Ok(RecvBuf::from(received.unwrap_or_default()))
    };
    let (version, early) = http::listen(receive, fronted.protocol).await;
    let Some(version) = version else {
        return stream.reset(ErrorCode::CONNECT_ERROR);
    };
    let recorded = Arc::new(RequestClient {
        workload: hub.snapshot().workload_at(source.ip()).map(Arc::clone),
        identity: Some(identity.clone()),
        address: source,
        dialled: fronted.dialled,
        security: Security::MutualTls,
    });
    let client = Client {
        hub: Rc::clone(hub),
        pod: pod.clone(),
        workload,
        side: hub.side(&fronted.service.key),
        requester: Requester::Another(identity),
        service: fronted.service,
        source,
        dialled: fronted.dialled,
        recorded,
    };
    serve(client, version, Wire::tunnel(stream, early)).await;
}
