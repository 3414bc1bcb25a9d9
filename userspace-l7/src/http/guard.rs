//! A client's wire, guarded: hyper gets no byte of a request whose framing is in doubt, and no head may take
//! longer than its time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep};
use tracing::debug;

use super::framing::{Framing, Violation};
use super::wire::Wire;
use crate::ring::RecvBuf;

/// Time that a head has from its first byte to its last, so that slow clients cannot hold connections half open.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(30);

/// What hyper gets in place of bytes that are no request: it answers 400 to it, or breaks the body off.
const POISON: &[u8] = b"\0\r\n\r\n";

/// A wire that only lets well-framed HTTP/1 through to its reader.
#[derive(Debug)]
pub(super) struct Guard {
    wire: Wire,
    framing: Framing,
    head_time: Option<Pin<Box<Sleep>>>,
    /// The bytes at the front that have been looked at.
    checked: usize,
    /// A violation was found: nothing more is read.
    is_poisoned: bool,
}

impl Guard {
    pub(super) fn new(wire: Wire) -> Self {
        Self {
            wire,
            framing: Framing::default(),
            head_time: None,
            checked: 0,
            is_poisoned: false,
        }
    }

    /// The wire itself, once it no longer carries HTTP.
    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }

    /// The next bytes that are in order.
    fn poll_checked(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        let mut received = match self.wire.poll_recv(cx) {
            Poll::Ready(received) => received?,
            Poll::Pending => return self.poll_head_time(cx),
        };
        if received.is_empty() {
            return Poll::Ready(Ok(received));
        }
        if self.is_poisoned {
            return Poll::Ready(match self.checked {
                // hyper has taken the poison for something else, such as a chunk's extension.
                0 => Err(io::ErrorKind::InvalidData.into()),
                _ => Ok(received),
            });
        }
        let (read, violation) = match received.get(self.checked..) {
            Some(fresh) => self.framing.read(fresh),
            None => (0, None),
        };
        let Some(violation) = violation else {
            self.checked = received.len();
            if !self.framing.is_in_head() {
                self.head_time = None;
            }
            return Poll::Ready(Ok(received));
        };
        debug!(%violation, "request refused");
        self.is_poisoned = true;
        if violation == Violation::TooLong && self.framing.is_in_head() {
            // hyper takes no head of that length, and says so itself: 431, not 400.
            // All that follows is for hyper to refuse.
            self.checked = usize::MAX;
            return Poll::Ready(Ok(received));
        }
        received.truncate(self.checked + read);
        let mut poisoned = received.to_vec();
        poisoned.extend_from_slice(POISON);
        self.checked = poisoned.len();
        Poll::Ready(Ok(RecvBuf::from(poisoned)))
    }

    /// Gives up on a head that does not come to its end.
    fn poll_head_time(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        if !self.framing.is_in_head() {
            return Poll::Pending;
        }
        let head_time = self
            .head_time
            .get_or_insert_with(|| Box::pin(sleep(HEAD_TIME)));
        ready!(head_time.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Guard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut received = ready!(this.poll_checked(cx))?;
        let taken = received.len().min(buf.remaining());
        buf.put_slice(received.get(..taken).unwrap_or_default());
        received.advance(taken);
        this.checked = this.checked.saturating_sub(taken);
        if !received.is_empty() {
            this.wire.unread(received);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Guard {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write_vectored(cx, bufs)
    }
}
