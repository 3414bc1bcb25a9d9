//! HTTP/1.1, HTTP/2 and gRPC answers of the length that was asked for, and the counters as JSON.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{Meters, Service};
use crate::bench::wire::{CallRequest, CallResponse, METHOD, filler, framed, unframed};

/// Windows of HTTP/2: large enough that they are not what is measured.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams that a client may have open at once.
const STREAMS: u32 = 10_000;
/// A message is made in memory.
const LONGEST_MESSAGE: usize = 64 << 20;
const OK: &str = "0";
const INVALID_ARGUMENT: &str = "3";
const RESOURCE_EXHAUSTED: &str = "8";
const UNIMPLEMENTED: &str = "12";
/// What is sent at once.
const BLOCK: usize = 64 * 1024;

/// Serves one connection to its end.
pub(super) async fn serve(service: Service, stream: TcpStream, meters: &Arc<Meters>) {
    let io = TokioIo::new(stream);
    let answer = service_fn(|request| respond(service, request, Arc::clone(meters)));
    // A client that is gone is how connections end.
    match service {
        Service::H2 | Service::Grpc => {
            let mut server = http2::Builder::new(TokioExecutor::new());
            server
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(STREAMS);
            let meters = Arc::clone(meters);
            let answer = service_fn(move |request| respond(service, request, Arc::clone(&meters)));
            drop(server.serve_connection(io, answer).await);
        }
        _ => drop(http1::Builder::new().serve_connection(io, answer).await),
    }
}

async fn respond(
    service: Service,
    request: Request<Incoming>,
    meters: Arc<Meters>,
) -> Result<Response<Answer>, hyper::Error> {
    match service {
        Service::Grpc => call(request, &meters).await,
        Service::Stats => Ok(stats(&request, &meters)),
        _ => {
            let size = size(request.uri().query());
            let received = count(request.into_body()).await?;
            let Some(size) = size else {
                return Ok(plain(StatusCode::BAD_REQUEST, "write ?size=BYTES\n"));
            };
            if let Some(meter) = service.meter(&meters) {
                meter.request(received, size);
            }
            Ok(Response::new(Answer::filler(size)))
        }
    }
}

/// `size=N` of a query, 0 if it is not there; `None` if it is no number.
fn size(query: Option<&str>) -> Option<u64> {
    let mut fields = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match fields.find(|(name, _)| name == "size") {
        Some((_, value)) => value.parse().ok(),
        None => Some(0),
    }
}

async fn count(mut body: Incoming) -> Result<u64, hyper::Error> {
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(received)
}

async fn call(
    request: Request<Incoming>,
    meters: &Meters,
) -> Result<Response<Answer>, hyper::Error> {
    let is_known = request.uri().path() == METHOD;
    let body = request.into_body().collect().await?.to_bytes();
    let call = unframed::<CallRequest>(&body).filter(|_| is_known);
    // gRPC's status codes.
    let mut answer = Response::new(match call {
        _ if !is_known => Answer::status(UNIMPLEMENTED),
        None => Answer::status(INVALID_ARGUMENT),
        Some(call) => match usize::try_from(call.response_size) {
            Ok(length) if length <= LONGEST_MESSAGE => {
                let received = call.payload.len() as u64;
                meters.grpc.request(received, call.response_size.into());
                let payload = filler(length);
                Answer::message(framed(&CallResponse { payload }))
            }
            _ => Answer::status(RESOURCE_EXHAUSTED),
        },
    });
    let grpc = HeaderValue::from_static("application/grpc");
    drop(answer.headers_mut().insert(CONTENT_TYPE, grpc));
    Ok(answer)
}

fn stats(request: &Request<Incoming>, meters: &Meters) -> Response<Answer> {
    if request.uri().path() != "/stats" {
        return plain(StatusCode::NOT_FOUND, "there is /stats\n");
    }
    match serde_json::to_string(&meters.served()) {
        Ok(json) => {
            let mut answer = Response::new(Answer::text((json + "\n").into()));
            let kind = HeaderValue::from_static("application/json");
            drop(answer.headers_mut().insert(CONTENT_TYPE, kind));
            answer
        }
        Err(_numbers) => plain(StatusCode::INTERNAL_SERVER_ERROR, "no JSON\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut answer = Response::new(Answer::text(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    answer
}

/// A body: bytes that are there, or as many as are left to be made up, then perhaps trailers.
struct Answer {
    message: Bytes,
    left: u64,
    trailers: Option<&'static str>,
}

impl Answer {
    fn filler(left: u64) -> Self {
        Self {
            message: Bytes::new(),
            left,
            trailers: None,
        }
    }

    fn text(message: Bytes) -> Self {
        Self {
            message,
            left: 0,
            trailers: None,
        }
    }

    /// With the status OK of gRPC after it.
    fn message(message: Bytes) -> Self {
        Self {
            message,
            left: 0,
            trailers: Some(OK),
        }
    }

    /// Another status of gRPC's and nothing before it.
    fn status(status: &'static str) -> Self {
        Self {
            message: Bytes::new(),
            left: 0,
            trailers: Some(status),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = if self.left > 0 {
            let block = filler(usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK));
            self.left -= block.len() as u64;
            block
        } else {
            std::mem::take(&mut self.message)
        };
        if !data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = self.trailers.take().map(|status| {
            let mut trailers = HeaderMap::new();
            drop(trailers.insert("grpc-status", HeaderValue::from_static(status)));
            Ok(Frame::trailers(trailers))
        });
        Poll::Ready(trailers)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.message.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left + self.message.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn the_query_says_how_much_is_wanted() {
        for (query, expected) in [
            (None, Some(0)),
            (Some("size=16384"), Some(16_384)),
            (Some("a=b&size=1"), Some(1)),
            (Some("size=x"), None),
            (Some("size=-1"), None),
        ] {
            assert_eq!(size(query), expected, "{query:?}");
        }
    }
}
