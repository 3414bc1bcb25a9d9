//! Connections from a local pod to the endpoints that its requests go to.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::dial;
use crate::endpoints::Endpoints;
use crate::hbone::{Baggage, ConnectRequest, ServiceClaim};
use crate::http::{self, Keeping, Lease, Peer, PoolKey, Version, Wire};
use crate::model::TrafficPolicy;
use crate::relay::Far;
use crate::ring::RecvBuf;
use crate::route::{Target, Transport};
use crate::telemetry::{Flow, Reporter, Security};
use crate::traffic::Place;

use super::client::Client;

/// Why there is no connection; nothing of the request has left.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoConnection {
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
pub(super) struct Taken {
    pub(super) lease: Lease,
    pub(super) is_reused: bool,
}

/// A connection for one request: one that waits, unless it has to be fresh, or a new one.
pub(super) async fn take(
    client: &Client,
    (endpoints, target): (&Endpoints, &Target),
    version: Version,
    fresh: bool,
) -> Result<Taken, NoConnection> {
    let pool = &client.hub.requests;
    let key = Rc::new(key(client, (endpoints, target)));
    let limits = &endpoints.policy.limits;
    let waiting = if fresh {
        None
    } else {
        pool.take(&key, version, keeping(&endpoints.policy))
    };
    if let Some(lease) = waiting {
        return Ok(Taken {
            lease,
            is_reused: true,
        });
    }
    let pending = &endpoints.group.in_use.pending;
    let _pending = pending
        .admit(limits.pending_requests)
        .ok_or(NoConnection::Overflow)?;
    let place = match room(client, (endpoints, target), &key, version).await {
        Room::Fresh(place) => place,
        Room::Waiting(lease) => {
            return Ok(Taken {
                lease,
                is_reused: true,
            });
        }
    };
    let request = || {
        let service = &client.service.key;
        ConnectRequest::to_address(target.destination)
            .from_workload(Baggage::of(&client.workload))
            .forwarded(client.source, Some(&service.hostname))
            .for_service(ServiceClaim::of(
                service,
                client.dialled.port(),
                client.side,
            ))
    };
    let reached = dial::reach(&client.hub, &client.pod, &client.workload, target, request);
    let far = match endpoints.policy.connect_timeout {
        None => reached.await?,
        Some(limit) => tokio::time::timeout(limit, reached)
            .await
            .map_err(|_elapsed| NoConnection::Late)??,
    };
    let wire = match far {
        Far::Plain(tcp) => Wire::tcp(tcp, RecvBuf::default()),
        Far::Tunnel(stream) => Wire::tunnel(stream, RecvBuf::default()),
    };
    let flow = client.hub.metrics.open(flow(client, target));
    let wire = wire.accounted(Rc::new(flow), Peer::Server).holding(place);
    let sender = http::connect(wire, version).await?;
    Ok(Taken {
        lease: pool.adopt(&key, sender, keeping(&endpoints.policy)),
        is_reused: false,
    })
}

fn key(client: &Client, (endpoints, target): (&Endpoints, &Target)) -> PoolKey {
    let workload = target.workload.as_ref();
    let service = client.service.key.clone();
    PoolKey {
        pod: client.pod.uid.clone(),
        destination: target.destination,
        workload: workload.map(|workload| workload.uid.clone()),
        service: Some((service, client.dialled.port(), client.side)),
        group: Some(endpoints.key.clone()),
        client: None,
    }
}

/// What a request that found no connection gets.
enum Room {
    /// The right to make one.
    Fresh(Place),
    /// One that another request gave back meanwhile.
    Waiting(Lease),
}

/// Waits until the policy has room for one more connection, or one that there is waits for a request.
async fn room(
    client: &Client,
    (endpoints, target): (&Endpoints, &Target),
    key: &Rc<PoolKey>,
    version: Version,
) -> Room {
    let Endpoints { group, policy, .. } = endpoints;
    loop {
        // Asked for before looking, so that nothing is missed in between.
        let mut waits = pin!(client.hub.requests.freed());
        let mut freed = pin!(group.freed());
        let _early = waits.as_mut().enable();
        let _early = freed.as_mut().enable();
        if let Some(place) = group.admit_connection(policy, &client.pod.uid, target.destination) {
            return Room::Fresh(place);
        }
        if let Some(lease) = client.hub.requests.take(key, version, keeping(policy)) {
            return Room::Waiting(lease);
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

fn flow(client: &Client, target: &Target) -> Flow {
    let (next_hop, authenticated) = match &target.transport {
        Transport::Plain => (target.destination, false),
        Transport::Hbone { tunnel, .. } => (*tunnel, true),
    };
    let server = target.workload.as_ref().map(|workload| workload.identity());
    Flow {
        reporter: Reporter::Source,
        source: Some(Arc::clone(&client.workload)),
        source_identity: authenticated.then(|| client.workload.identity()),
        destination: target.workload.clone(),
        destination_identity: server.filter(|_| authenticated),
        service: Some(Arc::clone(&client.service)),
        source_address: client.source,
        destination_address: next_hop,
        hbone_target: authenticated.then(|| target.destination.to_string()),
        security: if authenticated {
            Security::MutualTls
        } else {
            Security::Unknown
        },
    }
}
