//! Requests to the API server, and what becomes of each: objects, or one sentence about why not.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use form_urlencoded::Serializer;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::sentence::sentence;

use super::collection::{Collection, Extent};
use super::trim::Trimmed;

/// Objects in one page of a list, as client-go asks for them.
const PAGE: &str = "500";
/// Time for an answer to begin. A list of many objects is written page by page.
const ANSWER: Duration = Duration::from_secs(30);
/// Bookmarks come about every minute: a watch that is silent for this long leads nowhere.
const SILENCE: Duration = Duration::from_secs(150);
/// Longest refusal that is read.
const MAX_REFUSAL: usize = 64 * 1024;
/// Longest line of a watch, or page of a list. An API server takes 1.5 MiB per object.
const MAX_BYTES: usize = 512 * 1024 * 1024;

/// What stands in the way of a kind's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Of what sort it is.
    pub cause: Cause,
    /// One sentence: what, and what to do.
    pub message: String,
}

/// Of what sort a [`Trouble`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No answer: the server or the way to it is down. Retried.
    Unreachable,
    /// It does not know who we are: the token or certificate is wrong or too old. Retried.
    Unauthorized,
    /// We may not do this: RBAC. Retried, because it may be granted.
    Forbidden,
    /// The version that we know has been forgotten: everything is listed anew.
    Expired,
    /// It has no such collection.
    Unknown,
    /// It does not understand the request.
    Misunderstood,
    /// Anything else that it says. Retried.
    Refused,
}

/// Speaks with one API server.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    server: Arc<str>,
}

/// A part of a list.
pub(super) struct Page {
    pub(super) objects: Vec<Value>,
    /// Where the next part begins; `None`: this is the last.
    pub(super) rest: Option<String>,
    pub(super) version: String,
}

/// One line of a watch.
pub(super) enum Event {
    /// An object is new or different.
    Changed(Value),
    /// An object is gone.
    Deleted(Value),
    /// Nothing more has happened up to here.
    Bookmark {
        /// Whether the objects that were there at the beginning have all been sent.
        ends_initial: bool,
    },
}

impl Api {
    pub(super) fn new(client: Client, server: Arc<str>) -> Self {
        Self { client, server }
    }

    /// Its URL.
    pub(super) fn server(&self) -> Arc<str> {
        Arc::clone(&self.server)
    }

