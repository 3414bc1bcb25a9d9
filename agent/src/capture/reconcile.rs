//! Pure: what has to be done to turn the observed state of a pod into the wanted one.
//!
//! Enrolment and repair are the same: a pod that is being enrolled is one of which nothing is there
//! yet. Actions come in arming order: the entry that starts capture is last, so that a marked packet
//! never finds its route or its listener missing.

use std::{collections::BTreeMap, net::IpAddr};

use culvert_ebpf::PodEntry;

use super::{
    repair::Repair,
    routing::{Device, Family, Routing},
};

/// What an enrolled pod is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// The pod's own addresses as the cluster knows them; others on its devices count as well.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether `lo` gets the program that holds connections until their far side answers.
    pub(crate) holds: bool,
    /// Whether the other devices get those that let closed ports refuse, and nothing captured out.
    pub(crate) guards: bool,
    /// The entry, with the ports of the listeners if these are open.
    pub(crate) entry: PodEntry,
}

impl Desired {
    /// The address from which the pod's connections of a family come.
    pub(crate) fn source(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// What a pod is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Actual {
    /// The network namespace.
    pub(crate) routing: Routing,
    /// Whether all listeners accept connections.
    pub(crate) listeners_open: bool,
    /// Whether the slots hold those listeners.
    pub(crate) slots_filled: bool,
    /// Whether the pod's `sk_lookup` program is attached and pinned.
    pub(crate) lookup_attached: bool,
    /// Devices that were given their program for what they receive, and whether it is still attached and pinned.
    pub(crate) guards: BTreeMap<Device, bool>,
    /// The same for what they send.
    pub(crate) bars: BTreeMap<Device, bool>,
    /// Addresses recorded as the pod's.
    pub(crate) recorded_addresses: Vec<IpAddr>,
    /// Those of its own addresses by which the node finds it.
    pub(crate) found_by: Vec<IpAddr>,
    /// The pod's entry.
    pub(crate) entry: Option<PodEntry>,
}

/// One step towards the wanted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    RaiseLoopback,
    AddBackstopRule(Family),
    AddRoute(Family),
    AddLoopRule(Family),
    OpenListeners,
    FillSlots,
    AttachLookup,
    GuardDevice(Device),
    BarExit(Device),
    HoldOpenings(Device),
    ForgetDevice(Device),
    RecordAddress(IpAddr),
    FindByAddress(IpAddr),
    ForgetAddress(IpAddr),
    WriteEntry,
}

impl Action {
    /// What it puts in place.
    pub(crate) fn repair(self) -> Repair {
        match self {
            Self::RaiseLoopback => Repair::Loopback,
            Self::AddBackstopRule(_) | Self::AddLoopRule(_) => Repair::Rule,
            Self::AddRoute(_) => Repair::Route,
            Self::OpenListeners => Repair::Listener,
            Self::FillSlots => Repair::Slot,
            Self::AttachLookup => Repair::SkLookup,
            Self::GuardDevice(_)
            | Self::BarExit(_)
            | Self::HoldOpenings(_)
            | Self::ForgetDevice(_) => Repair::Tcx,
            Self::RecordAddress(_) | Self::FindByAddress(_) | Self::ForgetAddress(_) => {
                Repair::Address
            }
            Self::WriteEntry => Repair::Entry,
        }
    }
}

/// The steps from `actual` to `desired`, in the order in which they are safe.
pub(crate) fn reconcile(desired: &Desired, actual: &Actual) -> Vec<Action> {
    let mut actions = Vec::new();
    let routing = &actual.routing;
    if !routing.loopback_up {
        actions.push(Action::RaiseLoopback);
    }
    let missing = |wanted: &[Family], present: &[Family]| -> Vec<Family> {
        wanted
            .iter()
            .copied()
            .filter(|family| !present.contains(family))
            .collect()
    };
    let families = &routing.supported;
    actions.extend(
        missing(families, &routing.backstop_rules)
            .into_iter()
            .map(Action::AddBackstopRule),
    );
    // Routes through lo go away with it: what was seen of them before it was down means nothing.
    let routes = if routing.loopback_up {
        routing.routes.as_slice()
    } else {
        &[]
    };
    // A family without an address gets no route: its connections meet the backstop rule.
    let mut wanted_routes = routing.routable.clone();
    wanted_routes.retain(|family| desired.source(*family).is_some());
    actions.extend(
        missing(&wanted_routes, routes)
            .into_iter()
            .map(Action::AddRoute),
    );
    actions.extend(
        missing(families, &routing.loop_rules)
            .into_iter()
            .map(Action::AddLoopRule),
    );
    if !actual.listeners_open {
        actions.push(Action::OpenListeners);
    }
    if !actual.listeners_open || !actual.slots_filled {
        actions.push(Action::FillSlots);
    }
    if !actual.lookup_attached {
        actions.push(Action::AttachLookup);
    }
    actions.extend(devices(desired, actual));
    actions.extend(addresses(desired, actual));
    // New listeners may have other ports.
    if !actual.listeners_open || actual.entry != Some(desired.entry) {
        actions.push(Action::WriteEntry);
    }
    actions
}

fn devices(desired: &Desired, actual: &Actual) -> Vec<Action> {
    let (present, loopback) = (&actual.routing.devices, actual.routing.loopback);
    let Actual { guards, bars, .. } = actual;
    let lacks = |device: &Device| guards.get(device) != Some(&true);
    let guarded = || present.iter().copied().filter(|_| desired.guards);
    let unguarded = guarded().filter(lacks);
    let open = guarded().filter(|device| bars.get(device) != Some(&true));
    let unheld = loopback.filter(lacks).filter(|_| desired.holds);
    let mut gone: Vec<_> = guards.keys().chain(bars.keys()).copied().collect();
    gone.retain(|device| !present.contains(device) && Some(*device) != loopback);
    gone.sort_unstable();
    gone.dedup();
    unguarded
        .map(Action::GuardDevice)
        .chain(open.map(Action::BarExit))
        .chain(unheld.map(Action::HoldOpenings))
        .chain(gone.into_iter().map(Action::ForgetDevice))
        .collect()
}

/// How many of the addresses on a pod's devices count as its own; those that its runtime gave it always do. Who may give its
/// devices addresses is not to leave the other pods of the node without room (`LOCAL_ADDRESSES`): calls to further ones go
/// to the agent.
const ADDRESSES_MOST: usize = 64;

fn addresses(desired: &Desired, actual: &Actual) -> Vec<Action> {
    let recorded = &actual.recorded_addresses;
    let mut wanted = desired.addresses.clone();
    let others = actual.routing.addresses.iter();
    wanted.extend(others.take(ADDRESSES_MOST));
    wanted.sort_unstable();
    wanted.dedup();
    let stale = recorded.iter().filter(|address| !wanted.contains(address));
    let forget: Vec<Action> = stale
        .map(|address| Action::ForgetAddress(*address))
        .collect();
    let new = wanted.iter().filter(|address| !recorded.contains(address));
    // By others that it gives itself nobody finds it: they may be another pod's.
    let lost = desired.addresses.iter();
    let lost = lost.filter(|address| !actual.found_by.contains(address));
    new.map(|address| Action::RecordAddress(*address))
        .chain(lost.map(|address| Action::FindByAddress(*address)))
        .chain(forget)
        .collect()
}

#[cfg(test)]
mod tests;
