//! `cgroup/connect{4,6}`: marks an application's TCP connection so that it loops back to the agent.
//!
//! What the agent has allowed to go straight to another pod of the node stays unmarked (`direct`). For the rest, the
//! destination is never rewritten. The mark selects a routing table whose only route is local, the
//! pod's `sk_lookup` program hands the SYN to the agent's transparent listener, and both ends see true
//! addresses. Whatever cannot be captured is refused with `ECONNREFUSED`, never let go.

use culvert_ebpf::{
    Address, MARK_MASK, MARK_OUTBOUND, POD_OUTBOUND_OPEN, PodEntry, SOCKET_PLAIN, SOCKET_PROBE,
    SocketNote,
};

use crate::{
    PASS, REFUSE,
    context::{SockAddr, Socket, ancestor_cgroup, now_ns},
    datagram,
    direct::{self, Way},
    maps, openings,
};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// The family of the hook that runs: which of the two address fields of the context is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The address in the context.
    #[inline(always)]
    pub fn address(self, context: &SockAddr) -> Address {
        match self {
            Self::V4 => context.address4(),
            Self::V6 => context.address6(),
        }
    }

    /// Replaces the address and the port in the context; an IPv4 hook cannot show an IPv6 address.
    #[inline(always)]
    pub fn replace(self, context: &SockAddr, address: &Address, port: u16) {
        match self {
            Self::V4 if !address.is_v4() => return,
            Self::V4 => context.set_address4(address),
            Self::V6 => context.set_address6(address),
        }
        context.set_port(port);
    }
}

/// Decides about one `connect`.
#[inline(always)]
pub fn connect(context: &SockAddr, family: Family) -> i32 {
    let Some(socket) = context.socket() else {
        return PASS;
    };
    let netns_cookie = context.netns_cookie();
    let destination = family.address(context);
    let Some(pod) = maps::pod(netns_cookie) else {
        return announce_probe(&socket, netns_cookie, &destination);
    };
    match context.kind() {
        SOCK_STREAM if matches!(context.protocol(), IPPROTO_TCP | IPPROTO_MPTCP) => {
            capture(context, &socket, family, (netns_cookie, &pod), &destination)
        }
        SOCK_DGRAM => datagram::connect(context, family, netns_cookie, &pod, &destination),
        _ => PASS,
    }
}

#[inline(always)]
fn capture(
    context: &SockAddr,
    socket: &Socket<'_>,
    family: Family,
    (netns_cookie, pod): (u64, &PodEntry),
    destination: &Address,
) -> i32 {
    let port = context.port();
    let to_own_address = maps::is_own_address(netns_cookie, destination);
    let to_itself = to_own_address || destination.is_loopback() || destination.is_unspecified();
    // Connected to by name, the listeners would serve a connection that was meant for nobody; the
    // agent itself would do so forever.
    if to_itself && (port == pod.outbound_port || port == pod.inbound_port) {
        return refuse(context);
    }
    let note = socket.note();
    if note.is_agents() {
        return PASS;
    }
    forget(socket, &note);
    let mark = socket.mark();
    // It may come from another one of the pod's addresses.
    if to_own_address && !openings::has_room(netns_cookie) {
        return refuse(context);
    }
    if to_itself || pod.flags & POD_OUTBOUND_OPEN != 0 {
        // A forged mark would make `sock_ops` take the connection for a captured one.
        return set_mark(context, mark, mark & !MARK_MASK);
    }
    // A bound device takes precedence over the routing rule, and a link-local destination binds one
    // after this hook: both would leave through the device uncaptured.
    if socket.bound_device() != 0 || destination.is_link_local_v6() {
        return refuse(context);
    }
    if !lease_is_valid() {
        return refuse_or_wait(context, netns_cookie, mark);
    }
    match direct::way(context, socket, family, netns_cookie, destination) {
        Way::Captured => {}
        Way::Straight => return set_mark(context, mark, mark & !MARK_MASK),
        Way::Refused => return refuse(context),
    }
    if !context.agent_listens(pod.outbound_port) {
        return refuse_or_wait(context, netns_cookie, mark);
    }
    loop_back(context, netns_cookie, mark)
}

/// There is no agent. Its SYN is dropped behind the hook if one is awaited, and sent again until that one answers.
#[inline(always)]
fn refuse_or_wait(context: &SockAddr, netns_cookie: u64, mark: u32) -> i32 {
    if agent_is_awaited() {
        return loop_back(context, netns_cookie, mark);
    }
    refuse(context)
}

/// Has the connection come to the agent, if the pod may open one more.
#[inline(always)]
fn loop_back(context: &SockAddr, netns_cookie: u64, mark: u32) -> i32 {
    if !openings::has_room(netns_cookie) {
        return refuse(context);
    }
    set_mark(context, mark, (mark & !MARK_MASK) | MARK_OUTBOUND)
}

#[inline(always)]
fn set_mark(context: &SockAddr, old: u32, new: u32) -> i32 {
    if old == new || context.set_mark(new) {
        PASS
    } else {
        refuse(context)
    }
}

/// Clears what an earlier connection of the same socket left behind.
#[inline(always)]
fn forget(socket: &Socket<'_>, note: &SocketNote) {
    if note.role != SOCKET_PLAIN {
        socket.set_note(&SocketNote::PLAIN);
    }
}

/// Whether the agent has shown itself well recently enough.
#[inline(always)]
pub fn lease_is_valid() -> bool {
    let Some(control) = maps::CONTROL.get(0) else {
        return false;
    };
    now_ns().saturating_sub(control.beat_ns) < control.lease_ns
}

/// Whether an agent has ended in good order, and another one is to follow it soon.
#[inline(always)]
pub fn agent_is_awaited() -> bool {
    let Some(control) = maps::CONTROL.get(0) else {
        return false;
    };
    now_ns() < control.awaited_until_ns
}

#[inline(always)]
fn refuse(context: &SockAddr) -> i32 {
    context.refuse();
    REFUSE
}

/// Notes a connection from the node itself to one of its pods: kubelet's, as far as the mesh knows.
///
/// Only a process in the node's own network namespace and outside the pods' cgroup qualifies: pods
/// with `hostNetwork` share the namespace but not the cgroup.
#[inline(always)]
fn announce_probe(socket: &Socket<'_>, netns_cookie: u64, destination: &Address) -> i32 {
    let Some(control) = maps::CONTROL.get(0) else {
        return PASS;
    };
    if netns_cookie != control.node_netns_cookie {
        return PASS;
    }
    let note = socket.note();
    if note.is_agents() {
        return PASS;
    }
    let runs_in_a_pod = control.pods_cgroup != 0
        && ancestor_cgroup(control.pods_cgroup_level) == control.pods_cgroup;
    // SAFETY: the value is copied out at once; a stale one names a pod that is gone.
    let pod = unsafe { maps::POD_BY_ADDRESS.get(destination) }.copied();
    match pod {
        Some(pod_cookie) if !runs_in_a_pod => {
            socket.set_note(&SocketNote {
                role: SOCKET_PROBE,
                port: 0,
                address: Address::UNSPECIFIED,
                netns_cookie: pod_cookie,
            });
        }
        _ => forget(socket, &note),
    }
    PASS
}
