//! The authority's port: TLS that proves who answers, HTTP/2, and unary calls of gRPC. Bounded in time, size and number
//! of everything that a stranger may cause.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::desk::{Desk, Refused};
use crate::signing::{self, Code};

/// More clients at once wait in the listener's backlog. An agent has eight at most.
const CONNECTIONS: usize = 512;
/// Calls of one connection at once.
const STREAMS: u32 = 16;
/// A client that has not proved to speak TLS by then is cut off.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest life of a connection: agents open one for each request, and others may be told to come again.
const CONNECTION_LIFE: Duration = Duration::from_secs(5 * 60);
/// A client that has shown no good token by then is cut off: places are for agents, which ask at once.
const PROOF: Duration = Duration::from_secs(15);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(15);
/// After a failure of the listener itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Listens on every address of both families, or of the one that there is. Called within a tokio runtime.
///
/// # Errors
/// What the kernel says.
pub(super) fn listen(port: u16) -> io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    // An IPv6 socket hears IPv4, too, unless somebody has changed the kernel's default.
    bind((Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_no_ipv6| bind((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _client)) => stream,
            Err(error) => {
                warn!(%error, "the authority's port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let desk = Arc::clone(&desk);
        tokio::spawn(async move {
            let _place = place;
            if timeout(CONNECTION_LIFE, converse(stream, desk))
                .await
                .is_err()
            {
                debug!("a connection of the authority's port was too old");
            }
        });
    }
}

async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    let Some(config) = desk.issuer.borrow().as_ref().map(|issuer| issuer.server()) else {
        // Nothing to prove ourselves by yet: the client comes again.
        return;
    };
    let accepted = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            debug!(%error, "a client of the authority speaks no TLS, or does not trust it");
            return;
        }
        Err(_elapsed) => return,
    };
    let is_known = Arc::new(AtomicBool::new(false));
    let proof = Arc::clone(&is_known);
    let service = service_fn(move |request| {
        let (desk, is_known) = (Arc::clone(&desk), Arc::clone(&is_known));
        async move { Ok::<_, Infallible>(call(&desk, request, &is_known).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10));
    let conversation = builder.serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = conversation => ended,
        () = unproved(&proof) => {
            debug!("a client of the authority has not shown who it is, and goes");
            return;
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the authority's port broke off");
    }
}

/// Resolves when a client has had its time to show a good token, and has not.
async fn unproved(is_known: &AtomicBool) {
    tokio::time::sleep(PROOF).await;
    if is_known.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

type Reply = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn call(desk: &Desk, request: Request<Incoming>, is_known: &AtomicBool) -> Response<Reply> {
    let outcome = timeout(REQUEST, answer(desk, request, is_known)).await;
    let outcome = outcome.unwrap_or_else(|_elapsed| {
        Err(Refused {
            code: Code::Unavailable,
            message: "the authority took too long".to_owned(),
        })
    });
    reply(outcome)
}

async fn answer(
    desk: &Desk,
    request: Request<Incoming>,
    is_known: &AtomicBool,
) -> Result<Bytes, Refused> {
    let refused = |code, message: &str| Refused {
        code,
        message: message.to_owned(),
    };
    if request.method() != Method::POST || request.uri().path() != signing::METHOD {
        return Err(refused(
            Code::Unimplemented,
            "there is only CreateCertificate",
        ));
    }
    let (head, body) = request.into_parts();
    let body = Limited::new(body, signing::MOST_BYTES).collect().await;
    let body = body.map_err(|_error| {
        refused(
            Code::ResourceExhausted,
            "the request is too long, or broke off",
        )
    })?;
    let token = head.headers.get(AUTHORIZATION);
    let token = token.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let chain = desk.answer(token, &body.to_bytes(), is_known).await?;
    Ok(signing::framed_chain(chain))
}

fn reply(outcome: Result<Bytes, Refused>) -> Response<Reply> {
    let mut trailers = HeaderMap::new();
    let body = match outcome {
        Ok(body) => {
            trailers.insert(STATUS, HeaderValue::from_static("0"));
            body
        }
        Err(refused) => {
            trailers.insert(STATUS, HeaderValue::from(refused.code as u16));
            let message = HeaderValue::try_from(percent_encoded(&refused.message));
            if let Ok(message) = message {
                trailers.insert(MESSAGE, message);
            }
            Bytes::new()
        }
    };
    let body = Full::new(body).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let kind = HeaderValue::from_static(signing::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// As a `grpc-message` is written (gRPC over HTTP/2, "Percent-Encoded").
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn messages_are_written_as_grpc_has_them() {
        assert_eq!(
            percent_encoded("no pod of a: 100 %"),
            "no pod of a: 100 %25"
        );
        assert_eq!(percent_encoded("ä\n"), "%C3%A4%0A");
    }
}
