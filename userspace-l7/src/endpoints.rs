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
use crate::route::breaker::Permit;
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
    let targets: SmallVec<_> = chosen
        .map(|candidate| candidate.target(towards.service))
        .collect();
    if targets.is_empty() {
        return Err(Refusal::NoHealthyUpstream);
    }
    Ok(Endpoints {
        targets,
        policy,
        key,
        group,
        all: candidates.len(),
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
    /// One request more, if the policy has room for it.
    pub(crate) fn admit_request(&self) -> Option<Permit> {
        let requests = &self.group.in_use.requests;
        requests.admit(self.policy.limits.requests)
    }

    /// Notes how an attempt ended, for the endpoint to be left alone if too many end badly.
    pub(crate) fn ended(&self, endpoint: SocketAddr, outcome: Outcome) {
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
