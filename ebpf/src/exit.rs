//! `tcx` egress on a pod's devices: nothing that is captured leaves by them.
//!
//! What is captured goes to `lo`, by rules of the pod's network namespace. A socket that is bound to a device after it has
//! connected passes them by: for an outgoing device that is given, IPv4 takes a destination without a route to be on its
//! link (`ip_route_output_key_hash_rcu`). So does one of which a pod has deleted the rules. Its mark tells it still.

use culvert_ebpf::{MARK_MASK, MARK_OUTBOUND};

use crate::context::Packet;

const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Looks at one packet that is about to leave.
#[inline(always)]
pub fn inspect(packet: &Packet) -> i32 {
    if packet.mark() & MARK_MASK == MARK_OUTBOUND {
        TCX_DROP
    } else {
        TCX_NEXT
    }
}
