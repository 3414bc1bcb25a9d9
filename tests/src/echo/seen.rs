//! What an echo workload saw of a request, as it travels back to the scenario.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use hyper::header::HeaderMap;
use hyper::http::request::Parts;
use serde::{Deserialize, Serialize};

use crate::net::http::Response;
use crate::net::service::{Ends, TlsEnds};

/// Longest part of a body that is told back.
const MAX_BODY_TOLD: usize = 4096;

/// One request, seen from the application.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Seen {
    /// Name of the pod that answered.
    pub pod: String,
    /// Its label `version`.
    pub version: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// Method.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// `:authority` or `Host`.
    pub host: String,
    /// All headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Who the connection is from, as the kernel says.
    pub peer: SocketAddr,
    /// What it was accepted on.
    pub local: SocketAddr,
    /// The header of the PROXY protocol that came first.
    pub proxied: Option<String>,
    /// The TLS that it came in.
    pub tls: Option<SeenTls>,
    /// Bytes of the body.
    pub length: usize,
    /// The body's beginning.
    pub body: String,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
}

/// The TLS of a connection, seen from the application.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SeenTls {
    /// The server's name that was asked for.
    pub server_name: Option<String>,
    /// The protocol that was agreed on.
    pub alpn: Option<String>,
    /// Whether the client has shown a certificate.
    pub has_certificate: bool,
}

impl SeenTls {
    fn of(ends: &TlsEnds) -> Self {
        Self {
            server_name: ends.server_name.clone(),
            alpn: ends.alpn.clone(),
            has_certificate: ends.has_certificate,
        }
    }
}

impl Seen {
    pub(super) fn of(
        (pod, version): (&str, &str),
        ends: &Ends,
        parts: &Parts,
        (body, trailers): (&[u8], &HeaderMap),
    ) -> Self {
        let authority = parts.uri.authority().map(ToString::to_string);
        let host = parts.headers.get("host").map(text);
        let path = parts.uri.path_and_query().map(ToString::to_string);
        Self {
            pod: pod.to_owned(),
            version: version.to_owned(),
            protocol: format!("{:?}", parts.version),
            method: parts.method.to_string(),
            path: path.unwrap_or_default(),
            host: authority.or(host).unwrap_or_default(),
            headers: pairs(&parts.headers),
            peer: ends.peer,
            local: ends.local,
            proxied: ends.proxied.clone(),
            tls: ends.tls.as_ref().map(SeenTls::of),
            length: body.len(),
            body: String::from_utf8_lossy(&body[..body.len().min(MAX_BODY_TOLD)]).into_owned(),
            trailers: pairs(trailers),
        }
    }

    /// Reads it from an answer.
    ///
    /// # Errors
    /// If the answer is not an echo workload's.
    pub fn in_answer(answer: &Response) -> Result<Self> {
        let body = match answer.header("content-type") {
            // A flag and a length stand before a gRPC message.
            Some(kind) if kind.starts_with("application/grpc") => answer.body.get(5..),
            _ => Some(answer.body.as_slice()),
        };
        serde_json::from_slice(body.unwrap_or_default()).with_context(|| {
            let (status, text) = (answer.status, answer.text());
            format!("this is not an echo: {status} {:?} {text}", answer.headers)
        })
    }

    /// A header's values, joined by commas as RFC 9110 §5.3 allows; `None` if there is none.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    }
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

fn text(value: &hyper::header::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
