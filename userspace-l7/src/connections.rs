//! L5: the live connections of one worker. An inbound connection is registered before it is first judged
//! and judged again whenever the mesh changes, so that no change can slip between the two.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;
use tokio::sync::Notify;

use crate::model::{NamespacedHostname, Snapshot, SpiffeId, WorkloadUid};
use crate::policy::{self, BytesClaim, Denial};

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

/// What a connection is judged by each time.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) workload: WorkloadUid,
    pub(crate) source: IpAddr,
    pub(crate) identity: Option<SpiffeId>,
    /// Who the waypoint would be that it went through.
    pub(crate) waypoint: Option<SpiffeId>,
    /// The service that was called, whose demands it meets.
    pub(crate) through: Option<NamespacedHostname>,
    pub(crate) destination: SocketAddr,
}

impl Claim {
    /// Judges the claim as the mesh is now. A workload that is gone has no policies left to ask, and no
    /// one to serve: refused.
    pub(crate) fn judge(&self, snapshot: &Snapshot) -> Result<policy::Verdict, WorkloadGone> {
        let workload = snapshot.workloads.get(&self.workload).ok_or(WorkloadGone)?;
        let connection = policy::Connection {
            source: self.source,
            identity: self.identity.as_ref(),
            waypoint: self.waypoint.as_ref(),
            through: self.through.as_ref(),
            destination: self.destination,
        };
        Ok(policy::judge(snapshot, workload, &connection))
    }
}

/// The workload is no longer in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the workload is gone")]
pub(crate) struct WorkloadGone;

struct Entry {
    shown: LiveConnection,
    /// Boxed, as half of all connections have none.
    claim: Option<Box<Claim>>,
    /// What it has to meet besides, if it is carried as bytes.
    bytes: RefCell<Option<Box<BytesClaim>>>,
    /// Why it has lost its right, if it has.
    reason: RefCell<Option<Box<Denial>>>,
    /// Whom to wake then.
    waiting: RefCell<Option<Waker>>,
}

impl Entry {
    /// Why the mesh would refuse it now. A workload that disappears takes its connections with it by its sockets;
    /// cutting them here would also cut the last answers of a pod that is terminating.
    fn denial(&self, snapshot: &Snapshot) -> Option<Denial> {
        let verdict = self.claim.as_ref().map(|claim| claim.judge(snapshot));
        let own = verdict.and_then(|verdict| verdict.ok()?.decision.err());
        own.or_else(|| {
            let judged = self.bytes.borrow().as_ref()?.judge(snapshot);
            judged.err().map(Denial::Demanded)
        })
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
    /// Registers a connection until the returned handle is dropped. With a claim, it is judged again at each
    /// [`Connections::judge_again`].
    pub(crate) fn track(self: &Rc<Self>, shown: LiveConnection, claim: Option<Claim>) -> Tracked {
        let entry = Rc::new(Entry {
            shown,
            claim: claim.map(Box::new),
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
    /// From now on the connection is carried as bytes, and judged again by this as well.
    pub(crate) fn meet(&self, claim: BytesClaim) {
        self.entry.bytes.replace(Some(Box::new(claim)));
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
