//! One request and its answer over a connection that is there. The connection serves nothing else.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::FetchError;

/// What a request is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, which the server is known to speak.
    Http2,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What it is sent as.
    pub version: Version,
    /// Its method.
    pub method: Method,
    /// Scheme, host and path.
    pub url: Uri,
    /// Header fields besides `host` and `user-agent`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The longest body of an answer.
    pub most_bytes: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What came behind the body.
    pub trailers: HeaderMap,
}

const PRODUCT: HeaderValue =
    HeaderValue::from_static(concat!("culvert/", env!("CARGO_PKG_VERSION")));

pub(super) async fn exchange<S>(stream: S, ask: Ask) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let most_bytes = ask.most_bytes;
    // Ends the connection when the answer is there, or is no longer wanted.
    let mut connections = JoinSet::new();
    let response = match ask.version {
        Version::Http1 => {
            let (mut sender, connection) = http1::handshake(io).await.map_err(FetchError::Http)?;
            connections.spawn(connection);
            let sent = sender.send_request(request(ask, Version::Http1)?);
            sent.await.map_err(FetchError::Http)?
        }
        Version::Http2 => {
            let handshake = http2::handshake(TokioExecutor::new(), io);
            let (mut sender, connection) = handshake.await.map_err(FetchError::Http)?;
            connections.spawn(connection);
            let sent = sender.send_request(request(ask, Version::Http2)?);
            sent.await.map_err(FetchError::Http)?
        }
    };
    read(response, most_bytes).await
}

fn request(ask: Ask, version: Version) -> Result<Request<Full<Bytes>>, FetchError> {
    let invalid = || FetchError::Url(ask.url.to_string());
    let authority = ask.url.authority().ok_or_else(invalid)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_invalid| invalid())?;
    let mut request = Request::new(Full::new(ask.body));
    *request.method_mut() = ask.method;
    *request.headers_mut() = ask.headers;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, PRODUCT);
    match version {
        Version::Http1 => {
            // RFC 9112 §3.2.1: the origin form, with the host in its field.
            headers.insert(hyper::header::HOST, host);
            let path = ask.url.path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = path
                .parse()
                .map_err(|_invalid| FetchError::Url(path.to_owned()))?;
        }
        Version::Http2 => *request.uri_mut() = ask.url,
    }
    Ok(request)
}

async fn read(response: Response<Incoming>, most_bytes: usize) -> Result<Answer, FetchError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, most_bytes).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            FetchError::TooLarge(most_bytes)
        } else {
            FetchError::Broken
        }
    })?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
        trailers,
    })
}
