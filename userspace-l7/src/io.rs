//! L3: byte streams in owned chunks, and carrying two of them into each other.
//!
//! Chunks are owned because `io_uring` owns a buffer until its operation completes; whoever implements the
//! two traits decides whether a chunk is a kernel-filled buffer, a slice of a tunnel's frame, or a vector.
//!
//! What is here is polled and not awaited: a connection is idle for most of its life, and an `async fn` that may have to
//! wait in the middle of a send has room for all that such a wait needs from its beginning to its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::ring::{RecvBuf, Rest, SendBuf, Tcp};

/// The receiving half of a byte stream.
pub(crate) trait Source: Unpin {
    /// A piece of the stream.
    type Chunk: AsRef<[u8]> + Unpin;

    /// The next piece, or `None` after an orderly end (FIN, `END_STREAM`). Only the last caller is woken.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Self::Chunk>>>;

    /// Whether the end is known to come next, without waiting for anybody.
    fn has_ended(&self) -> bool {
        false
    }
}

/// The sending half of a byte stream, for chunks of one kind.
pub(crate) trait Sink<C>: Unpin {
    /// Takes a chunk. The next one may be put after [`poll_through`](Self::poll_through) was ready.
    fn put(&mut self, chunk: C, followed: Followed) -> io::Result<()>;

    /// Ready once what was put is on its way; waits while the stream's own buffer is full, which is the back-pressure.
    fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the stream in order. Everything put before arrives first.
    fn finish(&mut self) -> io::Result<()>;
}

/// What comes right behind a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// Nothing that is known.
    No,
    /// The end, which the sink sends too: in one message where the stream can.
    ByTheEnd,
}

/// The receiving half of a TCP connection.
pub(crate) struct TcpSource(pub(crate) Tcp);

impl Source for TcpSource {
    type Chunk = RecvBuf;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<RecvBuf>>> {
        let chunk = ready!(self.0.poll_recv(cx))?;
        Poll::Ready(Ok((!chunk.is_empty()).then_some(chunk)))
    }

    fn has_ended(&self) -> bool {
        self.0.has_ended()
    }
}

/// A stream of which a part has been received already.
pub(crate) struct Preceded<S: Source> {
    early: Option<S::Chunk>,
    rest: S,
}

impl<S: Source> Preceded<S> {
    /// `early` comes first; it may be empty.
    pub(crate) fn new(early: S::Chunk, rest: S) -> Self {
        let early = Some(early).filter(|early| !early.as_ref().is_empty());
        Self { early, rest }
    }
}

impl<S: Source> Source for Preceded<S> {
    type Chunk = S::Chunk;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<S::Chunk>>> {
        match self.early.take() {
            Some(early) => Poll::Ready(Ok(Some(early))),
            None => self.rest.poll_next(cx),
        }
    }

    fn has_ended(&self) -> bool {
        self.early.is_none() && self.rest.has_ended()
    }
}

/// The sending half of a TCP connection.
pub(crate) struct TcpSink {
    tcp: Tcp,
    /// What did not fit into the socket's buffer, on its way.
    rest: Option<Rest>,
}

impl TcpSink {
    pub(crate) fn new(tcp: Tcp) -> Self {
        Self { tcp, rest: None }
    }
}

impl<C: SendBuf> Sink<C> for TcpSink {
    fn put(&mut self, chunk: C, followed: Followed) -> io::Result<()> {
        self.rest = match followed {
            Followed::No => self.tcp.begin_send(chunk)?,
            Followed::ByTheEnd => self.tcp.begin_last_send(chunk)?,
        };
        Ok(())
    }

    fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            let sent = ready!(rest.as_mut().poll(cx));
            self.rest = None;
            sent?;
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.tcp.shutdown_write()
    }
}

