//! L6: which endpoints take a connection or a request, and what their traffic policy (DestinationRule) makes of it
//! meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::StatusCode;
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::info;

use crate::hub::Hub;
use crate::model::{Snapshot, TrafficPolicy, Workload};
use crate::names::{self, Unresolved};
use crate::route::breaker::Permit;
use crate::route::named::{self, Name};
use crate::route::outlier::Outcome;
use crate::route::{self, MAX_ATTEMPTS, Refusal, Target, Towards};
use crate::traffic::{Group, GroupKey, Wish};

/// The endpoints of one connection or request, in the order to try them, and what watches over them.
pub(crate) struct Endpoints {
    /// Never empty.
    pub(crate) targets: SmallVec<[Target; MAX_ATTEMPTS]>,
    pub(crate) policy: Arc<TrafficPolicy>,
    pub(crate) key: GroupKey,
    pub(crate) group: Arc<Group>,
    /// How many there are to choose from.
    all: usize,
    /// The name that leads to them, where it is the client who says it.
    asked: Option<Asked>,
}

/// What a client asks a wildcard for.
struct Asked {
    name: Name,
    /// Of whatever the name leads to.
    port: u16,
    is_raced: bool,
}

/// What a DestinationRule says of them.
pub(crate) fn policy(snapshot: &Snapshot, towards: &Towards<'_>) -> Arc<TrafficPolicy> {
    let traffic = snapshot.traffic.get(&towards.service.key);
    let subset = towards.subset.map(|name| &**name);
    let policy = traffic.map(|traffic| traffic.policy_for(towards.address.port(), subset));
    policy.cloned().unwrap_or_default()
}

/// Chooses by the policy.
///
/// # Errors
/// [`Refusal::NoHealthyUpstream`]: there are none, or all are left alone.
pub(crate) fn choose(
    hub: &Hub,
    snapshot: &Snapshot,
    source: &Workload,
    towards: &Towards<'_>,
    (policy, wish): (Arc<TrafficPolicy>, Wish),
) -> Result<Endpoints, Refusal> {
    if let Some(target) = route::passed_through(towards) {
        let (key, group) = group(hub, towards);
        return Ok(Endpoints {
            targets: [target].into_iter().collect(),
            policy,
            key,
            group,
            all: 1,
            asked: None,
        });
    }
    let nearness = policy.nearness.as_ref();
    let candidates = route::candidates(snapshot, source, towards, nearness);
    if candidates.is_empty() {
        return Err(Refusal::NoHealthyUpstream);
    }
    let (key, group) = group(hub, towards);
    let chosen = group.choose(&policy, &candidates, wish, &mut |bound| hub.choose(bound));
    let chosen = chosen.iter().filter_map(|place| candidates.get(*place));
    let mut targets: SmallVec<_> = chosen
        .map(|candidate| candidate.target(towards.service))
        .collect();
    if targets.is_empty() {
        return Err(Refusal::NoHealthyUpstream);
    }
    if towards.service.load_balancer.is_raced {
        route::race(&mut targets, &candidates);
    }
    Ok(Endpoints {
        targets,
        policy,
        key,
        group,
        all: candidates.len(),
        asked: None,
    })
}

/// Those of a wildcard, before its client's name is looked up: nobody does that for a client who may not go there. Until
/// then the one target is what was dialled, by which a policy judges; there is nothing to connect to.
///
/// # Errors
/// [`Refusal::NoSuchPort`].
pub(crate) fn by_name(
    hub: &Hub,
    towards: &Towards<'_>,
    policy: Arc<TrafficPolicy>,
    name: Name,
) -> Result<Endpoints, Refusal> {
    let Towards {
        service, address, ..
    } = towards;
    let port = service.ports.get(&address.port());
    let no_port = || Refusal::NoSuchPort(address.port());
    let port = port.ok_or_else(no_port)?.target_port;
    let policy = match policy.opening.in_name_of(name.as_str()) {
        None => policy,
        Some(opening) => Arc::new(TrafficPolicy {
            opening,
            ..TrafficPolicy::clone(&policy)
        }),
    };
    let (key, group) = group(hub, towards);
    Ok(Endpoints {
        targets: [Target::outside(*address)].into_iter().collect(),
        policy,
        key,
        group,
        all: 1,
        asked: Some(Asked {
            name,
            port,
            is_raced: service.load_balancer.is_raced,
        }),
    })
}

/// What watches over endpoints.
fn group(hub: &Hub, towards: &Towards<'_>) -> (GroupKey, Arc<Group>) {
    let key = GroupKey {
        service: towards.service.key.clone(),
        port: towards.address.port(),
        subset: towards.subset.map(Arc::clone),
    };
    let group = hub.traffic.group(&key);
    (key, group)
}

impl Endpoints {
    /// Whether they are to be looked up.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.asked.is_some()
    }

    /// Finds out what a client's name leads clients of its namespace to; what was chosen otherwise stays.
    ///
    /// # Errors
    /// [`Unresolved`].
    ///
    /// # Cancel safety
    /// Dropping the future takes the question back.
    pub(crate) async fn look_up(&mut self, hub: &Hub, namespace: &str) -> Result<(), Unresolved> {
        let Some(Asked {
            name,
            port,
            is_raced,
        }) = &self.asked
        else {
            return Ok(());
        };
        let found = names::look_up(&*hub.names, name).await;
        let found = found.map_err(|source| Unresolved::NoAddress {
            name: name.clone(),
            source,
        })?;
        let places = named::places(&hub.snapshot(), namespace, &found, *is_raced);
        let mut places = places.map_err(|(address, why)| Unresolved::Forbidden {
            name: name.clone(),
            address,
            why,
        })?;
        // Each gets its turn to be the first, as if each client had looked the name up by itself.
        let turn = hub.choose(u32::try_from(places.len()).unwrap_or(u32::MAX));
        places.rotate_left(turn as usize);
        self.targets = named::targets(&places, *port, *is_raced);
        Ok(())
    }

    /// One request more, if the policy has room for it.
    pub(crate) fn admit_request(&self) -> Option<Permit> {
        let requests = &self.group.in_use.requests;
        requests.admit(self.policy.limits.requests)
    }

    /// Notes how an attempt ended, for the endpoint to be left alone if too many end badly.
    pub(crate) fn ended(&self, endpoint: SocketAddr, outcome: Outcome) {
        // What clients' names lead to may be any number of addresses, of which none is chosen rather than another.
        if self.asked.is_some() {
            return;
        }
        if self.group.ended(&self.policy, self.all, endpoint, outcome) {
            info!(%endpoint, "an endpoint failed too often and is left alone");
        }
    }

    /// Notes that an attempt was cut off, if its request's time is over: it has no ending of its own.
    pub(crate) fn cut_off(&self, endpoint: Option<SocketAddr>, deadline: Option<Instant>) {
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if let Some(endpoint) = endpoint.filter(|_| is_late) {
            self.ended(endpoint, Outcome::Status(StatusCode::GATEWAY_TIMEOUT));
        }
    }
}
