//! L5: the live connections of one worker. An inbound connection is registered before it is first judged
//! and judged again whenever the mesh changes, so that no change can slip between the two.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;
use tokio::sync::Notify;

use crate::model::{NamespacedHostname, Snapshot, SpiffeId, WorkloadUid};
use crate::policy::{self, BytesClaim, BytesView, Denial};

/// Which way a connection runs, as the workload sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// How a connection travels between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// In an HBONE tunnel.
    Hbone,
    /// As plain TCP.
    Tcp,
}

/// A live connection, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConnection {
    /// The local workload.
    pub workload: WorkloadUid,
    /// To or from it.
    pub direction: Direction,
    /// The client's address.
    pub source: SocketAddr,
    /// The address that the client dialled.
    pub original_destination: SocketAddr,
    /// Hostname of the service that was addressed.
    pub service: Option<String>,
    /// Where the bytes go.
    pub destination: SocketAddr,
    /// The peer's verified identity, or for an outbound connection the server's.
    pub peer: Option<SpiffeId>,
    /// Tunnel or not.
    pub carriage: Carriage,
}

/// By which way a connection came to its workload, as far as that one's policies ask: what is not shown of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Via {
    /// Who the waypoint would be that it went through.
    pub(crate) waypoint: Option<SpiffeId>,
    /// The service that was called, whose demands it meets.
    pub(crate) service: Option<NamespacedHostname>,
}

/// Whose policies a connection is judged by. On the heap is what few connections have.
enum Claim {
    /// None that are ours to ask.
    Elsewhere,
    /// The workload's own.
    Here(Option<Box<Via>>),
}

/// What a connection that is carried as bytes has to meet besides.
#[derive(Default)]
enum Bytes {
    /// Nothing that is known of.
    #[default]
    Nothing,
    /// The demands of its workload's own waypoint: all else of the claim is shown.
    OfWorkload { is_declared: bool },
    /// Others.
    Claimed(Box<BytesClaim>),
}

impl Bytes {
    fn of(shown: &LiveConnection, claim: BytesClaim) -> Self {
        let is_declared = claim.is_declared;
        if claim.view() == of_workload(shown, is_declared) {
            Self::OfWorkload { is_declared }
        } else {
            Self::Claimed(Box::new(claim))
        }
    }

    fn view<'a>(&'a self, shown: &'a LiveConnection) -> Option<BytesView<'a>> {
        match self {
            Self::Nothing => None,
            Self::OfWorkload { is_declared } => Some(of_workload(shown, *is_declared)),
            Self::Claimed(claim) => Some(claim.view()),
        }
    }
}

/// The claim of a connection that called its workload by an address of it.
fn of_workload(shown: &LiveConnection, is_declared: bool) -> BytesView<'_> {
    BytesView {
        called: None,
        besides: &[],
        workload: &shown.workload,
        identity: shown.peer.as_ref(),
        source: shown.source.ip(),
        destination: shown.destination,
        is_declared,
    }
}

/// The workload is no longer in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the workload is gone")]
pub(crate) struct WorkloadGone;

struct Entry {
    shown: LiveConnection,
    claim: Claim,
    /// What it has to meet besides, if it is carried as bytes.
    bytes: RefCell<Bytes>,
    /// Why it has lost its right, if it has.
    reason: RefCell<Option<Box<Denial>>>,
    /// Whom to wake then.
    waiting: RefCell<Option<Waker>>,
}

impl Entry {
    /// Why the mesh would refuse it now. A workload that disappears takes its connections with it by its sockets;
    /// cutting them here would also cut the last answers of a pod that is terminating.
    fn denial(&self, snapshot: &Snapshot) -> Option<Denial> {
        let own = match &self.claim {
            Claim::Elsewhere => None,
            Claim::Here(_) => self.judge(snapshot).ok(),
        };
        own.and_then(|verdict| verdict.decision.err()).or_else(|| {
            let judged = self.bytes.borrow().view(&self.shown)?.judge(snapshot);
            judged.err().map(Denial::Demanded)
        })
    }

    fn judge(&self, snapshot: &Snapshot) -> Result<policy::Verdict, WorkloadGone> {
        let shown = &self.shown;
        let via = match &self.claim {
            Claim::Here(via) => via.as_deref(),
            Claim::Elsewhere => None,
        };
        let workload = snapshot
            .workloads
            .get(&shown.workload)
            .ok_or(WorkloadGone)?;
        let connection = policy::Connection {
            source: shown.source.ip(),
            identity: shown.peer.as_ref(),
            waypoint: via.and_then(|via| via.waypoint.as_ref()),
            through: via.and_then(|via| via.service.as_ref()),
            destination: shown.destination,
        };
        Ok(policy::judge(snapshot, workload, &connection))
    }
}