    /// Which of the versions that we read is served, the preferred one first; `None` if none is.
    pub(super) async fn served_version(
        &self,
        collection: &Collection,
    ) -> Result<Option<&'static str>, Trouble> {
        #[derive(Deserialize)]
        struct Resources {
            #[serde(default)]
            resources: Vec<Resource>,
        }
        #[derive(Deserialize)]
        struct Resource {
            name: String,
        }
        for version in collection.versions {
            let path = format!("/apis/{}/{version}", collection.group);
            let answer = match self.get(&path, "application/json").await {
                Err(trouble) if trouble.cause == Cause::Unknown => continue,
                other => other?,
            };
            let read: Resources = parse(&self.collect(answer).await?)?;
            if read
                .resources
                .iter()
                .any(|one| one.name == collection.plural)
            {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    /// One page of a list: the first, or what `rest` of the page before says.
    pub(super) async fn list(
        &self,
        collection: &Collection,
        version: &str,
        rest: Option<&str>,
    ) -> Result<Page, Trouble> {
        #[derive(Deserialize)]
        struct List {
            metadata: Meta,
            // Go writes an empty list as null.
            items: Option<Vec<Trimmed>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            resource_version: String,
            #[serde(rename = "continue")]
            rest: Option<String>,
        }
        let mut query = vec![("limit", PAGE.to_owned())];
        query.extend(rest.map(|rest| ("continue", rest.to_owned())));
        let accept = match collection.extent {
            Extent::Whole => "application/json",
            Extent::Metadata => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        };
        let answer = self
            .get(&target(collection, version, query), accept)
            .await?;
        let list: List = parse(&self.collect(answer).await?)?;
        let api_version = collection.api_version(version);
        let objects = list.items.unwrap_or_default().into_iter();
        Ok(Page {
            objects: objects
                .map(|Trimmed(object)| named(object, &api_version, &collection.kind))
                .collect(),
            rest: list.metadata.rest.filter(|rest| !rest.is_empty()),
            version: list.metadata.resource_version,
        })
    }

    /// Opens a watch: of what happens after a version, or of everything that is there and then of what happens.
    pub(super) async fn watch(
        &self,
        collection: &Collection,
        version: &str,
        after: Option<&str>,
    ) -> Result<Watching, Trouble> {
        // The server ends a watch after a while; not all of ours at once.
        let seconds = rand::random_range(300..600);
        let mut query = vec![
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", seconds.to_string()),
        ];
        match after {
            Some(after) => query.push(("resourceVersion", after.to_owned())),
            None => query.extend([
                ("sendInitialEvents", "true".to_owned()),
                ("resourceVersionMatch", "NotOlderThan".to_owned()),
            ]),
        }
        let accept = match collection.extent {
            Extent::Whole => "application/json",
            Extent::Metadata => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        };
        let body = self
            .get(&target(collection, version, query), accept)
            .await?;
        Ok(Watching {
            body,
            lines: BytesMut::new(),
            api_version: collection.api_version(version),
            kind: collection.kind.clone(),
            version: after.map(str::to_owned),
        })
    }

    /// The body of a good answer.
    async fn get(&self, target: &str, accept: &str) -> Result<Body, Trouble> {
        let request = Request::get(target)
            .header(header::ACCEPT, accept)
            .body(Body::empty());
        let request = request.map_err(|error| refused(sentence(&error)))?;
        let answer = timeout(ANSWER, self.client.send(request)).await;
        let answer = answer
            .map_err(|_elapsed| unreachable("it does not answer in time"))?
            .map_err(|error| unreachable(&sentence(&error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let body = Limited::new(answer.into_body(), MAX_REFUSAL).collect();
        let said = match timeout(ANSWER, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            // The status alone says enough.
            _ => Bytes::new(),
        };
        Err(refusal(status, &said))
    }

    async fn collect(&self, body: Body) -> Result<Bytes, Trouble> {
        let whole = timeout(SILENCE, Limited::new(body, MAX_BYTES).collect()).await;
        let whole = whole.map_err(|_elapsed| unreachable("its answer does not end in time"))?;
        let broken = |error| unreachable(&format!("its answer ends early: {error}"));
        Ok(whole.map_err(broken)?.to_bytes())
    }
}

/// A watch that is open. Dropping it closes its connection.
pub(super) struct Watching {
    body: Body,
    lines: BytesMut,
    api_version: String,
    kind: String,
    /// Up to where we know what has happened.
    version: Option<String>,
}

impl Watching {
    /// Up to where we know what has happened; `None` before the server said.
    pub(super) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The next thing that happens; `None` if the server ends the watch, which it does now and then.
    ///
    /// Cancel safe: what was read stays.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Trouble> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(rename = "type")]
            kind: String,
            object: Trimmed,
        }
        loop {
            let Some(line) = self.line().await? else {
                return Ok(None);
            };
            let Line {
                kind,
                object: Trimmed(object),
            } = parse(&line)?;
            if kind == "ERROR" {
                return Err(said(&object));
            }
            let version = object["metadata"]["resourceVersion"].as_str();
            let version = version.map(str::to_owned);
            let event = match kind.as_str() {
                "ADDED" | "MODIFIED" => {
                    Event::Changed(named(object, &self.api_version, &self.kind))
                }
                "DELETED" => Event::Deleted(named(object, &self.api_version, &self.kind)),
                "BOOKMARK" => {
                    let marks = &object["metadata"]["annotations"];
                    Event::Bookmark {
                        ends_initial: marks["k8s.io/initial-events-end"] == "true",
                    }
                }
                // A newer server may say more; what we follow is said by the four.
                _ => continue,
            };
            self.version = version.or_else(|| self.version.take());
            return Ok(Some(event));
        }
    }

    async fn line(&mut self) -> Result<Option<Bytes>, Trouble> {
        let mut searched = 0;
        loop {
            let end = self.lines[searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = end {
                return Ok(Some(self.lines.split_to(searched + end + 1).freeze()));
            }
            searched = self.lines.len();
            let frame = timeout(SILENCE, self.body.frame()).await;
            match frame.map_err(|_elapsed| unreachable("it is silent for too long"))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(unreachable(&sentence(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.extend_from_slice(&data);
                    }
                }
            }
            if self.lines.len() > MAX_BYTES {
                return Err(refused("it sends a line without an end".to_owned()));
            }
        }
    }
}

/// Path and query of a request.
fn target(collection: &Collection, version: &str, query: Vec<(&str, String)>) -> String {
    let Collection { group, plural, .. } = collection;
    let space = match &collection.namespace {
        Some(namespace) => format!("namespaces/{namespace}/"),
        None => String::new(),
    };
    let root = if group.is_empty() {
        format!("/api/{version}/{space}{plural}?")
    } else {
        format!("/apis/{group}/{version}/{space}{plural}?")
    };
    let at = root.len();
    let mut target = Serializer::for_suffix(root, at);
    target.extend_pairs(query);
    if let Some(name) = &collection.name {
        target.append_pair("fieldSelector", &format!("metadata.name={name}"));
    }
    target.finish()
}

/// An object that says what it is: in a list, and as metadata only, it does not.
fn named(mut object: Value, api_version: &str, kind: &str) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.insert("apiVersion".to_owned(), api_version.into());
        object.insert("kind".to_owned(), kind.into());
    }
    object
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Trouble> {
    let unreadable = |error| refused(format!("its answer cannot be read: {error}"));
    serde_json::from_slice(json).map_err(unreadable)
}

fn unreachable(why: &str) -> Trouble {
    Trouble {
        cause: Cause::Unreachable,
        message: format!("cannot be reached: {why}"),
    }
}

fn refused(why: String) -> Trouble {
    Trouble {
        cause: Cause::Refused,
        message: why,
    }
}

/// What a refusing answer comes to.
fn refusal(status: StatusCode, body: &[u8]) -> Trouble {
    let mut read: Value = serde_json::from_slice(body).unwrap_or_default();
    if read["code"].is_null() {
        let words = status.canonical_reason().unwrap_or_default();
        read = serde_json::json!({ "code": status.as_u16(), "message": words });
    }
    said(&read)
}

/// What a `Status` object comes to.
fn said(status: &Value) -> Trouble {
    let message = status["message"].as_str().unwrap_or_default();
    let code = status["code"].as_u64().unwrap_or_default();
    let (cause, message) = match code {
        401 => (
            Cause::Unauthorized,
            format!("does not know who the agent is ({message}): check its token or certificate"),
        ),
        403 => (
            Cause::Forbidden,
            format!(
                "does not let the agent ({message}): grant its account what deploy/base/rbac.yaml lists"
            ),
        ),
        410 => (
            Cause::Expired,
            format!("has forgotten our version ({message})"),
        ),
        404 | 405 => (Cause::Unknown, format!("answers {code}: {message}")),
        400 | 406 | 422 => (Cause::Misunderstood, format!("answers {code}: {message}")),
        _ => (Cause::Refused, format!("answers {code}: {message}")),
    };
    Trouble { cause, message }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::{Cause, refusal, target};
    use crate::mesh::{Kind, ObjectKey, ObjectName};
    use crate::sources::kubernetes::collection::{Collection, all};

    #[test]
    fn collections_have_the_paths_of_the_api() {
        let all = all("istio");
        let of = |kind: &str| all.iter().find(|one| one.kind == kind).unwrap();
        let query = || vec![("limit", "500".to_owned())];
        assert_eq!(target(of("Pod"), "v1", query()), "/api/v1/pods?limit=500");
        assert_eq!(
            target(of("HTTPRoute"), "v1", query()),
            "/apis/gateway.networking.k8s.io/v1/httproutes?limit=500"
        );
        assert_eq!(
            target(of("ConfigMap"), "v1", query()),
            "/api/v1/configmaps?limit=500&fieldSelector=metadata.name%3Distio"
        );
        let one = Collection::of_one(&ObjectKey {
            kind: Kind::Secret,
            name: ObjectName {
                namespace: "shop".into(),
                name: "ca".into(),
            },
        });
        assert_eq!(
            target(&one.unwrap(), "v1", query()),
            "/api/v1/namespaces/shop/secrets?limit=500&fieldSelector=metadata.name%3Dca"
        );
    }

    #[test]
    fn a_refusal_is_one_sentence() {
        let forbidden = br#"{"kind":"Status","code":403,"message":"pods is forbidden: User \"x\" cannot list"}"#;
        let trouble = refusal(StatusCode::FORBIDDEN, forbidden);
        assert_eq!(trouble.cause, Cause::Forbidden);
        assert!(
            trouble.message.contains("User \"x\" cannot list"),
            "{trouble:?}"
        );
        // From a proxy in between.
        let trouble = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(trouble.message, "answers 502: Bad Gateway");
        assert_eq!(refusal(StatusCode::GONE, b"").cause, Cause::Expired);
    }
}
