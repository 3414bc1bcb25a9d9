//! L2: which connections between two pods of a node the kernel may carry by itself. Pure: whoever enforces the answer
//! asks again when the mesh changes.
//!
//! The client's identity is the kernel's word, its network namespace, so it counts as proven; and what is refused here
//! is refused by the same policies, in the same order, as where a tunnel arrives.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{
    AuthorizationPolicy, LoadBalancerMode, Match, Peer, Service, Snapshot, TunnelProtocol, Workload,
};
use crate::policy::{self, Connection, Denial};
use crate::route::{self, OWN_PORTS, Towards};

/// What becomes of connections from one pod to a port of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The kernel may carry them.
    Straight,
    /// Nobody may.
    Denied(Denial),
    /// The proxy has to see each.
    Proxied(Reason),
}

/// Why the proxy has to see a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The mesh does not hold both ends.
    #[error("one of the two pods is not captured")]
    Uncaptured,
    /// It goes back to where it comes from.
    #[error("it is the pod's own address")]
    Itself,
    /// The agent's listeners are no application.
    #[error("the port is the agent's own")]
    OwnPort,
    /// Requests have to be seen, or bytes judged by what is demanded of requests.
    #[error("the pod is bound to a waypoint")]
    Layer7,
    /// Its application is a waypoint, which learns from the node agent who calls and what.
    #[error("the pod is handed its connections by the agent")]
    Handed,
    /// Each is logged.
    #[error("a policy is only watched")]
    Watched,
    /// The kernel's word is the pod, not which of its addresses it uses.
    #[error("a policy asks for the client's address")]
    Addressed,
}

/// Judges connections from `client` to `server`'s port at `to`.
#[must_use]
pub fn passage(
    snapshot: &Snapshot,
    client: &Workload,
    server: &Workload,
    to: SocketAddr,
) -> Passage {
    if let Some(reason) = proxied(snapshot, client, server, to) {
        return Passage::Proxied(reason);
    }
    let identity = client.identity();
    let mut own = client.addresses.iter().copied();
    let connection = Connection {
        // Policies do not ask for it: see above. Any of its own says which pod it is.
        source: own.next().unwrap_or_else(|| to.ip()),
        identity: Some(&identity),
        waypoint: None,
        through: None,
        destination: to,
    };
    let verdict = policy::judge(snapshot, server, &connection);
    match verdict.decision {
        _ if !verdict.dry_run.is_empty() => Passage::Proxied(Reason::Watched),
        Ok(_) => Passage::Straight,
        Err(denial) => Passage::Denied(denial),
    }
}

fn proxied(
    snapshot: &Snapshot,
    client: &Workload,
    server: &Workload,
    to: SocketAddr,
) -> Option<Reason> {
    let is_captured =
        |one: &Workload| one.protocol == TunnelProtocol::Hbone && one.peer == Peer::Culvert;
    if !is_captured(client) || !is_captured(server) {
        return Some(Reason::Uncaptured);
    }
    if client.uid == server.uid {
        return Some(Reason::Itself);
    }
    if OWN_PORTS.contains(&to.port()) {
        return Some(Reason::OwnPort);
    }
    if server.application_tunnel.is_some() {
        return Some(Reason::Handed);
    }
    if server.waypoint.is_some() || snapshot.workloads_layer7.contains_key(&server.uid) {
        return Some(Reason::Layer7);
    }
    let mut policies = snapshot.policies_for(server);
    policies
        .any(|policy| asks_for_address(policy))
        .then_some(Reason::Addressed)
}

fn asks_for_address(policy: &AuthorizationPolicy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut matches = clauses.flat_map(|clause| &clause.matches);
    matches.any(|one: &Match| !one.source_ips.is_empty() || !one.not_source_ips.is_empty())
}

/// How connections to a service are spread, as far as its endpoints can be reached without the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The service.
    pub service: Arc<Service>,
    /// Endpoints that the kernel may choose, each with its weight.
    pub straight: Vec<(SocketAddr, Arc<Workload>, u32)>,
    /// The weights of all endpoints together.
    pub total: u32,
}

/// What `client` means by `dialled`, where that is a service whose endpoints are chosen by weight alone and some of
/// which the kernel may reach: at most `most` of those that `is_here`, and of the family that was dialled.
pub fn spread(
    snapshot: &Snapshot,
    client: &Workload,
    dialled: SocketAddr,
    (is_here, most): (impl Fn(&Workload) -> bool, usize),
) -> Option<Spread> {
    let address = dialled.ip().to_canonical();
    if snapshot.workload_at(address).is_some() {
        return None;
    }
    let service = snapshot.service_at(address, &client.namespace)?;
    let has_requests =
        service.waypoint.is_some() || snapshot.services_layer7.contains_key(&service.key);
    if has_requests
        || service.load_balancer.mode == LoadBalancerMode::Passthrough
        || !service.ports.contains_key(&dialled.port())
    {
        return None;
    }
    let towards = Towards {
        service,
        subset: None,
        address: SocketAddr::new(address, dialled.port()),
    };
    let candidates = route::candidates(snapshot, client, &towards, None);
    let total = candidates.iter().fold(0_u32, |sum, candidate| {
        sum.saturating_add(candidate.workload.capacity)
    });
    let straight: Vec<_> = candidates
        .into_iter()
        .filter(|candidate| {
            let (server, to) = (&candidate.workload, candidate.address);
            to.is_ipv4() == address.is_ipv4()
                && is_here(server)
                && passage(snapshot, client, server, to) == Passage::Straight
        })
        .take(most)
        .map(|one| {
            (
                one.address,
                Arc::clone(&one.workload),
                one.workload.capacity,
            )
        })
        .collect();
    (!straight.is_empty()).then(|| Spread {
        service: Arc::clone(service),
        straight,
        total,
    })
}

#[cfg(test)]
mod tests;
