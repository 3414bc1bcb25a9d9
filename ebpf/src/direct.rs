//! The kernel-direct path: connections between two pods of the node that the agent has allowed to go without it.
//!
//! `connect` leaves such a connection unmarked, `TCP_CONNECT_CB` announces it to the pod that it goes to, whose
//! `sk_lookup` lets exactly that one in, and the end of the handshake erases the announcement. After that no program
//! runs until the connection's end, which is told with its bytes.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP};
use culvert_ebpf::{
    Address, DestinationKey, EVENT_DENIED, EVENT_ENDED, FLOW_CLIENT, FLOW_EVENTS_BYTES,
    FLOW_REFUSED, FLOW_SERVER, FlowEntry, FlowEvent, LostEntry, LostKey, MARK_MASK, MARK_OUTBOUND,
    SOCKET_LED, SPREAD_MAX, SocketNote, TUPLE_DIRECT, TupleEntry, TupleKey, VERDICT_ALLOW,
    VERDICT_DENY, VERDICT_SPREAD,
};

use crate::{
    connect::Family,
    context::{SockAddr, SockOps, Socket, add, now_ns, random},
    maps, openings,
};

/// `include/net/tcp_states.h`.
const TCP_SYN_SENT: u32 = 2;

/// Where a connection is to go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the agent.
    Captured,
    /// To the pod that it is for.
    Straight,
    /// Nowhere.
    Refused,
}

/// What has been decided about a pod's connections to this destination. One that goes to an endpoint of a service has
/// the endpoint's address in the context then.
#[inline(always)]
pub fn way(
    context: &SockAddr,
    socket: &Socket<'_>,
    family: Family,
    netns_cookie: u64,
    destination: &Address,
) -> Way {
    let key = DestinationKey {
        netns_cookie,
        address: *destination,
        port: context.port(),
        pad: [0; 3],
    };
    let Some(verdict) = maps::verdict(&key) else {
        return Way::Captured;
    };
    match verdict.action {
        VERDICT_ALLOW => Way::Straight,
        VERDICT_DENY => {
            tell_denied(&key);
            Way::Refused
        }
        VERDICT_SPREAD if lead(context, socket, family, &key) => Way::Straight,
        _ => Way::Captured,
    }
}

/// Leads a connection to one of a service's endpoints, by chance and their weights; false if it is another's turn.
#[inline(always)]
fn lead(context: &SockAddr, socket: &Socket<'_>, family: Family, service: &DestinationKey) -> bool {
    let Some((address, port)) = draw(service) else {
        return false;
    };
    let endpoint = DestinationKey {
        netns_cookie: service.netns_cookie,
        address,
        port,
        pad: [0; 3],
    };
    let is_allowed = maps::verdict(&endpoint).is_some_and(|one| one.action == VERDICT_ALLOW);
    if !is_allowed {
        return false;
    }
    // `getpeername` goes on to show the service.
    let noted = socket.set_note(&SocketNote {
        role: SOCKET_LED,
        port: u32::from(service.port),
        address: service.address,
        netns_cookie: service.netns_cookie,
    });
    if noted {
        family.replace(context, &address, port);
    }
    noted
}

#[inline(always)]
fn draw(service: &DestinationKey) -> Option<(Address, u16)> {
    // SAFETY: the map is not preallocated, so the element stays this one's until the RCU grace period
    // in which the program runs is over.
    let spread = unsafe { maps::SPREADS.get(service) }?;
    if spread.total == 0 {
        return None;
    }
    let drawn = random() % spread.total;
    let mut index = 0;
    while index < SPREAD_MAX {
        let endpoint = &spread.endpoints[index];
        if drawn < endpoint.below {
            return Some((endpoint.address, endpoint.port as u16));
        }
        index += 1;
    }
    None
}

