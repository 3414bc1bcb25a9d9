//! HTTP/1.1, HTTP/2 and gRPC requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Mutex;

use super::{Callee, Caller};
use crate::bench::failure::{BenchError, Failure};
use crate::bench::plan::{Plan, Protocol};
use crate::bench::tally::Moved;
use crate::bench::wire::{CallRequest, CallResponse, METHOD, filler, framed, unframed};

/// Windows of HTTP/2: large enough that they are not what is measured.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The request that is made again and again, and what has to come back.
#[derive(Debug)]
pub(super) struct Question {
    request: Request<Full<Bytes>>,
    expected: Expected,
    payload: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Somebody else's server: whatever it sends.
    Anything,
    /// So many bytes.
    Body(u64),
    /// A message with so many bytes.
    Message(usize),
}

impl Question {
    /// `None` for protocols that are not HTTP.
    ///
    /// # Errors
    /// [`BenchError::Unreachable`] if the target makes no URI; the command line lets no such header pass.
    pub(super) fn of(plan: &Plan) -> Result<Option<Self>, BenchError> {
        let is_grpc = plan.protocol == Protocol::Grpc;
        if !plan.protocol.is_http() && !is_grpc {
            return Ok(None);
        }
        Self::build(plan, is_grpc)
            .map(Some)
            .map_err(|error| BenchError::Unreachable {
                target: plan.target.authority(plan.port()),
                why: error.to_string(),
            })
    }

    fn build(plan: &Plan, is_grpc: bool) -> Result<Self, http::Error> {
        let authority = plan.target.authority(plan.port());
        let path = match &plan.target.path {
            _ if is_grpc => METHOD.to_owned(),
            Some(path) => path.clone(),
            None => format!("/?size={}", plan.response),
        };
        let payload = filler(plan.payload);
        let (body, expected) = if is_grpc {
            let call = CallRequest {
                payload,
                response_size: u32::try_from(plan.response).unwrap_or(u32::MAX),
            };
            (framed(&call), Expected::Message(plan.response))
        } else if plan.target.path.is_some() {
            (payload, Expected::Anything)
        } else {
            (payload, Expected::Body(plan.response as u64))
        };
        let method = if is_grpc || plan.payload > 0 {
            Method::POST
        } else {
            Method::GET
        };
        let mut builder = Request::builder().method(method);
        builder = if plan.protocol == Protocol::Http1 {
            builder.uri(path).header(HOST, authority)
        } else {
            let uri = Uri::builder().scheme("http").authority(authority);
            builder.uri(uri.path_and_query(path).build()?)
        };
        if is_grpc {
            builder = builder
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers");
        }
        let mut request = builder.body(Full::new(body))?;
        for (name, value) in &plan.headers {
            let name = HeaderName::try_from(name)?;
            // The command line's word is the last one, for Host too.
            drop(
                request
                    .headers_mut()
                    .insert(name, HeaderValue::try_from(value)?),
            );
        }
        Ok(Self {
            request,
            expected,
            payload: plan.payload as u64,
        })
    }

    /// Reads an answer to its end and judges it.
    async fn judge(&self, answer: Response<Incoming>) -> Result<u64, Failure> {
        let (parts, mut body) = answer.into_parts();
        let mut message = BytesMut::new();
        let mut received = 0;
        let mut trailers = HeaderMap::new();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    received += data.len() as u64;
                    if matches!(self.expected, Expected::Message(_)) {
                        message.extend_from_slice(&data);
                    }
                }
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        if !parts.status.is_success() {
            return Err(Failure::Status(parts.status.as_u16()));
        }
        match self.expected {
            Expected::Body(length) if length != received => Err(Failure::Length),
            Expected::Anything | Expected::Body(_) => Ok(received),
            Expected::Message(length) => {
                let status = grpc_status(&trailers).or_else(|| grpc_status(&parts.headers));
                match status {
                    Some(0) => {}
                    Some(status) => return Err(Failure::GrpcStatus(status)),
                    None => return Err(Failure::Broken("no grpc-status".to_owned())),
                }
                let response: Option<CallResponse> = unframed(&message.freeze());
                match response {
                    Some(response) if response.payload.len() == length => Ok(length as u64),
                    _ => Err(Failure::Length),
                }
            }
        }
    }
}

/// In the headers where there is nothing else to say ("Trailers-Only").
fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// One request after the other on a connection of HTTP/1.1.
pub(in crate::bench) struct Http1Caller {
    callee: Arc<Callee>,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Http1Caller {
    pub(super) fn new(callee: Arc<Callee>) -> Self {
        Self {
            callee,
            sender: None,
        }
    }

    pub(super) async fn prepare(&mut self) -> Result<Option<Duration>, Failure> {
        let (stream, took) = self.callee.dial().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender, and its errors reach the request.
        drop(tokio::spawn(connection));
        self.sender = Some(sender);
        Ok(Some(took))
    }

    pub(super) async fn call(&mut self) -> Result<Moved, Failure> {
        let is_open = |sender: &http1::SendRequest<_>| !sender.is_closed();
        let connected = if self.sender.as_ref().is_some_and(is_open) {
            None
        } else {
            self.prepare().await?
        };
        let question = self.callee.question()?;
        let missing = || Failure::Broken("no connection".to_owned());
        let sender = self.sender.as_mut().ok_or_else(missing)?;
        sender.ready().await?;
        let answer = sender.send_request(question.request.clone()).await?;
        let received = question.judge(answer).await?;
        Ok(Moved {
            sent: question.payload,
            received,
            connected,
        })
    }

    pub(super) fn reset(&mut self) {
        self.sender = None;
    }
}

/// One connection of HTTP/2 that several callers share.
pub(in crate::bench) struct Multiplexed {
    callee: Arc<Callee>,
    sender: Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Multiplexed {
    pub(in crate::bench) fn new(callee: Arc<Callee>) -> Arc<Self> {
        Arc::new(Self {
            callee,
            sender: Mutex::new(None),
        })
    }

    /// One more caller on it.
    pub(in crate::bench) fn caller(self: &Arc<Self>) -> Caller {
        Caller::Multiplexed(MultiplexedCaller(Arc::clone(self)))
    }

    /// The connection, opened if there is none or it is closed; how long that took, if it was done.
    async fn sender(&self) -> Result<(http2::SendRequest<Full<Bytes>>, Option<Duration>), Failure> {
        let mut shared = self.sender.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), None));
        }
        let (stream, took) = self.callee.dial().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        // It ends with its senders, and its errors reach the requests.
        drop(tokio::spawn(connection));
        *shared = Some(sender.clone());
        Ok((sender, Some(took)))
    }
}

/// One request after the other on a connection that others use too.
pub(in crate::bench) struct MultiplexedCaller(Arc<Multiplexed>);

impl MultiplexedCaller {
    pub(super) async fn prepare(&mut self) -> Result<Option<Duration>, Failure> {
        let (_sender, took) = self.0.sender().await?;
        Ok(took)
    }

    pub(super) async fn call(&mut self) -> Result<Moved, Failure> {
        let (mut sender, connected) = self.0.sender().await?;
        let question = self.0.callee.question()?;
        sender.ready().await?;
        let answer = sender.send_request(question.request.clone()).await?;
        let received = question.judge(answer).await?;
        Ok(Moved {
            sent: question.payload,
            received,
            connected,
        })
    }
}
