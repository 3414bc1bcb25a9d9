//! What would become of a connection or request, and why: the compiled mesh is walked through the same pure
//! functions as the data path. Nothing is sent. Where the data path draws lots, every outcome is listed.
//!
//! ```text
//!  Question ─▶ address (who, whither) ─▶ routing (waypoint, rule, backends) ─▶ limits ─▶ judgement (policies) ─▶ Explanation
//! ```

mod address;
mod judgement;
mod limits;
mod routing;
#[cfg(test)]
mod tests;
mod wording;

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::{RequestHead, Snapshot, Workload};
use userspace_l7::policy::path;

use super::PodStatus;

pub(super) use wording::{matched, protocol};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `<namespace>/<pod or service account>`.
    pub from: String,
    /// `<host or address>:<port>`.
    pub to: String,
    /// Method of the request.
    pub method: Method,
    /// Path and query of the request.
    pub target: String,
    /// Header fields of the request.
    pub headers: HeaderMap,
}

/// A question that has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// `from` has another form.
    #[error("`{0}` does not say who asks: write <namespace>/<pod or service account>")]
    From(String),
    /// Nobody is called that.
    #[error(
        "the mesh knows no pod and no service account `{name}` in namespace `{namespace}`: see `culvert get workloads`"
    )]
    NoClient {
        /// Where it was looked for.
        namespace: String,
        /// What was looked for.
        name: String,
    },
    /// `to` has another form.
    #[error("`{0}` does not say whither: write <host or address>:<port>")]
    To(String),
    /// No service has that name.
    #[error("no service is called `{0}` in the mesh: see `culvert get services -o wide`")]
    NoService(String),
    /// The service has neither an address nor an endpoint.
    #[error("`{0}` has no address of its own and no endpoint, so its name resolves to nothing")]
    NoAddress(String),
    /// The method cannot be one.
    #[error("`{0}` is no method")]
    Method(String),
    /// A header cannot be one.
    #[error("`{0}` is no header: write <name>:<value>")]
    Header(String),
    /// The path cannot be one.
    #[error("`{0}` is no path: it begins with a slash and holds neither blanks nor fragments")]
    Target(String),
}

impl Question {
    /// Reads the query of `GET /explain`: `from`, `to`, `method`, `path`, and `header` any number of times.
    ///
    /// # Errors
    /// [`Unanswerable`] for the first part that cannot be read.
    pub fn from_query(query: &str) -> Result<Self, Unanswerable> {
        let mut question = Self {
            from: String::new(),
            to: String::new(),
            method: Method::GET,
            target: "/".to_owned(),
            headers: HeaderMap::new(),
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "from" => question.from = value.into_owned(),
                "to" => question.to = value.into_owned(),
                "method" => {
                    question.method = value
                        .parse()
                        .map_err(|_no_token| Unanswerable::Method(value.into_owned()))?;
                }
                "path" => question.target = value.into_owned(),
                "header" => question.add_header(&value)?,
                _ => {}
            }
        }
        let target = &question.target;
        let is_plain = target.starts_with('/')
            && !target.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
        if is_plain {
            Ok(question)
        } else {
            Err(Unanswerable::Target(question.target))
        }
    }

    fn add_header(&mut self, line: &str) -> Result<(), Unanswerable> {
        let read = || {
            let (name, value) = line.split_once(':')?;
            let name: HeaderName = name.trim().parse().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        };
        let (name, value) = read().ok_or_else(|| Unanswerable::Header(line.to_owned()))?;
        let _more = self.headers.append(name, value);
        Ok(())
    }
}

/// The whole decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who asks.
    pub client: ClientStep,
    /// Whither.
    pub destination: DestinationStep,
    /// Whether layer 7 takes part.
    pub waypoint: WaypointStep,
    /// What the routes say; `None` where there is no layer 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteStep>,
    /// Limits on requests of the port that was called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitStep>,
    /// Who may answer.
    pub backends: Vec<BackendStep>,
    /// Every policy that has a say.
    pub policies: Vec<PolicyStep>,
    /// What the client will see.
    pub expected: Expectation,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStep {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// Node that it runs on.
    pub node: String,
    /// What it proves to be.
    pub identity: String,
    /// Its address.
    pub address: String,
    /// Whether its connections are captured, in a sentence.
    pub capture: String,
}

/// Whither.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStep {
    /// As it was asked.
    pub asked: String,
    /// What is dialled.
    pub address: String,
    /// `<namespace>/<hostname>` of the service behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What stands behind the address, in a sentence.
    pub meaning: String,
}

/// Whether layer 7 takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaypointStep {
    /// `<namespace>/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `http`, `http2`, `tcp`, `tls` or `detect`: what the port speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Why, in a sentence.
    pub why: String,
}

/// What the routes say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStep {
    /// `<kind> <namespace>/<name>`; `None` if no route is attached or none matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The rule's name, as the access log has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The match that took it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<String>,
    /// What the rule does besides forwarding, one sentence each.
    pub filters: Vec<String>,
    /// What follows, in a sentence.
    pub outcome: String,
}

