//! Safe wrappers around program contexts, sockets and helpers: nearly all of this crate's `unsafe`.
//!
//! Contexts are read with inline assembly, not through references: LLVM merges loads of neighbouring
//! fields from different branches into `ctx + register`, which the verifier refuses as "dereference of
//! modified ctx ptr", and volatile reads do not stop it.

/// Loads one context field as a single instruction at a constant offset.
macro_rules! load {
    ($ty:literal, $ctx:expr, $offset:expr) => {{
        let value: u64;
        // SAFETY: reads a field of a context the kernel passed in; the verifier checks the offset and
        // the width for the program type, so no unreadable field can get past loading.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $ty, " *)({ctx} + {offset})"),
                value = out(reg) value, ctx = in(reg) $ctx, offset = const $offset,
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}

/// Loads an IPv4 address field.
macro_rules! load_address4 {
    ($ctx:expr, $offset:expr) => {
        Address::v4(load!("u32", $ctx, $offset) as u32)
    };
}

/// Loads an IPv6 address field word by word: the only width all program types allow.
macro_rules! load_address6 {
    ($ctx:expr, $offset:expr) => {
        Address {
            words_be: [
                load!("u32", $ctx, $offset) as u32,
                load!("u32", $ctx, $offset + 4) as u32,
                load!("u32", $ctx, $offset + 8) as u32,
                load!("u32", $ctx, $offset + 12) as u32,
            ],
        }
    };
}

/// Stores one 32-bit context field as a single instruction at a constant offset.
macro_rules! store {
    ($ctx:expr, $offset:expr, $value:expr) => {{
        // SAFETY: as in `load`; the verifier also checks that the field may be written here.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({ctx} + {offset}) = {value}",
                ctx = in(reg) $ctx, offset = const $offset, value = in(reg) u64::from($value),
                options(nostack, preserves_flags),
            );
        }
    }};
}

mod lookup;
mod packet;
mod sk_lookup;
mod sock_addr;
mod sock_ops;
mod socket;
mod tcp;

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_prandom_u32, bpf_ktime_get_ns,
};

pub use self::{
    packet::Packet,
    sk_lookup::{OfGroup, SkLookup, has_listener_in},
    sock_addr::SockAddr,
    sock_ops::SockOps,
    socket::Socket,
};

const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
/// `BPF_F_CURRENT_NETNS`: look in the network namespace of the context.
const CURRENT_NETNS: u64 = u64::MAX;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: takes nothing.
    unsafe { bpf_get_prandom_u32() }
}

/// The id of the ancestor, at `level` below the root, of the calling process's cgroup, or 0.
#[inline(always)]
pub fn ancestor_cgroup(level: u32) -> u64 {
    // SAFETY: takes a number; a level deeper than the process's own gives 0.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// Adds to a number that other CPUs add to as well.
///
/// # Safety
///
/// `number` is aligned and lies in a map's value.
#[inline(always)]
pub unsafe fn add(number: *mut u64, more: u64) {
    // SAFETY: the caller's; the verifier checks where the number lies. (core has no such operation for a target without
    // compare-and-swap.)
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({number} + 0) += {more}",
            number = in(reg) number, more = in(reg) more,
            options(nostack, preserves_flags),
        );
    }
}
