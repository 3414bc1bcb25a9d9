//! What istio-cni's rules do in a pod, as far as capture lives with it (istio `cni/pkg/iptables`, ADR 0021).

use super::Address;

/// The port to which the rules redirect what comes from outside, unless it is for [`HBONE_PORT`](super::HBONE_PORT). What port
/// it was for, connection tracking knows.
pub const REDIRECTED_PORT: u16 = 15006;

/// `SO_MARK` of sockets that the rules leave alone. No secret: a pod that may set marks gets past the rules, as under ztunnel,
/// and not past capture.
pub const UNREDIRECTED_MARK: u32 = 0x539;

/// `169.254.7.127`, the source that istio-cni gives to what the node's own processes open to pods in the mesh.
const NODE_V4: Address = Address::v4(0xa9fe_077f_u32.to_be());
/// `fd16:9254:7127:1337:ffff:ffff:ffff:ffff`
const NODE_V6: Address = Address {
    words_be: [
        0xfd16_9254_u32.to_be(),
        0x7127_1337_u32.to_be(),
        0xffff_ffff,
        0xffff_ffff,
    ],
};

/// The source that a pod with this address sees of its node's probes, once istio-cni has rewritten it.
#[must_use]
#[inline(always)]
pub const fn rewritten_node(pod: &Address) -> Address {
    if pod.is_v4() { NODE_V4 } else { NODE_V6 }
}
