//! Connections to resolvers that a rule in the pod has redirected to the proxy (istio-cni's, ADR 0021): the kernel remembers
//! for whom they were.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, getsockopt};

use super::{PodNetwork, Transport};

/// The network of a pod, as one of these connections sees it.
struct Redirected {
    network: Arc<dyn PodNetwork>,
    resolver: SocketAddr,
}

impl PodNetwork for Redirected {
    fn resolver(&self, _transport: Transport, _client: SocketAddr) -> Option<SocketAddr> {
        Some(self.resolver)
    }

    fn socket(&self, transport: Transport, resolver: SocketAddr) -> io::Result<OwnedFd> {
        self.network.socket(transport, resolver)
    }
}

/// The pod's network as a connection sees it that has come to the proxy at `local`.
pub(super) fn network(
    of_pod: Arc<dyn PodNetwork>,
    connection: &impl AsFd,
    local: SocketAddr,
) -> Arc<dyn PodNetwork> {
    match original(connection, local) {
        Some(resolver) if resolver != local => Arc::new(Redirected {
            network: of_pod,
            resolver,
        }),
        // Who dialled the proxy itself meant whatever the pod usually asks.
        _ => of_pod,
    }
}

/// `None` where the host tracks no connections.
fn original(connection: &impl AsFd, local: SocketAddr) -> Option<SocketAddr> {
    Some(match local {
        SocketAddr::V4(_) => {
            let found = SockaddrIn::from(getsockopt(connection, OriginalDst).ok()?);
            SocketAddrV4::from(found).into()
        }
        SocketAddr::V6(_) => {
            let found = SockaddrIn6::from(getsockopt(connection, Ip6tOriginalDst).ok()?);
            SocketAddrV6::from(found).into()
        }
    })
}
