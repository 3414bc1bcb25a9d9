//! An HTTP workload that answers with what it saw, so that a scenario can tell what a proxy made of a request.
//!
//! Speaks HTTP/1.1 and HTTP/2 with prior knowledge on each of its ports, gRPC where a request says so, and any
//! upgrade, after which it sends back what comes. The header `x-echo` asks for answers out of the ordinary: see
//! [`Wish`].

mod mesh;
mod seen;
mod wish;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

pub use mesh::{EchoMesh, destination_rule};
pub use seen::{Seen, SeenTls};
pub(crate) use wish::HEADER as WISH_HEADER;
pub use wish::Wish;

use crate::lab::Pod;
use crate::net::service::{Ends, Front, Service};
use wish::{Cut, Tries};

/// What a body may end with instead of its end: the connection is cut.
type Body = UnsyncBoxBody<Bytes, CutOff>;

/// The connection is to be cut here.
#[derive(Debug)]
struct CutOff;

impl std::fmt::Display for CutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut off as asked for")
    }
}

impl std::error::Error for CutOff {}

/// A running echo workload; dropping it closes its ports and connections.
pub struct Echo {
    requests: Arc<AtomicUsize>,
    service: Service,
}

/// What requests of one workload share.
struct Workload {
    pod: String,
    version: String,
    requests: Arc<AtomicUsize>,
    tries: Tries,
}

impl Echo {
    /// Serves on ports of a pod, on all its addresses; its version is the pod's label of that name.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn start(pod: &Pod, ports: &[u16]) -> Result<Self> {
        Self::start_behind(Front::default(), pod, ports)
    }

    /// The same, for clients that begin their connections in a certain way.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn start_behind(front: Front, pod: &Pod, ports: &[u16]) -> Result<Self> {
        let requests = Arc::new(AtomicUsize::new(0));
        let version = pod.spec().labels.get("version");
        let workload = Arc::new(Workload {
            pod: pod.spec().name.clone(),
            version: version.cloned().unwrap_or_default(),
            requests: Arc::clone(&requests),
            tries: Tries::default(),
        });
        let service = Service::start_behind(front, pod, ports, move |ends, request| {
            let workload = Arc::clone(&workload);
            async move { workload.answer(ends, request).await }
        })?;
        Ok(Self { requests, service })
    }

    /// How many requests it has begun to answer.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.service.connections()
    }
}

impl Workload {
    async fn answer(
        &self,
        ends: Ends,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, CutOff> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let wish = Wish::of(request.headers(), &self.tries);
        tokio::time::sleep(wish.delay).await;
        if wish.cut == Some(Cut::BeforeTheAnswer) {
            return Err(CutOff);
        }
        if request.headers().contains_key(UPGRADE) {
            return Ok(upgrade(request));
        }
        if wish.stream {
            let body = request.into_body().map_err(|_broken| CutOff);
            return Ok(Response::new(body.boxed_unsync()));
        }
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_broken| CutOff)?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let seen = Seen::of(
            (&self.pod, &self.version),
            &ends,
            &parts,
            (&body.to_bytes(), &trailers),
        );
        let text = Bytes::from(serde_json::to_vec(&seen).map_err(|_unwritable| CutOff)?);
        Ok(if is_grpc {
            grpc(&wish, &text)
        } else {
            plain(&wish, text)
        })
    }
}

/// Switches to bytes that are sent back as they come.
fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let protocol = request.headers().get(UPGRADE).cloned();
    let switched = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = switched.await {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
            // The client may end it at any time.
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(tokio::io::AsyncWriteExt::shutdown(&mut writer).await);
        }
    });
    let mut response = Response::new(Empty::new().map_err(never).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
    response
}

fn plain(wish: &Wish, text: Bytes) -> Response<Body> {
    let text = match wish.bytes {
        Some(length) => Bytes::from(vec![b'x'; length]),
        None => text,
    };
    let length = text.len();
    let body = match wish.cut {
        Some(Cut::AmidTheBody) => {
            let half = text.slice(..length / 2);
            frames(vec![Ok(Frame::data(half)), Err(CutOff)])
        }
        _ if wish.trailer => {
            let trailers = HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static("x-trailer"),
                HeaderValue::from_static("the end"),
            )]);
            frames(vec![Ok(Frame::data(text)), Ok(Frame::trailers(trailers))])
        }
        _ => Full::new(text).map_err(never).boxed_unsync(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = wish.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if wish.cut.is_some() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if wish.trailer {
        // RFC 9110 §6.6.2; hyper sends over HTTP/1.1 only trailers that were announced.
        headers.insert("trailer", HeaderValue::from_static("x-trailer"));
    }
    headers.extend(wish.headers.clone());
    response
}

/// One message that holds the text, and a status in the trailers (gRPC over HTTP/2).
fn grpc(wish: &Wish, text: &Bytes) -> Response<Body> {
    let mut message = vec![0];
    message.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(text);
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from(wish.grpc_status),
    )]);
    let body = frames(vec![
        Ok(Frame::data(Bytes::from(message))),
        Ok(Frame::trailers(trailers)),
    ]);
    let mut response = Response::new(body);
    *response.status_mut() = wish.status;
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().extend(wish.headers.clone());
    response
}

fn frames(frames: Vec<Result<Frame<Bytes>, CutOff>>) -> Body {
    let frames = frames.into_iter();
    Frames {
        frames,
        pause: None,
    }
    .boxed_unsync()
}

/// How long a body is left alone before it is cut, so that what was sent of it has left.
const BEFORE_THE_CUT: Duration = Duration::from_millis(50);

/// A body of frames that are there already.
struct Frames {
    frames: std::vec::IntoIter<Result<Frame<Bytes>, CutOff>>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if let Some(Err(CutOff)) = self.frames.as_slice().first() {
            let begin = || Box::pin(tokio::time::sleep(BEFORE_THE_CUT));
            let pause = self.pause.get_or_insert_with(begin);
            std::task::ready!(pause.as_mut().poll(context));
        }
        Poll::Ready(self.frames.next())
    }
}

fn never(never: Infallible) -> CutOff {
    match never {}
}
