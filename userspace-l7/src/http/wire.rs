//! A connection as hyper wants it: TCP or a tunnelled stream, with the bytes that were read to find out what
//! it speaks still in front.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::hbone::{Stream, StreamReader, StreamWriter};
use crate::io::is_ordinary_end;
use crate::origination::Secured;
use crate::ring::{RecvBuf, Tcp};
use crate::telemetry::OpenFlow;
use crate::traffic::Place;

/// A byte stream for hyper. Until it was shut down in order, dropping it resets it: a cut must never look like
/// the end of the data.
pub(crate) struct Wire {
    end: End,
    /// Received, not yet given to hyper.
    unread: RecvBuf,
    account: Option<Account>,
    /// What the connection takes up of its destination's limits.
    place: Option<Place>,
}

enum End {
    Tcp(Tcp),
    Tunnel(StreamReader, StreamWriter),
    Secured(Secured),
}

/// Whose bytes these are, for the connection's account.
struct Account {
    flow: Rc<OpenFlow>,
    peer: Peer,
}

/// Which side of the accounted connection a [`Wire`] leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// What is read comes from the client.
    Client,
    /// What is read comes from the server.
    Server,
}

impl Wire {
    /// A TCP connection of which `early` has been received already.
    pub(crate) fn tcp(tcp: Tcp, early: RecvBuf) -> Self {
        tcp.reset_when_dropped(true);
        Self::new(End::Tcp(tcp), early)
    }

    /// A stream of which `early` has been received already.
    pub(crate) fn tunnel(stream: Stream, early: RecvBuf) -> Self {
        let (reader, writer) = stream.split();
        Self::new(End::Tunnel(reader, writer), early)
    }

    /// A connection inside of TLS.
    pub(crate) fn secured(secured: Secured) -> Self {
        Self::new(End::Secured(secured), RecvBuf::default())
    }

    fn new(end: End, early: RecvBuf) -> Self {
        Self {
            end,
            unread: early,
            account: None,
            place: None,
        }
    }

    /// Takes up a place among its destination's connections until it is dropped.
    #[must_use]
    pub(crate) fn holding(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// Counts every byte from now on.
    #[must_use]
    pub(crate) fn accounted(mut self, flow: Rc<OpenFlow>, peer: Peer) -> Self {
        self.account = Some(Account { flow, peer });
        self
    }

    /// The next bytes; empty at the end of the peer's stream. Only the last caller is woken.
    ///
    /// # Cancel safety
    /// No byte is lost between two polls.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<RecvBuf>> {
        if !self.unread.is_empty() {
            let unread = std::mem::take(&mut self.unread);
            return Poll::Ready(Ok(unread));
        }
        let received = match &mut self.end {
            End::Tcp(tcp) => ready!(tcp.poll_recv(cx))?,
            End::Tunnel(reader, _) => {
                RecvBuf::from(ready!(reader.poll_recv(cx))?.unwrap_or_default())
            }
            End::Secured(secured) => RecvBuf::from(ready!(secured.poll_recv(cx))?),
        };
        if let Some(Account { flow, peer }) = &self.account {
            let bytes = received.len() as u64;
            match peer {
                Peer::Client => flow.to_server(bytes),
                Peer::Server => flow.to_client(bytes),
            }
        }
        Poll::Ready(Ok(received))
    }

    /// Puts bytes back in front of what will be received.
    pub(crate) fn unread(&mut self, bytes: RecvBuf) {
        self.unread = bytes;
    }

    /// Sends what there is room for of `slices`, and tells how much that was.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = match &mut self.end {
            End::Tcp(tcp) => ready!(tcp.poll_send(cx, slices))?,
            End::Tunnel(_, writer) => ready!(send_frames(writer, cx, slices))?,
            End::Secured(secured) => ready!(secured.poll_send(cx, slices))?,
        };
        if let Some(Account { flow, peer }) = &self.account {
            let bytes = sent as u64;
            match peer {
                Peer::Client => flow.to_client(bytes),
                Peer::Server => flow.to_server(bytes),
            }
        }
        Poll::Ready(Ok(sent))
    }

    /// Ends our direction in order.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let finished = match &mut self.end {
            End::Tcp(tcp) => {
                tcp.reset_when_dropped(false);
                tcp.shutdown_write()
            }
            End::Tunnel(_, writer) => writer.finish().map_err(io::Error::from),
            End::Secured(secured) => {
                secured.finish();
                Ok(())
            }
        };
        match finished {
            // The peer was faster; there is nothing left to end.
            Err(error) if is_ordinary_end(&error) => Ok(()),
            other => other,
        }
    }

    /// Resets the connection.
    pub(crate) fn abort(self) {
        match &self.end {
            End::Tcp(tcp) => tcp.abort(),
            End::Secured(secured) => secured.abort(),
            End::Tunnel(..) => {}
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match &self.end {
            End::Tcp(_) => "tcp",
            End::Tunnel(..) => "tunnel",
            End::Secured(_) => "secured",
        };
        f.debug_struct("Wire")
            .field("end", &end)
            .finish_non_exhaustive()
    }
}

/// Puts all slices into the tunnel's next batch, as far as there is room: a head and its body leave in one
/// record.
fn send_frames(
    writer: &mut StreamWriter,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let mut total = 0;
    for slice in slices {
        let mut rest: &[u8] = slice;
        while !rest.is_empty() {
            match writer.poll_send(cx, rest) {
                Poll::Ready(Ok(sent)) => {
                    total += sent;
                    rest = rest.get(sent..).unwrap_or_default();
                }
                // What has left is told first; the error stays for the next call.
                Poll::Ready(Err(error)) if total == 0 => return Poll::Ready(Err(error.into())),
                Poll::Pending if total == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(Ok(total)),
            }
        }
    }
    Poll::Ready(Ok(total))
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut received = ready!(this.poll_recv(cx))?;
        let taken = received.len().min(buf.remaining());
        buf.put_slice(received.get(..taken).unwrap_or_default());
        received.advance(taken);
        if !received.is_empty() {
            this.unread(received);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.end {
            // Nothing is held back: what was taken lies in the kernel's buffer or in the tunnel's next batch.
            End::Tcp(_) | End::Tunnel(..) => Poll::Ready(Ok(())),
            End::Secured(secured) => secured.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, bufs)
    }
}
