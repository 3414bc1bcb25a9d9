//! L6: connections from a local pod to the endpoints of a service that speaks HTTP, for its application's requests and
//! for the agent's own questions on its behalf.

mod legs;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::dial::{self, Beginning};
use crate::endpoints::Endpoints;
use crate::hbone::{Baggage, ConnectRequest, ServiceClaim};
use crate::http::{self, Keeping, Lease, Peer, PoolKey, Version, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, Service, Side, Snapshot, TrafficPolicy, Workload};
use crate::pod::Pod;
use crate::relay::Far;
use crate::ring::RecvBuf;
use crate::route::{Target, Transport};
use crate::telemetry::{Flow, Reporter, Security};
use crate::traffic::Place;

pub(crate) use legs::Legs;

/// Who sends requests, and in which service's name.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) pod: &'a Pod,
    pub(crate) workload: &'a Arc<Workload>,
    /// The application's own connection that they came on; none for what the agent asks.
    pub(crate) source: Option<SocketAddr>,
    /// The service that was called.
    pub(crate) service: &'a Arc<Service>,
    /// Its port, and which of its waypoints they go through, if the server's node is to judge them by what the service
    /// demands.
    pub(crate) claimed: Option<(u16, Side)>,
    /// How the pod's own application is reached, where they came to it from outside the mesh.
    pub(crate) legs: Option<&'a Legs>,
}

impl<'a> Origin<'a> {
    /// How a target is reached that is the pod itself.
    fn legs_to(&self, target: &Target) -> Option<&'a Legs> {
        self.legs.filter(|legs| legs.lead_to(target))
    }
}

