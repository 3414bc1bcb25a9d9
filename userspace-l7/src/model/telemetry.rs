//! What is recorded of requests: access logs, traces, and changes of the standard metrics (`MeshConfig` and
//! Istio's Telemetry API, merged).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::expression::CelExpression;
use super::service::NamespacedHostname;

/// What is recorded of requests to one service. The default records no log, samples one trace in a hundred
/// and changes no metric, as Istio does where nothing is configured.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Telemetry {
    /// Each writes a line of its own for a request that passes its filter.
    pub access_logs: Vec<AccessLog>,
    /// Traces.
    pub tracing: TracingSettings,
    /// Changes of Istio's metrics; at most one for each metric.
    pub metrics: Arc<[MetricOverride]>,
}

/// One access log.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AccessLog {
    /// What a line looks like.
    pub format: AccessLogFormat,
    /// Which requests are logged; `None`: all.
    pub filter: Option<CelExpression>,
}

/// The form of a line (`accessLogEncoding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AccessLogFormat {
    /// Istio's default text line.
    #[default]
    Text,
    /// A JSON object with the same facts.
    Json,
}

/// How requests are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingSettings {
    /// Of a million requests that belong to no trace yet, how many start a sampled one.
    pub sampled_per_million: u32,
    /// How a trace that starts here is told to the next hop. One that came in goes on in its own form.
    pub propagation: Propagation,
    /// Whether spans are exported; the context is passed on in any case (`disableSpanReporting`).
    pub is_reported: bool,
    /// Who collects spans; `None`: nobody.
    pub collector: Option<Arc<SpanCollector>>,
    /// Who spans are said to be from: `<waypoint>.<namespace>`.
    pub reporter: Arc<str>,
    /// Whether a trace that starts here is sampled by the digits of its `x-request-id` rather than by lot, so
    /// that all who see that request decide alike (`useRequestIdForTraceSampling`).
    pub by_request_id: bool,
    /// How many bytes of a path stand in `http.url`.
    pub longest_path: usize,
    /// Attributes of every span, besides the standard ones.
    pub tags: Vec<SpanTag>,
}

/// A collector of spans that speaks OTLP (`extensionProviders[].opentelemetry`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpanCollector {
    /// What the mesh's configuration calls it.
    pub provider: Arc<str>,
    /// Its service.
    pub service: NamespacedHostname,
    /// The service's port.
    pub port: u16,
    /// How spans are sent.
    pub transport: SpanTransport,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// What requests to it carry besides.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether spans carry the attributes of `OTEL_RESOURCE_ATTRIBUTES`, a variable of the agent's environment.
    pub detects_environment: bool,
}

/// How spans are sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SpanTransport {
    /// By gRPC over HTTP/2.
    Grpc,
    /// By HTTP/1.1, to this path.
    Http(Arc<str>),
}

/// Istio's default: one in a hundred.
const DEFAULT_SAMPLED_PER_MILLION: u32 = 10_000;
/// Istio's default of `maxTagLength`.
const DEFAULT_LONGEST_PATH: usize = 256;

impl Default for TracingSettings {
    fn default() -> Self {
        Self {
            sampled_per_million: DEFAULT_SAMPLED_PER_MILLION,
            propagation: Propagation::default(),
            is_reported: true,
            collector: None,
            reporter: "".into(),
            by_request_id: true,
            longest_path: DEFAULT_LONGEST_PATH,
            tags: Vec::new(),
        }
    }
}

/// The headers that carry a trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Propagation {
    /// `traceparent` and `tracestate`.
    #[default]
    W3c,
    /// `x-b3-traceid` and its kin: for meshes whose provider is Zipkin.
    B3,
}

/// An attribute of spans (`customTags`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanTag {
    /// Its name.
    pub name: Arc<str>,
    /// Its value.
    pub value: SpanTagValue,
}

/// Where the value of a tag is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanTagValue {
    /// Always the same: a literal, or a variable of the agent's environment as it was at compile time.
    Literal(Arc<str>),
    /// A request header.
    Header {
        /// Its name.
        name: HeaderName,
        /// What stands in for a header that is not there; `None`: no tag then.
        default: Option<Arc<str>>,
    },
}

/// One of Istio's HTTP metrics, by its name in the Telemetry API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpMetric {
    /// `REQUEST_COUNT`.
    RequestCount,
    /// `REQUEST_DURATION`.
    RequestDuration,
    /// `REQUEST_SIZE`.
    RequestSize,
    /// `RESPONSE_SIZE`.
    ResponseSize,
    /// `GRPC_REQUEST_MESSAGES`.
    GrpcRequestMessages,
    /// `GRPC_RESPONSE_MESSAGES`.
    GrpcResponseMessages,
}

/// A change of one metric (`metrics[].overrides`). `ALL_METRICS` is one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricOverride {
    /// Which metric.
    pub metric: HttpMetric,
    /// Not counted at all.
    pub is_disabled: bool,
    /// Labels that are left out.
    pub remove: Vec<Arc<str>>,
    /// Labels that are added, or get another value. Constants: a label's value never comes from a peer.
    pub set: Vec<(Arc<str>, Arc<str>)>,
}
