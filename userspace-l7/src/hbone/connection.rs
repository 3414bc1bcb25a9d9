//! A tunnel's connection in motion: the machine, the TLS session, and the two tasks that move bytes between
//! them and the socket.
//!
//! ```text
//!  senders ──send──► machine + sealer ──► outgoing records ──► writer task ──► socket
//!  receivers ◄─take── machine ◄── plaintext, opened in place ◄── reader task ◄── socket
//! ```
//!
//! A sender seals its bytes itself, into the buffer that the writer sends next; so everything that is ready in
//! one turn of the worker leaves in few records and one send. While [`OUTGOING`] bytes wait, senders queue up
//! and take turns by frames.

mod reader;
mod sending;
mod stream;
mod writer;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::error::{ErrorCode, Lost, OpenError};
use super::head::{ConnectRequest, ConnectResponse};
use super::machine::{Event, FrameSink, Machine, Role};
use crate::ring::Tcp;
use crate::tls::{Sealer, Session, VerifiedPeer};
pub use sending::FirstBytes;
pub(super) use stream::Held;
pub(crate) use stream::StreamSink;
pub use stream::{Stream, StreamReader, StreamWriter};

/// Bytes that may wait for the writer before senders have to.
const OUTGOING: usize = 256 << 10;

/// Silence after which we ask for a sign of life, and how long we then wait for one (ztunnel's constants).
#[derive(Clone, Copy)]
pub(super) struct Liveness {
    pub(super) ping_after: Duration,
    pub(super) dead_after: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(20),
        }
    }
}

/// How long a peer that we have said goodbye to may take to go.
const PARTING: Duration = Duration::from_secs(1);

/// One connection; clones are the same one.
#[derive(Clone)]
pub(super) struct Connection(Rc<Shared>);

struct Shared {
    tcp: Tcp,
    peer: VerifiedPeer,
    core: RefCell<Core>,
}

struct Core {
    machine: Machine,
    sealer: Sealer,
    /// Records that wait for the writer; the last one may still be open.
    outgoing: Vec<u8>,
    waiting: HashMap<u32, Waiting>,
    /// Streams that want to send and have to take turns, the next one first.
    turns: VecDeque<u32>,
    /// Requests that nobody has seen yet.
    requests: VecDeque<(u32, Box<ConnectRequest>)>,
    writer: Option<Waker>,
    /// Who waits for requests, for the end, or for a change of what [`Connection`] tells of itself.
    watchers: Vec<Waker>,
    /// Why the connection is over.
    lost: Option<Lost>,
    /// What the writer still has to say before it ends.
    farewell: Farewell,
    has_writer: bool,
    idle_since: Option<Instant>,
}

/// The end of our direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    /// Not yet.
    Open,
    /// What waits may still leave, then `close_notify`.
    Due,
    Said,
}

/// Who waits on one stream, and the answer to its request.
#[derive(Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
    response: Option<Box<ConnectResponse>>,
}

impl Connection {
    /// Takes over a session and starts its tasks.
    pub(super) fn start(session: Session, role: Role, liveness: Liveness) -> Self {
        let Session {
            tcp,
            peer,
            sealer,
            opener,
        } = session;
        let core = RefCell::new(Core::new(Machine::new(role), sealer));
        let shared = Rc::new(Shared { tcp, peer, core });
        drop(spawn_local(reader::run(
            Rc::clone(&shared),
            opener,
            liveness,
        )));
        drop(spawn_local(writer::run(Rc::clone(&shared))));
        Self(shared)
    }

    /// Whose connection it is.
    pub(super) fn peer(&self) -> &VerifiedPeer {
        &self.0.peer
    }

    /// Streams that could be opened now, at most `cap` at once.
    pub(super) fn room(&self, cap: usize) -> usize {
        let core = self.0.core.borrow();
        if core.lost.is_some() || core.machine.is_closing() {
            return 0;
        }
        let most = cap.min(core.machine.peer_max_streams() as usize);
        most.saturating_sub(core.machine.active())
    }

