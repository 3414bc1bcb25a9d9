//! Requests that change something: one object each, and one sentence about why not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

use super::access::{Access, ClusterError};
use crate::mesh::{Kind, ObjectName, used_kinds};
use crate::sentence::sentence;

/// Time for a whole answer: one object is read and written.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer. An API server takes 1.5 MiB per object.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Writes to one API server. Clones share its connections.
#[derive(Clone)]
pub struct ApiWriter {
    client: Client,
    server: Arc<str>,
}

/// Why a request did nothing that we know of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What the server answered with; `None`: nothing was heard, and it may have done it all the same.
    pub status: Option<u16>,
    /// When it may be asked again, if it says so.
    pub after: Option<Duration>,
    /// To be read after "the API server".
    pub message: String,
}

impl Refusal {
    /// Whether the server, the way to it, or its patience is the matter rather than this request: others would fare no
    /// better.
    pub fn is_general(&self) -> bool {
        match self.status {
            None => true,
            Some(status) => status == 401 || status == 429 || status >= 500,
        }
    }

    fn unheard(why: &str) -> Self {
        Self {
            status: None,
            after: None,
            message: format!("cannot be reached: {why}"),
        }
    }
}

impl ApiWriter {
    /// A client for the cluster that `kubeconfig` names, or else for the one that this process is a pod of. Has to be
    /// called inside the runtime that it shall run on; connects when it is used.
    ///
    /// # Errors
    /// [`ClusterError`]: it is not said which cluster, or how to be known to it.
    pub async fn find(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let access = Access::find(kubeconfig).await?;
        let (client, server) = access.client()?;
        Ok(Self { client, server })
    }

    /// A client for a person at a terminal, and the namespace that is meant where none is said: for the cluster of the
    /// named kubeconfig, else of `$KUBECONFIG`, else of `~/.kube/config`, else the one that this process is a pod of. Has
    /// to be called inside the runtime that it shall run on; connects when it is used.
    ///
    /// # Errors
    /// [`ClusterError`]: it is not said which cluster, or how to be known to it.
    pub async fn of_person(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
    ) -> Result<(Self, String), ClusterError> {
        let access = Access::of_person(kubeconfig, context).await?;
        let (client, server) = access.client()?;
        Ok((Self { client, server }, access.namespace().to_owned()))
    }

    /// Its URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`Refusal`]; 404 if there is none.
    pub async fn get(&self, path: &str) -> Result<Value, Refusal> {
        self.ask(Method::GET, path, "", Body::empty()).await
    }

    /// Adds an object to a collection.
    ///
    /// # Errors
    /// [`Refusal`]; 409 if there is one of its name.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        self.send(Method::POST, path, "application/json", object)
            .await
    }

    /// Puts an object in the place of the one whose `resourceVersion` it has.
    ///
    /// # Errors
    /// [`Refusal`]; 409 if somebody else was quicker.
    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        self.send(Method::PUT, path, "application/json", object)
            .await
    }

    /// Merges fields into an object (RFC 7386); only into the one whose `resourceVersion` they have, if they have one.
    ///
    /// # Errors
    /// [`Refusal`]; 409 if somebody else was quicker.
    pub async fn merge(&self, path: &str, fields: &Value) -> Result<Value, Refusal> {
        self.send(Method::PATCH, path, "application/merge-patch+json", fields)
            .await
    }

    /// Makes an object, or the fields of it that `manager` owns, what `object` says (server-side apply).
    ///
    /// # Errors
    /// [`Refusal`]; 409 if others own fields that it wants to be otherwise.
    pub async fn apply(&self, path: &str, object: &Value, manager: &str) -> Result<Value, Refusal> {
        let path = format!("{path}?fieldManager={manager}");
        // JSON is YAML.
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", object)
            .await
    }

    /// Removes an object.
    ///
    /// # Errors
    /// [`Refusal`]; 404 if there is none.
    pub async fn delete(&self, path: &str) -> Result<Value, Refusal> {
        self.ask(Method::DELETE, path, "", Body::empty()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let body = Body::from(body.to_string().into_bytes());
        self.ask(method, path, content_type, body).await
    }

    /// Dropping the future gives the request up; the server may carry it out all the same.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
    ) -> Result<Value, Refusal> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::ACCEPT, "application/json");
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request
            .body(body)
            .map_err(|error| Refusal::unheard(&sentence(&error)))?;
        let exchange = async {
            let answer = self.client.send(request).await;
            let answer = answer.map_err(|error| Refusal::unheard(&sentence(&error)))?;
            let (head, body) = answer.into_parts();
            let whole = Limited::new(body, MAX_BYTES).collect().await;
            let whole = whole.map_err(|error| Refusal::unheard(&error.to_string()))?;
            Ok((head, whole.to_bytes()))
        };
        let (head, body) = timeout(ANSWER, exchange)
            .await
            .map_err(|_elapsed| Refusal::unheard("it does not answer in time"))??;
        let read: Value = serde_json::from_slice(&body).unwrap_or_default();
        if head.status.is_success() {
            Ok(read)
        } else {
            Err(refusal(head.status, &head.headers, &read))
        }
    }
}

