//! Which endpoints of a service may take a connection, and in which order to try them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Choose, HBONE_PORT, MAX_ATTEMPTS, Target, locality, workload_target};
use crate::model::{
    Endpoint, Health, HealthPolicy, IpFamilies, LoadBalancerMode, Nearness, RoutingScope, Service,
    Snapshot, Workload,
};

/// Whose endpoints are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Towards<'a> {
    /// The service.
    pub service: &'a Service,
    /// Only this part of it (DestinationRule). What no rule knows has no endpoints.
    pub subset: Option<&'a Arc<str>>,
    /// The service port, and an address of the family to prefer.
    pub address: SocketAddr,
}

/// An endpoint that could take a connection or a request.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The workload that answers.
    pub workload: Arc<Workload>,
    /// Where its application listens.
    pub address: SocketAddr,
    /// Its part of what is sent to its tier: its capacity, if a policy says nothing else.
    pub share: u32,
    /// Who is nearer, 0 being the nearest. All the same if no policy tells them apart.
    pub tier: u8,
}

impl Candidate {
    /// How it is reached in the name of a service.
    pub fn target(&self, service: &Service) -> Target {
        workload_target(&self.workload, self.address, Some(service))
    }
}

/// Endpoints that are ready, reachable on the port, and close enough to `source` for the service's scopes and the
/// policy.
pub fn candidates(
    snapshot: &Snapshot,
    source: &Workload,
    towards: &Towards<'_>,
    nearness: Option<&Nearness>,
) -> Vec<Candidate> {
    let mut found = within_scopes(snapshot, source, towards, nearness);
    if let Some(nearness) = nearness {
        locality::arrange(nearness, source, &mut found);
    }
    found
}

fn within_scopes(
    snapshot: &Snapshot,
    source: &Workload,
    towards: &Towards<'_>,
    nearness: Option<&Nearness>,
) -> Vec<Candidate> {
    let service = towards.service;
    let members = match towards.subset {
        None => None,
        Some(name) => {
            let traffic = snapshot.traffic.get(&service.key);
            match traffic.and_then(|traffic| traffic.subsets.get(name)) {
                Some(subset) => Some(&subset.members),
                None => return Vec::new(),
            }
        }
    };
    let all = snapshot.endpoints_of(&service.key).iter();
    let usable = all
        .filter(|endpoint| members.is_none_or(|members| members.contains(&endpoint.workload)))
        .flat_map(|endpoint| usable(snapshot, towards, endpoint));
    let scopes = &service.load_balancer.scopes;
    let is_overruled = match nearness {
        None => false,
        Some(Nearness::Shares(_)) => true,
        Some(Nearness::Tiers { is_explicit, .. }) => *is_explicit,
    };
    match service.load_balancer.mode {
        LoadBalancerMode::Failover if is_overruled => usable.collect(),
        LoadBalancerMode::Any | LoadBalancerMode::Passthrough => usable.collect(),
        // Whatever somebody wrote down for it.
        LoadBalancerMode::ByName => Vec::new(),
        LoadBalancerMode::Strict => usable
            .filter(|found| matched(scopes, source, &found.workload) == scopes.len())
            .collect(),
        LoadBalancerMode::Failover => {
            let ranked: Vec<_> = usable
                .map(|found| (rank(scopes, source, &found.workload), found))
                .collect();
            let best = ranked.iter().map(|(rank, _)| *rank).max();
            let closest = ranked.into_iter().filter(|(rank, _)| Some(*rank) == best);
            closest.map(|(_, found)| found).collect()
        }
    }
}

/// An endpoint as often as there is a choice of places for it: one, or all that its hostname stands for.
fn usable<'s>(
    snapshot: &'s Snapshot,
    towards: &Towards<'_>,
    endpoint: &Endpoint,
) -> impl Iterator<Item = Candidate> + use<'s> {
    let service = towards.service;
    let healthy = endpoint.health == Health::Healthy;
    let may_be = healthy || service.load_balancer.health == HealthPolicy::AllowAll;
    let workload = snapshot.workloads.get(&endpoint.workload);
    let workload = workload.filter(|workload| may_be && workload.capacity > 0);
    let wanted = towards.address.port();
    // A waypoint behind an application tunnel does not declare the port: the node agent listens there, not the waypoint.
    let tunnelled = workload.filter(|one| wanted == HBONE_PORT && one.application_tunnel.is_some());
    let port = endpoint.target_port(service, wanted);
    let port = port.or_else(|| tunnelled.map(|_| HBONE_PORT));
    let found = workload.zip(port).into_iter();
    let dialled = towards.address.ip();
    let (families, is_raced) = (service.ip_families, service.load_balancer.is_raced);
    found.flat_map(move |(workload, port)| {
        let places = places(snapshot, workload, (families, is_raced), dialled);
        places.into_iter().map(move |address| Candidate {
            workload: Arc::clone(workload),
            address: SocketAddr::new(address, port),
            share: workload.capacity,
            tier: 0,
        })
    })
}

