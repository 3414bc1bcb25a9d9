//! L1: where an outbound connection goes. Pure: a snapshot, the client and the address it dialled go in, a
//! [`Plan`] comes out. Randomness is passed in. What becomes of a request is [`http`]'s.

mod balance;
pub mod breaker;
mod foreign;
pub mod http;
pub(crate) mod locality;
pub mod named;
pub mod outlier;
pub mod rate_limit;
pub mod spread;

use std::net::SocketAddr;
use std::sync::Arc;

pub use balance::{Candidate, Towards, candidates};
use smallvec::SmallVec;

use crate::model::{
    BackendTarget, LoadBalancerMode, Peer, PortRoutes, Service, Snapshot, SpiffeId, TunnelProtocol,
    Workload,
};

/// Port of every HBONE listener (Istio's constant).
pub const HBONE_PORT: u16 = 15008;

/// Ports on which the mesh itself listens inside a pod: a connection to one of them would come back to us.
pub const OWN_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// Endpoints tried for one connection before its client is told that none answers.
pub const MAX_ATTEMPTS: usize = 3;

/// Uniform choice below a bound greater than 0.
pub type Choose<'a> = dyn FnMut(u32) -> u32 + 'a;

/// Addresses of one name that are dialled at once, at most.
pub const RACERS: usize = 8;

/// One way to carry a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The workload and port that the client's bytes are for.
    pub destination: SocketAddr,
    /// Other addresses of the same, which are dialled at the same time: the first that answers is the one.
    pub rivals: Vec<SocketAddr>,
    /// How they get there.
    pub transport: Transport,
    /// The workload, if the mesh knows it.
    pub workload: Option<Arc<Workload>>,
}

impl Target {
    /// An address that is no workload's.
    pub fn outside(destination: SocketAddr) -> Self {
        Self {
            destination,
            rivals: Vec::new(),
            transport: Transport::Plain,
            workload: None,
        }
    }

    /// Where it may be reached: nothing says which of them it will be.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.destination).chain(self.rivals.iter().copied())
    }

    /// The same, reached at one of its addresses.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        Self {
            destination: address,
            rivals: Vec::new(),
            transport: self.transport.clone(),
            workload: self.workload.clone(),
        }
    }

    /// Whether the target's node judges requests: another Culvert agent does.
    pub fn is_judged_there(&self) -> bool {
        let is_ours = |workload: &Arc<Workload>| workload.peer == Peer::Culvert;
        matches!(self.transport, Transport::Hbone { .. })
            && self.workload.as_ref().is_some_and(is_ours)
    }
}

/// How a target is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// An HBONE tunnel.
    Hbone {
        /// Where the tunnel's TCP connection goes.
        tunnel: SocketAddr,
        /// Whom the server may prove to be.
        expected: SmallVec<[SpiffeId; 1]>,
    },
    /// TCP as it is.
    Plain,
}

/// What to do with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// Targets in the order to try them: never empty.
    pub targets: SmallVec<[Target; MAX_ATTEMPTS]>,
}

/// Why a connection cannot go anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The service has no endpoint that could take it.
    #[error("no healthy upstream")]
    NoHealthyUpstream,
    /// The service does not serve the port.
    #[error("the service has no port {0}")]
    NoSuchPort(u16),
    /// A route's backend does not exist, or none of its backends has a weight.
    #[error("the route has no valid backend")]
    NoBackend,
    /// The service is bound to a waypoint that the mesh does not know.
    #[error("unknown waypoint")]
    UnknownWaypoint,
    /// The mesh's own listener was dialled.
    #[error("attempted recursive call to ourselves")]
    OwnPort,
}

/// What an address that was dialled means.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub enum Meaning<'a> {
    /// One target, which nobody chooses.
    Target(Plan),
    /// A service, and whose endpoints take the connection.
    Service(&'a Arc<Service>, Towards<'a>),
}

/// Decides for a connection from `source` to `dialled` (spec: ztunnel's outbound decision table).
///
/// # Errors
/// [`Refusal`] when the address belongs to the mesh and nothing can answer there.
pub fn plan(
    snapshot: &Snapshot,
    source: &Workload,
    dialled: SocketAddr,
    choose: &mut Choose<'_>,
) -> Result<Plan, Refusal> {
    match meaning(snapshot, source, dialled, choose)? {
        Meaning::Target(plan) => Ok(plan),
        Meaning::Service(service, towards) => Ok(Plan {
            service: Some(Arc::clone(service)),
            targets: targets(snapshot, source, &towards, &[], choose)?,
        }),
    }
}

/// What `source` means by `dialled`. A workload's own address wins over a service's virtual one; what the mesh does
/// not know passes as it is.
///
/// # Errors
/// [`Refusal`], but for a service without endpoints.
pub fn meaning<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    dialled: SocketAddr,
    choose: &mut Choose<'_>,
) -> Result<Meaning<'s>, Refusal> {
    let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
    if dialled.ip().is_loopback() && OWN_PORTS.contains(&dialled.port()) {
        return Err(Refusal::OwnPort);
    }
    if let Some(workload) = snapshot.workload_at(dialled.ip()) {
        if let Some(waypoint) = foreign::waypoint(snapshot, source, workload.waypoint.as_ref())? {
            let plan = foreign::plan(snapshot, source, waypoint, (None, dialled), choose)?;
            return Ok(Meaning::Target(plan));
        }
        let target = workload_target(workload, dialled, None);
        return Ok(Meaning::Target(Plan {
            service: None,
            targets: [target].into_iter().collect(),
        }));
    }
    let Some(service) = snapshot.service_at(dialled.ip(), &source.namespace) else {
        return Ok(Meaning::Target(pass_through(dialled, None)));
    };
    if let Some(waypoint) = foreign::waypoint(snapshot, source, service.waypoint.as_ref())? {
        let plan = foreign::plan(snapshot, source, waypoint, (Some(service), dialled), choose)?;
        return Ok(Meaning::Target(plan));
    }
    // Of a service that is bound to a waypoint nothing passes that is not declared.
    let is_bound = snapshot.services_layer7.contains_key(&service.key);
    if service.load_balancer.mode == LoadBalancerMode::Passthrough && !is_bound {
        return Ok(Meaning::Target(pass_through(dialled, Some(service))));
    }
    if !service.ports.contains_key(&dialled.port()) {
        return Err(Refusal::NoSuchPort(dialled.port()));
    }
    let towards = tcp_backend(snapshot, source, service, dialled, choose)?;
    Ok(Meaning::Service(service, towards))
}

