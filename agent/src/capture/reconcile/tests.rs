//! The reconciler on values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_ebpf::PodEntry;
use proptest::prelude::*;

use super::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));
const LATE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 7));
const LO: Device = Device { index: 1 };
const ETH0: Device = Device { index: 2 };
const ENTRY: PodEntry = PodEntry {
    flags: 0,
    outbound_port: 15001,
    inbound_port: 15006,
};

fn desired() -> Desired {
    Desired {
        addresses: vec![V4, V6],
        holds: true,
        guards: true,
        entry: ENTRY,
    }
}

/// A pod in which everything is in place.
fn whole() -> Actual {
    Actual {
        routing: Routing {
            supported: Family::ALL.to_vec(),
            routable: Family::ALL.to_vec(),
            loopback: Some(LO),
            loopback_up: true,
            loop_rules: Family::ALL.to_vec(),
            backstop_rules: Family::ALL.to_vec(),
            routes: Family::ALL.to_vec(),
            addresses: vec![V4, V6],
            devices: vec![ETH0],
        },
        listeners_open: true,
        slots_filled: true,
        lookup_attached: true,
        guards: [(LO, true), (ETH0, true)].into(),
        bars: [(ETH0, true)].into(),
        recorded_addresses: vec![V4, V6],
        found_by: vec![V4, V6],
        entry: Some(ENTRY),
    }
}

/// A pod of which capture knows nothing yet.
fn untouched() -> Actual {
    let routing = Routing {
        loopback_up: false,
        loop_rules: Vec::new(),
        backstop_rules: Vec::new(),
        routes: Vec::new(),
        ..whole().routing
    };
    Actual {
        routing,
        ..Actual::default()
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Desired, &mut Actual), expected: &[Action]) {
    let (mut desired, mut actual) = (desired(), whole());
    change(&mut desired, &mut actual);
    assert_eq!(reconcile(&desired, &actual), expected);
}

#[test]
fn whole_pod_needs_nothing() {
    check(|_, _| {}, &[]);
}

#[test]
fn guards_can_wait() {
    let without = |desired: &mut Desired, actual: &mut Actual| {
        desired.guards = false;
        actual.guards = [(LO, true)].into();
        actual.bars.clear();
    };
    check(without, &[]);
    let later = |_: &mut Desired, actual: &mut Actual| {
        actual.guards = [(LO, true)].into();
        actual.bars.clear();
    };
    check(later, &[Action::GuardDevice(ETH0), Action::BarExit(ETH0)]);
}

#[test]
fn new_pod_is_armed_with_its_entry_last() {
    let expected = [
        Action::RaiseLoopback,
        Action::AddBackstopRule(Family::V4),
        Action::AddBackstopRule(Family::V6),
        Action::AddRoute(Family::V4),
        Action::AddRoute(Family::V6),
        Action::AddLoopRule(Family::V4),
        Action::AddLoopRule(Family::V6),
        Action::OpenListeners,
        Action::FillSlots,
        Action::AttachLookup,
        Action::GuardDevice(ETH0),
        Action::BarExit(ETH0),
        Action::HoldOpenings(LO),
        Action::RecordAddress(V4),
        Action::RecordAddress(V6),
        Action::FindByAddress(V4),
        Action::FindByAddress(V6),
        Action::WriteEntry,
    ];
    check(|_, actual| *actual = untouched(), &expected);
}

#[test]
fn each_missing_piece_is_replaced() {
    let v6 = Family::V6;
    check(
        |_, a| a.routing.loop_rules = vec![Family::V4],
        &[Action::AddLoopRule(v6)],
    );
    check(
        |_, a| a.routing.backstop_rules = vec![Family::V4],
        &[Action::AddBackstopRule(v6)],
    );
    check(
        |_, a| a.routing.routes = vec![Family::V4],
        &[Action::AddRoute(v6)],
    );
    check(|_, a| a.slots_filled = false, &[Action::FillSlots]);
    check(|_, a| a.lookup_attached = false, &[Action::AttachLookup]);
    check(
        |_, a| a.guards = [(LO, true), (ETH0, false)].into(),
        &[Action::GuardDevice(ETH0)],
    );
    check(
        |_, a| a.guards = [(LO, false), (ETH0, true)].into(),
        &[Action::HoldOpenings(LO)],
    );
    check(
        |_, a| a.bars = [(ETH0, false)].into(),
        &[Action::BarExit(ETH0)],
    );
    check(
        |_, a| a.recorded_addresses = vec![V4],
        &[Action::RecordAddress(V6)],
    );
    check(|_, a| a.found_by = vec![V6], &[Action::FindByAddress(V4)]);
    check(|_, a| a.entry = None, &[Action::WriteEntry]);
    check(|d, _| d.entry.flags = 1, &[Action::WriteEntry]);
}

#[test]
fn closed_listeners_are_replaced_with_all_that_names_them() {
    let expected = [Action::OpenListeners, Action::FillSlots, Action::WriteEntry];
    check(|_, actual| actual.listeners_open = false, &expected);
}

#[test]
fn loopback_that_went_down_took_the_routes_along() {
    let expected = [
        Action::RaiseLoopback,
        Action::AddRoute(Family::V4),
        Action::AddRoute(Family::V6),
    ];
    check(|_, actual| actual.routing.loopback_up = false, &expected);
}

#[test]
fn family_without_address_or_loopback_has_rules_but_no_route() {
    check(
        |desired, actual| {
            desired.addresses = vec![V4];
            actual.routing.routes = vec![Family::V4];
        },
        &[],
    );
    check(
        |_, actual| {
            actual.routing.routable = vec![Family::V4];
            actual.routing.routes = vec![Family::V4];
        },
        &[],
    );
    let expected = [Action::AddLoopRule(Family::V6)];
    check(
        |desired, actual| {
            desired.addresses = vec![V4];
            actual.routing.routes = vec![Family::V4];
            actual.routing.loop_rules = vec![Family::V4];
        },
        &expected,
    );
}

