//! One connection to istiod: TLS by its own root, a bearer token, and one stream of delta ADS. Messages are framed by
//! hand on hyper's HTTP/2, as everywhere here (ADR 0009).

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Settings;
use super::messages::{DeltaRequest, DeltaResponse};

/// Where the stream is.
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A connection that is not made by then is not made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing may be heard before the other side is asked whether it is there, and how long it has to answer.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes before a message: compressed or not, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;
/// The longest message (ztunnel's): the first one tells the whole mesh.
const MAX_MESSAGE: usize = 200 << 20;
/// The whole mesh arrives at once; the windows that HTTP/2 begins with would make many round trips of it.
const WINDOW: u32 = 4 << 20;
/// Requests on their way: one for each type, and an answer to what is read one by one.
const REQUESTS: usize = 8;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Ended {
    /// To be read after `istiod`.
    pub(super) message: String,
    /// Whether it is nobody's fault: istiod ends each connection after a while.
    pub(super) is_routine: bool,
}

impl Ended {
    fn fault(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            is_routine: false,
        }
    }
}

/// A stream that is open. Dropping it closes the connection.
pub(super) struct Connection {
    requests: mpsc::Sender<Bytes>,
    answers: Incoming,
    received: BytesMut,
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects and sends the first requests: istiod says nothing before it is asked something. Certificates and token
    /// are read anew each time, because both are renewed in their files.
    ///
    /// # Errors
    /// [`Ended`]: what is in the way.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn open(settings: &Settings, first: &[DeltaRequest]) -> Result<Self, Ended> {
        let tls = trust(&settings.root_ca)?;
        let headers = headers(settings)?;
        let stream = connect(settings, tls).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream));
        let broken = |error: hyper::Error| Ended::fault(format!("does not speak HTTP/2: {error}"));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        let mut driver = JoinSet::new();
        // How it ends shows in the stream.
        driver.spawn(async move { drop(connection.await) });
        let (requests, body) = mpsc::channel(REQUESTS);
        for request in first {
            // There is room for them.
            drop(requests.try_send(framed(request)));
        }
        let mut request = Request::new(Requests(body));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = headers;
        *request.uri_mut() = format!("https://{}{METHOD}", settings.address.authority())
            .parse()
            .map_err(|_invalid| Ended::fault("has an address that is no URL"))?;
        let response = timeout(CONNECT_TIMEOUT, sender.send_request(request)).await;
        let response = response.map_err(|_late| Ended::fault("does not answer"))?;
        let response =
            response.map_err(|error| Ended::fault(format!("closed the connection: {error}")))?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(Ended::fault(format!("answers with HTTP status {status}")));
        }
        if response.headers().contains_key(GRPC_STATUS) {
            return Err(ended(response.headers()));
        }
        Ok(Self {
            requests,
            answers: response.into_body(),
            received: BytesMut::new(),
            _driver: driver,
        })
    }

    /// Sends one more request.
    ///
    /// # Errors
    /// The connection is closing; reading says why.
    pub(super) async fn send(&self, request: &DeltaRequest) -> Result<(), Ended> {
        let sent = self.requests.send(framed(request)).await;
        sent.map_err(|_closed| Ended::fault("closed the connection"))
    }

    /// The next answer.
    ///
    /// # Errors
    /// [`Ended`]: there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn receive(&mut self) -> Result<DeltaResponse, Ended> {
        loop {
            if let Some(message) = unframed(&mut self.received)? {
                return DeltaResponse::decode(message)
                    .map_err(|error| Ended::fault(format!("sends what is no message: {error}")));
            }
            let Some(frame) = self.answers.frame().await else {
                return Err(Ended {
                    message: "closed the connection".to_owned(),
                    is_routine: true,
                });
            };
            let broken = |error| Ended::fault(format!("closed the connection: {error}"));
            match frame.map_err(broken)?.into_data() {
                Ok(data) => self.received.extend_from_slice(&data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Err(ended(&trailers));
                    }
                }
            }
        }
    }
}

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";