/// Carries one direction to its end, telling `count` the size of each chunk once it is on its way.
///
/// # Cancel safety
/// None: the chunk that is under way may have been sent in part.
pub(crate) fn carry<S, K, N>(from: S, to: K, count: N) -> Carry<S, K, N>
where
    S: Source,
    K: Sink<S::Chunk>,
    N: Fn(u64) + Unpin,
{
    Carry {
        from,
        to,
        count,
        under_way: None,
    }
}

/// See [`carry`].
pub(crate) struct Carry<S, K, N> {
    from: S,
    to: K,
    count: N,
    /// The size of the chunk that was put, and what follows it.
    under_way: Option<(u64, Followed)>,
}

impl<S, K, N> Future for Carry<S, K, N>
where
    S: Source,
    K: Sink<S::Chunk>,
    N: Fn(u64) + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if let Some((size, followed)) = this.under_way {
                ready!(this.to.poll_through(cx))?;
                this.under_way = None;
                (this.count)(size);
                if followed == Followed::ByTheEnd {
                    return Poll::Ready(Ok(()));
                }
            }
            let Some(chunk) = ready!(this.from.poll_next(cx))? else {
                return Poll::Ready(this.to.finish());
            };
            let followed = if this.from.has_ended() {
                Followed::ByTheEnd
            } else {
                Followed::No
            };
            this.under_way = Some((chunk.as_ref().len() as u64, followed));
            this.to.put(chunk, followed)?;
        }
    }
}

/// Carries both directions until each has ended, or one has failed.
pub(crate) struct BothWays<U, D> {
    up: Option<U>,
    down: Option<D>,
}

impl<U, D> BothWays<U, D> {
    pub(crate) fn new(up: U, down: D) -> Self {
        Self {
            up: Some(up),
            down: Some(down),
        }
    }
}

impl<U, D> Future for BothWays<U, D>
where
    U: Future<Output = io::Result<()>> + Unpin,
    D: Future<Output = io::Result<()>> + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { up, down } = &mut *self;
        let has_risen = poll_once(up, cx)?;
        let has_fallen = poll_once(down, cx)?;
        if has_risen && has_fallen {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

/// Whether a direction has ended, by now or before. What has ended is let go of: a half-closed connection may live long.
fn poll_once(
    way: &mut Option<impl Future<Output = io::Result<()>> + Unpin>,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    let Some(carrying) = way else { return Ok(true) };
    let Poll::Ready(ended) = Pin::new(carrying).poll(cx) else {
        return Ok(false);
    };
    ended?;
    *way = None;
    Ok(true)
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{self, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::rc::Rc;
    use std::task::{Context, Poll};

    use super::{Followed, Sink, TcpSource, carry};
    use crate::ring::{Backend, RecvBuf, Tcp, run};

    /// Writes down what it is given.
    #[derive(Clone, Default)]
    struct Book(Rc<RefCell<Vec<(usize, Followed)>>>, Rc<RefCell<usize>>);

    impl Sink<RecvBuf> for Book {
        fn put(&mut self, chunk: RecvBuf, followed: Followed) -> io::Result<()> {
            self.0.borrow_mut().push((chunk.len(), followed));
            Ok(())
        }

        fn poll_through(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn finish(&mut self) -> io::Result<()> {
            *self.1.borrow_mut() += 1;
            Ok(())
        }
    }

    #[test]
    fn the_end_goes_on_with_the_last_bytes_where_it_came_with_them() {
        for (backend, expected) in [
            (Backend::Uring, (Followed::ByTheEnd, 0)),
            (Backend::Epoll, (Followed::No, 1)),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (far, _address) = listener.accept().unwrap();
            let book = Book::default();
            near.write_all(b"last").unwrap();
            drop(near);
            run(backend, async {
                let source = TcpSource(Tcp::from_fd(far.into()).unwrap());
                carry(source, book.clone(), |_| {}).await.unwrap();
            })
            .unwrap();
            let finished = *book.1.borrow();
            assert_eq!(*book.0.borrow(), [(4, expected.0)]);
            assert_eq!(finished, expected.1);
        }
    }
}
