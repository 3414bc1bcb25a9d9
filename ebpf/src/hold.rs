//! `tcx` ingress on a pod's `lo`: holds the SYN of a captured connection back until the agent has reached
//! the far side, so that `connect` fails as it would without a mesh.
//!
//! The SYN's header goes to the worker that the tuple chooses, and the packet is dropped. The agent sends
//! the same SYN again, with a priority that says so, once somebody answers; it then goes to that worker's
//! listener. A busy destination's connections pass unheld. Where no worker would answer any more, the SYN
//! is turned into its own refusal, or dropped if an agent is awaited that will. What is none of these takes the way it took before there was this program.

use culvert_ebpf::{
    HeldSyn, LISTENER_OUTBOUND, ListenerKey, MARK_MASK, MARK_OUTBOUND, RELEASE_PRIORITY, RINGS_MAX,
    TCP_HEADER_MAX, TUPLE_OUTBOUND, TUPLE_RELEASED, TupleEntry, TupleKey,
};

use crate::{
    answering, connect,
    context::{self, Packet},
    direct, handshake, maps,
    segment::{Opening, Segment},
};

const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// The shortest TCP header.
const TCP_HEADER_MIN: u32 = 20;

/// RST and ACK (RFC 9293 §3.1).
const TCP_RST_ACK: u8 = 0x14;

/// Looks at one packet that the pod has sent to itself.
#[inline(always)]
pub fn inspect(packet: &Packet) -> i32 {
    // Half of what captured connections send over lo ends here.
    if packet.mark() & MARK_MASK != MARK_OUTBOUND {
        return TCX_NEXT;
    }
    let Some(segment) = Segment::of(packet) else {
        return TCX_NEXT;
    };
    if !segment.opens() {
        handshake::hand_over(packet, &segment);
        return TCX_NEXT;
    }
    let Some(opening) = segment.opening(packet) else {
        return TCX_NEXT;
    };
    let is_release = packet.priority() == RELEASE_PRIORITY;
    let Some(entry) = maps::tuple_mut(&opening.key) else {
        // The client has given up what the agent releases now.
        return if is_release { TCX_DROP } else { TCX_NEXT };
    };
    // SAFETY: the map is not preallocated, so the element stays this one's until the RCU grace period in
    // which the program runs is over.
    let (kind, released_to, socket_cookie) =
        unsafe { ((*entry).kind, (*entry).port, (*entry).socket_cookie) };
    let rings = maps::CONTROL.get(0).map_or(0, |control| control.rings);
    if rings == 0 || rings > RINGS_MAX {
        // An agent that has just begun makes its rings before its listeners.
        if connect::agent_is_awaited() && !worker_listens(&opening.key, 0) {
            return TCX_DROP;
        }
        return TCX_NEXT;
    }
    let worker = match kind {
        TUPLE_OUTBOUND => worker_of(&opening.key, rings),
        TUPLE_RELEASED => released_to,
        _ => return TCX_NEXT,
    };
    if is_release {
        // IPv6 would refuse what finds no listener.
        if connect::agent_is_awaited() && !worker_listens(&opening.key, worker) {
            return TCX_DROP;
        }
        if kind == TUPLE_OUTBOUND {
            answering::count(&opening.key);
        }
        direct::retract(socket_cookie);
        release(entry, worker);
        return TCX_NEXT;
    }
    if !connect::lease_is_valid() || !worker_listens(&opening.key, worker) {
        if connect::agent_is_awaited() {
            return TCX_DROP;
        }
        refuse(packet, &opening);
        return TCX_NEXT;
    }
    if kind == TUPLE_RELEASED {
        // The listener's queue was full, or the client has not seen its SYN-ACK.
        return TCX_NEXT;
    }
    if answering::is_relied_on(&opening.key) {
        return TCX_NEXT;
    }
    hold(packet, &opening, worker);
    // Whatever became of it: the client sends its SYN again after a second.
    TCX_DROP
}

/// The worker that serves a connection: the same one for each of its SYNs.
#[inline(always)]
fn worker_of(key: &TupleKey, rings: u32) -> u32 {
    // Fibonacci hashing: a client's ports are consecutive, and this spreads them evenly.
    let mixed = (u32::from(key.remote_port) ^ key.local.words_be[3]).wrapping_mul(0x9e37_79b1);
    ((u64::from(mixed) * u64::from(rings)) >> 32) as u32
}

#[inline(always)]
fn release(entry: *mut TupleEntry, worker: u32) {
    // SAFETY: as for the read in `inspect`. Only this program changes an entry, on the packet of the
    // connection that the entry is for.
    unsafe {
        (*entry).port = worker;
        (*entry).kind = TUPLE_RELEASED;
    }
}

#[inline(always)]
fn worker_listens(key: &TupleKey, worker: u32) -> bool {
    context::has_listener_in(&ListenerKey {
        netns_cookie: key.netns_cookie,
        role: LISTENER_OUTBOUND,
        worker,
    })
}

/// Tells the worker of the connection.
#[inline(always)]
fn hold(packet: &Packet, opening: &Opening, worker: u32) {
    let Some([length_and_reserved]) = packet.bytes::<1>(opening.tcp_offset + 12) else {
        return;
    };
    let header_length = u32::from(length_and_reserved & 0xf0) >> 2;
    if header_length < TCP_HEADER_MIN {
        return;
    }
    let mut syn = HeldSyn {
        key: opening.key,
        header: [0; TCP_HEADER_MAX],
        header_length,
    };
    if !packet.copy(opening.tcp_offset, &mut syn.header, header_length) {
        return;
    }
    if let Some(ring) = maps::RINGS.get(worker) {
        let _full = ring.output(&syn, 0);
    }
}

/// Turns the SYN into the destination's refusal, which the kernel then receives in its place.
///
/// `sk_lookup` alone cannot refuse: the RST for what it drops would come from an address that is not the
/// pod's, which the kernel does not send. Its options stay: in answer to a SYN none of them means anything
/// (RFC 9293 §3.10.7.3). No checksum is touched: a packet on lo needs none for TCP, and that of the IPv4 header
/// is the same with its addresses exchanged.
#[inline(always)]
fn refuse(packet: &Packet, opening: &Opening) {
    let Opening {
        key, tcp_offset, ..
    } = opening;
    let Some(sequence) = packet.bytes::<4>(tcp_offset + 4) else {
        return;
    };
    // "<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>" (RFC 9293 §3.10.7.1); the SYN counts as one.
    let acknowledged = u32::from_be_bytes(sequence).wrapping_add(1);
    let [ports, numbers] = [*tcp_offset, tcp_offset + 4];
    // Half a refusal is a packet that belongs to no connection: the client sends its SYN again.
    let _whole = opening.exchange_addresses(packet)
        && packet.store(ports, &[key.local_port.to_be(), key.remote_port.to_be()])
        && packet.store(numbers, &[0, acknowledged.to_be()])
        && packet.store(tcp_offset + 13, &[TCP_RST_ACK]);
}
