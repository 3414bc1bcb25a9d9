//! Untyped objects → typed ones, checked as Kubernetes and Istio check them on `kubectl apply`.

mod closed;
mod layer7;
mod typed;
mod value;

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::authorization::AuthorizationPolicy;
use super::credential::{CONFIG_MAP_KEY, CredentialSource};
use super::endpoint_slice::EndpointSlice;
use super::external::{ServiceEntry, WorkloadEntry, WorkloadEntrySpec};
use super::field::{Faults, FieldError, at};
use super::kinds::{Classified, classify, is_cluster_wide, split_version};
use super::mesh_config::is_config_map;
use super::meta::{Interner, Labels, Meta};
use super::object::{Kind, Object};
use super::peer_authentication::PeerAuthentication;
use super::pod::Pod;
use super::service::Service;
use super::syntax::{is_dns_label, is_dns_name};
use super::unheeded;
pub use closed::closed;
use typed::typed;

/// What became of an object that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object.
    pub object: Object,
    /// What the mesh makes of it.
    pub standing: Standing,
    /// Fields that it is read with and that nothing acts on: what happens instead.
    pub remarks: Vec<FieldError>,
}

/// What the mesh makes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It depends on it.
    Used,
    /// Known, but without effect.
    Unused,
    /// Of a group that it does not know.
    Foreign,
}

/// Manuals show a waypoint's Gateway without its `apiVersion`; of the two kinds of that name only one has a class.
fn name_gateway_version(object: &mut Map<String, Value>) {
    let has_class = object
        .get("spec")
        .is_some_and(|spec| spec.get("gatewayClassName").is_some());
    if object.get("kind").and_then(Value::as_str) == Some("Gateway") && has_class {
        object
            .entry("apiVersion")
            .or_insert_with(|| "gateway.networking.k8s.io/v1".into());
    }
}

/// Reads one object that somebody has written.
///
/// # Errors
/// Everything that is wrong with it, by field.
pub fn decode(value: Value, texts: &mut Interner) -> Result<Decoded, Vec<FieldError>> {
    read(value, texts, Faults::default())
}

/// Reads one object that an API server has checked. Of Kubernetes' own kinds it may know more fields than we do, and
/// what they say is for others. A field of a policy or route that we do not know stays an error: without it the
/// object would mean something else.
///
/// # Errors
/// As [`decode`].
pub fn decode_served(
    kind: &Kind,
    value: Value,
    texts: &mut Interner,
) -> Result<Decoded, Vec<FieldError>> {
    let mut faults = Faults::default();
    faults.fields_may_be_new = kind.is_kubernetes_own();
    read(value, texts, faults)
}

fn read(
    mut value: Value,
    texts: &mut Interner,
    mut faults: Faults,
) -> Result<Decoded, Vec<FieldError>> {
    let Some(object) = value.as_object_mut() else {
        faults.add(
            at![],
            "is not an object: write apiVersion, kind, metadata and spec",
        );
        return Err(faults.into_errors());
    };
    name_gateway_version(object);
    let api_version = require_text(
        object,
        "apiVersion",
        "name the version, such as v1",
        &mut faults,
    );
    let kind = require_text(object, "kind", "name the kind, such as Pod", &mut faults);
    let (Some(api_version), Some(kind)) = (api_version, kind) else {
        return Err(faults.into_errors());
    };
    place_in_namespace(object, &kind, &mut faults);
    let is_mesh_config = is_mesh_config(&kind, &value);
    let has_authorities = kind == "ConfigMap" && value["data"][CONFIG_MAP_KEY].is_string();
    let classified = match classify(&api_version, &kind) {
        Classified::Unused if is_mesh_config => Classified::Used(Kind::MeshConfig),
        Classified::Unused if has_authorities => Classified::Used(Kind::Authorities),
        other => other,
    };
    match classified {
        Classified::NoSuchKind(known) => {
            let (group, _) = split_version(&api_version);
            let group = if group.is_empty() { "core" } else { group };
            let problem = format!(
                "`{kind}` is not a kind of {group}: it has {}",
                known.join(", ")
            );
            faults.add(at!["kind"], problem);
        }
        Classified::WrongVersion(right) => {
            let (group, _) = split_version(&api_version);
            let right = if group.is_empty() {
                right.to_owned()
            } else {
                format!("{group}/{right}")
            };
            let problem = format!("{kind} is not read in `{api_version}`: write {right}");
            faults.add(at!["apiVersion"], problem);
        }
        Classified::Used(used) => {
            let remarks = unheeded::remarks(&used, &value);
            let object = decode_used(&used, value, texts, &mut faults);
            return finish(object, (Standing::Used, remarks), faults);
        }
        Classified::Unused | Classified::Foreign => {
            let standing = if classified == Classified::Unused {
                Standing::Unused
            } else {
                Standing::Foreign
            };
            let (group, _) = split_version(&api_version);
            let kind = Kind::Other(texts.intern(group), texts.intern(&kind));
            let meta = decode_metadata(value, texts, &mut faults);
            let object = meta.map(|meta| Object::Other(kind, meta));
            return finish(object, (standing, Vec::new()), faults);
        }
    }
    Err(faults.into_errors())
}

