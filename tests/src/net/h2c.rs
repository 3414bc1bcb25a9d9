//! HTTP/2 with prior knowledge, and gRPC over it: many requests at once over one connection.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper::{Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::http::{Ask, Response};
use super::{PATIENCE, connect};

/// A connection; its streams move while a request is being waited for.
pub struct Connection {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

/// What a gRPC call came to.
#[derive(Clone, Debug)]
pub struct GrpcAnswer {
    /// The answer, its body with the message's five bytes in front.
    pub response: Response,
    /// gRPC's status, from the trailers or, where nothing else was to say, the headers.
    pub status: u16,
}

impl Connection {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// If the server cannot be reached or does not speak HTTP/2.
    pub fn open(to: SocketAddr) -> Result<Self> {
        let stream = connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for a client")?;
        let sender = runtime.block_on(async {
            let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
            let shaken = timeout(PATIENCE, handshake(TokioExecutor::new(), stream)).await;
            let (sender, connection) = shaken.context("no HTTP/2 handshake in time")??;
            // Its failure is seen by the requests that it carries.
            tokio::spawn(async move { drop(connection.await) });
            Ok::<_, anyhow::Error>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// If the connection or the stream breaks.
    pub fn ask(&mut self, ask: &Ask) -> Result<Response> {
        let answers = self.ask_at_once(std::slice::from_ref(ask));
        answers
            .into_iter()
            .next()
            .unwrap_or_else(|| anyhow::bail!("no answer"))
    }

    /// Sends all requests before it waits for an answer; answers are in the order of the requests.
    pub fn ask_at_once(&mut self, asks: &[Ask]) -> Vec<Result<Response>> {
        let sender = &self.sender;
        self.runtime.block_on(async {
            let tasks: Vec<_> = asks
                .iter()
                .map(|ask| tokio::spawn(exchange(sender.clone(), request(ask))))
                .collect();
            let mut answers = Vec::new();
            for task in tasks {
                let answer = task.await.context("the client panicked");
                answers.push(answer.and_then(|answer| answer));
            }
            answers
        })
    }

    /// Calls a gRPC method with an empty message.
    ///
    /// # Errors
    /// If the connection or the stream breaks, or the answer has no gRPC status.
    pub fn call(&mut self, ask: &Ask) -> Result<GrpcAnswer> {
        let ask = grpc(ask);
        let response = self.ask(&ask)?;
        GrpcAnswer::read(response)
    }

    /// Calls as often as there are asks, all at once.
    pub fn call_at_once(&mut self, asks: &[Ask]) -> Vec<Result<GrpcAnswer>> {
        let asks: Vec<Ask> = asks.iter().map(grpc).collect();
        let answers = self.ask_at_once(&asks);
        answers
            .into_iter()
            .map(|answer| GrpcAnswer::read(answer?))
            .collect()
    }
}

impl GrpcAnswer {
    fn read(response: Response) -> Result<Self> {
        let status = response
            .trailer("grpc-status")
            .or_else(|| response.header("grpc-status"));
        let status = status.and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no gRPC status: {response:?}"))?;
        Ok(Self { response, status })
    }
}

/// The same as a unary call with an empty message.
fn grpc(ask: &Ask) -> Ask {
    let mut ask = ask.clone();
    "POST".clone_into(&mut ask.method);
    ask.with("content-type", "application/grpc")
        .with("te", "trailers")
        .body([0; 5])
}

async fn exchange(
    mut sender: SendRequest<Full<Bytes>>,
    request: Result<Request<Full<Bytes>>>,
) -> Result<Response> {
    let request = request?;
    let exchange = async {
        sender.ready().await.context("the connection is closed")?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await.context("the body broke off")?;
        let trailers = body.trailers().map(lines).unwrap_or_default();
        Ok(Response {
            status: parts.status.as_u16(),
            headers: lines(&parts.headers),
            body: body.to_bytes().into(),
            trailers,
        })
    };
    timeout(PATIENCE, exchange)
        .await
        .context("no answer in time")?
}

fn request(ask: &Ask) -> Result<Request<Full<Bytes>>> {
    ensure!(!ask.host.is_empty(), "HTTP/2 needs an authority");
    let uri = Uri::builder()
        .scheme("http")
        .authority(ask.host.as_str())
        .path_and_query(ask.target.as_str());
    let uri = uri.build().context("no target of a request")?;
    let mut request = Request::builder().method(ask.method.as_str()).uri(uri);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let body = Full::new(Bytes::from(ask.body.clone()));
    request.body(body).context("no request")
}

fn lines(headers: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
    };
    headers.iter().map(line).collect()
}
