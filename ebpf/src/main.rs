//! Culvert's eBPF programs. This file holds the entry points only: attribute and call.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answering;
mod closed_port;
mod connect;
mod context;
mod datagram;
mod direct;
mod exit;
mod handshake;
mod hold;
mod maps;
mod openings;
mod peername;
mod segment;
mod sk_lookup;
mod sockops;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext, TcContext},
};

use crate::{
    connect::Family,
    context::{Packet, SkLookup, SockAddr, SockOps},
};

/// A cgroup hook's word for "go on".
const PASS: i32 = 1;
/// A cgroup hook's word for "fail with `EPERM`, or what `bpf_set_retval` said".
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::new(context.sock_addr), Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::new(context.sock_addr), Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    peername::show(&SockAddr::new(context.sock_addr), Family::V4);
    PASS
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    peername::show(&SockAddr::new(context.sock_addr), Family::V6);
    PASS
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    datagram::send(&SockAddr::new(context.sock_addr), Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    datagram::send(&SockAddr::new(context.sock_addr), Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    datagram::receive(&SockAddr::new(context.sock_addr), Family::V4);
    PASS
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    datagram::receive(&SockAddr::new(context.sock_addr), Family::V6);
    PASS
}

#[sock_ops]
pub fn follow_tcp(context: SockOpsContext) -> u32 {
    sockops::follow(&SockOps::new(context.ops));
    1
}

#[sk_lookup]
pub fn select_listener(context: SkLookupContext) -> u32 {
    sk_lookup::select(&SkLookup::new(context.lookup))
}

#[classifier]
pub fn closed_port(context: TcContext) -> i32 {
    closed_port::inspect(&Packet::new(context.skb.skb))
}

#[classifier]
pub fn bar_exit(context: TcContext) -> i32 {
    exit::inspect(&Packet::new(context.skb.skb))
}

#[classifier]
pub fn hold_opening(context: TcContext) -> i32 {
    hold::inspect(&Packet::new(context.skb.skb))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no program here can panic; if the compiler kept a path to one, the verifier rejects the
    // endless loop that any other body would need.
    unsafe { core::hint::unreachable_unchecked() }
}

/// Helpers such as `bpf_sk_lookup_tcp` are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