/// Announces a connection to the pod that it goes to; `tuple` is as this pod would receive it. False if it has no right
/// to go there, or no more.
///
/// The record of live connections is written before the verdict is looked at again: whoever removes a verdict and
/// then reads the record either finds the connection in it or has made it turn back here.
#[inline(always)]
pub fn open(context: &SockOps, note: &SocketNote, tuple: &TupleKey) -> bool {
    let destination = DestinationKey {
        netns_cookie: tuple.netns_cookie,
        address: tuple.local,
        port: tuple.local_port,
        pad: [0; 3],
    };
    let Some(server_netns) = allowed(&destination) else {
        return false;
    };
    // A pod that may spoof addresses speaks for itself only.
    if !maps::is_own_address(tuple.netns_cookie, &tuple.remote) {
        return false;
    }
    let (dialled, dialled_port) = if note.role == SOCKET_LED {
        (note.address, note.port as u16)
    } else {
        (tuple.local, tuple.local_port)
    };
    let socket_cookie = context.socket_cookie();
    let flow = FlowEntry {
        client_netns: tuple.netns_cookie,
        server_netns,
        since_ns: now_ns(),
        client: tuple.remote,
        server: tuple.local,
        dialled,
        client_port: tuple.remote_port,
        server_port: tuple.local_port,
        dialled_port,
        end: FLOW_CLIENT,
    };
    if maps::FLOWS.insert(&socket_cookie, &flow, 0).is_err() {
        return false;
    }
    let announced = allowed(&destination) == Some(server_netns)
        && announce(&flow, u32::from(dialled_port), socket_cookie);
    if !announced {
        let _gone_already = maps::FLOWS.remove(&socket_cookie);
        return false;
    }
    context.watch_state();
    true
}

/// The network namespace to which connections to this destination may go.
#[inline(always)]
fn allowed(destination: &DestinationKey) -> Option<u64> {
    let verdict = maps::verdict(destination)?;
    (verdict.action == VERDICT_ALLOW).then_some(verdict.netns_cookie)
}

#[inline(always)]
fn announce(flow: &FlowEntry, port: u32, socket_cookie: u64) -> bool {
    let entry = TupleEntry {
        kind: TUPLE_DIRECT,
        port,
        address: flow.dialled,
        socket_cookie,
        client_netns: flow.client_netns,
    };
    openings::publish(&announced(flow), &entry)
}

/// The connection as the pod that it goes to receives it.
#[inline(always)]
fn announced(flow: &FlowEntry) -> TupleKey {
    TupleKey {
        netns_cookie: flow.server_netns,
        local: flow.server,
        remote: flow.client,
        local_port: flow.server_port,
        remote_port: flow.client_port,
        pad: 0,
    }
}

/// Whether an announced connection may come in: while its pod is enrolled, and not to the agent's own listeners.
#[inline(always)]
pub fn may_enter(announcement: &TupleEntry, to_agent: bool) -> bool {
    !to_agent && maps::pod(announcement.client_netns).is_some()
}

/// The application's end of an announced connection is there.
#[inline(always)]
pub fn accept(context: &SockOps, tuple: &TupleKey, announcement: &TupleEntry) {
    let flow = FlowEntry {
        client_netns: announcement.client_netns,
        server_netns: tuple.netns_cookie,
        since_ns: now_ns(),
        client: tuple.remote,
        server: tuple.local,
        dialled: announcement.address,
        client_port: tuple.remote_port,
        server_port: tuple.local_port,
        dialled_port: announcement.port as u16,
        end: FLOW_SERVER,
    };
    let socket_cookie = context.socket_cookie();
    // Without room this end goes unaccounted; the client's end says as much.
    if maps::FLOWS.insert(&socket_cookie, &flow, 0).is_ok() {
        context.watch_state();
    }
}

/// A connection stands at its client's end. One that was captured and then let go, the agent having sent its SYN to the
/// pod that it is for, loses its mark here: what it sends from now on takes the same way.
#[inline(always)]
pub fn establish(context: &SockOps, socket: &Socket<'_>) {
    let mark = socket.mark();
    if mark & MARK_MASK != MARK_OUTBOUND {
        return;
    }
    let socket_cookie = context.socket_cookie();
    let Some(flow) = maps::flow(socket_cookie) else {
        return;
    };
    openings::withdraw(&captured(&flow), socket_cookie);
    // Without memory for it nobody receives what is sent: the connection ends, as a reset.
    let _takes_the_same_way = context.set_mark(mark & !MARK_MASK);
}

