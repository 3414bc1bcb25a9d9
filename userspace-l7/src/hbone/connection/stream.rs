//! A tunnelled connection as its owner holds it.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::super::baggage::Baggage;
use super::super::error::{ErrorCode, StreamError};
use super::super::head::ConnectResponse;
use super::super::machine::Taken;
use super::{Core, Shared};
use crate::io::{Followed, Sink, Source};

/// A stream's place on its connection. Dropping it before both directions have ended resets the stream.
pub(in crate::hbone) struct Held {
    shared: Rc<Shared>,
    id: u32,
}

impl Held {
    pub(super) fn new(shared: Rc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Answers the request that opened the stream.
    pub(in crate::hbone) fn respond(&self, response: &ConnectResponse) {
        let mut core = self.shared.core.borrow_mut();
        core.machine.respond(self.id, response);
        core.wake_writer();
    }

    /// Ends the stream with a code of one's own.
    pub(in crate::hbone) fn reset(&self, code: ErrorCode) {
        self.shared.core.borrow_mut().release(self.id, code);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared
            .core
            .borrow_mut()
            .release(self.id, ErrorCode::CANCEL);
    }
}

/// One tunnelled connection: bytes both ways, each way with its own end.
///
/// Dropped before both directions have ended, it is reset (`CANCEL`): a cut never looks like an end.
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
    destination: Option<String>,
}

impl Stream {
    /// `destination` is what the server said of it, if it was asked.
    pub(in crate::hbone) fn new(held: Held, destination: Option<String>) -> Self {
        let held = Rc::new(held);
        let reader = StreamReader {
            held: Rc::clone(&held),
        };
        Self {
            reader,
            writer: StreamWriter { held },
            destination,
        }
    }

    /// The destination workload, as its own node describes it to us who asked for the stream.
    pub fn destination(&self) -> Option<Baggage> {
        self.destination.as_deref().map(Baggage::parse)
    }

    /// The two directions, for two tasks. The stream lives until both are dropped.
    pub fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    /// As [`StreamReader::recv`].
    ///
    /// # Errors
    /// As [`StreamReader::recv`].
    ///
    /// # Cancel safety
    /// As [`StreamReader::recv`].
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        self.reader.recv().await
    }

    /// As [`StreamReader::poll_recv`].
    pub(crate) fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        self.reader.poll_recv(cx)
    }

    /// As [`StreamWriter::poll_send`].
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        payload: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        self.writer.poll_send(cx, payload)
    }

    /// As [`StreamWriter::send`].
    ///
    /// # Errors
    /// As [`StreamWriter::send`].
    ///
    /// # Cancel safety
    /// As [`StreamWriter::send`].
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), StreamError> {
        self.writer.send(payload).await
    }

    /// As [`StreamWriter::finish`].
    ///
    /// # Errors
    /// As [`StreamWriter::finish`].
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.writer.finish()
    }

    /// As [`StreamWriter::reset`].
    pub fn reset(self, code: ErrorCode) {
        self.writer.reset(code);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.reader.held.id)
            .finish_non_exhaustive()
    }
}

/// The receiving half of a [`Stream`].
pub struct StreamReader {
    held: Rc<Held>,
}

impl StreamReader {
    /// The next piece, never empty and at most 128 KiB; `None` after the peer's orderly end. Taking a piece is
    /// what gives the peer credit to send more.
    ///
    /// # Errors
    /// The peer reset the stream, or the tunnel broke before its end.
    ///
    /// # Cancel safety
    /// No byte is lost when the future is dropped.
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`StreamReader::recv`], for whoever is polled. Only the last caller is woken.
    ///
    /// # Errors
    /// As [`StreamReader::recv`].
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        let Held { shared, id } = &*self.held;
        shared.core.borrow_mut().poll_take(*id, cx)
    }

    /// Whether the peer's end is what comes next.
    pub fn has_ended(&self) -> bool {
        let Held { shared, id } = &*self.held;
        shared.core.borrow().machine.has_ended(*id)
    }
}

impl Source for StreamReader {
    type Chunk = Vec<u8>;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        Poll::Ready(Ok(ready!(self.poll_recv(cx))?))
    }

    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader")
            .field("id", &self.held.id)
            .finish_non_exhaustive()
    }
}

