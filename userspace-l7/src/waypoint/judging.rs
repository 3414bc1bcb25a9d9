//! Where a request is judged: at the endpoint's node where that is another agent, which learns who asks; here for every
//! other endpoint.

use std::sync::Arc;

use ::http::{Request, request};
use smallvec::SmallVec;

use super::client::Client;
use crate::http::{self, Body, Inflow, Refusal, Version};
use crate::judgement::{self, Call, Demanded};
use crate::model::{
    BackendTarget, Demands, HttpPolicyAction, HttpRule, NamespacedHostname, Peer, ServiceLayer7,
    Snapshot, SpiffeId, TunnelProtocol, Workload,
};
use crate::policy::ext_authz::HeaderChange;
use crate::route::http::{Filters, Original};
use crate::route::{MAX_ATTEMPTS, Target};

/// Who judges a request.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// This node does.
    here: bool,
    /// For this target, unless it is for a mirror only.
    target: Option<Target>,
    /// Some target's node does, too.
    there: bool,
}

/// The rule that takes a request, and those of its filters that the request has yet to pass.
type Taken<'a> = (Option<&'a Arc<HttpRule>>, Option<&'a Filters<'a>>);

/// A request's head on its way.
pub(super) struct Heads {
    /// As it goes where nobody judges it any more; where nobody else does, as it goes to nodes that judge it.
    pub(super) here: request::Parts,
    /// As it goes to nodes that judge it by themselves, if that is another.
    pub(super) there: Option<request::Parts>,
}

impl Heads {
    /// Makes of both what the rule's filters make of them.
    ///
    /// # Errors
    /// [`Refusal::Unrewritable`].
    pub(super) fn change(&mut self, filters: Option<&Filters<'_>>) -> Result<(), Refusal> {
        for parts in self.both() {
            let changed = filters.map_or(Ok(()), |filters| filters.apply_rule(parts));
            changed.map_err(|_why| Refusal::Unrewritable)?;
        }
        Ok(())
    }

    /// Writes both for a backend, in the version that it speaks.
    pub(super) fn address(
        &mut self,
        filters: Option<&Filters<'_>>,
        (version, authority_if_none): (Version, &Arc<str>),
    ) {
        for parts in self.both() {
            if let Some(filters) = filters {
                filters.apply_backend(parts);
            }
            http::send(parts, version, authority_if_none);
        }
    }

    fn both(&mut self) -> impl Iterator<Item = &mut request::Parts> {
        std::iter::once(&mut self.here).chain(&mut self.there)
    }

    /// The one, and both where there are two.
    pub(super) fn split(self) -> (request::Parts, Option<Self>) {
        let Self { here, there } = self;
        match there {
            None => (here, None),
            Some(there) => {
                let (first, there) = (here.clone(), Some(there));
                (first, Some(Self { here, there }))
            }
        }
    }

    /// Gives a request the one that is for a target.
    pub(super) fn dress(&self, is_judged_there: bool, request: &mut Request<Body>) {
        let there = self.there.as_ref().filter(|_| is_judged_there);
        let parts = there.unwrap_or(&self.here);
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
    }
}

/// Judges a request, as far as that is to be done here, and tells the nodes that judge it what it was before its filters.
/// Targets that it must not go to are taken out.
///
/// What is to be made of the response comes back.
///
/// # Errors
/// As [`judgement::judge`].
///
/// # Cancel safety
/// As [`judgement::judge`].
pub(super) async fn judge(
    client: &Client,
    snapshot: &Snapshot,
    ((rule, filters), targets): (Taken<'_>, &mut SmallVec<[Target; MAX_ATTEMPTS]>),
    (parts, body): (request::Parts, &mut Inflow),
) -> Result<(Heads, Vec<HeaderChange>), Refusal> {
    let plan = plan(client, snapshot, rule, targets);
    let mut heads = Heads {
        there: (plan.here && plan.there).then(|| parts.clone()),
        here: parts,
    };
    if let Some(filters) = filters.filter(|_| plan.there) {
        let parts = heads.there.as_mut().unwrap_or(&mut heads.here);
        if let Some(original) = Original::of(parts, filters) {
            foresee(client, snapshot, parts)?;
            if !original.tell(&mut parts.headers) {
                return Err(Refusal::HeadTooLong);
            }
        }
    }
    let mut changes = Vec::new();
    if plan.here {
        let request = (&mut heads.here, body);
        let judged = judge_here(client, snapshot, plan.target.as_ref(), request);
        changes = Box::pin(judged).await?;
    }
    Ok((heads, changes))
}

/// Enforces the service's demands where no endpoint's node will: outside the mesh, where another data plane answers that
/// sees connections only, where it will not learn who asks, or where nobody is asked at all.
///
/// What is to be made of the response comes back.
///
/// # Errors
/// As [`judgement::judge`].
///
/// # Cancel safety
/// As [`judgement::judge`].
pub(super) async fn judge_here(
    client: &Client,
    snapshot: &Snapshot,
    target: Option<&Target>,
    request: (&mut request::Parts, &mut Inflow),
) -> Result<Vec<HeaderChange>, Refusal> {
    let Some(layer7) = client.layer7(snapshot) else {
        return Ok(Vec::new());
    };
    let workload = target.and_then(|target| target.workload.as_ref());
    let server = workload.map(|one| one.identity());
    let identity = client.identity();
    let (demanded, call) = demanded(client, layer7, identity.as_ref());
    let call = Call {
        destination: target.map_or(call.destination, |target| target.destination),
        server: server.as_ref(),
        ..call
    };
    let judged = judgement::judge(client.asker(), &[demanded], &call, request).await?;
    Ok(judged.response)
}

/// Refuses what the endpoint's node would refuse, if it knows what was asked for before filters change that: it may not
/// yet, or not any more, have the same route.
///
/// # Errors
/// [`Refusal::Denied`].
pub(super) fn foresee(
    client: &Client,
    snapshot: &Snapshot,
    parts: &request::Parts,
) -> Result<(), Refusal> {
    let Some(layer7) = client.layer7(snapshot) else {
        return Ok(());
    };
    let identity = client.identity();
    let (demanded, call) = demanded(client, layer7, identity.as_ref());
    judgement::foresee(&client.hub, &demanded, &call, parts)
}

/// What the dialled service demands, and of which call, as long as nobody has been found to answer it.
fn demanded<'a>(
    client: &Client,
    layer7: &'a ServiceLayer7,
    identity: Option<&'a SpiffeId>,
) -> (Demanded<'a>, Call<'a>) {
    let demanded = Demanded {
        demands: &layer7.demands,
        port: client.dialled.port(),
    };
    let call = Call {
        identity,
        source: client.source,
        destination: client.dialled,
        server: None,
        // Who has proven nothing did not come through it.
        waypoint: identity.map(|_| &layer7.waypoint_identity),
    };
    (demanded, call)
}

