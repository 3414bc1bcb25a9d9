//! The context of the program that follows TCP connections.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops},
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt, bpf_sock_ops_cb_flags_set,
    },
};
use culvert_ebpf::Address;

use super::{AF_INET, SO_MARK, SOL_SOCKET, Socket};

/// The context of `sock_ops`.
pub struct SockOps(*mut bpf_sock_ops);

impl SockOps {
    pub fn new(context: *mut bpf_sock_ops) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn op(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_ops, op)) as u32
    }

    /// With `STATE_CB`, the state entered.
    #[inline(always)]
    pub fn new_state(&self) -> u32 {
        load!(
            "u32",
            self.0,
            offset_of!(bpf_sock_ops, __bindgen_anon_1) + 4
        ) as u32
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is of a program type that has the helper (Linux 5.15).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the context is of a program type that has the helper (Linux 4.13).
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket(&self) -> Option<Socket<'_>> {
        let sk = load!("u64", self.0, offset_of!(bpf_sock_ops, __bindgen_anon_2));
        Socket::from_ptr(sk as *mut bpf_sock)
    }

    #[inline(always)]
    pub fn local(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sock_ops, local_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sock_ops, local_ip6))
    }

    #[inline(always)]
    pub fn remote(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sock_ops, remote_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sock_ops, remote_ip6))
    }

    /// The field is in host byte order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        load!("u32", self.0, offset_of!(bpf_sock_ops, local_port)) as u16
    }

    /// The field is a 32-bit number in network byte order.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        u32::from_be(load!("u32", self.0, offset_of!(bpf_sock_ops, remote_port)) as u32) as u16
    }

    /// With `STATE_CB`, the state left.
    #[inline(always)]
    pub fn old_state(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sock_ops, __bindgen_anon_1)) as u32
    }

    /// Sets `SO_MARK`; false if the kernel refuses.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) -> bool {
        let mut mark = mark;
        let value = (&raw mut mark).cast();
        // SAFETY: `value` points to the four bytes that SO_MARK takes.
        unsafe { bpf_setsockopt(self.0.cast(), SOL_SOCKET, SO_MARK, value, 4) == 0 }
    }

    /// Asks for `STATE_CB` from now on.
    #[inline(always)]
    pub fn watch_state(&self) {
        // SAFETY: takes the context and a number.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
    }

    #[inline(always)]
    fn is_ipv4(&self) -> bool {
        load!("u32", self.0, offset_of!(bpf_sock_ops, family)) as u32 == AF_INET
    }
}