/// One limit of a RateLimitPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitStep {
    /// `<namespace>/<name>[<index>]` of the policy and the place in it.
    pub name: String,
    /// Who counts: `client's node`, or `<namespace>/<hostname>:<port>` of a rate limit service.
    pub kept_by: String,
    /// What tells the request's bucket from others: `client_identity=spiffe://…, path=/x`, or `all requests`.
    pub bucket: String,
    /// What the request would cost, in a sentence.
    pub cost: String,
    /// Whether it falls under this limit.
    pub applies: bool,
    /// Whether the limit lets no request pass at all.
    pub never_passes: bool,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStep {
    /// `<namespace>/<hostname>`, an address, or what is wrong with it.
    pub name: String,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its weight; `None` where there is no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its share of the requests, in percent with one decimal: `90.0`.
    pub share: String,
    /// Its endpoints, all of them.
    pub endpoints: Vec<EndpointStep>,
}

/// One endpoint of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStep {
    /// `<namespace>/<pod>`; empty for what the mesh does not know.
    pub workload: String,
    /// Node that it runs on.
    pub node: String,
    /// Address and port.
    pub address: String,
    /// `Healthy` or `Unhealthy`.
    pub health: String,
    /// `HBONE`, `TCP`, or `DIRECT` for what goes from pod to pod of this node without the proxy.
    pub carriage: String,
    /// Whether requests go there.
    pub takes_requests: bool,
    /// What the L4 policies of the workload say: `allowed`, or the reason against it.
    pub verdict: String,
}

/// What one policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStep {
    /// `<namespace>/<name>`.
    pub name: String,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`.
    pub action: String,
    /// `L4` or `L7`.
    pub layer: String,
    /// Where it is enforced: `<node>`, or `client's node`.
    pub at: String,
    /// `matches rule 0`, `does not match`; with `(dry run)` where it is only watched.
    pub verdict: String,
    /// Whether it decides: an ALLOW that matches, or a DENY that matches.
    pub is_match: bool,
}

/// What the client will see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// HTTP status of an answer by the mesh; `None`: the application answers, or there is no HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Whether the application gets it, at least for a share.
    pub is_delivered: bool,
    /// In a sentence.
    pub why: String,
}

impl Expectation {
    fn delivered(why: impl Into<String>) -> Self {
        Self {
            status: None,
            is_delivered: true,
            why: why.into(),
        }
    }

    fn answered(status: StatusCode, why: impl Into<String>) -> Self {
        Self {
            status: Some(status.as_u16()),
            is_delivered: false,
            why: why.into(),
        }
    }

    fn refused(why: impl Into<String>) -> Self {
        Self {
            status: None,
            is_delivered: false,
            why: why.into(),
        }
    }
}

/// The client, and what it asks for, once names are resolved.
struct Inquiry<'a> {
    snapshot: &'a Snapshot,
    /// This node's.
    pods: &'a [PodStatus],
    keys: &'a KeySets,
    client: &'a Arc<Workload>,
    dialled: SocketAddr,
    method: &'a Method,
    /// In the one spelling that routes and policies see.
    path: String,
    query: Option<&'a str>,
    authority: String,
    headers: &'a HeaderMap,
}

impl Inquiry<'_> {
    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.method,
            scheme: "http",
            authority: &self.authority,
            path: &self.path,
            query: self.query,
            headers: self.headers,
        }
    }

    /// The same question about another head, whose authority is in `Host`.
    fn with_head<'h>(&'h self, parts: &'h request::Parts) -> Inquiry<'h> {
        let head = RequestHead::of(parts);
        Inquiry {
            snapshot: self.snapshot,
            pods: self.pods,
            keys: self.keys,
            client: self.client,
            dialled: self.dialled,
            method: head.method,
            path: head.path.to_owned(),
            query: head.query,
            authority: head.authority.to_owned(),
            headers: head.headers,
        }
    }
}

/// Walks a question through the mesh. `pods` are this node's, for whether they are captured.
///
/// # Errors
/// [`Unanswerable`] if the question is about nobody.
pub fn explain(
    (snapshot, keys): (&Snapshot, &KeySets),
    pods: &[PodStatus],
    question: &Question,
) -> Result<Explanation, Unanswerable> {
    let client = address::client(snapshot, &question.from)?;
    let (dialled, meaning) = address::resolve(snapshot, client, &question.to)?;
    let (raw_path, query) = match question.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*question.target, None),
    };
    let path = path::normalize(raw_path, snapshot.path_normalization)
        .map_err(|_why| Unanswerable::Target(question.target.clone()))?;
    let named = question
        .headers
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let host = question
        .to
        .rsplit_once(':')
        .map_or(&*question.to, |(host, _)| host);
    let inquiry = Inquiry {
        snapshot,
        pods,
        keys,
        client,
        dialled,
        method: &question.method,
        path: path.as_str().to_owned(),
        query,
        authority: named.unwrap_or(host).to_owned(),
        headers: &question.headers,
    };
    let routing = routing::walk(&inquiry);
    let limits = limits::walk(&inquiry, &routing);
    let judgement = judgement::walk(&inquiry, &routing);
    let expected = judgement.expected(&routing);
    let expected = match routing.abort {
        Some(abort) if !judgement.is_denied() => wording::unless_aborted(abort, expected),
        Some(_) | None => expected,
    };
    let expected = if judgement.is_denied() {
        expected
    } else {
        limits::unless_limited(&limits, expected)
    };
    Ok(Explanation {
        client: address::client_step(client, pods),
        destination: DestinationStep {
            asked: question.to.clone(),
            address: dialled.to_string(),
            service: routing.service.as_ref().map(|found| found.key.to_string()),
            meaning,
        },
        waypoint: routing.waypoint,
        route: routing.route,
        limits,
        backends: judgement.backends,
        policies: judgement.policies,
        expected,
    })
}
