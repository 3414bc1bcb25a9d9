//! Connections in their opening: written down, taken out again, and counted for the pod that opens them.
//!
//! What a pod opens and nobody answers stays in `TUPLES` for two minutes, so one that calls the silent again and again
//! would fill it, and nobody's connections or probes would be known any more. Half of the map is for what pods' applications
//! open, and each may have as many as are free of it: one such pod leaves a half of that to the others, two leave a third,
//! and whoever has few always finds room (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2),
//! 1998).
//!
//! Each entry is counted once and discounted once: by whoever has taken it out of the map, which only one can.

use culvert_ebpf::{
    OPENINGS_MOST, TUPLE_OUTBOUND, TUPLE_RELEASED, TUPLE_SELF, TupleEntry, TupleKey,
};

use crate::{
    context::add,
    maps::{self, BPF_NOEXIST, OPENINGS, OPENINGS_ALL, TUPLES},
};

/// Whether a pod may open one more connection.
#[inline(always)]
pub fn has_room(netns_cookie: u64) -> bool {
    let own = number(OPENINGS.get_ptr(&netns_cookie));
    let all = number(OPENINGS_ALL.get_ptr(0));
    own < OPENINGS_MOST.saturating_sub(all)
}

/// Writes down a connection; false if there is no room for it.
#[inline(always)]
pub fn publish(key: &TupleKey, entry: &TupleEntry) -> bool {
    if TUPLES.insert(key, entry, BPF_NOEXIST).is_err() {
        // Of a socket whose end no program has seen, or the map is full.
        let Some(left_behind) = kind(key) else {
            return false;
        };
        end(key, left_behind);
        if TUPLES.insert(key, entry, BPF_NOEXIST).is_err() {
            return false;
        }
    }
    count(key, entry.kind, 1);
    true
}

/// The connection stands, or never will. `kind` is as its entry says.
#[inline(always)]
pub fn end(key: &TupleKey, kind: u32) {
    // The programs of its two ends may run at once.
    if TUPLES.remove(key).is_ok() {
        count(key, kind, 1_u64.wrapping_neg());
    }
}

/// Takes back what a socket has published; its port may already serve another connection with an entry of its own.
#[inline(always)]
pub fn withdraw(key: &TupleKey, socket_cookie: u64) {
    if let Some(entry) = maps::tuple(key)
        && entry.socket_cookie == socket_cookie
    {
        end(key, entry.kind);
    }
}

#[inline(always)]
fn kind(key: &TupleKey) -> Option<u32> {
    // SAFETY: the map is not preallocated, so the element stays this one's until the RCU grace period in which the
    // program runs is over.
    unsafe { TUPLES.get(key) }.map(|entry| entry.kind)
}

/// Counts what a pod's applications open. It is written down under their own namespace, so the key tells whose it is. What
/// the agent opens and what others open to a pod is not the pod's to bound.
#[inline(always)]
fn count(key: &TupleKey, kind: u32, change: u64) {
    if !matches!(kind, TUPLE_OUTBOUND | TUPLE_RELEASED | TUPLE_SELF) {
        return;
    }
    // Without a count of its own (its agent is older, or it is being released) a pod is not part of the sum either.
    let Some(own) = OPENINGS.get_ptr_mut(&key.netns_cookie) else {
        return;
    };
    // SAFETY: aligned, and in a map's value.
    unsafe { add(own, change) };
    if let Some(all) = OPENINGS_ALL.get_ptr_mut(0) {
        // SAFETY: likewise.
        unsafe { add(all, change) };
    }
}

/// A count; none is zero, and so is one below it, as it is for a moment when the agent has summed up what changed meanwhile.
#[inline(always)]
fn number(count: Option<*const u64>) -> u64 {
    // SAFETY: in a map's value, aligned; any value is one that it has had.
    let number = count.map_or(0, |count| unsafe { count.read_volatile() });
    if (number as i64) < 0 { 0 } else { number }
}
