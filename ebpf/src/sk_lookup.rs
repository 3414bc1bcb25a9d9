//! `sk_lookup`, one instance per pod: chooses who receives a new connection.
//!
//! What is not known to belong to someone else is inbound and goes to the agent, and what cannot be
//! given to the agent is dropped: the default is captured, and closed.

use culvert_ebpf::{
    HBONE_PORT, LISTENER_INBOUND, LISTENER_OUTBOUND, ListenerKey, POD_INBOUND_OPEN, POD_REDIRECTED,
    PodEntry, REDIRECTED_PORT, TUPLE_DIRECT, TUPLE_OUTBOUND, TUPLE_RELEASED, TupleKey,
};

use crate::{
    closed_port,
    context::{OfGroup, SkLookup},
    direct,
    maps::{self, POD_COOKIE},
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// Decides about one connection; `SK_PASS` without an assignment is the ordinary lookup.
#[inline(always)]
pub fn select(context: &SkLookup) -> u32 {
    if context.protocol() != IPPROTO_TCP {
        return SK_PASS;
    }
    let netns_cookie = POD_COOKIE.load();
    let key = TupleKey {
        netns_cookie,
        local: context.local(),
        remote: context.remote(),
        local_port: context.local_port(),
        remote_port: context.remote_port(),
        pad: 0,
    };
    if key.local.is_loopback() || key.remote.is_loopback() {
        return SK_PASS;
    }
    // The pod talks to itself, or the agent to the application. The ingress device would not tell:
    // the kernel reports the address's own device, not lo, for such packets.
    if key.local.same(&key.remote) {
        return SK_PASS;
    }
    if let Some(entry) = maps::tuple(&key) {
        return match entry.kind {
            TUPLE_OUTBOUND => give(context, netns_cookie, LISTENER_OUTBOUND),
            TUPLE_RELEASED => give_to_worker(context, netns_cookie, entry.port),
            TUPLE_DIRECT => verdict(direct::may_enter(
                &entry,
                is_agents(netns_cookie, key.local_port),
            )),
            _ => SK_PASS,
        };
    }
    if key.local_port == HBONE_PORT {
        return SK_PASS;
    }
    if closed_port::was_refused(&key) {
        return SK_DROP;
    }
    if let Some(pod) = maps::pod(netns_cookie) {
        // The agent asks which port was meant, and refuses who meant this one.
        if pod.flags & POD_REDIRECTED != 0 && key.local_port == REDIRECTED_PORT {
            return give(context, netns_cookie, LISTENER_INBOUND);
        }
        if is_own_port(&pod, key.local_port) {
            return SK_DROP;
        }
        if pod.flags & POD_INBOUND_OPEN != 0 {
            return SK_PASS;
        }
    }
    give(context, netns_cookie, LISTENER_INBOUND)
}

/// Whether an agent's listener has the port.
#[inline(always)]
fn is_agents(netns_cookie: u64, port: u16) -> bool {
    port == HBONE_PORT || maps::pod(netns_cookie).is_some_and(|pod| is_own_port(&pod, port))
}

#[inline(always)]
fn is_own_port(pod: &PodEntry, port: u16) -> bool {
    port == pod.outbound_port || port == pod.inbound_port
}

#[inline(always)]
fn give(context: &SkLookup, netns_cookie: u64, role: u32) -> u32 {
    let slot = ListenerKey {
        netns_cookie,
        role,
        worker: 0,
    };
    verdict(context.assign(&slot, OfGroup::Any))
}

/// Gives a connection to the worker that has reached its far side.
#[inline(always)]
fn give_to_worker(context: &SkLookup, netns_cookie: u64, worker: u32) -> u32 {
    let slot = ListenerKey {
        netns_cookie,
        role: LISTENER_OUTBOUND,
        worker,
    };
    verdict(context.assign(&slot, OfGroup::ThisOne))
}

#[inline(always)]
fn verdict(assigned: bool) -> u32 {
    if assigned { SK_PASS } else { SK_DROP }
}
