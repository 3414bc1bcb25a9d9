//! The context of the program that chooses who receives a connection, and the listeners it chooses from.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::bpf_sk_lookup,
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign},
};
use culvert_ebpf::{Address, ListenerKey};

use super::{AF_INET, lookup::release};
use crate::maps::LISTENERS;

/// The context of `sk_lookup`.
pub struct SkLookup(*mut bpf_sk_lookup);

impl SkLookup {
    pub fn new(context: *mut bpf_sk_lookup) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        load!("u32", self.0, offset_of!(bpf_sk_lookup, protocol)) as u32
    }

    #[inline(always)]
    pub fn local(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sk_lookup, local_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sk_lookup, local_ip6))
    }

    #[inline(always)]
    pub fn remote(&self) -> Address {
        if self.is_ipv4() {
            return load_address4!(self.0, offset_of!(bpf_sk_lookup, remote_ip4));
        }
        load_address6!(self.0, offset_of!(bpf_sk_lookup, remote_ip6))
    }

    /// The field is in host byte order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        load!("u32", self.0, offset_of!(bpf_sk_lookup, local_port)) as u16
    }

    /// The field is 16 bits in network byte order.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        u16::from_be(load!("u16", self.0, offset_of!(bpf_sk_lookup, remote_port)) as u16)
    }

    /// Gives the connection to the listener in a slot; false if the slot is empty.
    #[inline(always)]
    pub fn assign(&self, slot: &ListenerKey, of_group: OfGroup) -> bool {
        let sk = listener_in(slot);
        if sk.is_null() {
            return false;
        }
        // SAFETY: the lookup gave a referenced socket, released right below.
        let assigned = unsafe { bpf_sk_assign(self.0.cast(), sk, of_group as u64) } == 0;
        release(sk.cast());
        assigned
    }

    #[inline(always)]
    fn is_ipv4(&self) -> bool {
        load!("u32", self.0, offset_of!(bpf_sk_lookup, family)) as u32 == AF_INET
    }
}

/// Which of the listeners that share a port takes a connection.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum OfGroup {
    /// Whichever the kernel picks.
    Any = 0,
    /// The one in the slot (`BPF_SK_LOOKUP_F_NO_REUSEPORT`).
    ThisOne = 2,
}

/// Whether a slot holds a listener.
#[inline(always)]
pub fn has_listener_in(slot: &ListenerKey) -> bool {
    let sk = listener_in(slot);
    if sk.is_null() {
        return false;
    }
    release(sk.cast());
    true
}

/// The listener in a slot, to be released, or null.
#[inline(always)]
fn listener_in(slot: &ListenerKey) -> *mut c_void {
    // SAFETY: `slot` is a key of the map's type.
    unsafe { bpf_map_lookup_elem(LISTENERS.as_ptr(), core::ptr::from_ref(slot).cast()) }
}
