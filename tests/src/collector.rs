//! A collector of spans that speaks OTLP, by gRPC and by HTTP, and keeps what it gets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use prost::Message as _;

use crate::lab::Pod;
use crate::net::serve::Server;

/// gRPC's method of the OTLP trace service.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Bytes before a gRPC message.
const PREFIX: usize = 5;

/// One span as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// `service.name` and its kin.
    pub resource: BTreeMap<String, String>,
    /// In hexadecimal digits.
    pub trace: String,
    /// In hexadecimal digits.
    pub span: String,
    /// In hexadecimal digits; empty for the first of a trace.
    pub parent: String,
    /// As it was received.
    pub state: String,
    /// The operation.
    pub name: String,
    /// The number of its kind: 2 is SERVER.
    pub kind: i32,
    /// 0: unset, 2: error.
    pub status: i32,
    /// Attributes that are texts.
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds that it lasted.
    pub nanoseconds: u64,
    /// Where it was sent to: the path.
    pub path: String,
    /// The request's header `x-token`.
    pub token: Option<String>,
}

/// A running collector; dropping it closes its port.
pub struct Collector {
    spans: Arc<Mutex<Vec<Reported>>>,
    _server: Server,
}

impl Collector {
    /// Listens on a port of a pod.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let spans = Arc::<Mutex<Vec<Reported>>>::default();
        let kept = Arc::clone(&spans);
        let server = Server::start(pod, Ipv6Addr::UNSPECIFIED, port, move |stream| {
            serve(stream, &kept)
        })?;
        Ok(Self {
            spans,
            _server: server,
        })
    }

    /// All that it got so far.
    pub fn spans(&self) -> Vec<Reported> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.clone()
    }

    /// What it got of requests to a path that holds a text.
    pub fn about(&self, text: &str) -> Vec<Reported> {
        let is_about = |span: &Reported| span.attributes["http.url"].contains(text);
        self.spans().into_iter().filter(is_about).collect()
    }
}

/// Serves one connection, whichever version of HTTP it speaks.
fn serve(stream: &TcpStream, spans: &Arc<Mutex<Vec<Reported>>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for a collector")?;
    let stream = stream.try_clone()?;
    stream.set_nonblocking(true)?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let service = service_fn(|request| {
            let spans = Arc::clone(spans);
            async move { Ok::<_, Infallible>(take(&spans, request).await) }
        });
        let http = auto::Builder::new(TokioExecutor::new());
        let served = http.serve_connection(TokioIo::new(stream), service).await;
        served.map_err(|error| anyhow::anyhow!("a collector's connection: {error}"))
    })
}

async fn take(
    spans: &Mutex<Vec<Reported>>,
    request: Request<Incoming>,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    let is_grpc = parts.uri.path() == EXPORT;
    let message = if is_grpc {
        body.get(PREFIX..).unwrap_or_default()
    } else {
        &body[..]
    };
    let Ok(message) = ExportTraceServiceRequest::decode(message) else {
        let mut response = Response::new(Full::default().boxed_unsync());
        *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
        return response;
    };
    let token = parts.headers.get("x-token");
    let token = token.and_then(|token| Some(token.to_str().ok()?.to_owned()));
    let origin = (parts.uri.path(), token);
    let mut known = spans.lock().unwrap_or_else(PoisonError::into_inner);
    known.extend(read(message, &origin));
    if !is_grpc {
        return Response::new(Full::default().boxed_unsync());
    }
    // An empty message, and a status behind it.
    let trailers = async { Some(Ok(HeaderMap::from_iter([status()]))) };
    let body = Full::new(Bytes::from_static(&[0; PREFIX])).with_trailers(trailers);
    let mut response = Response::new(body.boxed_unsync());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn status() -> (hyper::header::HeaderName, HeaderValue) {
    let name = hyper::header::HeaderName::from_static("grpc-status");
    (name, HeaderValue::from_static("0"))
}

fn read(message: ExportTraceServiceRequest, origin: &(&str, Option<String>)) -> Vec<Reported> {
    let mut found = Vec::new();
    for group in message.resource_spans {
        let resource = texts(group.resource.map(|one| one.attributes).unwrap_or_default());
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
            found.push(Reported {
                resource: resource.clone(),
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                state: span.trace_state,
                name: span.name,
                kind: span.kind,
                status: span.status.map_or(0, |status| status.code),
                attributes: texts(span.attributes),
                nanoseconds: span.end_time_unix_nano - span.start_time_unix_nano,
                path: origin.0.to_owned(),
                token: origin.1.clone(),
            });
        }
    }
    found
}

fn texts(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let pairs = pairs.into_iter().filter_map(|pair| match pair.value? {
        AnyValue {
            value: Some(any_value::Value::StringValue(text)),
        } => Some((pair.key, text)),
        AnyValue { .. } => None,
    });
    pairs.collect()
}