    /// Whether no stream will ever be opened again.
    pub(super) fn is_closing(&self) -> bool {
        let core = self.0.core.borrow();
        core.lost.is_some() || core.machine.is_closing()
    }

    /// Whether no stream can be opened for other reasons than that there are many: it ends, or the server allows none.
    pub(super) fn takes_none(&self) -> bool {
        self.is_closing() || self.0.core.borrow().machine.peer_max_streams() == 0
    }

    /// Since when no stream has been open.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.0.core.borrow().idle_since
    }

    /// Asks for a tunnel, sends `first` behind the request if there is room, and waits for the answer.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request; `first` says whether bytes have left.
    pub(super) async fn open(
        &self,
        request: &ConnectRequest,
        first: &mut FirstBytes<'_>,
    ) -> Result<Stream, OpenError> {
        let held = {
            let mut core = self.0.core.borrow_mut();
            if let Some(lost) = core.lost {
                return Err(lost.into());
            }
            let id = core.machine.open(request).ok_or(OpenError::Refused)?;
            core.adopt(id);
            core.send_first(id, first);
            core.wake_writer();
            Held::new(Rc::clone(&self.0), id)
        };
        let response = poll_fn(|cx| self.0.core.borrow_mut().poll_response(held.id(), cx)).await;
        let response = response.map_err(|error| {
            if first.have_left() {
                error.after_first_bytes()
            } else {
                error
            }
        })?;
        if !response.is_success() {
            held.reset(ErrorCode::NO_ERROR);
            return Err(OpenError::Status {
                status: response.status,
                cause: response.cause,
                reason: response.reason.map(Into::into),
            });
        }
        Ok(Stream::new(held, response.baggage))
    }

    /// The next request of the client; `None` once there can be no more.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next_request(&self) -> Option<(Held, Box<ConnectRequest>)> {
        poll_fn(|cx| {
            let mut core = self.0.core.borrow_mut();
            if let Some((id, request)) = core.requests.pop_front() {
                core.adopt(id);
                return Poll::Ready(Some((Held::new(Rc::clone(&self.0), id), request)));
            }
            if core.lost.is_some() {
                return Poll::Ready(None);
            }
            core.watch(cx);
            Poll::Pending
        })
        .await
    }

    /// Waits until no stream can be opened any more.
    pub(super) async fn closing(&self) {
        poll_fn(|cx| {
            let mut core = self.0.core.borrow_mut();
            if core.lost.is_some() || core.machine.is_closing() {
                return Poll::Ready(());
            }
            core.watch(cx);
            Poll::Pending
        })
        .await;
    }

    /// Waits for the end, and tells why it came.
    pub(super) async fn ended(&self) -> Lost {
        poll_fn(|cx| {
            let mut core = self.0.core.borrow_mut();
            if let Some(lost) = core.lost {
                return Poll::Ready(lost);
            }
            core.watch(cx);
            Poll::Pending
        })
        .await
    }

    /// Lets the streams that exist finish, and then ends the connection in order.
    pub(super) fn drain(&self) {
        let mut core = self.0.core.borrow_mut();
        core.machine.drain();
        core.wake_watchers();
        core.wake_writer();
    }

    /// Ends the connection at once, as a reset.
    pub(super) fn take_down(&self) {
        let mut core = self.0.core.borrow_mut();
        if core.lost.is_some() {
            return;
        }
        core.farewell = Farewell::Said;
        core.fail(Lost::TakenDown);
        drop(core);
        self.0.tcp.abort();
    }
}

impl Core {
    fn new(machine: Machine, sealer: Sealer) -> Self {
        Self {
            machine,
            sealer,
            outgoing: Vec::new(),
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            requests: VecDeque::new(),
            writer: None,
            watchers: Vec::new(),
            lost: None,
            farewell: Farewell::Open,
            has_writer: true,
            idle_since: Some(Instant::now()),
        }
    }

    /// Begins to keep book for a stream.
    fn adopt(&mut self, id: u32) {
        self.waiting.entry(id).or_default();
        self.idle_since = None;
    }

