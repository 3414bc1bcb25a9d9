//! One collector's spans: gathered for a moment, sent together, one request at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::{Method, StatusCode, Uri};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};
use userspace_l7::model::{SpanCollector, SpanTransport};
use userspace_l7::telemetry::span::{Lost, Span, SpanCounts};

use super::otlp::{self, ResourceAttributes};
use crate::fetch::{Answer, Ask, Client, FetchError, To, Version};
use crate::sentence::sentence;

/// The most spans in one request: the batch processor's default of OpenTelemetry's SDKs.
const BATCH: usize = 512;

/// How long the first span of a batch waits for others. Envoy waits five times as long.
const GATHER: Duration = Duration::from_secs(1);

/// A lane without spans ends after so long, and is made anew when there are some.
const IDLE: Duration = Duration::from_secs(5 * 60);

/// Answers say what was refused, at most.
const MOST_BYTES: usize = 64 * 1024;

/// gRPC's method of the OTLP trace service (OTLP specification, "OTLP/gRPC").
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

pub(super) struct Lane {
    pub(super) client: Client,
    pub(super) counts: SpanCounts,
    pub(super) environment: ResourceAttributes,
    pub(super) collector: Arc<SpanCollector>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("it answers with the gRPC status {0}")]
    Grpc(String),
}

impl Lane {
    /// Sends until the spans' sender is gone, or there were none for long.
    pub(super) async fn run(self, mut spans: mpsc::Receiver<Span>) {
        let mut complaint = None;
        let mut batch = Vec::new();
        loop {
            match timeout(IDLE, spans.recv()).await {
                Ok(Some(first)) => batch.push(first),
                Ok(None) | Err(_) => return,
            }
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH
                && let Ok(Some(span)) = timeout_at(until, spans.recv()).await
            {
                batch.push(span);
            }
            let sent = batch.len() as u64;
            match self.export(std::mem::take(&mut batch)).await {
                Ok(refused) => {
                    self.counts.exported(sent.saturating_sub(refused));
                    if refused > 0 {
                        self.counts.dropped(Lost::Refused, refused);
                    }
                    complaint = None;
                }
                Err(error) => {
                    let why = match error {
                        ExportError::Fetch(_) => Lost::Unreachable,
                        ExportError::Status(_) | ExportError::Grpc(_) => Lost::Refused,
                    };
                    self.counts.dropped(why, sent);
                    let error = sentence(&error);
                    let provider = &self.collector.provider;
                    if complaint.as_ref() == Some(&error) {
                        debug!(%provider, %error, spans = sent, "spans are lost");
                    } else {
                        warn!(%provider, %error, spans = sent, "spans are lost: the collector does not take them");
                    }
                    complaint = Some(error);
                }
            }
        }
    }

    /// Sends a batch. How many spans of it the collector refused.
    async fn export(&self, spans: Vec<Span>) -> Result<u64, ExportError> {
        let collector = &self.collector;
        let environment = collector.detects_environment.then_some(&self.environment);
        let message = otlp::request(spans, environment);
        let to = To::Service(&collector.service, collector.port);
        let answer = self
            .client
            .send(to, self.ask(message)?, collector.timeout)
            .await?;
        if answer.status != StatusCode::OK {
            return Err(ExportError::Status(answer.status));
        }
        match collector.transport {
            SpanTransport::Http(_) => Ok(otlp::refused(&answer.body)),
            SpanTransport::Grpc => {
                let status = grpc_status(&answer);
                if status == "0" {
                    Ok(otlp::refused(
                        answer.body.get(otlp::PREFIX..).unwrap_or_default(),
                    ))
                } else {
                    Err(ExportError::Grpc(status))
                }
            }
        }
    }

    fn ask(&self, message: Vec<u8>) -> Result<Ask, FetchError> {
        let collector = &self.collector;
        let mut headers: HeaderMap = collector.headers.iter().cloned().collect();
        let (version, path, kind, body) = match &collector.transport {
            SpanTransport::Http(path) => (
                Version::Http1,
                &**path,
                HeaderValue::from_static("application/x-protobuf"),
                message,
            ),
            SpanTransport::Grpc => {
                headers.insert(TE, HeaderValue::from_static("trailers"));
                (
                    Version::Http2,
                    EXPORT,
                    HeaderValue::from_static("application/grpc"),
                    otlp::framed(&message),
                )
            }
        };
        headers.insert(CONTENT_TYPE, kind);
        let host = &collector.service.hostname;
        let url = format!("http://{host}:{}{path}", collector.port);
        Ok(Ask {
            version,
            method: Method::POST,
            url: url
                .parse::<Uri>()
                .map_err(|_invalid| FetchError::Url(url))?,
            headers,
            body: Bytes::from(body),
            most_bytes: MOST_BYTES,
        })
    }
}

/// In the trailers, or in the header of an answer without a body (gRPC over HTTP/2, "Trailers-Only").
fn grpc_status(answer: &Answer) -> String {
    let status = answer.trailers.get("grpc-status");
    let status = status.or_else(|| answer.headers.get("grpc-status"));
    let status = status.and_then(|status| status.to_str().ok());
    status.unwrap_or("unknown").to_owned()
}
