//! Who goes around a waypoint, where the workload's namespace forbids it (`culvert.dev/strict-waypoint`). Pure.
//!
//! In Istio a pod's own address is open past the waypoint of its services, whose policies then hold for nobody.

use std::net::IpAddr;

use super::Connection;
use crate::model::{NamespacedHostname, Snapshot, SpiffeId, WaypointReference, Workload};

/// The service whose waypoint a connection goes around; `None`: none, or nobody forbids it.
///
/// A port that no service behind a waypoint leads to is as open as ever. The service that was called has to be of the
/// workload's own namespace: whoever writes routes of another one decides what is demanded there.
pub fn circumvented<'s>(
    snapshot: &'s Snapshot,
    workload: &Workload,
    connection: &Connection<'_>,
) -> Option<&'s NamespacedHostname> {
    if !snapshot.strict_namespaces.contains(&workload.namespace) {
        return None;
    }
    let is_met = |service: &NamespacedHostname| {
        service.namespace == workload.namespace && snapshot.services_layer7.contains_key(service)
    };
    if connection.through.is_some_and(is_met) {
        return None;
    }
    let services = workload.services.iter();
    let mut passed = services
        .filter_map(|key| snapshot.services.get(key))
        .filter(|service| {
            let client = (connection.source, connection.identity);
            let waypoint = service.waypoint.as_ref();
            waypoint.is_some_and(|waypoint| !is_waypoint(snapshot, waypoint, client))
        });
    let port = connection.destination.port();
    let passed = passed.find(|service| snapshot.leads_to(service, &workload.uid, port));
    passed.map(|service| &service.key)
}

/// Whether a client is a pod that is the waypoint, by its address and by what it proved to be (spec: ztunnel's rule): it
/// has judged what it passes on.
pub fn is_waypoint(
    snapshot: &Snapshot,
    waypoint: &WaypointReference,
    (source, identity): (IpAddr, Option<&SpiffeId>),
) -> bool {
    let (Some(client), Some(identity)) = (snapshot.workload_at(source), identity) else {
        return false;
    };
    let mut instances = snapshot.endpoints_of(&waypoint.destination).iter();
    client.identity() == *identity && instances.any(|instance| instance.workload == client.uid)
}

#[cfg(test)]
pub(super) mod tests;