/// Where a connection's bytes go: a TCPRoute's or TLSRoute's choice, else what was dialled.
fn tcp_backend<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    service: &'s Service,
    dialled: SocketAddr,
    choose: &mut Choose<'_>,
) -> Result<Towards<'s>, Refusal> {
    let layer7 = snapshot.services_layer7.get(&service.key);
    let routed = layer7.and_then(|layer7| layer7.ports.get(&dialled.port()));
    let Some(PortRoutes::Tcp(backends)) = routed.map(|port| port.routes_for(&source.namespace))
    else {
        return Ok(Towards {
            service,
            subset: None,
            address: dialled,
        });
    };
    let chosen = http::choose_backend(backends, choose).ok_or(Refusal::NoBackend)?;
    let BackendTarget::Service {
        service,
        port,
        subset,
    } = &chosen.target
    else {
        return Err(Refusal::NoBackend);
    };
    Ok(Towards {
        service: snapshot.services.get(service).ok_or(Refusal::NoBackend)?,
        subset: subset.as_ref(),
        address: SocketAddr::new(dialled.ip(), *port),
    })
}

/// Endpoints for one connection, in the order to try them. Those that are `served` get their share of connections by
/// another way, so they come last.
///
/// # Errors
/// [`Refusal::NoHealthyUpstream`].
pub fn targets(
    snapshot: &Snapshot,
    source: &Workload,
    towards: &Towards<'_>,
    served: &[SocketAddr],
    choose: &mut Choose<'_>,
) -> Result<SmallVec<[Target; MAX_ATTEMPTS]>, Refusal> {
    if let Some(target) = passed_through(towards) {
        return Ok([target].into_iter().collect());
    }
    let mut candidates = candidates(snapshot, source, towards, None);
    let is_served = |one: &mut Candidate| served.contains(&one.address);
    let last: Vec<_> = candidates.extract_if(.., is_served).collect();
    let mut chosen = balance::draw(candidates, choose);
    let room = MAX_ATTEMPTS - chosen.len();
    chosen.extend(balance::draw(last, choose).into_iter().take(room));
    let targets: SmallVec<_> = chosen
        .iter()
        .map(|candidate| candidate.target(towards.service))
        .collect();
    if targets.is_empty() {
        return Err(Refusal::NoHealthyUpstream);
    }
    Ok(targets)
}

/// Where a service leads that only describes others' addresses (resolution NONE): to the one that was dialled, if it is
/// among them.
pub fn passed_through(towards: &Towards<'_>) -> Option<Target> {
    let (service, address) = (towards.service, towards.address);
    let ip = address.ip().to_canonical();
    let is_described = service.load_balancer.mode == LoadBalancerMode::Passthrough
        && (service.vips.contains(&ip) || service.cidr_vips.iter().any(|net| net.contains(&ip)));
    is_described.then(|| Target::outside(SocketAddr::new(ip, address.port())))
}

/// Has the addresses race that a target's name leads to, among those that could be chosen. Tunnels do not race: their
/// end is one workload.
pub fn race(targets: &mut SmallVec<[Target; MAX_ATTEMPTS]>, candidates: &[Candidate]) {
    let mut taken = Vec::<SocketAddr>::new();
    targets.retain(|target| {
        if target.transport != Transport::Plain {
            return true;
        }
        if taken.contains(&target.destination) {
            return false;
        }
        taken.push(target.destination);
        let is_same = |one: &&Candidate| {
            let uid = target.workload.as_ref().map(|workload| &workload.uid);
            uid == Some(&one.workload.uid) && !taken.contains(&one.address)
        };
        let rivals = candidates.iter().filter(is_same).take(RACERS - 1);
        target.rivals = rivals.map(|one| one.address).collect();
        taken.extend(&target.rivals);
        true
    });
}

fn pass_through(dialled: SocketAddr, service: Option<&Arc<Service>>) -> Plan {
    Plan {
        service: service.map(Arc::clone),
        targets: [Target::outside(dialled)].into_iter().collect(),
    }
}

fn workload_target(
    workload: &Arc<Workload>,
    destination: SocketAddr,
    service: Option<&Service>,
) -> Target {
    let transport = match workload.protocol {
        TunnelProtocol::Tcp => Transport::Plain,
        TunnelProtocol::Hbone => {
            let names = service
                .into_iter()
                .flat_map(|service| &service.subject_alt_names);
            // Names that are no identity of ours cannot be proved over HBONE, so they are left out.
            let extra = names.filter_map(|name| name.parse().ok());
            Transport::Hbone {
                tunnel: SocketAddr::new(destination.ip(), HBONE_PORT),
                expected: std::iter::once(workload.identity()).chain(extra).collect(),
            }
        }
    };
    Target {
        destination,
        rivals: Vec::new(),
        transport,
        workload: Some(Arc::clone(workload)),
    }
}

#[cfg(test)]
mod tests;
