//! What each server answers to which path.

use std::fmt::Write as _;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, Response, StatusCode, Uri};
use prometheus_client::encoding::text::encode;
use tracing::{error, info};

use super::config_dump::{self, Sources};
use super::explain::Question;
use super::logging::LevelRequest;
use super::server::Services;
use super::{AdminState, SOCKET, layer7_dump, metrics};

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// The servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// Shows, and changes.
    Administration,
    /// Only shows: whoever is on the node's network may ask it, and what changes the agent is asked for over its socket.
    Showing,
    Metrics,
    Readiness,
}

/// The paths that exist, over all servers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Index,
    ConfigDump,
    Explain,
    Layer7,
    Objects,
    Status,
    Logging,
    Quit,
    Unenrol,
    Metrics,
    Ready,
}

impl Page {
    fn find(server: Server, path: &str) -> Option<Self> {
        let server = match server {
            Server::Showing => Server::Administration,
            other => other,
        };
        match (server, path) {
            (Server::Administration, "/") => Some(Self::Index),
            (Server::Administration, "/config_dump") => Some(Self::ConfigDump),
            (Server::Administration, "/explain") => Some(Self::Explain),
            (Server::Administration, "/layer7") => Some(Self::Layer7),
            (Server::Administration, "/objects") => Some(Self::Objects),
            (Server::Administration, "/status") => Some(Self::Status),
            (Server::Administration, "/logging") => Some(Self::Logging),
            (Server::Administration, "/quitquitquit") => Some(Self::Quit),
            (Server::Administration, "/unenrol") => Some(Self::Unenrol),
            (Server::Metrics, "/metrics" | "/stats/prometheus") => Some(Self::Metrics),
            (Server::Readiness, "/healthz/ready") => Some(Self::Ready),
            (Server::Administration | Server::Showing | Server::Metrics | Server::Readiness, _) => {
                None
            }
        }
    }

    fn changes(self) -> bool {
        self.command().is_some()
    }

    /// Who changes the agent over its socket.
    fn command(self) -> Option<&'static str> {
        match self {
            Self::Logging => Some("culvert log"),
            Self::Quit => Some("culvert stop"),
            Self::Unenrol => Some("culvert stop --unenrol"),
            _ => None,
        }
    }
}

/// Answers one request. Request bodies are never read.
pub(super) async fn answer(
    server: Server,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    services: &Services,
) -> Answer {
    let Some(page) = Page::find(server, uri.path()) else {
        return text(StatusCode::NOT_FOUND, "not found\n");
    };
    let allowed = if page.changes() {
        method == Method::POST
    } else {
        is_read(method)
    };
    if !allowed {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        let allow = if page.changes() { "POST" } else { "GET, HEAD" };
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allow));
        return answer;
    }
    // A browser names the page that a POST comes from; no page of ours sends any. Without this a web site
    // open on the node (or through a port-forward) could stop the agent.
    if page.changes() && headers.contains_key(ORIGIN) {
        return text(
            StatusCode::FORBIDDEN,
            "requests from web pages are refused\n",
        );
    }
    if let (Server::Showing, Some(command)) = (server, page.command()) {
        let why = format!(
            "only root changes the agent, over {SOCKET} in its run directory: use `{command}` where that is\n"
        );
        return text(StatusCode::FORBIDDEN, why);
    }
    match page {
        Page::Index => respond(StatusCode::OK, HTML, INDEX),
        Page::ConfigDump => config_dump(&*services.state).await,
        Page::Explain => explain(&*services.state, uri.query()),
        Page::Layer7 => json(
            StatusCode::OK,
            &layer7_dump::dump(&services.state.snapshot()),
        ),
        Page::Objects => json(StatusCode::OK, &services.state.objects()[..]),
        Page::Status => json(StatusCode::OK, &services.state.status()),
        Page::Logging => logging(uri.query(), services),
        Page::Quit => {
            info!("stop requested by an administrator");
            services.state.shut_down();
            text(StatusCode::OK, "shutdown now\n")
        }
        Page::Unenrol => unenrol(&*services.state).await,
        Page::Metrics => exposition(headers, services),
        Page::Ready => readiness(&services.state.status().pending),
    }
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