/// Why there is no connection; nothing of the request has left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConnection {
    #[error(transparent)]
    Dial(#[from] dial::DialError),
    #[error("the policy's time to connect is over")]
    Late,
    #[error("too many requests wait for a connection")]
    Overflow,
    #[error("HTTP/2 could not be begun: {0}")]
    Handshake(#[from] hyper::Error),
}

/// A connection to a target, and whether it has carried requests before.
pub(crate) struct Taken {
    pub(crate) lease: Lease,
    pub(crate) is_reused: bool,
    /// Which of the target's addresses it goes to.
    pub(crate) at: SocketAddr,
}

/// A connection for one request: one that waits, unless it has to be fresh, or a new one.
pub(crate) async fn take(
    origin: &Origin<'_>,
    (endpoints, target): (&Endpoints, &Target),
    version: Version,
    fresh: bool,
) -> Result<Taken, NoConnection> {
    let keys = keys(origin, (endpoints, target));
    if !fresh && let Some(taken) = waiting(origin, endpoints, &keys, version) {
        return Ok(taken);
    }
    // On the heap: most requests find one that waits, and need not carry the room for making one.
    Box::pin(make(origin, (endpoints, target), &keys, version)).await
}

/// A connection that waits at one of a target's addresses.
fn waiting(
    origin: &Origin<'_>,
    endpoints: &Endpoints,
    keys: &[Rc<PoolKey>],
    version: Version,
) -> Option<Taken> {
    let pool = &origin.hub.requests;
    keys.iter().find_map(|key| {
        let lease = pool.take(key, version, keeping(&endpoints.policy))?;
        Some(Taken {
            lease,
            is_reused: true,
            at: key.destination,
        })
    })
}

/// A new connection, or one that comes back while the policy has no room for a new one.
async fn make(
    origin: &Origin<'_>,
    (endpoints, target): (&Endpoints, &Target),
    keys: &[Rc<PoolKey>],
    version: Version,
) -> Result<Taken, NoConnection> {
    let pending = &endpoints.group.in_use.pending;
    let _pending = pending
        .admit(endpoints.policy.limits.pending_requests)
        .ok_or(NoConnection::Overflow)?;
    let place = match room(origin, (endpoints, target), keys, version).await {
        Room::Fresh(place) => place,
        Room::Waiting(taken) => return Ok(taken),
    };
    let reached = reach(origin, (endpoints, target), version);
    let (far, at) = match endpoints.policy.connect_timeout {
        None => reached.await?,
        Some(limit) => tokio::time::timeout(limit, reached)
            .await
            .map_err(|_elapsed| NoConnection::Late)??,
    };
    let wire = wire(far).holding(place);
    let key = Rc::new(key(origin, (endpoints, target), at));
    let wire = if let Some(legs) = origin.legs_to(target) {
        // What passes there has been counted when it came to the pod.
        legs.made(&key);
        wire
    } else {
        let flow = origin.hub.metrics.open(flow(origin, target, at));
        wire.accounted(Rc::new(flow), Peer::Server)
    };
    let sender = http::connect(wire, version).await?;
    let pool = &origin.hub.requests;
    Ok(Taken {
        lease: pool.adopt(&key, sender, keeping(&endpoints.policy)),
        is_reused: false,
        at,
    })
}

/// Reaches a target, and tells at which of its addresses.
async fn reach(
    origin: &Origin<'_>,
    (endpoints, target): (&Endpoints, &Target),
    version: Version,
) -> Result<(Far, SocketAddr), dial::DialError> {
    let patience = dial::patience(endpoints.policy.connect_timeout);
    let Origin {
        hub, pod, workload, ..
    } = origin;
    let beginning = Beginning::of(endpoints, version.into(), origin.source);
    if let Some(legs) = origin.legs_to(target) {
        let to = target.destination;
        let far = dial::reach_own(hub, pod, (to, legs.client()), (beginning, patience)).await?;
        return Ok((far, to));
    }
    let request = || {
        let service = &origin.service.key;
        let request = ConnectRequest::to_address(target.destination)
            .from_workload(&Baggage::of(workload))
            .forwarded(origin.source, Some(&service.hostname));
        match origin.claimed {
            Some((port, side)) => request.for_service(ServiceClaim::of(service, port, side)),
            None => request,
        }
    };
    let request = (request, Some(beginning));
    dial::reach(hub, pod, workload, (target, patience), request).await
}

/// What connections to a target are kept under, one for each of its addresses.
fn keys(
    origin: &Origin<'_>,
    (endpoints, target): (&Endpoints, &Target),
) -> SmallVec<[Rc<PoolKey>; 1]> {
    let addresses = target.addresses();
    addresses
        .map(|at| Rc::new(key(origin, (endpoints, target), at)))
        .collect()
}

fn key(origin: &Origin<'_>, (endpoints, target): (&Endpoints, &Target), at: SocketAddr) -> PoolKey {
    let workload = target.workload.as_ref();
    let claimed = |(port, side)| (origin.service.key.clone(), port, side);
    let opening = &endpoints.policy.opening;
    PoolKey {
        pod: origin.pod.uid.clone(),
        destination: at,
        workload: workload.map(|workload| workload.uid.clone()),
        is_tunnelled: target.transport != Transport::Plain,
        service: origin.claimed.map(claimed),
        group: Some(endpoints.key.clone()),
        // A header names one client, and so does a connection to the pod's own application.
        client: origin
            .source
            .filter(|_| opening.proxy_protocol.is_some() || origin.legs_to(target).is_some()),
        opening: opening.clone(),
    }
}

/// A connection as HTTP wants it.
pub(crate) fn wire(far: Far) -> Wire {
    match far {
        Far::Plain(tcp) => Wire::tcp(tcp, RecvBuf::default()),
        Far::Tunnel(stream) => Wire::tunnel(stream, RecvBuf::default()),
        Far::Secured(secured) => Wire::secured(secured),
    }
}

/// What a request that found no connection gets.
enum Room {
    /// The right to make one.
    Fresh(Place),
    /// One that another request gave back meanwhile.
    Waiting(Taken),
}

/// Waits until the policy has room for one more connection, or one that there is waits for a request.
async fn room(
    origin: &Origin<'_>,
    (endpoints, target): (&Endpoints, &Target),
    keys: &[Rc<PoolKey>],
    version: Version,
) -> Room {
    let Endpoints { group, policy, .. } = endpoints;
    loop {
        // Asked for before looking, so that nothing is missed in between.
        let mut waits = pin!(origin.hub.requests.freed());
        let mut freed = pin!(group.freed());
        let _early = waits.as_mut().enable();
        let _early = freed.as_mut().enable();
        if let Some(place) = group.admit_connection(policy, &origin.pod.uid, target.destination) {
            return Room::Fresh(place);
        }
        if let Some(taken) = waiting(origin, endpoints, keys, version) {
            return Room::Waiting(taken);
        }
        tokio::select! {
            () = waits => {}
            () = freed => {}
        }
    }
}

fn keeping(policy: &TrafficPolicy) -> Keeping {
    let ours = Keeping::default();
    Keeping {
        requests: policy.limits.requests_per_connection,
        age: policy.limits.connection_age,
        idle: policy.idle_timeout.unwrap_or(ours.idle),
        connections: policy.limits.connections,
    }
}

fn flow(origin: &Origin<'_>, target: &Target, at: SocketAddr) -> Flow {
    let (next_hop, authenticated) = match &target.transport {
        Transport::Plain => (at, false),
        Transport::Hbone { tunnel, .. } => (*tunnel, true),
    };
    let server = target.workload.as_ref().map(|workload| workload.identity());
    Flow {
        reporter: Reporter::Source,
        source: Some(Arc::clone(origin.workload)),
        source_identity: authenticated.then(|| origin.workload.identity()),
        destination: target.workload.clone(),
        destination_identity: server.filter(|_| authenticated),
        service: Some(Arc::clone(origin.service)),
        source_address: origin
            .source
            .unwrap_or_else(|| own_address(origin.workload)),
        destination_address: next_hop,
        hbone_target: authenticated.then(|| target.destination.to_string()),
        security: if authenticated {
            Security::MutualTls
        } else {
            Security::Unknown
        },
    }
}

/// The pod's address where no connection of its application's says another.
pub(crate) fn own_address(workload: &Workload) -> SocketAddr {
    let first = workload.addresses.first().copied();
    SocketAddr::new(first.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0)
}

/// What a port of a service declares to speak; `None`: it does not say, or not HTTP.
pub(crate) fn declared_version(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
) -> Option<Version> {
    let layer7 = snapshot.services_layer7.get(&service.key);
    let known = layer7.and_then(|layer7| layer7.ports.get(&port));
    let protocol = known.map(|port| port.protocol).or_else(|| {
        let declared = service.ports.get(&port)?;
        Some(AppProtocol::of_port(
            port,
            &declared.name,
            &declared.app_protocol,
        ))
    });
    match protocol {
        Some(AppProtocol::Http1) => Some(Version::Http1),
        Some(AppProtocol::Http2) => Some(Version::Http2),
        Some(AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls) | None => None,
    }
}