/// Where a workload is reached for a service. Of its own addresses one: of the family that the client used if there is
/// one, else of any that the service is served in. Of those that its hostname stands for all of one family: IPv4 if there
/// is one, as most nodes have no other way out of their cluster. Of both where they race: that finds out.
fn places(
    snapshot: &Snapshot,
    workload: &Workload,
    (families, is_raced): (IpFamilies, bool),
    dialled: IpAddr,
) -> SmallVec<[IpAddr; 1]> {
    let served = |address: &&IpAddr| match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => address.is_ipv4(),
        IpFamilies::Ipv6Only => address.is_ipv6(),
    };
    let all = || snapshot.addresses_of(workload).iter().filter(served);
    if workload.addresses.is_empty() {
        let has_v4 = all().any(IpAddr::is_ipv4);
        let wanted = all().filter(|address| is_raced || address.is_ipv4() == has_v4);
        return wanted.copied().collect();
    }
    let same_family = |address: &&IpAddr| address.is_ipv4() == dialled.is_ipv4();
    let one = all().find(same_family).or_else(|| all().next());
    one.copied().into_iter().collect()
}

/// How close an endpoint is. One's own network outranks everything: reaching another takes a gateway.
fn rank(scopes: &[RoutingScope], source: &Workload, other: &Workload) -> usize {
    let own_network = scopes.first() == Some(&RoutingScope::Network)
        && same(RoutingScope::Network, source, other);
    let bonus = if own_network { scopes.len() - 1 } else { 0 };
    matched(scopes, source, other) + bonus
}

/// How many scopes match in a row from the first on. A different network does not end the row: a zone
/// of the same region is close whatever network it is on (ztunnel ranks the same way).
fn matched(scopes: &[RoutingScope], source: &Workload, other: &Workload) -> usize {
    let mut matched = 0;
    for (position, scope) in scopes.iter().enumerate() {
        match (same(*scope, source, other), scope, position) {
            (true, ..) => matched += 1,
            (false, RoutingScope::Network, 0) => {}
            (false, ..) => break,
        }
    }
    matched
}

fn same(scope: RoutingScope, a: &Workload, b: &Workload) -> bool {
    let region = a.locality.region == b.locality.region;
    let zone = region && a.locality.zone == b.locality.zone;
    match scope {
        RoutingScope::Network => a.network == b.network,
        RoutingScope::Region => region,
        RoutingScope::Zone => zone,
        RoutingScope::Subzone => zone && a.locality.subzone == b.locality.subzone,
        RoutingScope::Node => a.node == b.node,
        RoutingScope::Cluster => a.cluster == b.cluster,
    }
}

/// Up to [`MAX_ATTEMPTS`] different candidates, each drawn by its workload's capacity.
pub(super) fn draw(
    mut candidates: Vec<Candidate>,
    choose: &mut Choose<'_>,
) -> SmallVec<[Candidate; MAX_ATTEMPTS]> {
    let mut chosen = SmallVec::new();
    while chosen.len() < MAX_ATTEMPTS && !candidates.is_empty() {
        let weights = candidates
            .iter()
            .map(|candidate| candidate.workload.capacity);
        // Capacities are small numbers of a person's choosing; saturating keeps a silly sum harmless.
        let total = weights.clone().fold(0_u32, u32::saturating_add);
        let mut point = choose(total);
        let hit = weights.clone().position(|weight| {
            let inside = point < weight;
            point = point.saturating_sub(weight);
            inside
        });
        chosen.push(candidates.swap_remove(hit.unwrap_or(0)));
    }
    chosen
}
