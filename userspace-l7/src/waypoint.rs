//! L6: the journey of a request at its client's node: the work of a waypoint, done for one local pod.
//!
//! ```text
//!  application ─► welcome ─ sniff ─┬─► not HTTP: back to outbound, as bytes
//!                                  └─► serve: each request ─► phases ─► upstream ─► endpoint
//!  client of another data plane ─► inbound (front) ────┤
//!  client outside the mesh ─► inbound (ingress) ───────┘
//! ```

mod account;
mod affinity;
mod after;
mod anew;
mod backend;
mod client;
mod forward;
mod fronted;
mod grpc;
mod judging;
mod limits;
mod mirror;
mod outsider;
mod phases;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hyper::service::service_fn;
use tracing::debug;

use crate::connections::{Carriage, Direction, LiveConnection};
use crate::http::{self, Handover, Version, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, LoadBalancerMode, Service, Workload};
use crate::pod::Pod;
use crate::ring::{RecvBuf, Tcp};
use crate::telemetry::{RequestClient, Security};

use client::{Client, Requester};
pub(crate) use fronted::{Another, Behind, Fronted, Unserved, fronted, serve_another};
pub(crate) use outsider::{Outsider, serve_outsider};

/// What became of a connection.
pub(crate) enum Welcome {
    /// It was served to its end.
    Served,
    /// It is not for layer 7, or not HTTP: carry it as bytes, these first.
    Opaque(Tcp, RecvBuf),
}

/// Serves a connection of a local pod to its end if it speaks HTTP to a port of a service with layer 7.
///
/// # Cancel safety
/// Dropping the future resets the connection and drops its requests.
pub(crate) async fn welcome(
    hub: &Rc<Hub>,
    pod: &Pod,
    (source, dialled): (SocketAddr, SocketAddr),
    app: Tcp,
) -> Welcome {
    // Who is unknown is refused where every connection of an unknown pod is.
    let Ok(workload) = hub.workload(&pod.uid).await else {
        return Welcome::Opaque(app, RecvBuf::default());
    };
    let Some((service, protocol)) = addressed(hub, &workload, dialled) else {
        return Welcome::Opaque(app, RecvBuf::default());
    };
    // On the heap, for most connections never come here and their tasks have no room to give.
    let listening = Box::pin(http::listen(async || app.recv().await, protocol));
    let (version, early) = match listening.await {
        (Some(version), early) => (version, early),
        (None, early) => return Welcome::Opaque(app, early),
    };
    let recorded = Arc::new(RequestClient {
        identity: Some(workload.identity()),
        workload: Some(Arc::clone(&workload)),
        address: source,
        dialled,
        // The kernel vouches for a local pod as a certificate would.
        security: Security::MutualTls,
    });
    let client = Client {
        hub: Rc::clone(hub),
        pod: pod.clone(),
        side: hub.side(&service.key),
        workload,
        requester: Requester::Pod,
        service,
        source,
        dialled,
        recorded,
    };
    Box::pin(serve_tracked(client, version, Wire::tcp(app, early))).await;
    Welcome::Served
}

/// Whether what the application sends has to be seen before anybody can be reached for it: requests get their answer by
/// status, and which endpoint they go to is in them; and of a wildcard only the client says which host it means.
pub(crate) async fn has_to_read(hub: &Hub, pod: &Pod, dialled: SocketAddr) -> bool {
    let workload = hub.workload(&pod.uid).await;
    workload.is_ok_and(|workload| {
        addressed(hub, &workload, dialled).is_some() || is_named_in_tls(hub, &workload, dialled)
    })
}

/// Whether an address stands for a wildcard whose port may speak TLS: the host is named there.
pub(crate) fn is_named_in_tls(hub: &Hub, workload: &Workload, dialled: SocketAddr) -> bool {
    let snapshot = hub.snapshot();
    let service = snapshot.service_at(dialled.ip(), &workload.namespace);
    let protocol = service.and_then(|service| {
        let layer7 = snapshot.services_layer7.get(&service.key)?;
        let is_wildcard = service.load_balancer.mode == LoadBalancerMode::ByName;
        let port = layer7.ports.get(&dialled.port()).filter(|_| is_wildcard)?;
        Some(port.protocol)
    });
    matches!(protocol, Some(AppProtocol::Tls | AppProtocol::Detect))
}

/// The service with layer 7 that an address stands for, and what its port speaks; `None` where bytes are all
/// that there is to see.
fn addressed(
    hub: &Hub,
    workload: &Workload,
    dialled: SocketAddr,
) -> Option<(Arc<Service>, AppProtocol)> {
    let snapshot = hub.snapshot();
    if snapshot.workload_at(dialled.ip()).is_some() {
        return None;
    }
    let service = snapshot.service_at(dialled.ip(), &workload.namespace)?;
    let layer7 = snapshot.services_layer7.get(&service.key)?;
    let protocol = layer7.ports.get(&dialled.port())?.protocol;
    let is_seen = protocol.is_http() || protocol == AppProtocol::Detect;
    is_seen.then(|| (Arc::clone(service), protocol))
}

/// As [`serve`], for connections that are shown nowhere else.
async fn serve_tracked(client: Client, version: Version, wire: Wire) {
    let tracked = client.hub.connections.track(LiveConnection {
        workload: client.pod.uid.clone(),
        direction: Direction::Outbound,
        source: client.source,
        original_destination: client.dialled,
        service: Some(client.service.key.hostname.to_string()),
        destination: client.dialled,
        peer: None,
        carriage: Carriage::Hbone,
    });
    serve(client, version, wire).await;
    drop(tracked);
}

/// Serves the requests of a connection to its end.
async fn serve(client: Client, version: Version, wire: Wire) {
    let parting = client.pod.outlook.parting();
    let handover = Rc::<Handover>::default();
    let client = Rc::new(client);
    let service = {
        let handover = Rc::clone(&handover);
        service_fn(move |request| {
            let (client, handover) = (Rc::clone(&client), Rc::clone(&handover));
            async move { Ok::<_, Infallible>(phases::answer(&client, &handover, request).await) }
        })
    };
    if let Err(error) = http::serve(wire, version, service, handover, parting).await {
        debug!(%error, "client's connection ended");
    }
}