/// Every connection of a worker.
#[derive(Default)]
pub(crate) struct Connections {
    /// In no order.
    entries: RefCell<Slab<Rc<Entry>>>,
    /// How many have been accepted, their openings included, in which nothing is known to register.
    under_way: Cell<usize>,
    emptied: Notify,
}

impl Connections {
    /// Registers a connection until the returned handle is dropped. One that is judged elsewhere.
    pub(crate) fn track(self: &Rc<Self>, shown: LiveConnection) -> Tracked {
        self.register(shown, Claim::Elsewhere)
    }

    /// As [`Connections::track`], of a connection that came to its workload `via`: by that one's policies it is judged again
    /// at each [`Connections::judge_again`].
    pub(crate) fn track_judged(self: &Rc<Self>, shown: LiveConnection, via: Via) -> Tracked {
        let via = Some(via).filter(|via| *via != Via::default());
        self.register(shown, Claim::Here(via.map(Box::new)))
    }

    fn register(self: &Rc<Self>, shown: LiveConnection, claim: Claim) -> Tracked {
        let entry = Rc::new(Entry {
            shown,
            claim,
            bytes: RefCell::default(),
            reason: RefCell::default(),
            waiting: RefCell::default(),
        });
        let place = self.entries.borrow_mut().insert(Rc::clone(&entry));
        Tracked {
            connections: Rc::clone(self),
            place,
            entry,
        }
    }

    /// Ends every connection that the mesh would refuse now. Returns how many those are.
    pub(crate) fn judge_again(&self, snapshot: &Snapshot) -> usize {
        let entries = self.entries.borrow();
        let mut refused = 0;
        for (_, entry) in entries.iter() {
            if let Some(denial) = entry.denial(snapshot) {
                entry.reason.replace(Some(Box::new(denial)));
                if let Some(waiting) = entry.waiting.take() {
                    waiting.wake();
                }
                refused += 1;
            }
        }
        refused
    }

    /// A copy for people to look at.
    pub(crate) fn list(&self) -> Vec<LiveConnection> {
        self.entries
            .borrow()
            .iter()
            .map(|(_, entry)| entry.shown.clone())
            .collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Counts a connection that was accepted, until the returned handle is dropped.
    pub(crate) fn accepted(self: &Rc<Self>) -> UnderWay {
        self.under_way.set(self.under_way.get() + 1);
        UnderWay(Rc::clone(self))
    }

    /// Resolves when none is left, be it still in its opening.
    pub(crate) async fn until_empty(&self) {
        while !self.is_empty() {
            self.emptied.notified().await;
        }
    }

    fn is_empty(&self) -> bool {
        self.under_way.get() == 0 && self.entries.borrow().is_empty()
    }
}

/// An accepted connection.
pub(crate) struct UnderWay(Rc<Connections>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        if self.0.is_empty() {
            self.0.emptied.notify_one();
        }
    }
}

/// A registered connection.
pub(crate) struct Tracked {
    connections: Rc<Connections>,
    place: usize,
    entry: Rc<Entry>,
}

impl Tracked {
    /// Judges the connection by its workload's own policies, as the mesh is now.
    ///
    /// # Errors
    /// A workload that is gone has no policies left to ask, and no one to serve: refused.
    pub(crate) fn judge(&self, snapshot: &Snapshot) -> Result<policy::Verdict, WorkloadGone> {
        self.entry.judge(snapshot)
    }

    /// From now on the connection is carried as bytes, and judged again by this as well.
    pub(crate) fn meet(&self, claim: BytesClaim) {
        let bytes = Bytes::of(&self.entry.shown, claim);
        self.entry.bytes.replace(bytes);
    }

    /// Resolves once the connection has lost its right to exist.
    ///
    /// # Cancel safety
    /// The reason stays: a later call returns at once.
    pub(crate) async fn refused(&self) -> Denial {
        poll_fn(|cx| self.poll_refused(cx)).await
    }

    /// As [`Tracked::refused`], for whoever is polled. Only the last caller is woken.
    pub(crate) fn poll_refused(&self, cx: &Context<'_>) -> Poll<Denial> {
        if let Some(reason) = &*self.entry.reason.borrow() {
            return Poll::Ready(Denial::clone(reason));
        }
        let mut waiting = self.entry.waiting.borrow_mut();
        match &mut *waiting {
            Some(known) => known.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let removed = self.connections.entries.borrow_mut().remove(self.place);
        drop(removed);
        if self.connections.is_empty() {
            self.connections.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