async fn config_dump(state: &dyn AdminState) -> Answer {
    let sources = Sources {
        connections: state.connections().await,
        snapshot: state.snapshot(),
        certificates: state.certificates(),
        pods: state.status().pods,
        config: state.config(),
    };
    // A large mesh takes a second to write: other requests, and the control plane, go on meanwhile.
    match tokio::task::spawn_blocking(move || config_dump::write(&sources)).await {
        Ok(Ok(body)) => respond(StatusCode::OK, JSON, body),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn explain(state: &dyn AdminState, query: Option<&str>) -> Answer {
    let explained = Question::from_query(query.unwrap_or_default()).and_then(|question| {
        let (snapshot, keys) = (state.snapshot(), state.key_sets());
        super::explain::explain((&snapshot, &keys), &state.status().pods, &question)
    });
    match explained {
        Ok(explanation) => json(StatusCode::OK, &explanation),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

async fn unenrol(state: &dyn AdminState) -> Answer {
    info!("removal requested by an administrator");
    let released = state.unenrol().await;
    let complete = released.failures.is_empty();
    json(
        if complete {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        },
        &released,
    )
}

fn logging(query: Option<&str>, services: &Services) -> Answer {
    let request = LevelRequest::from_query(query.unwrap_or_default());
    match services.log.apply(&request) {
        Ok(level) => text(StatusCode::OK, format!("current log level is {level}\n")),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn exposition(headers: &HeaderMap, services: &Services) -> Answer {
    let mut body = String::new();
    if let Err(error) = encode(&mut body, &services.registry) {
        return failed(&error);
    }
    let accept = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    if accept
        .into_iter()
        .any(|value| value.contains("application/openmetrics-text"))
    {
        respond(StatusCode::OK, OPEN_METRICS, body)
    } else {
        respond(StatusCode::OK, PROMETHEUS, metrics::prometheus_text(&body))
    }
}

fn readiness(pending: &[String]) -> Answer {
    if pending.is_empty() {
        text(StatusCode::OK, "ready\n")
    } else {
        let mut body = String::from("not ready, pending: ");
        for (index, task) in pending.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            // Writing to a String cannot fail.
            let _infallible = write!(body, "{separator}{task}");
        }
        body.push('\n');
        text(StatusCode::INTERNAL_SERVER_ERROR, body)
    }
}

fn json<T: serde::Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => respond(status, JSON, body),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Answer {
    error!(%error, "admin page cannot be written");
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the page cannot be written; the agent's log says why\n",
    )
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    respond(status, TEXT, body)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

const INDEX: &str = "<!DOCTYPE html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Culvert agent</title>
<h1>Culvert agent</h1>
<ul>
<li><a href=\"/config_dump\">/config_dump</a>: workloads, services, policies, certificates, connections
<li>/explain?from=NAMESPACE/POD&amp;to=HOST:PORT: what would become of a request, and why; also method=, path=, header=
<li><a href=\"/layer7\">/layer7</a>: listeners, routes, backends of services with a waypoint
<li><a href=\"/objects\">/objects</a>: status of each object, as it would stand in a cluster
<li><a href=\"/status\">/status</a>: pods, problems, repairs
<li>POST /logging: show the log level; ?level=LEVEL or ?level=TARGET=LEVEL,... changes it, ?reset restores it
<li>POST /quitquitquit: stop; pods stay captured for the next agent
<li>POST /unenrol: release every pod, remove everything from the kernel, stop
</ul>
<p>An agent takes the three POST requests over admin.sock in its run directory only, from root: culvert log, culvert stop.
<p>Metrics are on port 15020 (/metrics), readiness on port 15021 (/healthz/ready).
</html>
";
