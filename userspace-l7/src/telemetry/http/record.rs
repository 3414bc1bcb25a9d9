//! What a request came to, as a line of the access log: Envoy's default text and its JSON keys, in Envoy's
//! order. A value never ends its line or passes for another field, whoever sent it.

use std::fmt::{self, Write as _};
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderMap, Method, Uri, Version};
use jiff::Timestamp;
use serde::Serialize;

use super::{RequestEnd, RequestFlow, Upstream};
use crate::model::{AccessLogFormat, Telemetry};

/// What the log needs of a request's head.
#[derive(Clone, Debug)]
pub(super) struct LoggedHead {
    pub(super) start: Timestamp,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
}

impl LoggedHead {
    /// `None` if nobody logs: then nothing is copied.
    pub(super) fn new(telemetry: &Telemetry, head: &http::request::Parts) -> Option<Box<Self>> {
        let is_logged = !telemetry.access_logs.is_empty();
        is_logged.then(|| Box::new(Self::of(head)))
    }

    pub(super) fn of(head: &http::request::Parts) -> Self {
        Self {
            start: Timestamp::now(),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            headers: head.headers.clone(),
        }
    }

    /// Path and query as they were received.
    pub(super) fn path(&self) -> &str {
        self.uri
            .path_and_query()
            .map_or_else(|| self.uri.path(), |found| found.as_str())
    }

    /// `:authority`, or `Host`.
    pub(super) fn authority(&self) -> Option<&str> {
        let authority = self.uri.authority().map(http::uri::Authority::as_str);
        authority.or_else(|| self.header(HOST.as_str()))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// As Envoy writes it.
    pub(super) fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        }
    }
}

/// A request from its head to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished<'a> {
    pub(super) flow: &'a RequestFlow,
    pub(super) head: &'a LoggedHead,
    pub(super) end: &'a RequestEnd<'a>,
    pub(super) duration: Duration,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
}

impl Finished<'_> {
    /// The line, without its end.
    pub(super) fn line(&self, format: AccessLogFormat) -> String {
        let record = Record::of(self);
        match format {
            AccessLogFormat::Text => record.to_string(),
            // Texts and numbers: there is nothing in it that JSON cannot say.
            AccessLogFormat::Json => serde_json::to_string(&record).unwrap_or_default(),
        }
    }
}

/// The name that Istio's waypoints give the cluster behind a service port.
pub(super) fn cluster_name(upstream: &Upstream<'_>) -> String {
    format!(
        "inbound-vip|{}|http|{}",
        upstream.port, upstream.backend.hostname
    )
}

#[derive(Serialize)]
struct Record<'a> {
    start_time: String,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    response_code: u16,
    response_flags: String,
    response_code_details: Option<&'a str>,
    /// A connection's end is never a request's cause here; the key stands for those who look for it.
    connection_termination_details: Option<&'a str>,
    upstream_transport_failure_reason: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    upstream_service_time: Option<String>,
    x_forwarded_for: Option<&'a str>,
    user_agent: Option<&'a str>,
    request_id: Option<&'a str>,
    authority: Option<&'a str>,
    upstream_host: Option<String>,
    upstream_cluster: Option<String>,
    upstream_local_address: Option<String>,
    downstream_local_address: String,
    downstream_remote_address: String,
    /// Clients speak plain HTTP to us: there is no TLS of theirs that could name a server.
    requested_server_name: Option<&'a str>,
    route_name: Option<&'a str>,
}

impl<'a> Record<'a> {
    fn of(request: &Finished<'a>) -> Self {
        let (head, end) = (request.head, request.end);
        let upstream = end.upstream.as_ref();
        Self {
            start_time: format!("{:.3}", head.start),
            method: head.method.as_str(),
            path: head.path(),
            protocol: head.protocol(),
            response_code: end.status.map_or(0, |status| status.as_u16()),
            response_flags: end.flags.to_string(),
            response_code_details: end.details,
            connection_termination_details: None,
            upstream_transport_failure_reason: end.failure,
            bytes_received: request.request_bytes,
            bytes_sent: request.response_bytes,
            duration: milliseconds(request.duration),
            upstream_service_time: upstream
                .and_then(|found| found.time)
                .map(|time| milliseconds(time).to_string()),
            x_forwarded_for: head.header("x-forwarded-for"),
            user_agent: head.header(USER_AGENT.as_str()),
            request_id: head.header("x-request-id"),
            authority: head.authority(),
            upstream_host: upstream.map(|found| found.host.to_string()),
            upstream_cluster: upstream.map(cluster_name),
            upstream_local_address: upstream
                .and_then(|found| found.local)
                .map(|local| local.to_string()),
            downstream_local_address: request.flow.client.dialled.to_string(),
            downstream_remote_address: request.flow.client.address.to_string(),
            requested_server_name: None,
            route_name: end.route_name,
        }
    }
}

/// Envoy's default line, as Istio sets it.
impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[{}] \"{} {} {}\" {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
            self.start_time,
            Escaped(self.method),
            Escaped(self.path),
            self.protocol,
            self.response_code,
            self.response_flags,
            Bare(self.response_code_details),
            Bare(self.connection_termination_details),
            Quoted(self.upstream_transport_failure_reason),
            self.bytes_received,
            self.bytes_sent,
            self.duration,
            Bare(self.upstream_service_time.as_deref()),
            Quoted(self.x_forwarded_for),
            Quoted(self.user_agent),
            Quoted(self.request_id),
            Quoted(self.authority),
            Quoted(self.upstream_host.as_deref()),
            Bare(self.upstream_cluster.as_deref()),
            Bare(self.upstream_local_address.as_deref()),
            self.downstream_local_address,
            self.downstream_remote_address,
            Bare(self.requested_server_name),
            Bare(self.route_name),
        )
    }
}

/// In quotes, `"-"` without a value.
struct Quoted<'a>(Option<&'a str>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", Escaped(self.0.unwrap_or("-")))
    }
}

/// Without quotes, so spaces would make two fields of it: `_` stands for them.
struct Bare<'a>(Option<&'a str>);

impl fmt::Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0.filter(|text| !text.is_empty()).unwrap_or("-");
        value.chars().try_for_each(|c| {
            let is_break = c.is_whitespace() || c.is_control();
            f.write_char(if is_break { '_' } else { c })
        })
    }
}

/// Within quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '"' | '\\' => write!(f, "\\{c}"),
            _ if c.is_control() => write!(f, "{}", c.escape_default()),
            _ => f.write_char(c),
        })
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