fn finish(
    object: Option<Object>,
    (standing, remarks): (Standing, Vec<FieldError>),
    faults: Faults,
) -> Result<Decoded, Vec<FieldError>> {
    match (object, faults.into_errors()) {
        (Some(object), errors) if errors.is_empty() => Ok(Decoded {
            object,
            standing,
            remarks,
        }),
        (_, errors) => Err(errors),
    }
}

fn require_text(
    object: &Map<String, Value>,
    key: &str,
    what: &str,
    faults: &mut Faults,
) -> Option<String> {
    match object.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        None | Some(Value::Null | Value::String(_)) => {
            faults.add(at![key], format!("is missing: {what}"));
            None
        }
        Some(_) => {
            faults.add(at![key], format!("is not a text: {what}"));
            None
        }
    }
}

/// Checks the name, and gives namespaced objects the namespace that kubectl would.
fn place_in_namespace(object: &mut Map<String, Value>, kind: &str, faults: &mut Faults) {
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    let Some(metadata) = metadata.as_object_mut() else {
        faults.add(
            at!["metadata"],
            "is not a map: write at least `name:` in it",
        );
        return;
    };
    match metadata.get("name") {
        Some(Value::String(name)) if is_object_name(kind, name) => {}
        Some(Value::String(name)) if !name.is_empty() => {
            let rule = "use lower-case letters, digits and `-`, first and last a letter or digit";
            faults.add(
                at!["metadata", "name"],
                format!("`{name}` is not a name: {rule}"),
            );
        }
        None | Some(Value::String(_)) => {
            faults.add(
                at!["metadata", "name"],
                "is missing: every object has a name",
            );
        }
        // The typed reading says what is wrong.
        Some(_) => {}
    }
    if is_cluster_wide(kind) {
        metadata.remove("namespace");
        return;
    }
    match metadata.get("namespace") {
        None => {
            metadata.insert("namespace".to_owned(), "default".into());
        }
        Some(Value::String(namespace)) if !is_dns_label(namespace) => {
            let rule = "use lower-case letters, digits and `-`";
            let problem = format!("`{namespace}` is not a namespace: {rule}");
            faults.add(at!["metadata", "namespace"], problem);
        }
        Some(_) => {}
    }
}

fn is_object_name(kind: &str, name: &str) -> bool {
    match kind {
        "Namespace" | "Service" => is_dns_label(name),
        // Their names may have colons and capitals; nothing here depends on them.
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => !name.is_empty(),
        _ => is_dns_name(name),
    }
}

