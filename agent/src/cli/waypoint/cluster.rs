//! Waypoints in a cluster, as `istioctl` and `kubectl` see them: Gateways of the API, with what their controller says of them.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;

use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use super::WaypointError;
use super::gateway::{Said, Waypoint};
use super::place::{Standing, USE_WAYPOINT};
use crate::cli::CliError;
use crate::sources::{ApiWriter, Refusal};

/// Who owns the fields that are written (server-side apply).
const MANAGER: &str = "culvert-waypoint";
const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1";
/// Objects in one page of a list, as client-go asks for them.
const PAGE: usize = 500;
/// How often a Namespace that others change meanwhile is read again.
const ATTEMPTS: usize = 5;

/// A cluster.
pub(super) struct Cluster {
    runtime: Runtime,
    api: ApiWriter,
    namespace: String,
}

impl Cluster {
    /// Connects when it is asked something.
    pub(super) fn find(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, CliError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(CliError::Start)?;
        let found = runtime.block_on(ApiWriter::of_person(kubeconfig, context));
        let (api, namespace) = found.map_err(WaypointError::Cluster)?;
        Ok(Self {
            runtime,
            api,
            namespace,
        })
    }

    /// The one that is meant where none is said.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// All waypoints, or those of a namespace, by namespace and name: in the API's order.
    pub(super) fn waypoints(
        &self,
        namespace: Option<&str>,
    ) -> Result<Vec<Standing>, WaypointError> {
        let collection = match namespace {
            Some(namespace) => format!("{GATEWAYS}/namespaces/{namespace}/gateways"),
            None => format!("{GATEWAYS}/gateways"),
        };
        let mut found = Vec::new();
        let mut rest = String::new();
        loop {
            let page = format!("{collection}?limit={PAGE}{rest}");
            let mut list = self.ask(|| "list waypoints".to_owned(), self.api.get(&page))?;
            let items = list.get_mut("items").and_then(Value::as_array_mut);
            found.extend(items.into_iter().flatten().filter_map(standing));
            let token = list.pointer("/metadata/continue").and_then(Value::as_str);
            match token {
                None | Some("") => return Ok(found),
                Some(token) => {
                    let encoded: String =
                        form_urlencoded::byte_serialize(token.as_bytes()).collect();
                    rest = format!("&continue={encoded}");
                }
            }
        }
    }

    pub(super) fn namespace_labels(
        &self,
        namespace: &str,
    ) -> Result<BTreeMap<String, String>, WaypointError> {
        self.read_namespace(namespace).map(|it| labels(&it))
    }

    /// Server-side apply: fields that others own and that would change are a conflict.
    pub(super) fn write_waypoint(&self, waypoint: &Waypoint) -> Result<(), WaypointError> {
        let Waypoint {
            namespace, name, ..
        } = waypoint;
        let (path, manifest) = (path(waypoint), waypoint.manifest());
        let doing = || format!("apply waypoint {namespace}/{name}");
        self.ask(doing, self.api.apply(&path, &manifest, MANAGER))
            .map(drop)
    }

    pub(super) fn remove_waypoint(&self, waypoint: &Waypoint) -> Result<(), WaypointError> {
        let Waypoint {
            namespace, name, ..
        } = waypoint;
        let path = path(waypoint);
        let doing = || format!("delete waypoint {namespace}/{name}");
        self.ask(doing, self.api.delete(&path)).map(drop)
    }

    /// Binds the waypoint's namespace to it. Unless it may replace another one, the Namespace has to be the one that was
    /// looked at.
    pub(super) fn label_namespace(
        &self,
        waypoint: &Waypoint,
        overwrite: bool,
    ) -> Result<(), WaypointError> {
        let Waypoint {
            namespace, name, ..
        } = waypoint;
        let path = format!("/api/v1/namespaces/{namespace}");
        let mut attempts = ATTEMPTS;
        loop {
            let mut fields = json!({ "metadata": { "labels": { USE_WAYPOINT: name } } });
            if !overwrite {
                let found = self.read_namespace(namespace)?;
                if let Some(other) = labels(&found).get(USE_WAYPOINT)
                    && other != name
                {
                    return Err(WaypointError::Taken {
                        namespace: namespace.clone(),
                        other: other.clone(),
                        name: name.clone(),
                    });
                }
                fields["metadata"]["resourceVersion"] =
                    found["metadata"]["resourceVersion"].clone();
            }
            attempts -= 1;
            match self.runtime.block_on(self.api.merge(&path, &fields)) {
                Ok(_labelled) => return Ok(()),
                Err(refusal) if refusal.status == Some(409) && attempts > 0 => {}
                Err(refusal) => {
                    let doing = format!("label namespace {namespace}");
                    return Err(self.refused(doing, &refusal));
                }
            }
        }
    }

    fn read_namespace(&self, namespace: &str) -> Result<Value, WaypointError> {
        let path = format!("/api/v1/namespaces/{namespace}");
        let answer = self.runtime.block_on(self.api.get(&path));
        answer.map_err(|refusal| match refusal.status {
            Some(404) => WaypointError::NoNamespace {
                namespace: namespace.to_owned(),
                server: self.api.server().to_owned(),
            },
            _ => self.refused(format!("read namespace {namespace}"), &refusal),
        })
    }

    fn ask(
        &self,
        doing: impl FnOnce() -> String,
        asking: impl Future<Output = Result<Value, Refusal>>,
    ) -> Result<Value, WaypointError> {
        let answer = self.runtime.block_on(asking);
        answer.map_err(|refusal| self.refused(doing(), &refusal))
    }

    fn refused(&self, doing: String, refusal: &Refusal) -> WaypointError {
        WaypointError::refused(doing, self.api.server(), refusal)
    }
}

fn path(waypoint: &Waypoint) -> String {
    let Waypoint {
        namespace, name, ..
    } = waypoint;
    format!("{GATEWAYS}/namespaces/{namespace}/gateways/{name}")
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    pairs
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// A waypoint among a list's objects, which need not say their kind; `None` for other Gateways.
pub(super) fn standing(object: &mut Value) -> Option<Standing> {
    object["kind"] = json!("Gateway");
    let waypoint = Waypoint::read(object)?;
    let generation = object
        .pointer("/metadata/generation")
        .and_then(Value::as_i64);
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let said = |condition: &Value| {
        let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        let seen = condition["observedGeneration"].as_i64();
        let said = Said {
            kind: word("type"),
            status: word("status"),
            reason: word("reason"),
            message: word("message"),
        };
        match (seen, generation) {
            // Of what it was before: nobody has said anything about what it is.
            (Some(seen), Some(generation)) if seen < generation => Said {
                status: "Unknown".to_owned(),
                reason: "Pending".to_owned(),
                message: "its controller has not seen the latest change yet".to_owned(),
                ..said
            },
            _ => said,
        }
    };
    Some(Standing {
        waypoint,
        conditions: conditions.into_iter().flatten().map(said).collect(),
    })
}
