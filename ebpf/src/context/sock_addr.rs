//! The context of the programs that see a socket's addresses before it uses them.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr, sockaddr},
    helpers::generated::{
        bpf_bind, bpf_get_netns_cookie, bpf_set_retval, bpf_setsockopt, bpf_sk_lookup_tcp,
    },
};
use culvert_ebpf::Address;

use super::{
    CURRENT_NETNS, SO_MARK, SOL_SOCKET, Socket,
    lookup::{TUPLE4_SIZE, release, tuple4},
};
use crate::maps::HAS_SET_RETVAL;

const ECONNREFUSED: i32 = 111;

/// The context of `cgroup/{connect,sendmsg,recvmsg,getpeername}{4,6}`.
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    pub fn new(context: *mut bpf_sock_addr) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is of a program type that has the helper (Linux 5.7).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket(&self) -> Option<Socket<'_>> {
        let sk = load!("u64", self.0, offset_of!(bpf_sock_addr, __bindgen_anon_1));
        Socket::from_ptr(sk as *mut bpf_sock)
    }

    /// `SOCK_STREAM`, `SOCK_DGRAM`, …
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_addr, type_)) as u32
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_addr, protocol)) as u32
    }

    /// The address of an IPv4 hook.
    #[inline(always)]
    pub fn address4(&self) -> Address {
        load_address4!(self.0, offset_of!(bpf_sock_addr, user_ip4))
    }

    /// The address of an IPv6 hook.
    #[inline(always)]
    pub fn address6(&self) -> Address {
        load_address6!(self.0, offset_of!(bpf_sock_addr, user_ip6))
    }

    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(load!("u32", self.0, offset_of!(bpf_sock_addr, user_port)) as u16)
    }

    /// Replaces the address of an IPv4 hook.
    #[inline(always)]
    pub fn set_address4(&self, address: &Address) {
        store!(
            self.0,
            offset_of!(bpf_sock_addr, user_ip4),
            address.words_be[3]
        );
    }

    /// Replaces the address of an IPv6 hook.
    #[inline(always)]
    pub fn set_address6(&self, address: &Address) {
        const OFFSET: usize = offset_of!(bpf_sock_addr, user_ip6);
        store!(self.0, OFFSET, address.words_be[0]);
        store!(self.0, OFFSET + 4, address.words_be[1]);
        store!(self.0, OFFSET + 8, address.words_be[2]);
        store!(self.0, OFFSET + 12, address.words_be[3]);
    }

    #[inline(always)]
    pub fn set_port(&self, port: u16) {
        store!(
            self.0,
            offset_of!(bpf_sock_addr, user_port),
            u32::from(port.to_be())
        );
    }

    /// Sets `SO_MARK`; false if the kernel refuses.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) -> bool {
        let mut mark = mark;
        let value = (&raw mut mark).cast();
        // SAFETY: `value` points to the four bytes that SO_MARK takes.
        unsafe { bpf_setsockopt(self.0.cast(), SOL_SOCKET, SO_MARK, value, 4) == 0 }
    }

    /// Makes the refusal that the caller is about to return `ECONNREFUSED` instead of `EPERM`.
    #[inline(always)]
    pub fn refuse(&self) {
        if HAS_SET_RETVAL.load() != 0 {
            // SAFETY: takes a number. Where the kernel lacks the helper, the loader clears the constant
            // above and the verifier drops this branch as unreachable.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
        }
    }

    /// Whether the agent listens on `port` in the network namespace of the context.
    ///
    /// Asks for a connection over loopback, which the pod's `sk_lookup` program leaves alone, and
    /// takes only a socket that carries the agent's note: an application may have bound the port
    /// after the agent's death.
    #[inline(always)]
    pub fn agent_listens(&self, port: u16) -> bool {
        let loopback = Address::LOOPBACK_V4.words_be[3];
        let mut tuple = tuple4((loopback, 0), (loopback, port));
        // SAFETY: the tuple is whole and its size says IPv4.
        let sk = unsafe {
            bpf_sk_lookup_tcp(
                self.0.cast(),
                &raw mut tuple.0,
                TUPLE4_SIZE,
                CURRENT_NETNS,
                0,
            )
        };
        let Some(socket) = Socket::from_ptr(sk) else {
            return false;
        };
        let found = socket.note().is_agents();
        release(sk);
        found
    }

    /// Binds the socket of an IPv4 hook to `port` on any address; false if the port is taken.
    #[inline(always)]
    pub fn bind4(&self, port: u16) -> bool {
        #[repr(C)]
        struct SockaddrIn {
            family: u16,
            port_be: u16,
            address_be: u32,
            zero: [u32; 2],
        }
        let mut to = SockaddrIn {
            family: 2,
            port_be: port.to_be(),
            address_be: 0,
            zero: [0; 2],
        };
        let address = (&raw mut to).cast::<sockaddr>();
        // SAFETY: `address` points to a whole sockaddr_in, whose size is given.
        unsafe { bpf_bind(self.0, address, size_of::<SockaddrIn>() as i32) == 0 }
    }

    /// Binds the socket of an IPv6 hook to `port` on any address; false if the port is taken.
    #[inline(always)]
    pub fn bind6(&self, port: u16) -> bool {
        #[repr(C)]
        struct SockaddrIn6 {
            family: u16,
            port_be: u16,
            flow: u32,
            address: [u32; 4],
            scope: u32,
        }
        let port_be = port.to_be();
        let mut to = SockaddrIn6 {
            family: 10,
            port_be,
            flow: 0,
            address: [0; 4],
            scope: 0,
        };
        let address = (&raw mut to).cast::<sockaddr>();
        // SAFETY: `address` points to a whole sockaddr_in6, whose size is given.
        unsafe { bpf_bind(self.0, address, size_of::<SockaddrIn6>() as i32) == 0 }
    }
}