fn decode_used(
    kind: &Kind,
    value: Value,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Option<Object> {
    Some(match kind {
        Kind::Namespace => {
            let mut namespace: core::Namespace = typed(value, faults)?;
            // As every API server does.
            if let Some(name) = &namespace.metadata.name {
                let labels = namespace.metadata.labels.get_or_insert_default();
                labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
            }
            Object::Namespace(Arc::new(Meta::read(namespace.metadata, texts, faults)))
        }
        Kind::Node => {
            let node: core::Node = typed(value, faults)?;
            Object::Node(Arc::new(Meta::read(node.metadata, texts, faults)))
        }
        Kind::Pod => Object::Pod(Arc::new(Pod::read(typed(value, faults)?, texts, faults))),
        Kind::Service => Object::Service(Arc::new(Service::read(
            typed(value, faults)?,
            texts,
            faults,
        ))),
        Kind::EndpointSlice => {
            let slice: discovery::EndpointSlice = typed(value, faults)?;
            Object::EndpointSlice(Arc::new(EndpointSlice::read(slice, texts, faults)))
        }
        Kind::Secret => {
            let secret: core::Secret = typed(value, faults)?;
            let source = CredentialSource::of_secret(secret, texts, faults);
            Object::Secret(Arc::new(source))
        }
        Kind::Authorities => {
            let map: core::ConfigMap = typed(value, faults)?;
            let source = CredentialSource::of_config_map(map, texts, faults);
            Object::Authorities(Arc::new(source))
        }
        Kind::ServiceEntry => Object::ServiceEntry(Arc::new(service_entry(value, texts, faults)?)),
        Kind::WorkloadEntry => {
            Object::WorkloadEntry(Arc::new(workload_entry(value, texts, faults)?))
        }
        Kind::AuthorizationPolicy => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let policy = AuthorizationPolicy {
                meta,
                spec: spec.unwrap_or_default(),
            };
            policy.check(faults);
            Object::AuthorizationPolicy(Arc::new(policy))
        }
        Kind::PeerAuthentication => {
            let (meta, spec, _) = resource(value, texts, faults)?;
            let policy = PeerAuthentication {
                meta,
                spec: spec.unwrap_or_default(),
            };
            policy.check(faults);
            Object::PeerAuthentication(Arc::new(policy))
        }
        Kind::Other(..) => Object::Other(kind.clone(), decode_metadata(value, texts, faults)?),
        // All the others are layer 7's.
        _ => layer7::decode(kind, value, texts, faults)?,
    })
}

/// Whether an object is the `ConfigMap` that holds the mesh's configuration, read as a value.
fn is_mesh_config(kind: &str, value: &Value) -> bool {
    kind == "ConfigMap"
        && value["metadata"]["name"]
            .as_str()
            .is_some_and(is_config_map)
        && value["data"]["mesh"].is_object()
}

fn service_entry(value: Value, texts: &mut Interner, faults: &mut Faults) -> Option<ServiceEntry> {
    let (meta, spec, status) = resource::<super::external::ServiceEntrySpec>(value, texts, faults)?;
    let spec = faults.require(spec, at!["spec"], "say at least which hosts it has")?;
    let selector = spec
        .workload_selector
        .as_ref()
        .map(|one| one.match_labels.clone());
    let given = status
        .as_ref()
        .and_then(|status| status.get("addresses"))
        .and_then(Value::as_array);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let given = given.into_iter().flatten().filter_map(|one| {
        Some((
            text(one, "host")?.to_ascii_lowercase(),
            text(one, "value")?.parse().ok()?,
        ))
    });
    let entry = ServiceEntry {
        given: given.collect(),
        selector: Labels::new(selector, texts),
        meta,
        spec,
    };
    entry.check(faults);
    Some(entry)
}

fn workload_entry(
    value: Value,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Option<WorkloadEntry> {
    let (meta, spec, _) = resource::<WorkloadEntrySpec>(value, texts, faults)?;
    let spec = faults.require(spec, at!["spec"], "say at least which address it has")?;
    let own = meta
        .labels
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    let mut labels: std::collections::BTreeMap<_, _> = own.collect();
    labels.extend(spec.labels.clone());
    let entry = WorkloadEntry {
        labels: Labels::new(Some(labels), texts),
        meta,
        spec,
    };
    entry.check(faults);
    Some(entry)
}

/// The frame of a custom resource.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "S: DeserializeOwned")]
struct Resource<S> {
    #[serde(rename = "apiVersion")]
    _api_version: Value,
    #[serde(rename = "kind")]
    _kind: Value,
    metadata: ObjectMeta,
    spec: Option<S>,
    status: Option<Value>,
}

fn resource<S: DeserializeOwned>(
    value: Value,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Option<(Meta, Option<S>, Option<Value>)> {
    let read: Resource<S> = typed(value, faults)?;
    Some((
        Meta::read(read.metadata, texts, faults),
        read.spec,
        read.status,
    ))
}

fn decode_metadata(
    mut value: Value,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Option<Arc<Meta>> {
    #[derive(Deserialize)]
    struct Frame {
        metadata: ObjectMeta,
    }
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| key == "metadata");
    }
    let read: Frame = typed(value, faults)?;
    Some(Arc::new(Meta::read(read.metadata, texts, faults)))
}
