//! Clients outside the mesh whose connection came to a pod of a service that wants them at its waypoint. No node of theirs
//! routes their requests, so the pod's does: as for a client that was told the pod were the waypoint, but that this one has
//! proven nothing (ADR 0022).

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::client::{Client, Requester};
use super::serve;
use crate::http::{Refusal, Version, Wire};
use crate::hub::Hub;
use crate::model::{NamespacedHostname, Service, Side, Snapshot, Workload, WorkloadUid};
use crate::pod::Pod;
use crate::policy::{self, Connection, Denial};
use crate::route::{MAX_ATTEMPTS, Target, Transport};
use crate::telemetry::{RequestClient, Security};
use crate::traffic::Wish;
use crate::upstream::Legs;

/// Who asks, and for what.
pub(crate) struct Outsider {
    pub(crate) source: SocketAddr,
    /// Where its connection came to: the pod's application.
    pub(crate) application: SocketAddr,
    pub(crate) service: Arc<Service>,
    /// The service's port that leads there.
    pub(crate) port: u16,
    /// Through which of the service's waypoints.
    pub(crate) side: Side,
}

/// Serves the requests of a connection to its end. That it may come to the pod has been judged.
///
/// # Cancel safety
/// Dropping the future resets the connection and drops its requests.
pub(crate) async fn serve_outsider(
    hub: &Rc<Hub>,
    pod: &Pod,
    workload: Arc<Workload>,
    outsider: Outsider,
    (version, wire): (Version, Wire),
) {
    let Outsider {
        source,
        application,
        service,
        port,
        side,
    } = outsider;
    let recorded = Arc::new(RequestClient {
        workload: hub.snapshot().workload_at(source.ip()).map(Arc::clone),
        identity: None,
        address: source,
        dialled: application,
        security: Security::Unknown,
    });
    let legs = Legs::new(hub.requests.clone(), pod.uid.clone(), (source, application));
    let client = Client {
        hub: Rc::clone(hub),
        pod: pod.clone(),
        workload,
        side,
        requester: Requester::Outsider(legs),
        service,
        source,
        dialled: SocketAddr::new(application.ip(), port),
        recorded,
    };
    serve(client, version, wire).await;
}

/// What a choice of endpoints has to regard besides: where nothing says otherwise, who spread the connections of an outsider
/// has chosen already.
pub(super) fn wish(client: &Client, wish: Wish) -> Wish {
    match client.legs() {
        Some(legs) if wish.session.is_none() && wish.hash.is_none() => Wish {
            session: Some(legs.application()),
            hash: None,
        },
        _ => wish,
    }
}

/// Takes out the targets that an outsider could not reach by itself, and has it reach its own pod's application without a
/// tunnel. Of other clients all stay.
///
/// # Errors
/// [`Refusal::Barred`]: none is left.
pub(super) fn bar(
    client: &Client,
    snapshot: &Snapshot,
    targets: &mut SmallVec<[Target; MAX_ATTEMPTS]>,
) -> Result<(), Refusal> {
    let Some(legs) = client.legs() else {
        return Ok(());
    };
    let about = (client.source.ip(), &client.service.key);
    keep_open(snapshot, about, legs.pod(), targets).map_err(Refusal::Barred)
}

/// Decides as every target's node would of a plain connection that called the service: the pod's own name, in which the
/// request goes on, lends the client nothing.
fn keep_open(
    snapshot: &Snapshot,
    (source, called): (IpAddr, &NamespacedHostname),
    own: &WorkloadUid,
    targets: &mut SmallVec<[Target; MAX_ATTEMPTS]>,
) -> Result<(), Denial> {
    let mut barred = None;
    targets.retain(|target| {
        let address = target.destination.ip().to_canonical();
        let known = target.workload.as_ref();
        let Some(workload) = known.or_else(|| snapshot.workload_at(address)) else {
            return true;
        };
        if workload.uid == *own {
            target.transport = Transport::Plain;
        }
        let connection = Connection {
            source,
            identity: None,
            waypoint: None,
            through: Some(called),
            destination: target.destination,
        };
        let judged = policy::judge(snapshot, workload, &connection).decision;
        let denial = judged.err();
        let is_open = denial.is_none();
        barred = barred.take().or(denial);
        is_open
    });
    match barred {
        Some(denial) if targets.is_empty() => Err(denial),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
