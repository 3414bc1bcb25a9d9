//! The order of a captured connection's handshake and its client's first word.
//!
//! The handshake of a held connection runs on the CPU on which the agent sends the SYN again. It wakes the client, which may
//! speak on another CPU before the first one has received the handshake's last ACK. That one is then about to replace
//! the request by the socket (`inet_ehash_insert`), first taking the one out and then putting the other in, while this one looks
//! for either without a lock. In between it finds neither: the segment goes to the listener, which answers it with a reset
//! (`tcp:tcp_send_reset` says `TCP_LISTEN`, `TCP_FLAGS`; Linux 6.18, one of 700 clients that wait for nothing else).
//!
//! The connection's entry is withdrawn after the socket is in its place, so who finds it gone finds the socket.

use crate::{context::Packet, maps, segment::Segment};

/// Looks at the entry before the segment goes its way whatever it says, some 50 ns each: the other CPU needs a few of
/// them. Where a handshake cannot end now (the listener's queue is full), nothing is won by more.
const LOOKS: u32 = 256;

/// Waits until the handshake has preceded what a client says.
#[inline(always)]
pub fn precedes(packet: &Packet, segment: &Segment) {
    if !segment.speaks(packet) {
        return;
    }
    let Some(key) = segment.key(packet) else {
        return;
    };
    for _look in 0..LOOKS {
        if !maps::is_opening(&key) {
            return;
        }
    }
}
