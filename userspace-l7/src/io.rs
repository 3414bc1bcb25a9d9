//! L3: byte streams in owned chunks, and carrying two of them into each other.
//!
//! Chunks are owned because `io_uring` owns a buffer until its operation completes; whoever implements the
//! two traits decides whether a chunk is a kernel-filled buffer, a slice of a tunnel's frame, or a vector.

use std::io;

use crate::ring::{RecvBuf, SendBuf, Tcp};

/// The receiving half of a byte stream.
pub(crate) trait Source {
    /// A piece of the stream.
    type Chunk: AsRef<[u8]>;

    /// The next piece, or `None` after an orderly end (FIN, `END_STREAM`).
    async fn next(&mut self) -> io::Result<Option<Self::Chunk>>;

    /// Whether the end is known to come next, without waiting for anybody.
    fn has_ended(&self) -> bool {
        false
    }
}

/// The sending half of a byte stream, for chunks of one kind.
pub(crate) trait Sink<C> {
    /// Takes the whole chunk; waits while the stream's own buffer is full, which is the back-pressure.
    async fn put(&mut self, chunk: C) -> io::Result<()>;

    /// Ends the stream in order. Everything put before arrives first.
    async fn finish(&mut self) -> io::Result<()>;

    /// [`put`](Self::put) and then [`finish`](Self::finish), in one message where the stream can.
    async fn put_last(&mut self, chunk: C) -> io::Result<()> {
        self.put(chunk).await?;
        self.finish().await
    }
}

/// The receiving half of a TCP connection.
pub(crate) struct TcpSource(pub(crate) Tcp);

impl Source for TcpSource {
    type Chunk = RecvBuf;

    async fn next(&mut self) -> io::Result<Option<RecvBuf>> {
        let chunk = self.0.recv().await?;
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

/// The receiving half of a TCP connection of which a part has been received already.
pub(crate) struct Preceded {
    early: Option<RecvBuf>,
    rest: TcpSource,
}

impl Preceded {
    /// `early` comes first; it may be empty.
    pub(crate) fn new(early: RecvBuf, tcp: Tcp) -> Self {
        Self {
            early: (!early.is_empty()).then_some(early),
            rest: TcpSource(tcp),
        }
    }
}

impl Source for Preceded {
    type Chunk = RecvBuf;

    async fn next(&mut self) -> io::Result<Option<RecvBuf>> {
        match self.early.take() {
            Some(early) => Ok(Some(early)),
            None => self.rest.next().await,
        }
    }
}

/// The sending half of a TCP connection.
pub(crate) struct TcpSink(pub(crate) Tcp);

impl<C: SendBuf> Sink<C> for TcpSink {
    async fn put(&mut self, chunk: C) -> io::Result<()> {
        let (sent, _chunk) = self.0.send(chunk).await;
        sent
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown_write()
    }

    async fn put_last(&mut self, chunk: C) -> io::Result<()> {
        self.0.send_last(chunk).await
    }
}

/// Carries one direction to its end, telling `count` the size of each chunk once it is on its way.
///
/// A block and not an `async fn`, whose future would hold what it was given twice.
#[expect(
    clippy::manual_async_fn,
    reason = "the size of the future, which every connection has two of"
)]
pub(crate) fn carry<S, K>(
    mut from: S,
    mut to: K,
    count: impl Fn(u64),
) -> impl Future<Output = io::Result<()>>
where
    S: Source,
    K: Sink<S::Chunk>,
{
    async move {
        while let Some(chunk) = from.next().await? {
            let size = chunk.as_ref().len() as u64;
            if from.has_ended() {
                to.put_last(chunk).await?;
                count(size);
                return Ok(());
            }
            to.put(chunk).await?;
            count(size);
        }
        to.finish().await
    }
}

/// Whether an error is only the peer's way of ending a connection: applications that are done often reset
/// (ztunnel counts the same four as a complete connection).
pub(crate) fn is_ordinary_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof
    )
}
