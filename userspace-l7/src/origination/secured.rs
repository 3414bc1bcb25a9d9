//! A connection inside of TLS, over a socket or over a stream in a tunnel.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{Name, OriginationError};
use crate::hbone::Stream;
use crate::io::{Followed, Sink, Source, is_ordinary_end};
use crate::ring::{RecvBuf, Tcp};

/// Plaintext that is taken out of one or several records at a time.
const PIECE: usize = 16 << 10;

/// Time that what is still to be sent has after our end of the connection.
const PARTING: Duration = Duration::from_secs(10);

/// What TLS runs over. Dropped before both directions have ended, it is reset.
pub(crate) enum Raw {
    /// A socket.
    Tcp(Tcp),
    /// A stream in a tunnel.
    Tunnel(Stream),
}

impl Raw {
    pub(crate) fn tcp(tcp: Tcp) -> Self {
        tcp.reset_when_dropped(true);
        Self::Tcp(tcp)
    }

    pub(crate) fn tunnel(stream: Stream) -> Self {
        Self::Tunnel(stream)
    }

    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = poll_fn(|cx| self.poll_send(cx, bytes)).await?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_recv(cx),
            Self::Tunnel(stream) => {
                let received = ready!(stream.poll_recv(cx))?;
                Poll::Ready(Ok(RecvBuf::from(received.unwrap_or_default())))
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_send(cx, &[IoSlice::new(bytes)]),
            Self::Tunnel(stream) => Poll::Ready(Ok(ready!(stream.poll_send(cx, bytes))?)),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        let finished = match self {
            Self::Tcp(tcp) => {
                tcp.reset_when_dropped(false);
                tcp.shutdown_write()
            }
            Self::Tunnel(stream) => stream.finish().map_err(io::Error::from),
        };
        match finished {
            // The peer was faster.
            Err(error) if is_ordinary_end(&error) => Ok(()),
            other => other,
        }
    }
}

/// A connection whose server has proven who it is; clones are the same one.
#[derive(Clone)]
pub(crate) struct Secured(Rc<RefCell<Inner>>);

struct Inner {
    raw: Raw,
    tls: ClientConnection,
    /// Received, not yet shown to TLS.
    sealed: RecvBuf,
    /// Plaintext that can be read.
    readable: usize,
    /// Sealed, not yet sent, but for the first so many.
    out: Vec<u8>,
    sent: usize,
    /// The server has ended its direction in order.
    has_ended: bool,
    /// We have ended ours: a task of its own sends the rest.
    is_finished: bool,
}

impl Secured {
    pub(super) async fn connect(
        raw: Raw,
        config: Arc<ClientConfig>,
        name: Name,
    ) -> Result<Self, OriginationError> {
        let tls = ClientConnection::new(config, name).map_err(OriginationError::Handshake)?;
        let secured = Self(Rc::new(RefCell::new(Inner {
            raw,
            tls,
            sealed: RecvBuf::default(),
            readable: 0,
            out: Vec::new(),
            sent: 0,
            has_ended: false,
            is_finished: false,
        })));
        poll_fn(|cx| secured.0.borrow_mut().poll_handshake(cx)).await?;
        Ok(secured)
    }

    /// The next bytes; empty at the end of the server's stream. Only the last caller is woken.
    ///
    /// # Errors
    /// The connection failed, or ended without saying so: what came may not be all.
    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        self.0.borrow_mut().poll_recv(cx)
    }

    /// Seals what there is room for of `slices`, and tells how much that was.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_send(cx, slices)
    }

    /// Ready once all that was sealed is on its way.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.is_finished {
            return Poll::Ready(Ok(()));
        }
        inner.poll_flush(cx)
    }

    /// Ends our direction in order: with the alert that says so, behind everything that was sent.
    pub(crate) fn finish(&self) {
        {
            let mut inner = self.0.borrow_mut();
            if std::mem::replace(&mut inner.is_finished, true) {
                return;
            }
            inner.tls.send_close_notify();
        }
        let rest = Rc::clone(&self.0);
        drop(spawn_local(async move {
            let flushed = poll_fn(|cx| rest.borrow_mut().poll_flush(cx));
            if let Ok(Ok(())) = timeout(PARTING, flushed).await {
                // Either way the connection has come to its end.
                drop(rest.borrow_mut().raw.finish());
            }
        }));
    }

    /// Resets the connection.
    pub(crate) fn abort(&self) {
        if let Raw::Tcp(tcp) = &self.0.borrow().raw {
            tcp.abort();
        }
    }

    /// Its two directions.
    pub(crate) fn split(self) -> (SecuredSource, SecuredSink) {
        let sink = SecuredSink {
            secured: self.clone(),
            chunk: Vec::new(),
            taken: 0,
            followed: Followed::No,
        };
        (SecuredSource(self), sink)
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").finish_non_exhaustive()
    }
}

