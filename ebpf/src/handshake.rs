//! The rest of a captured connection's handshake, and what its client says at once.
//!
//! The handshake of a held connection runs on the CPU on which the agent sends the SYN again, and its client speaks on another.
//! Each of the two takes the request out of the kernel's table and puts a socket in its place (`inet_ehash_insert`), while
//! the other looks there without a lock. Who looks in between finds neither, takes the segment to the listener, and that
//! answers with a reset: `tcp:tcp_send_reset` says `TCP_LISTEN`, `TCP_FLAGS` (Linux 6.18; one of 700 clients that wait for
//! nothing else). So as long as the connection's entry is there, segments are handed over here, where one can look again;
//! the entry is withdrawn after the socket is in its place.

use crate::{context::Packet, maps, segment::Segment};

/// Neither is found for some ten nanoseconds, or for as long as there is none: then it is the kernel's to say so.
const LOOKS: u32 = 16;

/// Hands a segment that opens nothing to the connection whose handshake is not over.
#[inline(always)]
pub fn hand_over(packet: &Packet, segment: &Segment) {
    let Some(key) = segment.key(packet) else {
        return;
    };
    if !maps::is_opening(&key) {
        return;
    }
    for _look in 0..LOOKS {
        if packet.hand_over(&key) {
            return;
        }
    }
}
