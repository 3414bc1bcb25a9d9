//! `tcx` ingress on a pod's devices: lets closed ports refuse.
//!
//! A captured SYN is always answered, so without this a probe of a closed port would see it open. For a
//! SYN to a port on which nobody listens it leaves a note for `sk_lookup`, which then lets the kernel
//! answer with RST. It also drops SYNs from the wire that claim a tuple which a socket of this pod is
//! opening, and those that only an awaited agent can answer: they are sent again. Only ever narrows what gets in: what it
//! cannot parse is captured as usual.

use culvert_ebpf::{
    HBONE_PORT, LISTENER_INBOUND, ListenerKey, POD_INBOUND_OPEN, TUPLE_DIRECT, TUPLE_PROBE,
    TupleKey,
};

use crate::{
    connect,
    context::{self, Packet, now_ns},
    maps::{self, REFUSALS},
    segment::Opening,
};

const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// How long a note may be acted on: far longer than a packet takes from here to `sk_lookup`, far
/// shorter than a client takes to notice that the port has opened.
const REFUSAL_NS: u64 = 100_000_000;

/// Looks at one received packet.
#[inline(always)]
pub fn inspect(packet: &Packet) -> i32 {
    let Some(Opening { key, .. }) = Opening::of(packet) else {
        return TCX_NEXT;
    };
    if let Some(entry) = maps::tuple(&key) {
        return match entry.kind {
            TUPLE_PROBE | TUPLE_DIRECT => TCX_NEXT,
            _ => TCX_DROP,
        };
    }
    if key.local_port != HBONE_PORT && !packet.has_listener(&key.local, key.local_port) {
        // Without the note the agent answers, and its leg is refused: later, but refused.
        let _captured_instead = REFUSALS.insert(&key, &now_ns(), 0);
        return TCX_NEXT;
    }
    if connect::agent_is_awaited() && is_unattended(key.netns_cookie) {
        return TCX_DROP;
    }
    TCX_NEXT
}

/// Whether the pod's connections go to an agent, and none is there: its listeners come and go together.
#[inline(always)]
fn is_unattended(netns_cookie: u64) -> bool {
    let is_captured = maps::pod(netns_cookie).is_some_and(|pod| pod.flags & POD_INBOUND_OPEN == 0);
    is_captured
        && !context::has_listener_in(&ListenerKey {
            netns_cookie,
            role: LISTENER_INBOUND,
            worker: 0,
        })
}

/// Whether [`inspect`] has just found nobody listening for this connection. Asking consumes the note.
#[inline(always)]
pub fn was_refused(key: &TupleKey) -> bool {
    // SAFETY: the value is copied out at once; if the LRU gives its place away meanwhile, the time is
    // another refusal's, and the worst outcome is one connection refused or captured by mistake.
    let Some(seen_ns) = unsafe { REFUSALS.get(key) }.copied() else {
        return false;
    };
    let _gone_already = REFUSALS.remove(key);
    now_ns().saturating_sub(seen_ns) < REFUSAL_NS
}