#[test]
fn kernel_without_v6_gets_no_v6_rules() {
    let v4 = || vec![Family::V4];
    let v4_only = |desired: &mut Desired, actual: &mut Actual| {
        desired.addresses = vec![V4];
        let routing = &mut actual.routing;
        (routing.supported, routing.routable) = (v4(), v4());
        (routing.loop_rules, routing.backstop_rules, routing.routes) = (v4(), v4(), v4());
        routing.addresses = vec![V4];
        actual.recorded_addresses = vec![V4];
    };
    check(v4_only, &[]);
}

#[test]
fn late_devices_and_addresses_are_taken_in_and_let_go() {
    let late = Device { index: 9 };
    check(
        |_, actual| {
            actual.routing.devices.push(late);
            actual.routing.addresses.push(LATE);
        },
        &[
            Action::GuardDevice(late),
            Action::BarExit(late),
            Action::RecordAddress(LATE),
        ],
    );
    check(
        |_, actual| {
            actual.guards.insert(late, false);
            actual.bars.insert(late, false);
            actual.recorded_addresses.push(LATE);
        },
        &[Action::ForgetDevice(late), Action::ForgetAddress(LATE)],
    );
}

#[test]
fn kernel_without_tcx_leaves_devices_alone() {
    check(
        |desired, actual| {
            (desired.holds, desired.guards) = (false, false);
            actual.guards.clear();
            actual.bars.clear();
        },
        &[],
    );
}

/// What the kernel is like after an action.
fn perform(actual: &mut Actual, action: Action) {
    let routing = &mut actual.routing;
    match action {
        Action::RaiseLoopback => {
            routing.loopback_up = true;
            routing.routes.clear();
        }
        Action::AddBackstopRule(family) => routing.backstop_rules.push(family),
        Action::AddRoute(family) => routing.routes.push(family),
        Action::AddLoopRule(family) => routing.loop_rules.push(family),
        Action::OpenListeners => {
            actual.listeners_open = true;
            actual.slots_filled = false;
        }
        Action::FillSlots => actual.slots_filled = true,
        Action::AttachLookup => actual.lookup_attached = true,
        Action::GuardDevice(device) | Action::HoldOpenings(device) => {
            actual.guards.insert(device, true);
        }
        Action::BarExit(device) => {
            actual.bars.insert(device, true);
        }
        Action::ForgetDevice(device) => {
            actual.guards.remove(&device);
            actual.bars.remove(&device);
        }
        Action::RecordAddress(address) => actual.recorded_addresses.push(address),
        Action::FindByAddress(address) => actual.found_by.push(address),
        Action::ForgetAddress(address) => actual.recorded_addresses.retain(|old| *old != address),
        Action::WriteEntry => actual.entry = Some(ENTRY),
    }
}

fn families() -> impl Strategy<Value = Vec<Family>> {
    proptest::sample::subsequence(Family::ALL.to_vec(), 0..=2)
}

fn some_addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    proptest::sample::subsequence(vec![V4, V6, LATE], 0..=3)
}

prop_compose! {
    fn any_routing()(
        loopback_up: bool,
        loop_rules in families(),
        backstop_rules in families(),
        routes in families(),
        routable in families(),
        addresses in some_addresses(),
        devices in proptest::collection::vec((2..5_u32).prop_map(|index| Device { index }), 0..3),
    ) -> Routing {
        let supported = Family::ALL.to_vec();
        let loopback = Some(LO);
        Routing {
            loopback, loopback_up, loop_rules, backstop_rules, routes, addresses, devices, supported, routable,
        }
    }
}

fn some_devices() -> impl Strategy<Value = BTreeMap<Device, bool>> {
    let device = (2..5_u32).prop_map(|index| Device { index });
    proptest::collection::btree_map(device, any::<bool>(), 0..3)
}

prop_compose! {
    fn any_actual()(
        routing in any_routing(),
        listeners_open: bool,
        slots_filled: bool,
        lookup_attached: bool,
        guards in some_devices(),
        bars in some_devices(),
        recorded_addresses in some_addresses(),
        found_by in some_addresses(),
        entry in proptest::option::of(Just(ENTRY)),
    ) -> Actual {
        Actual {
            routing, listeners_open, slots_filled, lookup_attached, guards, bars, recorded_addresses, found_by, entry,
        }
    }
}

proptest! {
    #[test]
    fn one_pass_is_enough(mut actual in any_actual(), holds: bool, guards: bool) {
        let desired = Desired { holds, guards, ..desired() };
        for action in reconcile(&desired, &actual) {
            perform(&mut actual, action);
        }
        prop_assert_eq!(reconcile(&desired, &actual), []);
    }

    #[test]
    fn entry_is_never_written_before_anything_else(actual in any_actual()) {
        let actions = reconcile(&desired(), &actual);
        let entry = actions.iter().position(|action| *action == Action::WriteEntry);
        prop_assert!(entry.is_none_or(|index| index + 1 == actions.len()));
    }
}

#[test]
fn a_pod_with_thousands_of_addresses_leaves_room_for_others() {
    let mut actual = whole();
    let many = (0..5000_u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 99, high, low))
    });
    actual.routing.addresses.extend(many);
    let actions = addresses(&desired(), &actual);
    let records = |action: &Action| matches!(action, Action::RecordAddress(_));
    let recorded = actions.iter().filter(|action| records(action)).count();
    assert_eq!(recorded, ADDRESSES_MOST - 2, "its own two count");
    assert_eq!(actions.len(), recorded, "nothing is forgotten");
}