/// What the end of a stream says. Those that begin again at once are ztunnel's.
fn ended(trailers: &HeaderMap) -> Ended {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    let status = text(GRPC_STATUS).unwrap_or_default();
    let message = text(GRPC_MESSAGE).unwrap_or_default();
    let closes = ["transport is closing", "received prior goaway"];
    let is_routine = match status {
        // OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, UNAVAILABLE.
        "0" | "1" | "2" | "4" => true,
        "14" => closes.iter().any(|sign| message.contains(sign)),
        _ => false,
    };
    let sentence = match status {
        // UNAUTHENTICATED, PERMISSION_DENIED.
        "16" => format!(
            "does not believe who the agent is ({message}): the token needs the audience istio-ca, and a service account in \
             --pod-namespace"
        ),
        "7" => format!("does not let the agent ({message})"),
        _ => format!("ended the stream with gRPC status {status} ({message})"),
    };
    Ended {
        message: sentence,
        is_routine,
    }
}

/// A message as gRPC frames it, uncompressed.
fn framed(message: &DeltaRequest) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    // What is known of a mesh is far from four gigabytes.
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // It has room.
    let _roomy = message.encode(&mut framed);
    framed.freeze()
}

/// Takes the first message off what was received; none while it is not whole.
fn unframed(received: &mut BytesMut) -> Result<Option<Bytes>, Ended> {
    let Some((prefix, _)) = received.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let [compressed, a, b, c, d] = *prefix;
    if compressed != 0 {
        return Err(Ended::fault(
            "compresses its messages, which nobody asked it to",
        ));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > MAX_MESSAGE {
        return Err(Ended::fault(format!("sends a message of {length} bytes")));
    }
    if received.len() < PREFIX + length {
        return Ok(None);
    }
    received.advance(PREFIX);
    Ok(Some(received.split_to(length).freeze()))
}

/// Requests as they come.
struct Requests(mpsc::Receiver<Bytes>);

impl Body for Requests {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.get_mut().0.poll_recv(context);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn headers(settings: &Settings) -> Result<HeaderMap, Ended> {
    let path = settings.token.display();
    let token = fs::read_to_string(&settings.token).map_err(|error| {
        Ended::fault(format!(
            "is not asked: the token {path} cannot be read ({error})"
        ))
    })?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_invalid| Ended::fault(format!("is not asked: {path} is no token")))?;
    bearer.set_sensitive(true);
    let cluster = HeaderValue::from_str(&settings.node.cluster)
        .map_err(|_invalid| Ended::fault("is not asked: --cluster is no header"))?;
    Ok(with_own(settings.headers.clone(), bearer, cluster))
}

/// The operator's headers and the agent's, which go before them.
fn with_own(mut headers: HeaderMap, bearer: HeaderValue, cluster: HeaderValue) -> HeaderMap {
    let product = concat!("culvert/", env!("CARGO_PKG_VERSION"));
    let own = [
        (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
        (TE, HeaderValue::from_static("trailers")),
        (USER_AGENT, HeaderValue::from_static(product)),
        (AUTHORIZATION, bearer),
        (hyper::header::HeaderName::from_static("clusterid"), cluster),
    ];
    for (name, value) in own {
        headers.insert(name, value);
    }
    headers
}

/// Whose certificates istiod may have.
fn trust(path: &Path) -> Result<Arc<ClientConfig>, Ended> {
    let shown = path.display();
    let text = fs::read(path).map_err(|error| {
        Ended::fault(format!(
            "is not asked: its root certificate {shown} cannot be read ({error})"
        ))
    })?;
    let unusable = || {
        Ended::fault(format!(
            "is not asked: {shown} holds no root certificate in PEM"
        ))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|_unread| unusable())?;
        roots.add(certificate).map_err(|_unusable| unusable())?;
    }
    if roots.is_empty() {
        return Err(unusable());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Ended::fault(format!("is not asked: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

async fn connect(
    settings: &Settings,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Ended> {
    let (host, port) = (settings.address.host(), settings.address.port());
    let known_as = settings.hostname.as_deref().unwrap_or(host);
    let name = ServerName::try_from(known_as.to_owned())
        .map_err(|_invalid| Ended::fault(format!("is not asked: `{known_as}` is no name")))?;
    let addresses = lookup_host((host, port))
        .await
        .map_err(|error| Ended::fault(format!("is not found: {host}: {error}")))?;
    let mut last = Ended::fault(format!("is not found: {host} has no address"));
    for address in addresses {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|late| Err(late.into())) {
            Ok(stream) => {
                // Without it, requests only wait for what they are the answer to.
                drop(stream.set_nodelay(true));
                let greeted = TlsConnector::from(tls).connect(name, stream);
                let greeted = timeout(CONNECT_TIMEOUT, greeted).await;
                let greeted = greeted.unwrap_or_else(|late| Err(late.into()));
                return greeted.map_err(|error| {
                    Ended::fault(format!("does not prove that it is {known_as}: {error}"))
                });
            }
            Err(error) => {
                last = Ended::fault(format!("cannot be reached: {address}: {error}"));
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use hyper::header::{HeaderMap, HeaderValue};

    use super::{GRPC_MESSAGE, GRPC_STATUS, MAX_MESSAGE, ended, framed, unframed, with_own};
    use crate::sources::istiod::messages::DeltaRequest;

    #[test]
    fn headers_of_the_operators_go_with_the_call() {
        let mut said = HeaderMap::new();
        said.insert("x-tenant", HeaderValue::from_static("blue"));
        said.insert("authorization", HeaderValue::from_static("Bearer other"));
        let bearer = HeaderValue::from_static("Bearer own");
        let headers = with_own(said, bearer, HeaderValue::from_static("c"));
        for (name, value) in [
            ("x-tenant", "blue"),
            ("authorization", "Bearer own"),
            ("clusterid", "c"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            let all: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(all, [value], "{name}");
        }
    }

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let request = DeltaRequest {
            type_url: "x".to_owned(),
            ..DeltaRequest::default()
        };
        let bytes = framed(&request);
        let twice = [&bytes[..], &bytes[..]].concat();
        let (mut received, mut messages) = (BytesMut::new(), Vec::new());
        for byte in twice {
            received.extend_from_slice(&[byte]);
            messages.extend(unframed(&mut received).unwrap());
        }
        assert_eq!(messages, [&bytes[5..], &bytes[5..]]);
        assert!(received.is_empty());
    }

    #[test]
    fn what_is_no_message_ends_the_connection() {
        let too_long = u32::try_from(MAX_MESSAGE + 1).unwrap().to_be_bytes();
        for (bytes, says) in [
            (vec![1, 0, 0, 0, 0], "compresses"),
            (
                [&[0], &too_long[..]].concat(),
                "a message of 209715201 bytes",
            ),
        ] {
            let error = unframed(&mut BytesMut::from(&bytes[..])).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn ends_are_told_apart() {
        for (status, message, is_routine, says) in [
            ("0", "", true, "gRPC status 0"),
            ("14", "transport is closing", true, "transport is closing"),
            ("14", "no such host", false, "no such host"),
            ("16", "bad token", false, "audience istio-ca"),
            (
                "7",
                "not yours",
                false,
                "does not let the agent (not yours)",
            ),
            ("13", "broken", false, "gRPC status 13 (broken)"),
        ] {
            let mut trailers = HeaderMap::new();
            trailers.insert(GRPC_STATUS, HeaderValue::from_str(status).unwrap());
            trailers.insert(GRPC_MESSAGE, HeaderValue::from_str(message).unwrap());
            let end = ended(&trailers);
            assert_eq!(end.is_routine, is_routine, "{status} {message}");
            assert!(end.message.contains(says), "{end}");
        }
    }
}
