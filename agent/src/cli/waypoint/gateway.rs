//! A waypoint as a Gateway: what is written, what is read, and whether it stands.

use serde_json::{Value, json};

use super::GenerateArgs;
use super::directory::Stored;
use crate::admin::AgentStatus;
use crate::mesh::status::{Condition, ObjectStatus, fails};

/// Istio's class, and our own.
const CLASSES: [&str; 2] = ["istio-waypoint", "culvert-waypoint"];
const TRAFFIC_LABEL: &str = "istio.io/waypoint-for";
const REVISION_LABEL: &str = "istio.io/rev";

/// What these commands know of a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waypoint {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) traffic: Option<String>,
    pub(super) revision: Option<String>,
}

impl Waypoint {
    pub(super) fn of(args: &GenerateArgs, namespace: String) -> Self {
        Self {
            namespace,
            name: args.name.clone(),
            traffic: args.traffic.clone(),
            revision: args.revision.clone(),
        }
    }

    /// `None` for every other object.
    pub(super) fn read(object: &Value) -> Option<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let class = text("/spec/gatewayClassName")?;
        if text("/kind") != Some("Gateway") || !CLASSES.contains(&class) {
            return None;
        }
        let labels = object.pointer("/metadata/labels");
        let label = |name: &str| Some(labels?.get(name)?.as_str()?.to_owned());
        Some(Self {
            namespace: text("/metadata/namespace").unwrap_or("default").to_owned(),
            name: text("/metadata/name")?.to_owned(),
            traffic: label(TRAFFIC_LABEL),
            revision: label(REVISION_LABEL),
        })
    }

    /// The Gateway, as `istioctl waypoint generate` prints it.
    pub(super) fn manifest(&self) -> Value {
        let mut metadata = json!({ "name": self.name, "namespace": self.namespace });
        for (label, value) in [
            (TRAFFIC_LABEL, &self.traffic),
            (REVISION_LABEL, &self.revision),
        ] {
            if let Some(value) = value {
                metadata["labels"][label] = json!(value);
            }
        }
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": metadata,
            "spec": {
                "gatewayClassName": CLASSES[0],
                "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
            },
        })
    }
}

/// One condition, in the words of whoever says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Its type, such as `Programmed`.
    pub(super) kind: String,
    /// `True`, `False` or `Unknown`.
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

impl From<Condition> for Said {
    fn from(condition: Condition) -> Self {
        Self {
            kind: condition.kind,
            status: format!("{:?}", condition.status),
            reason: condition.reason,
            message: condition.message,
        }
    }
}

/// What an agent says of a waypoint: what it computed, if it has taken the newest file over.
pub(super) fn conditions(
    stored: &Stored,
    status: &AgentStatus,
    objects: &[ObjectStatus],
) -> Vec<Condition> {
    let path = stored.path.to_string_lossy();
    let problem = status
        .problems
        .iter()
        .find(|problem| *problem.path == *path || path.ends_with(&problem.path));
    if let Some(problem) = problem {
        let message = "the last good state is in force";
        return vec![
            fails("Accepted", "Invalid", problem.message.as_str()),
            fails("Programmed", "Invalid", message),
        ];
    }
    let Waypoint {
        namespace, name, ..
    } = &stored.waypoint;
    let is_same = |object: &&ObjectStatus| {
        let found = &object.metadata;
        object.kind == "Gateway"
            && found.name == *name
            && found.namespace.as_deref() == Some(namespace)
    };
    let Some(object) = objects.iter().find(is_same) else {
        let message = match stored.waypoint.revision.as_deref() {
            None | Some("default") => "the agent has not read it yet".to_owned(),
            Some(revision) => format!("revision {revision} is another control plane's"),
        };
        let pending = |kind| fails(kind, "Pending", message.as_str());
        return vec![pending("Accepted"), pending("Programmed")];
    };
    let shown = |condition: &&Condition| ["Accepted", "Programmed"].contains(&&*condition.kind);
    let own = object.status.conditions.iter().filter(shown);
    own.cloned().collect()
}