/// Decides who judges a request of the rule to these targets, by the one that is to be tried first. Where others are of
/// the other kind they stay, unless somebody would have to be asked about the request twice.
fn plan(
    client: &Client,
    snapshot: &Snapshot,
    rule: Option<&Arc<HttpRule>>,
    targets: &mut SmallVec<[Target; MAX_ATTEMPTS]>,
) -> Plan {
    let is_judged = |target: &Target| client.is_judged_at(target);
    let plan = decide(asks_about(client, snapshot), targets, &is_judged);
    let mirrors = rule.map_or(&[][..], |rule| &rule.mirrors);
    let is_copied_past = mirrors.iter().any(|mirror| match &mirror.target {
        BackendTarget::Service { service, .. } => {
            client.is_unknown_beyond() || is_open(snapshot, service)
        }
        BackendTarget::Invalid { .. } => false,
    });
    Plan {
        here: plan.here || is_copied_past,
        there: plan.there || (!mirrors.is_empty() && !client.is_unknown_beyond()),
        ..plan
    }
}

fn decide(
    asks: bool,
    targets: &mut SmallVec<[Target; MAX_ATTEMPTS]>,
    is_judged: &dyn Fn(&Target) -> bool,
) -> Plan {
    let Some(first) = targets.first().map(is_judged) else {
        return Plan::default();
    };
    if asks {
        targets.retain(|target| is_judged(target) == first);
    }
    let unjudged = targets.iter().find(|target| !is_judged(target));
    Plan {
        here: unjudged.is_some(),
        target: unjudged.cloned(),
        there: targets.iter().any(is_judged),
    }
}

/// Whether somebody may have to be asked about a client's requests.
pub(super) fn asks_about(client: &Client, snapshot: &Snapshot) -> bool {
    let layer7 = client.layer7(snapshot);
    layer7.is_some_and(|layer7| asks(&layer7.demands))
}

/// Whether somebody may have to be asked about requests.
fn asks(demands: &Demands) -> bool {
    let mut policies = demands.authorization.iter();
    policies.any(|policy| matches!(policy.action, HttpPolicyAction::Custom(_)))
}

/// Whether nobody judges what comes to some endpoint of a service.
fn is_open(snapshot: &Snapshot, service: &NamespacedHostname) -> bool {
    let is_ours = |workload: &Arc<Workload>| {
        workload.protocol == TunnelProtocol::Hbone && workload.peer == Peer::Culvert
    };
    let mut endpoints = snapshot.endpoints_of(service).iter();
    endpoints.any(|endpoint| {
        !snapshot
            .workloads
            .get(&endpoint.workload)
            .is_some_and(is_ours)
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use smallvec::SmallVec;

    use super::{MAX_ATTEMPTS, Plan, Target, decide};

    /// Ports of targets, of which those above 1000 are judged where they are.
    fn targets(ports: &[u16]) -> SmallVec<[Target; MAX_ATTEMPTS]> {
        let target = |port: &u16| Target::outside(SocketAddr::from(([10, 0, 0, 1], *port)));
        ports.iter().map(target).collect()
    }

    #[track_caller]
    fn check(asks: bool, ports: &[u16], kept: &[u16], here: Option<u16>, there: bool) {
        let mut targets_left = targets(ports);
        let plan = decide(asks, &mut targets_left, &|target| {
            target.destination.port() > 1000
        });
        let expected = Plan {
            here: here.is_some(),
            target: here.and_then(|port| targets(&[port]).pop()),
            there,
        };
        assert_eq!(plan, expected, "{ports:?}");
        assert_eq!(targets_left, targets(kept), "{ports:?}");
    }

    #[test]
    fn endpoints_of_one_kind_are_judged_in_one_place() {
        for asks in [false, true] {
            check(asks, &[1001, 1002], &[1001, 1002], None, true);
            check(asks, &[1, 2], &[1, 2], Some(1), false);
            check(asks, &[], &[], None, false);
        }
    }

    #[test]
    fn endpoints_of_both_kinds_are_judged_in_both_places_but_nobody_is_asked_twice() {
        check(false, &[1001, 2, 1003], &[1001, 2, 1003], Some(2), true);
        check(false, &[1, 1002], &[1, 1002], Some(1), true);
        check(true, &[1001, 2, 1003], &[1001, 1003], None, true);
        check(true, &[1, 1002, 3], &[1, 3], Some(1), false);
    }
}
