//! Destinations that answer one connection after another: for a moment, theirs are not held.
//!
//! Holding costs a wake-up and a packet, which matters to whoever opens hundreds of connections a second, and it
//! says little about a destination that has answered dozens of times within the last one. The agent forgets an
//! entry as soon as its destination fails.

use culvert_ebpf::{
    ANSWERS_OF_THE_BUSY, ANSWERS_WITHIN_NS, DestinationEntry, DestinationKey, RELIED_ON_NS,
    TupleKey,
};

use crate::{context::now_ns, maps::ANSWERING};

const UNKNOWN: DestinationEntry = DestinationEntry {
    since_ns: 0,
    relied_on_until_ns: 0,
    answers: 0,
    pad: 0,
};

/// Whether a connection's destination has answered so often lately that it need not be asked.
#[inline(always)]
pub fn is_relied_on(connection: &TupleKey) -> bool {
    now_ns() < entry(&destination(connection)).relied_on_until_ns
}

/// Counts a connection whose destination has answered.
#[inline(always)]
pub fn count(connection: &TupleKey) {
    let (key, now) = (destination(connection), now_ns());
    let mut entry = entry(&key);
    if now.saturating_sub(entry.since_ns) > ANSWERS_WITHIN_NS {
        entry.since_ns = now;
        entry.answers = 0;
    }
    entry.answers += 1;
    if entry.answers >= ANSWERS_OF_THE_BUSY {
        entry.since_ns = 0;
        entry.relied_on_until_ns = now + RELIED_ON_NS;
    }
    // Whole, so that no two CPUs mix theirs; a count that is lost between them is one more connection held.
    let _held_instead = ANSWERING.insert(&key, &entry, 0);
}

#[inline(always)]
fn entry(key: &DestinationKey) -> DestinationEntry {
    // SAFETY: the value is copied out at once; if the LRU gives its place away meanwhile, it is another
    // destination's, and the worst outcome is a second of early answers.
    let found = unsafe { ANSWERING.get(key) };
    found.map_or(UNKNOWN, |entry| *entry)
}

#[inline(always)]
fn destination(connection: &TupleKey) -> DestinationKey {
    DestinationKey {
        netns_cookie: connection.netns_cookie,
        address: connection.local,
        port: connection.local_port,
        pad: [0; 3],
    }
}
