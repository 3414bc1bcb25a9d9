//! A connected socket.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::unix::AsyncFd;

use super::buffers::{Pool, RecvBuf, SLOT_BYTES, SendBuf};
use super::driver::Driver;
use super::operation::{Completion, Ticket};
use super::socket::{self, Followed};
use super::worker::Worker;

/// What is left of a send that has begun.
pub type Rest = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// The most that [`Tcp::received`] takes: a request's head.
const SHORT: usize = 2048;

/// A connected TCP socket of this worker. Clones are the same socket, which closes once the last of them
/// is gone and no operation is in flight. One task may receive while another sends.
#[derive(Clone)]
pub struct Tcp(Rc<Inner>);

struct Inner {
    io: Io,
    writing: Cell<Writing>,
}

enum Io {
    Uring(OnRing),
    Epoll(OnEpoll),
}

/// Who may send. The bytes of two sends must never mingle, and none may follow a send that was given up
/// half-way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    Idle,
    Busy,
    Broken,
}

impl Tcp {
    /// Takes over a connected socket: non-blocking, no Nagle delay, keepalive.
    ///
    /// # Errors
    ///
    /// If this thread is no worker, or the kernel refuses an option.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        socket::prepare(&fd)?;
        Self::adopt(fd)
    }

    /// Takes over a socket that has its options already.
    pub(super) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let io = match Worker::current()? {
            Worker::Uring(driver) => Io::Uring(OnRing {
                driver,
                file: Rc::new(fd),
                reading: RefCell::default(),
                room: RefCell::default(),
                ahead: Cell::new(Ahead::Perhaps),
            }),
            Worker::Epoll(pool) => Io::Epoll(OnEpoll {
                file: socket::watch(fd)?,
                pool,
            }),
        };
        Ok(Self(Rc::new(Inner {
            io,
            writing: Cell::new(Writing::Idle),
        })))
    }

    /// Connects an unconnected socket within `timeout`.
    ///
    /// # Errors
    ///
    /// The kernel's (`ECONNREFUSED`, `EHOSTUNREACH`, …), or `ETIMEDOUT`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the attempt up and closes the socket.
    pub async fn connect(fd: OwnedFd, to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        socket::prepare(&fd)?;
        let started = socket::connect(&fd, to);
        // Only now: an unconnected socket counts as hung up, and epoll would remember that.
        let tcp = Self::adopt(fd)?;
        match started {
            Ok(()) => return Ok(tcp),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_in_progress) => {}
        }
        tcp.connected(timeout).await?;
        Ok(tcp)
    }

    /// As [`Tcp::connect`], to a server in the same network namespace as the socket.
    ///
    /// The handshake over the loopback device is over when connect(2) returns, though it says `EINPROGRESS`: asking once
    /// more tells, and is a tenth of a wait. Probes of a silent peer are left out, since the kernel that would answer
    /// them is the one that sends them.
    ///
    /// # Errors
    ///
    /// As [`Tcp::connect`].
    ///
    /// # Cancel safety
    ///
    /// As [`Tcp::connect`].
    pub async fn connect_within(
        fd: OwnedFd,
        to: SocketAddr,
        timeout: Duration,
    ) -> io::Result<Self> {
        socket::prepare_within(&fd)?;
        let started = socket::connect(&fd, to);
        let started = match started {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket::connect(&fd, to),
            other => other,
        };
        let tcp = Self::adopt(fd)?;
        match started {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tcp.connected(timeout).await?;
            }
            other => other?,
        }
        Ok(tcp)
    }

    /// Waits until the connection that was started stands.
    async fn connected(&self, timeout: Duration) -> io::Result<()> {
        match tokio::time::timeout(timeout, self.writable()).await {
            Ok(ready) => ready?,
            Err(_elapsed) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
        }
        socket::connected(self)
    }

    /// The next bytes from the peer; empty at the end of its stream. One task at a time.
    ///
    /// # Errors
    ///
    /// The kernel's: `ECONNRESET` if the peer aborted.
    ///
    /// # Cancel safety
    ///
    /// No byte is lost when the future is dropped: the next call gets it.
    pub async fn recv(&self) -> io::Result<RecvBuf> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`Tcp::recv`], for whoever is polled. Only the last caller is woken.
    ///
    /// # Errors
    ///
    /// As [`Tcp::recv`].
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        match &self.0.io {
            Io::Uring(ring) => ring.poll_recv(cx),
            Io::Epoll(epoll) => epoll.poll_recv(cx),
        }
    }

    /// What the peer has sent by now, at most [`SHORT`] bytes; empty if there is nothing yet, or no more.
    ///
    /// A receive in flight has the first claim on what comes, so there is nothing beside one.
    pub fn received(&self) -> RecvBuf {
        if let Io::Uring(ring) = &self.0.io
            && ring.reading.borrow().is_some()
        {
            return RecvBuf::default();
        }
        let mut room = [0; SHORT];
        match socket::recv_now(self, &mut room) {
            Ok(count) => RecvBuf::from(room[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => RecvBuf::default(),
            Err(_told_once) => {
                // The kernel tells of a reset only once and of an orderly end after that: disconnected, the socket fails
                // the next receive as well.
                self.abort();
                RecvBuf::default()
            }
        }
    }

    /// Whether the end of the peer's stream is known to come next, behind what was received last. Asks the kernel only where
    /// that is likely; false where it is not known, or will be a reset.
    pub fn has_ended(&self) -> bool {
        let Io::Uring(ring) = &self.0.io else {
            return false;
        };
        if ring.ahead.get() != Ahead::PerhapsTheEnd || ring.reading.borrow().is_some() {
            return false;
        }
        match socket::peek(self) {
            Ok(waiting) => waiting == 0,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    // As in `received`: the kernel has told of it once.
                    self.abort();
                }
                false
            }
        }
    }

    /// Sends what fits of `slices`, in one call to the kernel, and tells how much that was; pending while
    /// nothing fits. Only the last caller is woken.
    ///
    /// # Errors
    ///
    /// As [`Tcp::send`].
    pub fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.0.writing.get() {
            Writing::Idle => {}
            Writing::Busy => return Poll::Ready(Err(io::ErrorKind::ResourceBusy.into())),
            Writing::Broken => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
        match &self.0.io {
            Io::Uring(ring) => ring.poll_send(cx, slices),
            Io::Epoll(epoll) => epoll.poll_send(cx, slices),
        }
    }

    /// Sends all of `buf` and gives it back.
    ///
    /// # Errors
    ///
    /// The kernel's: `EPIPE` or `ECONNRESET` if the connection is gone. `ResourceBusy` if another send is
    /// under way, `BrokenPipe` if an earlier one was dropped half-way.
    ///
    /// # Cancel safety
    ///
    /// None: a dropped send may have sent a part, so nothing can be sent after it.
    pub async fn send<B: SendBuf>(&self, buf: B) -> (io::Result<()>, B) {
        let turn = match self.take_turn() {
            Ok(turn) => turn,
            Err(error) => return (Err(error), buf),
        };
        let (result, buf) = self.transmit(buf, 0, Followed::No).await;
        turn.end();
        (result, buf)
    }

    /// Sends what fits of `buf` at once. What is left is sent by the future that comes back, if there is any: on the
    /// heap, since few connections ever have one.
    ///
    /// # Errors
    ///
    /// As [`Tcp::send`].
    ///
    /// # Cancel safety
    ///
    /// As [`Tcp::send`].
    pub fn begin_send<B: SendBuf>(&self, buf: B) -> io::Result<Option<Rest>> {
        self.begin(buf, Followed::No)
    }

    /// As [`Tcp::begin_send`], with the end of our direction right behind, which arrives with the last bytes.
    ///
    /// # Errors
    ///
    /// As [`Tcp::send`] and [`Tcp::shutdown_write`].
    ///
    /// # Cancel safety
    ///
    /// As [`Tcp::send`].
    pub fn begin_last_send<B: SendBuf>(&self, buf: B) -> io::Result<Option<Rest>> {
        self.begin(buf, Followed::ByTheEnd)
    }

    fn begin<B: SendBuf>(&self, buf: B, followed: Followed) -> io::Result<Option<Rest>> {
        let turn = self.take_turn()?;
        let tried = socket::send(self, buf.bytes(), followed);
        let sent = match tried {
            Ok(sent) if sent == buf.bytes().len() => {
                turn.end();
                if followed == Followed::ByTheEnd {
                    self.shutdown_write()?;
                }
                return Ok(None);
            }
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                turn.end();
                return Err(error);
            }
        };
        Ok(Some(Box::pin(async move {
            let tcp = turn.0.clone();
            let (result, _buf) = tcp.transmit(buf, sent, followed).await;
            turn.end();
            result?;
            if followed == Followed::ByTheEnd {
                tcp.shutdown_write()?;
            }
            Ok(())
        })))
    }

    async fn transmit<B: SendBuf>(
        &self,
        mut buf: B,
        mut sent: usize,
        followed: Followed,
    ) -> (io::Result<()>, B) {
        // Most sends fit into the socket's buffer: one call, no completion to wait for.
        let result = loop {
            if sent == buf.bytes().len() {
                break Ok(());
            }
            let mut count = socket::send(self, &buf.bytes()[sent..], followed);
            if is_full(&count) {
                (count, buf) = match &self.0.io {
                    Io::Uring(ring) => ring.driver.send(&ring.file, buf, sent).await,
                    Io::Epoll(epoll) => (epoll.drained().await.map(|()| 0), buf),
                };
            }
            match count {
                Ok(count) => sent += count,
                Err(error) if is_transient(&error) => {}
                Err(error) => break Err(error),
            }
        };
        (result, buf)
    }

    /// Ends our direction of the stream; the peer reads its end after everything sent so far.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the connection is gone.
    pub fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Resets the connection at once, whatever other clones are doing: they and the peer get errors.
    pub fn abort(&self) {
        socket::reset(self);
    }

    /// Whether the connection is reset rather than ended in order when its descriptor is closed, be it by the
    /// last clone or by the death of the process: what is on while data flows, so that no peer mistakes a
    /// cut for the end.
    pub fn reset_when_dropped(&self, on: bool) {
        let linger = on.then_some(Duration::ZERO);
        // Fails only for what is no socket; then there is no peer to mislead.
        let _not_a_socket = SockRef::from(self).set_linger(linger);
    }

    /// Our address; an IPv4 one as such even on an IPv6 socket.
    ///
    /// # Errors
    ///
    /// If the socket has none.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        socket::local_addr(self)
    }

    /// The peer's address; an IPv4 one as such even on an IPv6 socket.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        socket::peer_addr(self)
    }

    /// Where the connection went before a rule of this host redirected it (`SO_ORIGINAL_DST`); the local address if none did.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the host does not track connections, `ENOTCONN` if this one is gone.
    pub fn original_destination(&self) -> io::Result<SocketAddr> {
        socket::original_destination(self)
    }

    async fn writable(&self) -> io::Result<()> {
        match &self.0.io {
            Io::Uring(ring) => {
                let ready = ring.driver.ready(&ring.file, libc::POLLOUT);
                ready.wait().await.count().map(drop)
            }
            Io::Epoll(epoll) => epoll.file.writable().await.map(drop),
        }
    }

    fn take_turn(&self) -> io::Result<SendTurn> {
        match self.0.writing.replace(Writing::Busy) {
            Writing::Idle => Ok(SendTurn(self.clone(), Writing::Broken)),
            Writing::Busy => Err(io::ErrorKind::ResourceBusy.into()),
            Writing::Broken => {
                self.0.writing.set(Writing::Broken);
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }
}

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0.io {
            Io::Uring(ring) => ring.file.as_fd(),
            Io::Epoll(epoll) => epoll.file.as_fd(),
        }
    }
}

