//! istio-cni's protocol for the node's proxy (ZDS): it names the pods of the mesh, hands over their network namespaces, and
//! waits with each pod until the proxy has taken it.
//!
//! ```text
//!  istio-cni (listens)                                                agent
//!      ◀─ ZdsHello ───────────────────────────────────────────────────── client
//!      ── Add(uid, fd) | Keep(uid) ─▶ socket ─▶ session (pure) ─▶ Notice ─▶ Proxy
//!      ◀─ ack, or an error ─────────────────────────────────────────────── │
//!      ── SnapshotSent ─▶ whoever was not mentioned is let go
//!      ── Add | Del ─▶ …
//! ```
//!
//! The socket is of type `SOCK_SEQPACKET`, a packet is one protobuf message, and each gets one answer before the next one
//! comes. What a pod is to be in the mesh is none of this protocol's business: whoever is named is looked up by its UID.

mod client;
mod condition;
mod message;
#[expect(
    unsafe_code,
    reason = "descriptors that another process has passed have no owner yet"
)]
mod rights;
mod session;
mod socket;

use std::collections::BTreeSet;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

pub(crate) use client::Client;
pub(crate) use condition::Condition;

/// What istio-cni says of the node's pods.
#[derive(Debug)]
pub(crate) enum Notice {
    /// This one is in the mesh, or is in another network namespace than before.
    Add(Named),
    /// The one with this UID still is: nothing is said of where.
    Keep(Arc<str>),
    /// The one with this UID is not any more.
    Del(Arc<str>),
    /// Those with these UIDs are all that there are.
    All(BTreeSet<Arc<str>>),
}

/// A pod of the mesh, and where it runs.
#[derive(Debug)]
pub(crate) struct Named {
    /// The UID that the API server has given it.
    pub(crate) uid: Arc<str>,
    /// Its Kubernetes namespace and name, if istio-cni knows them.
    pub(crate) name: Option<(Arc<str>, Arc<str>)>,
    /// Its network namespace.
    pub(crate) netns: OwnedFd,
}

/// The node's proxy, as istio-cni knows it.
pub(crate) trait Proxy: Send + Sync {
    /// Does what follows from a notice. The answer to [`Notice::Add`] comes once the pod is captured, or in time for istio-cni to
    /// hear why it is not: a sentence. It then may be later.
    fn take(&self, notice: Notice)
    -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// What fuzz targets reach: whether a session that has just begun takes a packet with so many descriptors.
#[cfg(fuzzing)]
pub fn is_taken(packet: &[u8], descriptors: usize) -> bool {
    session::Session::default()
        .take(packet, descriptors)
        .is_ok()
}
