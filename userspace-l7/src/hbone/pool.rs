//! The dialling side: one worker's tunnels, shared by the connections that may share them.
//!
//! Two connections share a tunnel only if everything that a peer or a policy could tell apart is the same: the
//! pod and identity that they come from, whom they expect to find, and where. One task dials for a key while
//! the others wait.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, FirstBytes, Liveness, Stream};
use super::error::{DialError, Lost, OpenError};
use super::head::ConnectRequest;
use super::machine::Role;
use crate::model::{SpiffeId, WorkloadUid};
use crate::tls::Session;

/// Streams on one connection, however many the server allows: the next connection uses another core of its
/// (ztunnel's constant).
const MAX_STREAMS: usize = 100;

/// Time that a connection without streams is kept (ztunnel's constant).
const IDLE: Duration = Duration::from_secs(5 * 60);

/// Time that a server has to answer a request. Its agent may wait for its application, and for news of the mesh before.
const ANSWER: Duration = Duration::from_secs(30);

/// Connections that are tried for one request, where those before refused it or broke without an answer.
const ATTEMPTS: usize = 3;

/// What connections must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The local pod.
    pub pod: WorkloadUid,
    /// Its identity.
    pub source: SpiffeId,
    /// Whom the server may prove to be. In any order; the pool sorts it.
    pub expected: Arc<[SpiffeId]>,
    /// Where the server is.
    pub tunnel: SocketAddr,
}

/// The tunnels of one worker; clones are the same pool.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    tunnels: RefCell<HashMap<PoolKey, Tunnels>>,
    is_closing: Cell<bool>,
    patience: Patience,
}

/// What a pool waits for, and how long.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// That a connection without streams gets one.
    pub(super) idle: Duration,
    /// The answer to a request.
    pub(super) answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            idle: IDLE,
            answer: ANSWER,
        }
    }
}

/// One key's connections.
#[derive(Default)]
struct Tunnels {
    connections: Vec<Connection>,
    dialling: Option<Dialling>,
}

/// What comes of a dial: `None` while it lasts.
type Dialled = Option<Result<Connection, Rc<DialError>>>;

/// A dial that is under way.
struct Dialling {
    outcome: watch::Receiver<Dialled>,
    task: AbortHandle,
}

/// What a request can go on with.
enum Next {
    Use(Connection),
    Wait(watch::Receiver<Dialled>),
}

impl Pool {
    /// A pool without tunnels.
    pub fn new() -> Self {
        Self::with(Patience::default())
    }

    /// A pool that waits for so long.
    pub(super) fn with(patience: Patience) -> Self {
        Self(Rc::new(Inner {
            tunnels: RefCell::default(),
            is_closing: Cell::new(false),
            patience,
        }))
    }

    /// Opens a stream on a tunnel of `key`, dialling one if none has room, with the application's first bytes if they
    /// are known already. `dial` is not called if another request dials already.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request; `first` says whether bytes have left. A dial that it began goes on for
    /// the others.
    pub async fn open<D, F>(
        &self,
        mut key: PoolKey,
        request: &ConnectRequest,
        first: &mut FirstBytes<'_>,
        dial: D,
    ) -> Result<Stream, OpenError>
    where
        D: Fn() -> F,
        F: Future<Output = Result<Session, DialError>> + 'static,
    {
        if !key.expected.is_sorted() {
            Arc::make_mut(&mut key.expected).sort_unstable();
        }
        let mut failures = 0;
        loop {
            let lost = match self.next(&key, &dial)? {
                Next::Use(connection) => match self.answered(&connection, request, first).await {
                    // The race that every reused connection has: it went away while we asked.
                    Err(error) if may_ask_again(&error) => {
                        connection.drain();
                        error
                    }
                    outcome => return outcome,
                },
                Next::Wait(mut outcome) => {
                    let outcome = outcome.wait_for(Option::is_some).await;
                    // A dial without an outcome was taken down, or panicked.
                    match outcome.map_err(|_taken_down| OpenError::Closing)?.clone() {
                        Some(Err(error)) => return Err(OpenError::Dial(error)),
                        Some(Ok(fresh)) if fresh.takes_none() => {
                            fresh.drain();
                            OpenError::Refused
                        }
                        _ => continue,
                    }
                }
            };
            failures += 1;
            if failures == ATTEMPTS {
                return Err(lost);
            }
        }
    }

