//! Asking the kernel for a socket, and giving it back.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::bpf_sk_release,
};
use culvert_ebpf::Address;

/// The IPv6 arm of `bpf_sock_tuple`.
#[repr(C)]
pub(super) struct Tuple6 {
    pub(super) saddr: Address,
    pub(super) daddr: Address,
    pub(super) sport_be: u16,
    pub(super) dport_be: u16,
}

/// A tuple of which only the IPv4 arm is set, with room for the larger one as the type demands.
pub(super) struct Tuple4(pub(super) bpf_sock_tuple);

/// The size by which the lookup helpers know an IPv4 tuple.
pub(super) const TUPLE4_SIZE: u32 = 12;

/// From and to, each an IPv4 address as it lies in a packet, and a port.
#[inline(always)]
pub(super) fn tuple4((saddr, sport): (u32, u16), (daddr, dport): (u32, u16)) -> Tuple4 {
    // SAFETY: integers only; all zeroes is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv4 = aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr,
        daddr,
        sport: sport.to_be(),
        dport: dport.to_be(),
    };
    Tuple4(tuple)
}

#[inline(always)]
pub(super) fn release(sk: *mut bpf_sock) {
    // SAFETY: called once for each socket a lookup returned; the verifier tracks the reference.
    unsafe { bpf_sk_release(sk.cast()) };
}
