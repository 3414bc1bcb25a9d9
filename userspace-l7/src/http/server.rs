//! The side towards whoever asks: serves one connection until it ends.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::error::Error;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};

use super::guard::Guard;
use super::sniff::Version;
use super::wire::Wire;
use super::{MAX_STREAM_BACKLOG, OnWorker, tunnel};

/// Largest head of a request (Envoy's default, `max_request_headers_kb`).
const MAX_HEAD: usize = 60 << 10;

/// Largest receive buffer of an HTTP/1 connection: a head, and what came with it.
const MAX_BUFFER: usize = 64 << 10;

/// Streams of one HTTP/2 connection at once: bounded, since each costs a task and its backlog. A client that wants
/// more of them waits, or opens another connection.
const MAX_STREAMS: u32 = 256;

/// Time that a client has to read our last words before its unread bytes reset the connection (Envoy's
/// `delayed_close_timeout`).
const PARTING: Duration = Duration::from_secs(1);

/// Time that an HTTP/1.1 connection without a request stays open once it is to end. A request that is on its way by then would
/// find it closed, and only its client knows whether it may be sent again; one that comes in time learns from its
/// answer that it is the last. Longer than a round trip within any cluster.
const LAST_REQUEST: Duration = Duration::from_millis(250);

/// Where a service leaves the other end of a connection that stops being HTTP (`101 Switching Protocols`).
#[derive(Default)]
pub(crate) struct Handover(RefCell<Option<Wire>>);

impl Handover {
    /// Gives the other end, before the answer that switches.
    pub(crate) fn give(&self, other: Wire) {
        self.0.replace(Some(other));
    }
}

/// Serves a connection until it ends, by its own peer or, once `draining` resolves, after the requests that
/// it has. HTTP/1.1 has no other way to tell a client than in an answer (`Connection: close`): a connection without a
/// request waits for one a little longer. What is left in `handover` when the protocol is switched is carried to its end.
///
/// # Errors
/// The peer broke the protocol or the connection; it has been answered where it could be.
///
/// # Cancel safety
/// Dropping the future resets the connection and drops the requests in flight.
pub(crate) async fn serve<S, B>(
    wire: Wire,
    version: Version,
    service: S,
    handover: Rc<Handover>,
    draining: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Unpin + 'static,
    S::Future: 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    match version {
        Version::Http1 => serve_http1(wire, service, handover, draining).await,
        Version::Http2 => serve_http2(wire, service, draining).await,
    }
}

/// Puts each request's future on the heap: hyper gives a connection back for something else only if nothing
/// in it is pinned. Once the connection is to end, answers say so.
struct Http1Service<S> {
    service: S,
    is_draining: Rc<Cell<bool>>,
}

impl<S, B> Service<Request<Incoming>> for Http1Service<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Answering {
            answer: Box::pin(self.service.call(request)),
            is_draining: Rc::clone(&self.is_draining),
        }
    }
}

/// The answer to one request. Whether it is the connection's last is known when it is there.
struct Answering<F> {
    answer: Pin<Box<F>>,
    is_draining: Rc<Cell<bool>>,
}

impl<F, B> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut answer = ready!(self.answer.as_mut().poll(cx))?;
        // What stops being HTTP is not told in HTTP.
        if self.is_draining.get() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            drop(answer.headers_mut().insert(CONNECTION, close));
        }
        Poll::Ready(Ok(answer))
    }
}

async fn serve_http1<S, B>(
    wire: Wire,
    service: S,
    handover: Rc<Handover>,
    draining: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Unpin,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let is_draining = Rc::<Cell<bool>>::default();
    let service = Http1Service {
        service,
        is_draining: Rc::clone(&is_draining),
    };
    let mut connection = http1::Builder::new()
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(Guard::new(wire), service);
    let mut closing = pin!(async move {
        draining.await;
        is_draining.set(true);
        // On the heap: no connection needs it before its end.
        Box::pin(tokio::time::sleep(LAST_REQUEST)).await;
    });
    let mut is_closing = false;
    std::future::poll_fn(|cx| {
        if !is_closing && closing.as_mut().poll(cx).is_ready() {
            is_closing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    })
    .await?;
    let parts = connection.into_parts();
    let mut wire = parts.io.into_wire();
    if let Some(other) = handover.0.take() {
        tunnel::carry(wire, parts.read_buf, other).await;
        return Ok(());
    }
    // The peer may be gone already, and needs no telling then.
    let _gone = wire.finish();
    let farewell = tunnel::discard(&mut wire);
    let _unread = tokio::time::timeout(PARTING, farewell).await;
    Ok(())
}

async fn serve_http2<S, B>(
    wire: Wire,
    service: S,
    draining: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + 'static,
    S::Future: 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut builder = http2::Builder::new(OnWorker);
    let connection = builder
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_STREAM_BACKLOG)
        .serve_connection(wire, service);
    let mut connection = pin!(connection);
    let mut draining = pin!(draining);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = draining.as_mut() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