    /// Forgets a stream whose owner is gone.
    fn release(&mut self, id: u32, code: ErrorCode) {
        let had_turn = self.turns.front() == Some(&id);
        self.turns.retain(|waiting| *waiting != id);
        if had_turn {
            self.wake_next_sender();
        }
        // The other half may still wait.
        if let Some(mut waiting) = self.waiting.remove(&id) {
            waiting.wake();
        }
        self.machine.release(id, code);
        if self.machine.active() == 0 {
            self.idle_since = Some(Instant::now());
            self.waiting.shrink_to_fit();
        }
        // Most streams end with nothing left to say and nobody to tell.
        if self.machine.is_closing() {
            self.wake_watchers();
        }
        if self.machine.has_output() || self.machine.is_drained() {
            self.wake_writer();
        }
    }

    /// Ends the connection for everyone on it, and lets the writer say what it has left. The first reason stays.
    fn fail(&mut self, lost: Lost) {
        if self.lost.is_some() {
            return;
        }
        self.lost = Some(lost);
        if self.farewell == Farewell::Open {
            self.farewell = Farewell::Due;
        }
        self.turns.clear();
        for waiting in self.waiting.values_mut() {
            waiting.wake();
        }
        self.wake_watchers();
        self.wake_writer();
    }

    fn poll_response(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<Box<ConnectResponse>, OpenError>> {
        let waiting = self.waiting.entry(id).or_default();
        if let Some(response) = waiting.response.take() {
            return Poll::Ready(Ok(response));
        }
        if let Some(code) = self.machine.reset_code(id) {
            return Poll::Ready(Err(match code {
                ErrorCode::REFUSED_STREAM => OpenError::Refused,
                code => OpenError::Reset(code),
            }));
        }
        if let Some(lost) = self.lost {
            return Poll::Ready(Err(lost.into()));
        }
        waiting.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Passes on what the machine has noticed.
    fn dispatch(&mut self) {
        while let Some(event) = self.machine.event() {
            match event {
                Event::Request(id, request) => {
                    self.requests.push_back((id, request));
                    self.wake_watchers();
                }
                Event::Response(id, response) => {
                    if let Some(waiting) = self.waiting.get_mut(&id) {
                        waiting.response = Some(response);
                        waiting.wake();
                    }
                }
                Event::Readable(id) => {
                    let reader = self
                        .waiting
                        .get_mut(&id)
                        .and_then(|waiting| waiting.reader.take());
                    reader.into_iter().for_each(Waker::wake);
                }
                Event::Writable(id) => {
                    let writer = self
                        .waiting
                        .get_mut(&id)
                        .and_then(|waiting| waiting.writer.take());
                    writer.into_iter().for_each(Waker::wake);
                }
                Event::AllWritable => {
                    // Those in line wait for their turn: only the first of them is woken.
                    for (id, waiting) in &mut self.waiting {
                        if !self.turns.contains(id) {
                            waiting.writer.take().into_iter().for_each(Waker::wake);
                        }
                    }
                    self.wake_next_sender();
                }
                Event::Reset(id) => {
                    if let Some(waiting) = self.waiting.get_mut(&id) {
                        waiting.wake();
                    }
                }
            }
        }
        if self.machine.is_closing() {
            self.wake_watchers();
        }
    }

    fn watch(&mut self, cx: &Context<'_>) {
        if !self
            .watchers
            .iter()
            .any(|waker| waker.will_wake(cx.waker()))
        {
            self.watchers.push(cx.waker().clone());
        }
    }

    fn wake_watchers(&mut self) {
        self.watchers.drain(..).for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

impl Waiting {
    fn wake(&mut self) {
        let both = [self.reader.take(), self.writer.take()];
        both.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Frames on their way into TLS records.
struct Records<'a> {
    sealer: &'a mut Sealer,
    outgoing: &'a mut Vec<u8>,
    failed: bool,
}

impl FrameSink for Records<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.failed |= self.sealer.append(self.outgoing, bytes).is_err();
    }
}
