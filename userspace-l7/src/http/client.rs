//! The side towards whoever answers: one connection, and what can go wrong with a request on it.

use std::error::Error as _;

use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, Request, Response};
use tokio::sync::oneshot;
use tracing::debug;

use super::body::Body;
use super::sniff::Version;
use super::wire::Wire;
use super::{MAX_STREAM_BACKLOG, OnWorker};
use crate::ring::RecvBuf;

/// The right to send requests on a connection.
#[derive(Debug)]
pub(crate) enum Sender {
    /// One at a time.
    Http1(Http1),
    /// Many at once; clones are the same connection.
    Http2(http2::SendRequest<Body>),
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub(crate) struct Http1 {
    requests: http1::SendRequest<Body>,
    /// The connection itself, once it is no longer HTTP.
    switched: Option<oneshot::Receiver<Wire>>,
}

/// How far a request came that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No byte of it has left.
    Unsent,
    /// The server says that it has not processed it (`REFUSED_STREAM`, or GOAWAY before it).
    Refused,
    /// The connection or the stream ended without a response.
    Reset,
    /// What came is no response.
    Nonsense,
    /// The request's own sender broke off.
    Sender,
}

/// A request without a response.
#[derive(Debug, thiserror::Error)]
#[error("no response: {source}")]
pub(crate) struct SendError {
    /// How far it came.
    pub(crate) failure: Failure,
    /// The request as it was, if no byte of it has left.
    pub(crate) request: Option<Box<Request<Body>>>,
    source: hyper::Error,
}

impl SendError {
    fn new(request: Option<Box<Request<Body>>>, source: hyper::Error) -> Self {
        let failure = match &request {
            Some(_) => Failure::Unsent,
            None if is_refusal(&source) => Failure::Refused,
            // Whoever reads the body for hyper is its user.
            None if source.is_user() => Failure::Sender,
            None if is_nonsense(&source) => Failure::Nonsense,
            None => Failure::Reset,
        };
        Self {
            failure,
            request,
            source,
        }
    }
}

/// A request that waits for its response.
enum Sent<Http1, Http2> {
    Http1(Http1),
    Http2(Http2),
}

/// Speaks HTTP on a fresh connection. Its task lives on this worker until the connection ends.
///
/// # Errors
/// HTTP/2's first frames could not be written.
pub(crate) async fn connect(wire: Wire, version: Version) -> Result<Sender, hyper::Error> {
    match version {
        Version::Http1 => {
            let (requests, connection) = http1::handshake(wire).await?;
            let (switch, switched) = oneshot::channel();
            drop(tokio::task::spawn_local(drive(connection, switch)));
            Ok(Sender::Http1(Http1 {
                requests,
                switched: Some(switched),
            }))
        }
        Version::Http2 => {
            let (requests, connection) = http2::Builder::new(OnWorker)
                .max_send_buf_size(MAX_STREAM_BACKLOG)
                .handshake::<_, Body>(wire)
                .await?;
            drop(tokio::task::spawn_local(async move {
                if let Err(error) = connection.await {
                    debug!(%error, "upstream connection ended");
                }
            }));
            Ok(Sender::Http2(requests))
        }
    }
}

async fn drive(mut connection: http1::Connection<Wire, Body>, switch: oneshot::Sender<Wire>) {
    let ended = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    if let Err(error) = ended {
        debug!(%error, "upstream connection ended");
        return;
    }
    let parts = connection.into_parts();
    let mut wire = parts.io;
    if !parts.read_buf.is_empty() {
        wire.unread(RecvBuf::from(parts.read_buf.to_vec()));
    }
    // Nobody waits for it unless the protocol was switched: then it is closed in order.
    if let Err(mut wire) = switch.send(wire) {
        let _gone = wire.finish();
    }
}

impl Sender {
    /// Which version the connection speaks.
    pub(crate) fn version(&self) -> Version {
        match self {
            Self::Http1(_) => Version::Http1,
            Self::Http2(_) => Version::Http2,
        }
    }

    /// Whether a request could be sent now.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.requests.is_ready(),
            Self::Http2(requests) => requests.is_ready(),
        }
    }

    /// Whether no request will ever be sent again.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.requests.is_closed(),
            Self::Http2(requests) => requests.is_closed(),
        }
    }

    /// Waits until a request can be sent; `false` if none ever will be.
    pub(crate) async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(http1) => http1.requests.ready().await.is_ok(),
            Self::Http2(requests) => requests.ready().await.is_ok(),
        }
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// [`SendError`], which tells whether the request may have been seen.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request; an HTTP/1.1 connection ends with it.
    pub(crate) fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<> {
        // Handed over at once, so that the request is not moved from future to future.
        let sent = match self {
            Self::Http1(http1) => {
                frame(&mut request);
                Sent::Http1(http1.requests.try_send_request(request))
            }
            Self::Http2(requests) => Sent::Http2(requests.try_send_request(request)),
        };
        async move {
            let answered = match sent {
                Sent::Http1(sent) => sent.await,
                Sent::Http2(sent) => sent.await,
            };
            answered.map_err(|mut failed| {
                let request = failed.take_message().map(Box::new);
                SendError::new(request, failed.into_error())
            })
        }
    }

    /// The connection itself, after a response that switched the protocol.
    pub(crate) async fn switched(self) -> Option<Wire> {
        match self {
            Self::Http1(Http1 { switched, .. }) => switched?.await.ok(),
            Self::Http2(_) => None,
        }
    }

    /// Another right to the same connection, where it takes many requests.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(requests) => Some(Self::Http2(requests.clone())),
        }
    }
}

/// Says how long a body is that has no length: left to itself, hyper sends a GET or HEAD without its body then.
fn frame(request: &mut Request<Body>) {
    let body = request.body();
    let has_length = body.is_end_stream() || body.size_hint().exact().is_some();
    let may_have_one = request.method() != Method::CONNECT;
    if may_have_one && !has_length && !request.headers().contains_key(CONTENT_LENGTH) {
        let chunked = HeaderValue::from_static("chunked");
        drop(request.headers_mut().insert(TRANSFER_ENCODING, chunked));
    }
}

/// "The `REFUSED_STREAM` error code can be included in a `RST_STREAM` frame to indicate that the stream is being
/// closed prior to any processing having occurred" (RFC 9113 §8.7).
fn is_refusal(error: &hyper::Error) -> bool {
    http2_error(error).is_some_and(|error| {
        error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

/// Whether the server speaks something else, or its own HTTP.
fn is_nonsense(error: &hyper::Error) -> bool {
    // In HTTP/2 it is our own end that ends such a connection.
    error.is_parse() || http2_error(error).is_some_and(h2::Error::is_library)
}

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}
