//! What an API server holds of objects besides what the mesh reads of them: their status as it stands, and what they are
//! known by. Kept only where somebody writes statuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::mesh::{Kind, ObjectKey};

/// All that is held.
pub type Holdings = BTreeMap<ObjectKey, Held>;

/// What is held of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Group and version that the server speaks of it in.
    pub api_version: Arc<str>,
    /// What tells it from another of the same name.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`.
    pub version: Arc<str>,
    /// `spec.gatewayClassName`, of a Gateway.
    pub class: Option<Arc<str>>,
    /// `spec.controllerName`, of a GatewayClass.
    pub controller: Option<Arc<str>>,
    /// `status`; null if there is none.
    pub status: Value,
}

impl Held {
    /// Reads it off an object; nothing if the object has no name among the server's.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let metadata = object.get("metadata")?;
        let text = |value: &Value| value.as_str().map(Arc::from);
        Some(Self {
            api_version: text(&object["apiVersion"])?,
            uid: text(&metadata["uid"])?,
            version: text(&metadata["resourceVersion"])?,
            class: text(&object["spec"]["gatewayClassName"]),
            controller: text(&object["spec"]["controllerName"]),
            status: object["status"].clone(),
        })
    }
}

/// Kinds of which nobody is told anything here: there are too many of them, or they are others' to speak about.
pub(super) fn is_held(kind: &Kind) -> bool {
    !matches!(
        kind,
        Kind::Pod | Kind::EndpointSlice | Kind::Node | Kind::MeshConfig
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Held;

    #[test]
    fn what_the_server_knows_an_object_by_is_kept() {
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": "w", "uid": "u", "resourceVersion": "7" },
            "spec": { "gatewayClassName": "istio-waypoint" },
            "status": { "conditions": [] },
        });
        let held = Held::of(&object).unwrap();
        assert_eq!(
            (&*held.uid, &*held.version, held.class.as_deref()),
            ("u", "7", Some("istio-waypoint"))
        );
        assert_eq!(held.status, json!({ "conditions": [] }));
        assert_eq!(Held::of(&json!({ "metadata": { "name": "w" } })), None);
    }
}