/// A socket carried by the ring.
struct OnRing {
    driver: Rc<Driver>,
    file: Rc<OwnedFd>,
    /// The receive in flight. It outlives the future that asked for it: the next one takes it over.
    reading: RefCell<Option<Ticket>>,
    /// The wait for room of a sender that is polled.
    room: RefCell<Option<Ticket>>,
    ahead: Cell<Ahead>,
}

/// What the last receive left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    /// Nothing, so trying before waiting would be in vain.
    Nothing,
    /// There may be something.
    Perhaps,
    /// Something, although there was room for it: what has come since, or the end. Linux counts that as one byte
    /// (`tcp_inq_hint`).
    PerhapsTheEnd,
}

impl Ahead {
    fn of(completion: &Completion) -> Self {
        let is_short = |count: usize| count > 0 && count < SLOT_BYTES;
        if !completion.more {
            Self::Nothing
        } else if completion.count().is_ok_and(is_short) {
            Self::PerhapsTheEnd
        } else {
            Self::Perhaps
        }
    }
}

impl OnRing {
    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        loop {
            let mut reading = self.reading.borrow_mut();
            let completion = ready!(reading.get_or_insert_with(|| self.recv_once()).poll(cx));
            let taken = reading.take();
            drop(reading);
            drop(taken);
            self.ahead.set(Ahead::of(&completion));
            let error = match completion.received() {
                Err(error) => error,
                received => return Poll::Ready(received),
            };
            match error.raw_os_error() {
                Some(libc::ENOBUFS) => {
                    if let Some(received) = self.recv_without_slot() {
                        return Poll::Ready(received);
                    }
                }
                Some(libc::EAGAIN | libc::EINTR) => {}
                _ => return Poll::Ready(Err(error)),
            }
        }
    }

    fn recv_once(&self) -> Ticket {
        let wait_first = self.ahead.get() == Ahead::Nothing;
        self.driver.recv(&self.file, wait_first)
    }

    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let mut room = self.room.borrow_mut();
            if let Some(waiting) = room.as_mut() {
                let completion = ready!(waiting.poll(cx));
                let taken = room.take();
                drop(room);
                drop(taken);
                if let Err(error) = completion.count()
                    && !is_transient(&error)
                {
                    return Poll::Ready(Err(error));
                }
                continue;
            }
            let sent = socket::send_vectored(&self.file, slices);
            if !is_full(&sent) {
                return Poll::Ready(sent);
            }
            *room = Some(self.driver.ready(&self.file, libc::POLLOUT));
        }
    }

    /// Slow consumers hold every slot; the heap keeps this socket going. If it turns out to have nothing,
    /// the next attempt looks for a buffer only once it has.
    fn recv_without_slot(&self) -> Option<io::Result<RecvBuf>> {
        match socket::recv(&self.file, RecvBuf::spare()) {
            Ok((buf, more)) => {
                let ahead = if more { Ahead::Perhaps } else { Ahead::Nothing };
                self.ahead.set(ahead);
                Some(Ok(buf))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ahead.set(Ahead::Nothing);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }
}

/// A socket carried by epoll.
struct OnEpoll {
    file: AsyncFd<OwnedFd>,
    pool: Rc<Pool>,
}

impl OnEpoll {
    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        loop {
            let mut ready = ready!(self.file.poll_read_ready(cx))?;
            match socket::recv(&self.file, RecvBuf::writable(&self.pool)) {
                Ok((buf, more)) => {
                    // A short receive has emptied the socket. At the end of the stream the readiness
                    // stays: tokio keeps a hang-up through this.
                    if !more {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(buf));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.file.poll_write_ready(cx))?;
            let sent = socket::send_vectored(&self.file, slices);
            if !is_full(&sent) {
                return Poll::Ready(sent);
            }
            ready.clear_ready();
        }
    }

    /// Waits for room after a send that found none.
    async fn drained(&self) -> io::Result<()> {
        self.file.writable().await?.clear_ready();
        Ok(())
    }
}

/// The right to send, held for the length of one send, and what holds after it.
struct SendTurn(Tcp, Writing);

impl SendTurn {
    fn end(mut self) {
        self.1 = Writing::Idle;
    }
}

impl Drop for SendTurn {
    fn drop(&mut self) {
        self.0.0.writing.set(self.1);
    }
}

fn is_full(sent: &io::Result<usize>) -> bool {
    sent.as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Errors of a send in the ring after which the next attempt may do better.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}
