//! The context of the programs that see what a device receives and sends.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{
        bpf_sk_assign, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
};
use culvert_ebpf::{Address, TupleKey};

use super::{
    CURRENT_NETNS, Socket,
    lookup::{TUPLE4_SIZE, Tuple6, release, tuple4},
};

/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const TCP_LISTEN: u32 = 10;

/// The context of a `tcx` program.
pub struct Packet(*mut __sk_buff);

impl Packet {
    pub fn new(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    /// Copies `N` bytes at `offset`, or none if the packet is shorter.
    #[inline(always)]
    pub fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: `to` has room for the `N` bytes asked for; the helper checks `offset`.
        let failed =
            unsafe { bpf_skb_load_bytes(self.0.cast_const().cast(), offset, to, N as u32) };
        (failed == 0).then_some(bytes)
    }

    /// Copies `length` bytes at `offset` to the start of `to`; false if either is too short.
    #[inline(always)]
    pub fn copy<const N: usize>(&self, offset: u32, to: &mut [u8; N], length: u32) -> bool {
        let length = unforeseen(length);
        if length == 0 || length > N as u64 {
            return false;
        }
        let to = to.as_mut_ptr().cast();
        // SAFETY: `to` has room for `length` bytes; the helper checks `offset`.
        unsafe { bpf_skb_load_bytes(self.0.cast_const().cast(), offset, to, length as u32) == 0 }
    }

    /// Overwrites the packet at `offset` with numbers as they lie in memory; false if it is shorter, or there
    /// is no memory for a copy of it.
    #[inline(always)]
    pub fn store<T: Copy, const N: usize>(&self, offset: u32, from: &[T; N]) -> bool {
        let (from, length) = (from.as_ptr().cast(), size_of::<[T; N]>() as u32);
        // SAFETY: `from` has the `length` bytes that are read; the helper checks `offset`, and the verifier that
        // the bytes are initialised.
        unsafe { bpf_skb_store_bytes(self.0.cast(), offset, from, length, 0) == 0 }
    }

    /// The packet's mark: that of the sending socket, on lo also where it is received.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        load!("u32", self.0, offset_of!(__sk_buff, mark)) as u32
    }

    /// The packet's priority: on lo still that of the sending socket.
    #[inline(always)]
    pub fn priority(&self) -> u32 {
        load!("u32", self.0, offset_of!(__sk_buff, priority)) as u32
    }

    /// Whether an application listens for connections to `local`:`port`.
    ///
    /// Asks as if the connection came from loopback: the lookup runs the pod's `sk_lookup` program
    /// too, which would otherwise answer with the agent's listener.
    #[inline(always)]
    pub fn has_listener(&self, local: &Address, port: u16) -> bool {
        let remote = if local.is_v4() {
            Address::LOOPBACK_V4
        } else {
            Address::LOOPBACK_V6
        };
        let sk = self.socket((&remote, 0), (local, port));
        let Some(socket) = Socket::from_ptr(sk) else {
            return false;
        };
        let is_agents = socket.note().is_agents();
        release(sk);
        !is_agents
    }

    /// Hands the packet to the socket or request of the connection that it belongs to, so that the kernel does not look for
    /// one again; false if neither is found.
    #[inline(always)]
    pub fn hand_over(&self, connection: &TupleKey) -> bool {
        let remote = (&connection.remote, connection.remote_port);
        let sk = self.socket(remote, (&connection.local, connection.local_port));
        if sk.is_null() {
            return false;
        }
        let state = load!("u32", sk, offset_of!(bpf_sock, state)) as u32;
        // SAFETY: the socket is not null, and referenced until it is released below.
        let is_handed_over =
            state != TCP_LISTEN && unsafe { bpf_sk_assign(self.0.cast(), sk.cast(), 0) } == 0;
        release(sk);
        is_handed_over
    }

    /// The socket that the kernel finds for a packet from `remote` to `local`; null, or to be released.
    #[inline(always)]
    fn socket(&self, remote: (&Address, u16), local: (&Address, u16)) -> *mut bpf_sock {
        if local.0.is_v4() {
            let mut tuple = tuple4(
                (remote.0.words_be[3], remote.1),
                (local.0.words_be[3], local.1),
            );
            let (tuple, size) = (&raw mut tuple.0, TUPLE4_SIZE);
            // SAFETY: the tuple is whole and its size says IPv4.
            return unsafe { bpf_skc_lookup_tcp(self.0.cast(), tuple, size, CURRENT_NETNS, 0) };
        }
        let mut tuple = Tuple6 {
            saddr: *remote.0,
            daddr: *local.0,
            sport_be: remote.1.to_be(),
            dport_be: local.1.to_be(),
        };
        let (tuple, size) = ((&raw mut tuple).cast(), size_of::<Tuple6>() as u32);
        // SAFETY: as above, IPv6.
        unsafe { bpf_skc_lookup_tcp(self.0.cast(), tuple, size, CURRENT_NETNS, 0) }
    }
}

/// The same number, of which the compiler knows nothing: checks of it then stand where the verifier needs
/// them, instead of before the arithmetic that led to it.
#[inline(always)]
fn unforeseen(number: u32) -> u64 {
    let mut number = u64::from(number);
    // SAFETY: copies a register to itself.
    unsafe {
        core::arch::asm!("{number} = {number}", number = inout(reg) number,
            options(pure, nomem, nostack, preserves_flags));
    }
    number
}
