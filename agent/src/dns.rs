//! The DNS proxy: answers a pod's queries for names of the mesh and passes every other query on to the
//! resolver that the pod meant, from the pod's own network namespace, so that network policies see it.
//!
//! ```text
//!  pod ─▶ 127.0.0.1:15053 ─▶ wire (is it a query?) ─▶ resolve (snapshot, client) ─┬─▶ answer
//!                                                                                 └─▶ upstream ─▶ answer
//! ```
//! Capture brings the queries here and knows what they were meant for; this module opens no socket itself.

pub mod asked;
#[cfg(fuzzing)]
pub mod fuzzing;
mod metrics;
mod names;
mod redirected;
mod resolve;
mod server;
#[cfg(test)]
mod tests;
mod upstream;
mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use userspace_l7::model::{Snapshot, WorkloadUid};

pub use metrics::DnsMetrics;
pub use resolve::{Answer, resolve, service_called};
pub use server::Dns;
pub use wire::{Received, receive};

/// Gives the mesh as it is now.
pub type SnapshotSource = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// UDP or TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One query per datagram.
    Udp,
    /// Queries behind their length.
    Tcp,
}

/// A pod's network, as capture provides it.
pub trait PodNetwork: Send + Sync + 'static {
    /// The resolver that the client at this address meant before capture brought its query here.
    fn resolver(&self, transport: Transport, client: SocketAddr) -> Option<SocketAddr>;

    /// A fresh socket in the pod's network namespace for reaching `resolver`: neither bound nor
    /// connected, and exempt from capture.
    ///
    /// # Errors
    /// What the kernel says.
    fn socket(&self, transport: Transport, resolver: SocketAddr) -> io::Result<OwnedFd>;
}

/// What the proxy needs to serve one pod.
pub struct PodDns {
    /// Whose queries these are.
    pub workload: WorkloadUid,
    /// Bound UDP sockets, one per address family.
    pub udp: Vec<OwnedFd>,
    /// Listening TCP sockets, one per address family.
    pub tcp: Vec<OwnedFd>,
    /// The pod's network.
    pub network: Arc<dyn PodNetwork>,
}

impl fmt::Debug for PodDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodDns")
            .field("workload", &self.workload)
            .finish_non_exhaustive()
    }
}