fn refusal(status: StatusCode, headers: &HeaderMap, said: &Value) -> Refusal {
    let after = headers.get(header::RETRY_AFTER);
    let seconds = after.and_then(|value| value.to_str().ok()?.parse().ok());
    let words = said["message"]
        .as_str()
        .or_else(|| status.canonical_reason());
    Refusal {
        status: Some(status.as_u16()),
        after: seconds.map(Duration::from_secs),
        message: format!("answers {}: {}", status.as_u16(), words.unwrap_or_default()),
    }
}

/// Where an object of a kind that the mesh depends on is; `None` if the mesh depends on no such kind.
pub fn object_path(kind: &Kind, api_version: &str, name: &ObjectName) -> Option<String> {
    let used = used_kinds().into_iter().find(|used| used.kind == *kind)?;
    let root = if used.group.is_empty() { "api" } else { "apis" };
    let ObjectName { namespace, name } = name;
    let plural = used.plural;
    Some(if namespace.is_empty() {
        format!("/{root}/{api_version}/{plural}/{name}")
    } else {
        format!("/{root}/{api_version}/namespaces/{namespace}/{plural}/{name}")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, StatusCode, header};
    use serde_json::json;

    use super::{object_path, refusal};
    use crate::mesh::{Kind, ObjectName};

    #[test]
    fn objects_are_where_the_api_has_them() {
        let name = |namespace: &str, name: &str| ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        };
        for (kind, version, name, expected) in [
            (
                Kind::Service,
                "v1",
                name("a", "s"),
                "/api/v1/namespaces/a/services/s",
            ),
            (
                Kind::HttpRoute,
                "gateway.networking.k8s.io/v1",
                name("a", "r"),
                "/apis/gateway.networking.k8s.io/v1/namespaces/a/httproutes/r",
            ),
            (
                Kind::GatewayClass,
                "gateway.networking.k8s.io/v1",
                name("", "c"),
                "/apis/gateway.networking.k8s.io/v1/gatewayclasses/c",
            ),
        ] {
            assert_eq!(
                object_path(&kind, version, &name).as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn a_refusal_says_whose_fault_it_is() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        let busy = refusal(StatusCode::TOO_MANY_REQUESTS, &headers, &json!(null));
        assert_eq!(busy.after, Some(Duration::from_secs(7)));
        assert!(busy.is_general());
        let said = json!({ "message": "the object has been modified" });
        let conflict = refusal(StatusCode::CONFLICT, &HeaderMap::new(), &said);
        assert_eq!(
            conflict.message,
            "answers 409: the object has been modified"
        );
        assert!(!conflict.is_general());
        assert!(!refusal(StatusCode::FORBIDDEN, &HeaderMap::new(), &said).is_general());
        assert!(refusal(StatusCode::BAD_GATEWAY, &HeaderMap::new(), &said).is_general());
    }
}
