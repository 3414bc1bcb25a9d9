//! Waypoints that somebody else is: a connection to what they front goes to one of them, whole, through HBONE,
//! and is for what the client dialled (spec: ztunnel's outbound rows 1 and 6). They choose routes and endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{self, Towards, candidates};
use super::{Choose, Plan, Refusal, Target, Transport};
use crate::model::{Service, Snapshot, WaypointReference, Workload};

/// The waypoint that a connection has to go through: its service, and its port.
pub(super) type Through<'s> = (&'s Arc<Service>, u16);

/// The foreign waypoint of a service or workload, unless `source` is that waypoint itself.
///
/// # Errors
/// [`Refusal::UnknownWaypoint`]: nobody may go around one that is not there.
pub(super) fn waypoint<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    reference: Option<&WaypointReference>,
) -> Result<Option<Through<'s>>, Refusal> {
    let Some(reference) = reference.filter(|reference| reference.is_foreign) else {
        return Ok(None);
    };
    let key = &reference.destination;
    let service = snapshot.services.get(key);
    let service = service.ok_or(Refusal::UnknownWaypoint)?;
    let mut endpoints = snapshot.endpoints_of(key).iter();
    let is_itself = endpoints.any(|endpoint| endpoint.workload == source.uid);
    Ok((!is_itself).then_some((service, reference.hbone_port)))
}

/// Through which of the waypoint's endpoints a connection goes, in the order to try them.
///
/// # Errors
/// [`Refusal::NoHealthyUpstream`]: none of them is ready.
pub(super) fn plan(
    snapshot: &Snapshot,
    source: &Workload,
    (waypoint, port): Through<'_>,
    (service, dialled): (Option<&Arc<Service>>, SocketAddr),
    choose: &mut Choose<'_>,
) -> Result<Plan, Refusal> {
    let towards = Towards {
        service: waypoint,
        subset: None,
        address: SocketAddr::new(dialled.ip(), port),
    };
    let chosen = balance::draw(candidates(snapshot, source, &towards, None), choose);
    let names = &waypoint.subject_alt_names;
    let targets = chosen.into_iter().map(|candidate| Target {
        destination: dialled,
        rivals: Vec::new(),
        transport: Transport::Hbone {
            tunnel: candidate.address,
            expected: std::iter::once(candidate.workload.identity())
                .chain(names.iter().filter_map(|name| name.parse().ok()))
                .collect(),
        },
        workload: Some(candidate.workload),
    });
    let plan = Plan {
        service: service.map(Arc::clone),
        targets: targets.collect(),
    };
    if plan.targets.is_empty() {
        Err(Refusal::NoHealthyUpstream)
    } else {
        Ok(plan)
    }
}
