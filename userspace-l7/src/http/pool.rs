//! Connections that wait for their next request, by what they may be used for. One worker's; bounded in time
//! and per key.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use hashbrown::HashMap;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::body::Body;
use super::client::{SendError, Sender};
use super::sniff::Version;
use super::wire::Wire;
use crate::model::{NamespacedHostname, Opening, Side, WorkloadUid};
use crate::traffic::GroupKey;

/// Time that a connection without requests is kept: as long as a tunnel without streams.
const IDLE: Duration = Duration::from_secs(5 * 60);

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(15);

/// Idle HTTP/1.1 connections kept per key; more of them end with their request.
const MAX_IDLE: usize = 256;

/// Requests at once on one HTTP/2 connection before another is opened (what tunnels hold to, too).
const MAX_SHARED: usize = 100;

/// What requests must have in common to share a connection: everything that the far side could tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// The local pod.
    pub(crate) pod: WorkloadUid,
    /// The application that answers.
    pub(crate) destination: SocketAddr,
    /// The workload there, whose address may come to be another's.
    pub(crate) workload: Option<WorkloadUid>,
    /// Whether it is a tunnel's, whose other end judges requests, or in the clear: workloads enter the mesh and leave it.
    pub(crate) is_tunnelled: bool,
    /// The service and port that the tunnel was asked for in the name of, and through which of its waypoints.
    pub(crate) service: Option<(NamespacedHostname, u16, Side)>,
    /// Whose traffic policy they are under.
    pub(crate) group: Option<GroupKey>,
    /// The client that the application shall see, where it is not the pod itself.
    pub(crate) client: Option<SocketAddr>,
    /// What it begins with: one that was made with other settings is none that may be used.
    pub(crate) opening: Opening,
}

/// How long a connection is kept for further requests. One that was made under other rules than its next
/// request's is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keeping {
    /// Requests that it takes in all; `None`: any number.
    pub(crate) requests: Option<u32>,
    /// How old it may be when it takes one; `None`: any age.
    pub(crate) age: Option<Duration>,
    /// Time without requests.
    pub(crate) idle: Duration,
    /// Connections that there may be; whoever makes them sees to that.
    pub(crate) connections: Option<u32>,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            requests: None,
            age: None,
            idle: IDLE,
            connections: None,
        }
    }
}

/// What is left of a connection.
#[derive(Clone, Copy, Debug)]
struct Life {
    keeping: Keeping,
    requests: Option<u32>,
    ends: Option<Instant>,
}

impl Life {
    fn begin(keeping: Keeping) -> Self {
        Self {
            keeping,
            requests: keeping.requests,
            ends: keeping.age.map(|age| Instant::now() + age),
        }
    }

    fn may_go_on(&self) -> bool {
        self.requests != Some(0) && self.ends.is_none_or(|ends| Instant::now() < ends)
    }

    /// Whether it may take one more request under these rules.
    fn suits(&self, keeping: Keeping) -> bool {
        self.keeping == keeping && self.may_go_on()
    }

    /// One request more.
    fn spend(&mut self) {
        self.requests = self.requests.map(|left| left.saturating_sub(1));
    }
}

/// A worker's pool; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Pool(Rc<Inner>);

#[derive(Default)]
struct Inner {
    kept: RefCell<HashMap<Rc<PoolKey>, Kept>>,
    is_swept: Cell<bool>,
    /// Told when a connection waits again.
    waits: Notify,
}

#[derive(Default)]
struct Kept {
    /// What connections that are in use know it by: those of a key that was closed meanwhile do not come back.
    era: Rc<()>,
    /// The one that was used last at the end: it is the least likely to have been closed meanwhile.
    idle: Vec<Idle>,
    shared: Vec<Shared>,
}

/// An HTTP/1.1 connection without a request.
struct Idle {
    sender: Sender,
    since: Instant,
    life: Life,
}

/// An HTTP/2 connection.
struct Shared {
    sender: Sender,
    requests: Rc<Cell<usize>>,
    idle_since: Instant,
    life: Life,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// A connection that waits, if there is one that speaks this version.
    pub(crate) fn take(
        &self,
        key: &Rc<PoolKey>,
        version: Version,
        keeping: Keeping,
    ) -> Option<Lease> {
        let mut all = self.0.kept.borrow_mut();
        let kept = all.get_mut(key)?;
        match version {
            Version::Http1 => {
                while let Some(Idle {
                    sender,
                    since,
                    mut life,
                }) = kept.idle.pop()
                {
                    let is_fresh = since.elapsed() < keeping.idle && life.suits(keeping);
                    if sender.is_ready() && is_fresh {
                        life.spend();
                        return Some(self.lease(key, sender, life, (&kept.era, None)));
                    }
                }
                None
            }
            Version::Http2 => {
                // What has had its share ends with the requests that are on it.
                kept.shared
                    .retain(|shared| !shared.sender.is_closed() && shared.life.suits(keeping));
                let open = kept
                    .shared
                    .iter_mut()
                    .filter(|one| one.requests.get() < MAX_SHARED);
                // The fullest first, so that the others can fall idle.
                let shared = open.max_by_key(|one| one.requests.get())?;
                shared.idle_since = Instant::now();
                shared.life.spend();
                let counted = Counted::new(&shared.requests);
                let (sender, life) = (shared.sender.share()?, shared.life);
                Some(self.lease(key, sender, life, (&kept.era, Some(counted))))
            }
        }
    }