    /// The answer to a request, in time.
    async fn answered(
        &self,
        connection: &Connection,
        request: &ConnectRequest,
        first: &mut FirstBytes<'_>,
    ) -> Result<Stream, OpenError> {
        match timeout(self.0.patience.answer, connection.open(request, first)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) if first.have_left() => Err(OpenError::Unanswered.after_first_bytes()),
            Err(_elapsed) => Err(OpenError::Unanswered),
        }
    }

    /// Ends the tunnels of a pod that is gone, and what they carry.
    pub fn forget(&self, pod: &WorkloadUid) {
        let mut gone = Vec::new();
        self.0.tunnels.borrow_mut().retain(|key, tunnels| {
            if key.pod == *pod {
                gone.push(std::mem::take(tunnels));
            }
            key.pod != *pod
        });
        gone.iter().for_each(Tunnels::take_down);
    }

    /// Opens no more streams, but for those who wait for a dial already; each tunnel ends after those that it has.
    pub fn drain(&self) {
        self.0.is_closing.set(true);
        self.0.tunnels.borrow_mut().retain(|_, tunnels| {
            tunnels
                .connections
                .drain(..)
                .for_each(|connection| connection.drain());
            tunnels.under_way().is_some()
        });
    }

    /// Connections that new streams may use.
    pub fn connections(&self) -> usize {
        self.0
            .tunnels
            .borrow()
            .values()
            .map(|tunnels| tunnels.connections.len())
            .sum()
    }

    /// A connection with room, or the dial to wait for: one that is under way, or a new one.
    fn next<D, F>(&self, key: &PoolKey, dial: &D) -> Result<Next, OpenError>
    where
        D: Fn() -> F,
        F: Future<Output = Result<Session, DialError>> + 'static,
    {
        let mut all = self.0.tunnels.borrow_mut();
        let is_closing = self.0.is_closing.get();
        if is_closing && !all.contains_key(key) {
            return Err(OpenError::Closing);
        }
        let tunnels = all.entry(key.clone()).or_default();
        tunnels.connections.retain(|connection| {
            let is_useless = connection.takes_none();
            if is_useless {
                connection.drain();
            }
            !is_useless
        });
        // The fullest first, so that the others can fall idle.
        let with_room = tunnels
            .connections
            .iter()
            .filter(|one| one.room(MAX_STREAMS) > 0);
        if let Some(connection) = with_room.min_by_key(|one| one.room(MAX_STREAMS)) {
            return Ok(Next::Use(connection.clone()));
        }
        if let Some(dialling) = tunnels.under_way() {
            return Ok(Next::Wait(dialling.outcome.clone()));
        }
        if is_closing {
            return Err(OpenError::Closing);
        }
        let (tell, outcome) = watch::channel(None);
        let dialled = dialled(Rc::downgrade(&self.0), key.clone(), dial(), tell);
        let task: JoinHandle<()> = spawn_local(dialled);
        tunnels.dialling = Some(Dialling {
            outcome: outcome.clone(),
            task: task.abort_handle(),
        });
        Ok(Next::Wait(outcome))
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tunnels.get_mut().values().for_each(Tunnels::take_down);
    }
}

impl Tunnels {
    /// The dial that will come to an outcome, if there is one. A task that panicked leaves none, and nobody at the
    /// other end of its channel.
    fn under_way(&self) -> Option<&Dialling> {
        let dialling = self.dialling.as_ref()?;
        dialling.outcome.has_changed().is_ok().then_some(dialling)
    }

    fn take_down(&self) {
        self.connections.iter().for_each(Connection::take_down);
        self.dialling
            .iter()
            .for_each(|dialling| dialling.task.abort());
    }
}

/// Whether another connection to the same server may take the request.
fn may_ask_again(error: &OpenError) -> bool {
    match error {
        OpenError::Refused => true,
        OpenError::Lost(lost) => {
            matches!(
                lost,
                Lost::Closed | Lost::Receive(_) | Lost::Send(_) | Lost::Silent
            )
        }
        _ => false,
    }
}

/// Dials for `key`, puts the connection into the pool, and then keeps watch over it.
async fn dialled(
    pool: Weak<Inner>,
    key: PoolKey,
    dial: impl Future<Output = Result<Session, DialError>>,
    tell: watch::Sender<Dialled>,
) {
    let outcome = dial.await;
    let (connection, idle) = {
        let Some(pool) = pool.upgrade() else { return };
        let mut all = pool.tunnels.borrow_mut();
        let Some(tunnels) = all.get_mut(&key) else {
            return;
        };
        tunnels.dialling = None;
        match outcome {
            Ok(session) => {
                let connection = Connection::start(session, Role::Client, Liveness::default());
                tunnels.connections.push(connection.clone());
                // Whoever asked may have gone away.
                drop(tell.send_replace(Some(Ok(connection.clone()))));
                (connection, pool.patience.idle)
            }
            Err(error) => {
                if tunnels.connections.is_empty() {
                    drop(all.remove(&key));
                }
                drop(tell.send_replace(Some(Err(Rc::new(error)))));
                return;
            }
        }
    };
    drop(tell);
    until_useless(&connection, idle).await;
    connection.drain();
    let Some(pool) = pool.upgrade() else { return };
    let mut all = pool.tunnels.borrow_mut();
    if let Some(tunnels) = all.get_mut(&key) {
        tunnels.connections.retain(|one| !one.is_closing());
        if tunnels.connections.is_empty() && tunnels.under_way().is_none() {
            drop(all.remove(&key));
        }
    }
}

/// Waits until no stream can be opened, or none has been for `idle`.
async fn until_useless(connection: &Connection, idle: Duration) {
    loop {
        let idle_until = connection.idle_since().unwrap_or_else(Instant::now) + idle;
        tokio::select! {
            () = connection.closing() => return,
            () = sleep_until(idle_until) => {
                if connection.idle_since().is_some_and(|since| since.elapsed() >= idle) {
                    return;
                }
            }
        }
    }
}
