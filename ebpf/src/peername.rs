//! `cgroup/getpeername{4,6}`: shows applications the peer they really have.
//!
//! The kernel runs the hook for `accept` too. The application's end of a leg shows the client instead
//! of the agent, a redirected DNS socket the resolver it was connected to, a socket that was led to an endpoint the
//! service that it dialled.

use culvert_ebpf::{SOCKET_ACCEPTED, SOCKET_LED, SOCKET_RESOLVER};

use crate::{connect::Family, context::SockAddr};

/// Replaces the peer's address where the note says so.
#[inline(always)]
pub fn show(context: &SockAddr, family: Family) {
    let Some(socket) = context.socket() else {
        return;
    };
    let note = socket.note();
    if matches!(note.role, SOCKET_ACCEPTED | SOCKET_RESOLVER | SOCKET_LED) {
        family.replace(context, &note.address, note.port as u16);
    }
}