impl Inner {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), OriginationError>> {
        let failed = |error: io::Error| OriginationError::Io(Rc::new(error));
        loop {
            ready!(self.poll_flush(cx)).map_err(failed)?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.sealed.is_empty() {
                let received = ready!(self.raw.poll_recv(cx)).map_err(failed)?;
                if received.is_empty() {
                    return Poll::Ready(Err(OriginationError::ClosedEarly));
                }
                self.sealed = received;
            }
            if let Err(error) = self.unseal().map_err(failed)? {
                // It is told why, if that can be sent at once, and then the end.
                if self.poll_flush(cx).is_ready() {
                    drop(self.raw.finish());
                }
                return Poll::Ready(Err(OriginationError::of_handshake(error)));
            }
        }
    }

    /// Shows TLS what was received.
    fn unseal(&mut self) -> io::Result<Result<(), rustls::Error>> {
        let taken = self.tls.read_tls(&mut &self.sealed[..])?;
        self.sealed.advance(taken);
        Ok(match self.tls.process_new_packets() {
            Ok(state) => {
                self.readable = state.plaintext_bytes_to_read();
                self.has_ended |= state.peer_has_closed();
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        loop {
            if self.readable > 0 {
                let mut plain = vec![0; self.readable.min(PIECE)];
                let length = self.tls.reader().read(&mut plain)?;
                plain.truncate(length);
                self.readable -= length;
                return Poll::Ready(Ok(plain));
            }
            if self.has_ended {
                return Poll::Ready(Ok(Vec::new()));
            }
            if !self.is_finished && !self.tls.is_handshaking() {
                // Answers to key updates, and what had no room before. A failure shows when something is sent.
                let _not_waited_for = self.poll_flush(cx);
            }
            if self.sealed.is_empty() {
                self.sealed = ready!(self.raw.poll_recv(cx))?;
                if self.sealed.is_empty() {
                    // "a truncation attack" is possible where no alert says that this is all (RFC 8446 §6.1).
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            if let Err(error) = self.unseal()? {
                let _not_waited_for = self.poll_flush(cx);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_flush(cx))?;
        let mut total = 0;
        for slice in slices {
            let taken = self.tls.writer().write(slice)?;
            total += taken;
            if taken < slice.len() {
                break;
            }
        }
        if let Poll::Ready(sent) = self.poll_flush(cx) {
            sent?;
        }
        Poll::Ready(Ok(total))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.out)?;
            }
            let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) else {
                self.out.clear();
                self.sent = 0;
                return Poll::Ready(Ok(()));
            };
            self.sent += ready!(self.raw.poll_send(cx, rest))?;
        }
    }
}

/// The receiving half.
pub(crate) struct SecuredSource(Secured);

impl Source for SecuredSource {
    type Chunk = Vec<u8>;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        let chunk = ready!(self.0.poll_recv(cx))?;
        Poll::Ready(Ok((!chunk.is_empty()).then_some(chunk)))
    }
}

/// The sending half.
pub(crate) struct SecuredSink {
    secured: Secured,
    chunk: Vec<u8>,
    taken: usize,
    followed: Followed,
}

impl<C: AsRef<[u8]>> Sink<C> for SecuredSink {
    fn put(&mut self, chunk: C, followed: Followed) -> io::Result<()> {
        self.chunk = chunk.as_ref().to_vec();
        self.taken = 0;
        self.followed = followed;
        Ok(())
    }

    fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.chunk.get(self.taken..).filter(|rest| !rest.is_empty()) {
            self.taken += ready!(self.secured.poll_send(cx, &[IoSlice::new(rest)]))?;
        }
        ready!(self.secured.poll_flush(cx))?;
        self.chunk.clear();
        if self.followed == Followed::ByTheEnd {
            self.secured.finish();
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.secured.finish();
        Ok(())
    }
}
