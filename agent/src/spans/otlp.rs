//! Spans as the OpenTelemetry protocol writes them. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as proto, ResourceSpans, ScopeSpans, Status};
use prost::Message as _;
use userspace_l7::telemetry::span::Span;

/// Bytes before a gRPC message: compressed or not, and its length.
pub(super) const PREFIX: usize = 5;

/// Attributes of whoever reports, read from `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs, separated by commas,
/// with percent signs for what is not ASCII (OpenTelemetry specification, "Resource SDK").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceAttributes(Vec<(String, String)>);

/// A text that holds no attributes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` has no `=`: write key=value pairs, separated by commas")]
pub struct InvalidAttribute(String);

impl std::str::FromStr for ResourceAttributes {
    type Err = InvalidAttribute;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pairs = text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty());
        let read = pairs.map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| InvalidAttribute(pair.to_owned()))?;
            Ok((key.trim().to_owned(), decoded(value.trim())))
        });
        Ok(Self(read.collect::<Result<_, _>>()?))
    }
}

/// Percent signs undone. `+` is itself here, unlike in a form, so the form's reader cannot do it.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = byte.filter(|_| first == b'%') {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The message that hands spans over, grouped by who reports them.
pub(super) fn request(spans: Vec<Span>, environment: Option<&ResourceAttributes>) -> Vec<u8> {
    let mut by_reporter = BTreeMap::<_, Vec<_>>::new();
    for span in spans {
        let reporter = by_reporter.entry(Arc::clone(&span.reporter)).or_default();
        reporter.push(written(span));
    }
    let resource_spans = by_reporter
        .into_iter()
        .map(|(reporter, spans)| ResourceSpans {
            resource: Some(resource(&reporter, environment)),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "culvert".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
    .encode_to_vec()
}

/// A message as gRPC frames it, uncompressed (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    // 512 spans are far from four gigabytes.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = Vec::with_capacity(PREFIX + message.len());
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

/// How many spans an answer says were refused; an answer that cannot be read refuses none.
pub(super) fn refused(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).ok();
    let partial = answer.and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| partial.rejected_spans.unsigned_abs())
}

fn resource(reporter: &str, environment: Option<&ResourceAttributes>) -> Resource {
    let own = [
        ("service.name", reporter),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.name", "culvert"),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    let detected = environment.iter().flat_map(|found| &found.0);
    // Of one name only: the name of the service is what the mesh calls it.
    let detected = detected
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, _)| own.iter().all(|(known, _)| known != key));
    Resource {
        attributes: own
            .into_iter()
            .chain(detected)
            .map(|(key, value)| attribute(key, value.to_owned()))
            .collect(),
        ..Resource::default()
    }
}

fn written(span: Span) -> proto::Span {
    let end = span.start + span.duration;
    let parent = span.context.parent_id();
    let code = if span.is_error {
        StatusCode::Error
    } else {
        StatusCode::Unset
    };
    proto::Span {
        trace_id: span.context.trace_id().to_vec(),
        span_id: span.context.span_id().to_vec(),
        trace_state: span.trace_state,
        parent_span_id: parent.map(Vec::from).unwrap_or_default(),
        name: span.name,
        kind: SpanKind::Server.into(),
        start_time_unix_nano: nanoseconds(span.start),
        end_time_unix_nano: nanoseconds(end),
        attributes: span
            .attributes
            .into_iter()
            .map(|(key, value)| attribute(&key, value))
            .collect(),
        status: Some(Status {
            code: code.into(),
            ..Status::default()
        }),
        ..proto::Span::default()
    }
}

fn attribute(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value)),
        }),
        ..KeyValue::default()
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{ResourceAttributes, framed, refused};

    #[test]
    fn attributes_of_the_environment_are_read_as_opentelemetry_writes_them() {
        let read = |text: &str| text.parse::<ResourceAttributes>();
        let pairs = [("k8s.cluster.name", "a,b+c"), ("empty", "")];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(
            read("k8s.cluster.name=a%2Cb+c, empty= ,"),
            Ok(ResourceAttributes(pairs.into()))
        );
        assert_eq!(read(""), Ok(ResourceAttributes::default()));
        assert_eq!(
            read("a=b,c").unwrap_err().to_string(),
            "`c` has no `=`: write key=value pairs, separated by commas"
        );
    }

    #[test]
    fn messages_are_framed_and_refusals_counted() {
        assert_eq!(framed(b"abc"), [0, 0, 0, 0, 3, b'a', b'b', b'c']);
        assert_eq!(refused(b""), 0);
        // partial_success { rejected_spans: 3 }, and something that is no message.
        assert_eq!(refused(&[0x0a, 2, 0x08, 3]), 3);
        assert_eq!(refused(b"\xff\xff"), 0);
    }
}
