//! An external authorizer as users run one: it is asked over HTTP or over gRPC (Envoy's
//! `envoy.service.auth.v3.Authorization/Check`), on the same port, and decides by a header of the request.
//!
//! | `x-ext-authz` | answer |
//! |---|---|
//! | `allow` | lets pass; upstream gets `x-user: alice` and loses `x-secret`, the client gets `x-decided: yes` |
//! | `login` | 302 to `/login`, with a cookie; gRPC: 401 |
//! | `error` | 503; gRPC: status 14 |
//! | anything else, or nothing | 403 with a reason |

mod wire;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use prost::Message as _;

use crate::lab::Pod;
use crate::net::service::Service;
use wire::{CheckRequest, CheckResponse};

/// A running authorizer; dropping it closes its port.
pub struct Authorizer {
    _service: Service,
    heard: Arc<Mutex<Vec<Question>>>,
}

/// What it was asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Whether it was asked over gRPC.
    pub is_grpc: bool,
    /// Method of the request that it was asked about.
    pub method: String,
    /// Its path with its query, behind the prefix over HTTP.
    pub path: String,
    /// Its host.
    pub host: String,
    /// Its headers, as far as they were told.
    pub headers: Vec<(String, String)>,
    /// Its body, as far as it was shown.
    pub body: String,
    /// Over gRPC: what of it was shown as bytes.
    pub raw_body: Vec<u8>,
    /// Over gRPC: who called.
    pub source: String,
    /// Over gRPC: who was called.
    pub destination: String,
}

impl Question {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Authorizer {
    /// Serves on a port of a pod.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = Arc::clone(&heard);
        let service = Service::start(pod, &[port], move |_, request| {
            let hearing = Arc::clone(&hearing);
            async move { answer(&hearing, request).await }
        })?;
        Ok(Self {
            _service: service,
            heard,
        })
    }

    /// What it has been asked since this was asked for the last time.
    pub fn heard(&self) -> Vec<Question> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *heard)
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    heard: &Mutex<Vec<Question>>,
    request: Request<Incoming>,
) -> hyper::http::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    // A question that breaks off is as good as an empty one: nobody waits for its answer.
    let body = body.collect().await;
    let body = body
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let kind = parts.headers.get(CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind == "application/grpc");
    let question = if is_grpc {
        let message = body
            .get(5..)
            .and_then(|message| CheckRequest::decode(message).ok());
        question_of(message.unwrap_or_default())
    } else {
        Question {
            method: parts.method.to_string(),
            path: parts
                .uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            host: parts
                .uri
                .authority()
                .map_or_else(|| text(&parts.headers, "host"), ToString::to_string),
            headers: pairs(&parts.headers),
            body: String::from_utf8_lossy(&body).into_owned(),
            ..Question::default()
        }
    };
    let wish = question
        .header("x-ext-authz")
        .unwrap_or_default()
        .to_owned();
    heard
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(question);
    if is_grpc { grpc(&wish) } else { http(&wish) }
}

fn question_of(asked: CheckRequest) -> Question {
    let attributes = asked.attributes.unwrap_or_default();
    let http = attributes
        .request
        .unwrap_or_default()
        .http
        .unwrap_or_default();
    let principal = |peer: Option<wire::Peer>| peer.unwrap_or_default().principal;
    let raw = String::from_utf8_lossy(&http.raw_body).into_owned();
    Question {
        is_grpc: true,
        method: http.method,
        path: http.path,
        host: http.host,
        headers: http.headers.into_iter().collect(),
        body: http.body + &raw,
        raw_body: http.raw_body,
        source: principal(attributes.source),
        destination: principal(attributes.destination),
    }
}

fn http(wish: &str) -> hyper::http::Result<Response<Body>> {
    let builder = Response::builder();
    let (builder, body) = match wish {
        "allow" => (
            builder
                .header("x-user", "alice")
                .header("x-decided", "yes")
                .header("x-hidden", "1")
                .header("x-envoy-auth-headers-to-remove", "x-secret"),
            "",
        ),
        "login" => (
            builder
                .status(302)
                .header("location", "/login")
                .header("set-cookie", "state=1"),
            "log in first",
        ),
        "error" => (builder.status(503), "out of order"),
        _ => (
            builder.status(403).header("x-reason", "no pass"),
            "denied by the authorizer",
        ),
    };
    let body = Full::new(Bytes::from_static(body.as_bytes())).boxed_unsync();
    builder.body(body)
}

fn grpc(wish: &str) -> hyper::http::Result<Response<Body>> {
    let status = if wish == "error" { "14" } else { "0" };
    let message = match wish {
        "allow" => CheckResponse::allows(
            &[("x-user", "alice")],
            &["x-secret"],
            &[("x-decided", "yes")],
        ),
        "query" => CheckResponse::changes_query(&[("user", "alice")], &["with"]),
        "login" => CheckResponse::denies(401, &[("set-cookie", "state=1")], "log in first"),
        _ => CheckResponse::denies(0, &[("x-reason", "no pass")], "denied by the authorizer"),
    };
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(
        u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    framed.extend(message);
    let mut trailers = HeaderMap::new();
    if let Ok(status) = status.parse() {
        trailers.insert("grpc-status", status);
    }
    let body = Full::new(Bytes::from(framed)).with_trailers(std::future::ready(Some(Ok(trailers))));
    let builder = Response::builder().header(CONTENT_TYPE, "application/grpc");
    builder.body(body.boxed_unsync())
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect()
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).map(HeaderValue::as_bytes);
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}