/// A connection that was announced goes through the proxy after all: its SYN could not be sent, or got no answer.
#[inline(always)]
pub fn retract(socket_cookie: u64) {
    if let Some(flow) = maps::flow(socket_cookie) {
        openings::withdraw(&announced(&flow), socket_cookie);
        let _gone_already = maps::FLOWS.remove(&socket_cookie);
    }
}

/// The connection as it was captured in its own pod.
#[inline(always)]
fn captured(flow: &FlowEntry) -> TupleKey {
    TupleKey {
        netns_cookie: flow.client_netns,
        ..announced(flow)
    }
}

/// One end closes.
#[inline(always)]
pub fn close(context: &SockOps, socket: &Socket<'_>, socket_cookie: u64, flow: &FlowEntry) {
    if flow.end == FLOW_CLIENT {
        openings::withdraw(&announced(flow), socket_cookie);
        if context.old_state() == TCP_SYN_SENT {
            openings::withdraw(&captured(flow), socket_cookie);
        }
    }
    let _gone_already = maps::FLOWS.remove(&socket_cookie);
    let Some(totals) = socket.totals() else {
        return;
    };
    tell(&FlowEvent {
        flow: *flow,
        socket_cookie,
        at_ns: now_ns(),
        sent: totals.sent,
        received: totals.received,
        kind: EVENT_ENDED,
        old_state: context.old_state() as u16,
        error: totals.error as u16,
    });
}

/// Tells of a connection that a verdict refuses.
#[inline(always)]
fn tell_denied(destination: &DestinationKey) {
    let now = now_ns();
    tell(&FlowEvent {
        flow: FlowEntry {
            client_netns: destination.netns_cookie,
            server_netns: 0,
            since_ns: now,
            client: Address::UNSPECIFIED,
            server: destination.address,
            dialled: destination.address,
            client_port: 0,
            server_port: destination.port,
            dialled_port: destination.port,
            end: FLOW_REFUSED,
        },
        socket_cookie: 0,
        at_ns: now,
        sent: 0,
        received: 0,
        kind: EVENT_DENIED,
        old_state: 0,
        error: 0,
    });
}

#[inline(always)]
fn tell(event: &FlowEvent) {
    let has_room = event.kind == EVENT_ENDED || half_is_free();
    let is_told = has_room
        && maps::FLOW_EVENTS
            .output::<FlowEvent>(event, u64::from(BPF_RB_NO_WAKEUP))
            .is_ok();
    if !is_told {
        add_up(event);
    }
}

/// Whether at most half of the ring waits to be read.
#[inline(always)]
fn half_is_free() -> bool {
    let waiting = maps::FLOW_EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    waiting < u64::from(FLOW_EVENTS_BYTES / 2)
}

/// Counts what cannot be told, so that no byte is missing in any sum.
#[inline(always)]
fn add_up(event: &FlowEvent) {
    let flow = &event.flow;
    let key = LostKey {
        client_netns: flow.client_netns,
        server_netns: flow.server_netns,
        dialled: flow.dialled,
        dialled_port: flow.dialled_port,
        end: flow.end,
        pad: 0,
    };
    let none = LostEntry {
        ended: 0,
        sent: 0,
        received: 0,
    };
    let entry = maps::LOST_ENDS.get_ptr_mut(&key).or_else(|| {
        // Another CPU may be first: then its entry stays.
        let _is_there = maps::LOST_ENDS.insert(&key, &none, maps::BPF_NOEXIST);
        maps::LOST_ENDS.get_ptr_mut(&key)
    });
    let Some(entry) = entry else {
        return;
    };
    // SAFETY: the element is whole and stays this one's until the RCU grace period in which the program runs is over; its
    // fields are aligned, and only ever added to.
    unsafe {
        add(&raw mut (*entry).ended, 1);
        add(&raw mut (*entry).sent, event.sent);
        add(&raw mut (*entry).received, event.received);
    }
}