    /// Takes over a fresh connection for its first request.
    pub(crate) fn adopt(&self, key: &Rc<PoolKey>, sender: Sender, keeping: Keeping) -> Lease {
        let mut life = Life::begin(keeping);
        life.spend();
        let mut all = self.0.kept.borrow_mut();
        let kept = all.entry(Rc::clone(key)).or_default();
        let counted = sender.share().map(|own| {
            let requests = Rc::<Cell<usize>>::default();
            let counted = Counted::new(&requests);
            kept.shared.push(Shared {
                sender: own,
                requests,
                idle_since: Instant::now(),
                life,
            });
            counted
        });
        let lease = self.lease(key, sender, life, (&kept.era, counted));
        drop(all);
        self.sweep();
        lease
    }

    /// Resolves when a connection waits again; to be asked for before looking.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.0.waits.notified()
    }

    /// Closes the idle connections of one key, and those in use after their requests.
    pub(crate) fn close(&self, key: &PoolKey) {
        let closed = self.0.kept.borrow_mut().remove(key);
        drop(closed);
    }

    /// Closes the idle connections that `which` names, and those in use after their requests.
    pub(crate) fn forget(&self, which: impl Fn(&PoolKey) -> bool) {
        let mut gone = Vec::new();
        self.0.kept.borrow_mut().retain(|key, kept| {
            let stays = !which(key);
            if !stays {
                gone.push(std::mem::take(kept));
            }
            stays
        });
    }

    fn lease(
        &self,
        key: &Rc<PoolKey>,
        sender: Sender,
        life: Life,
        (era, counted): (&Rc<()>, Option<Counted>),
    ) -> Lease {
        Lease {
            pool: Rc::downgrade(&self.0),
            key: Rc::clone(key),
            era: Rc::clone(era),
            sender,
            life,
            _counted: counted,
        }
    }

    /// Sees to it that idle connections end in time.
    fn sweep(&self) {
        if self.0.is_swept.replace(true) {
            return;
        }
        let pool = Rc::downgrade(&self.0);
        drop(tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(pool) = pool.upgrade() else { return };
                if pool.drop_idle() {
                    pool.is_swept.set(false);
                    return;
                }
            }
        }));
    }
}

impl Inner {
    /// Closes what has been idle for long. True if nothing is left.
    fn drop_idle(&self) -> bool {
        let mut kept = self.kept.borrow_mut();
        kept.retain(|_key, kept| {
            kept.idle.retain(|one| {
                let is_used = one.since.elapsed() < one.life.keeping.idle && one.life.may_go_on();
                is_used && !one.sender.is_closed()
            });
            kept.shared.retain(|one| {
                let is_used =
                    one.requests.get() > 0 || one.idle_since.elapsed() < one.life.keeping.idle;
                is_used && !one.sender.is_closed()
            });
            let is_in_use = Rc::strong_count(&kept.era) > 1;
            is_in_use || !kept.idle.is_empty() || !kept.shared.is_empty()
        });
        kept.is_empty()
    }
}

/// The use of a connection for one request, from its sending to the end of its response. Dropped before that,
/// an HTTP/1.1 connection ends, and of HTTP/2 only the stream.
pub(crate) struct Lease {
    pool: Weak<Inner>,
    key: Rc<PoolKey>,
    era: Rc<()>,
    sender: Sender,
    life: Life,
    _counted: Option<Counted>,
}

/// One request of an HTTP/2 connection.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(requests: &Rc<Cell<usize>>) -> Self {
        requests.set(requests.get() + 1);
        Self(Rc::clone(requests))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Lease {
    /// As [`Sender::send`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    ///
    /// # Cancel safety
    /// As [`Sender::send`].
    pub(crate) fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<> {
        self.sender.send(request)
    }

    /// The connection itself, after a response that switched the protocol.
    pub(crate) async fn switched(self) -> Option<Wire> {
        self.sender.switched().await
    }

    /// The response has ended: the connection may take another request.
    pub(crate) fn give_back(mut self) {
        let Some(pool) = self.pool.upgrade().map(Pool) else {
            return;
        };
        let is_shared = self.sender.version() == Version::Http2;
        if is_shared || self.sender.is_closed() || !self.life.may_go_on() {
            return;
        }
        if self.sender.is_ready() {
            pool.keep(self);
            return;
        }
        // The request's body is not at its end yet, or the connection's task has to notice it.
        drop(tokio::task::spawn_local(async move {
            if self.sender.ready().await {
                pool.keep(self);
            }
        }));
    }
}

impl Pool {
    fn keep(&self, lease: Lease) {
        let mut all = self.0.kept.borrow_mut();
        let Some(kept) = all.get_mut(&lease.key) else {
            return;
        };
        let is_welcome = Rc::ptr_eq(&kept.era, &lease.era) && kept.idle.len() < MAX_IDLE;
        if is_welcome {
            kept.idle.push(Idle {
                sender: lease.sender,
                since: Instant::now(),
                life: lease.life,
            });
        }
        drop(all);
        self.0.waits.notify_waiters();
        self.sweep();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}