/// The sending half of a [`Stream`].
pub struct StreamWriter {
    held: Rc<Held>,
}

impl StreamWriter {
    /// Sends all of `payload`: returns once it lies sealed in the tunnel's next batch. Waits for the peer's
    /// credit, and while more than enough waits to leave.
    ///
    /// # Errors
    /// The peer reset the stream, the tunnel broke, or [`finish`](Self::finish) came before.
    ///
    /// # Cancel safety
    /// None: a dropped send may have sent a part.
    pub async fn send(&mut self, mut payload: &[u8]) -> Result<(), StreamError> {
        let Held { shared, id } = &*self.held;
        let line = InLine { shared, id: *id };
        while !payload.is_empty() {
            let sent = poll_fn(|cx| shared.core.borrow_mut().poll_send(*id, payload, cx)).await?;
            payload = payload.get(sent..).unwrap_or_default();
        }
        drop(line);
        Ok(())
    }

    /// Sends the beginning of `payload`, one frame at most, and tells how much that was: as
    /// [`StreamWriter::send`], for whoever is polled. A caller that was told to wait keeps its place in the
    /// line, so it has to come back or drop the stream. Only the last caller is woken.
    ///
    /// # Errors
    /// As [`StreamWriter::send`].
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        payload: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        let Held { shared, id } = &*self.held;
        shared.core.borrow_mut().poll_send(*id, payload, cx)
    }

    /// Ends this direction in order; the peer reads its end behind everything sent so far.
    ///
    /// # Errors
    /// The stream has been reset or the tunnel is gone, so the peer may not have everything.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let Held { shared, id } = &*self.held;
        shared.core.borrow_mut().finish(*id)
    }

    /// Ends both directions at once with a code. The other half then sees a reset too.
    pub fn reset(self, code: ErrorCode) {
        self.held.reset(code);
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter")
            .field("id", &self.held.id)
            .finish_non_exhaustive()
    }
}

/// A [`StreamWriter`] that owns the chunk it sends.
pub(crate) struct StreamSink<C> {
    writer: StreamWriter,
    /// What was put, and how much of it has left.
    chunk: Option<(C, usize)>,
    followed: Followed,
}

impl<C> StreamSink<C> {
    pub(crate) fn new(writer: StreamWriter) -> Self {
        Self {
            writer,
            chunk: None,
            followed: Followed::No,
        }
    }
}

impl<C: AsRef<[u8]> + Unpin> Sink<C> for StreamSink<C> {
    fn put(&mut self, chunk: C, followed: Followed) -> io::Result<()> {
        self.chunk = Some((chunk, 0));
        self.followed = followed;
        Ok(())
    }

    fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((chunk, sent)) = &mut self.chunk else {
            return Poll::Ready(Ok(()));
        };
        while let Some(left) = chunk.as_ref().get(*sent..).filter(|left| !left.is_empty()) {
            *sent += ready!(self.writer.poll_send(cx, left))?;
        }
        self.chunk = None;
        if self.followed == Followed::ByTheEnd {
            self.writer.finish()?;
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(self.writer.finish()?)
    }
}

/// A sender's place in the line: given up with the send, so that nobody waits for one that is gone.
struct InLine<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.shared.core.borrow_mut().leave_line(self.id);
    }
}

impl Core {
    fn poll_take(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        match self.machine.take(id) {
            Taken::Data(piece) => {
                // It may have given credit, which has to leave.
                if self.machine.has_output() {
                    self.wake_writer();
                }
                Poll::Ready(Ok(Some(piece)))
            }
            Taken::End => Poll::Ready(Ok(None)),
            Taken::Reset(code) => Poll::Ready(Err(StreamError::Reset(code))),
            Taken::Nothing => {
                if let Some(lost) = self.lost {
                    return Poll::Ready(Err(lost.into()));
                }
                self.waiting.entry(id).or_default().reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn finish(&mut self, id: u32) -> Result<(), StreamError> {
        if let Some(lost) = self.lost {
            return Err(lost.into());
        }
        if let Some(code) = self.machine.reset_code(id)
            && code != ErrorCode::NO_ERROR
        {
            return Err(StreamError::Reset(code));
        }
        self.machine.finish(id);
        self.wake_writer();
        Ok(())
    }
}
