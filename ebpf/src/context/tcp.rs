//! What the kernel knows of a TCP connection's bytes.
//!
//! Not all of it is in any context, so it is read from the socket itself, at offsets that the agent takes from
//! the running kernel's own type information.

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;

use super::Socket;
use crate::maps::{BYTES_RECEIVED, BYTES_RETRANSMITTED, BYTES_SENT, SOCKET_ERROR, SOCKET_FLAGS};

/// `SOCK_DONE` of `enum sock_flags` (`include/net/sock.h`): the peer's FIN has been received.
const SOCK_DONE: u64 = 1 << 1;

/// The account of a connection's end.
pub struct Totals {
    /// Bytes that the application sent.
    pub sent: u64,
    /// Bytes that arrived for it.
    pub received: u64,
    /// `errno` that ended it, or 0.
    pub error: u32,
}

impl Socket<'_> {
    /// What the connection has come to; `None` if the agent has found no offsets.
    #[inline(always)]
    pub fn totals(&self) -> Option<Totals> {
        if BYTES_SENT.load() == 0 {
            return None;
        }
        // SAFETY: the socket is one; the helper returns null if it is not TCP's.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.sk.as_ptr().cast()) }.cast::<u8>();
        if tcp.is_null() {
            return None;
        }
        // SAFETY: the offsets are constants to the verifier, which checks that a field lies there.
        let read = |offset: u32| unsafe { tcp.add(offset as usize).cast::<u64>().read_volatile() };
        let sent = read(BYTES_SENT.load()).wrapping_sub(read(BYTES_RETRANSMITTED.load()));
        // The FIN counts as one.
        let has_ended = read(SOCKET_FLAGS.load()) & SOCK_DONE != 0;
        let received = read(BYTES_RECEIVED.load()).wrapping_sub(u64::from(has_ended));
        // SAFETY: as above; four bytes wide.
        let error = unsafe {
            tcp.add(SOCKET_ERROR.load() as usize)
                .cast::<u32>()
                .read_volatile()
        };
        Some(Totals {
            sent,
            received,
            error,
        })
    }
}
