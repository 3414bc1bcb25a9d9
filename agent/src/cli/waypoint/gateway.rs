//! A waypoint as a Gateway: what is written, what is read, and whether it stands.

use serde_json::{Value, json};

use super::GenerateArgs;
use super::directory::Stored;
use crate::admin::AgentStatus;

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
    /// Whether it has a listener for HBONE, without which nothing can be bound to it.
    pub(super) has_listener: bool,
}

impl Waypoint {
    pub(super) fn of(args: &GenerateArgs) -> Self {
        Self {
            namespace: args.namespace.clone(),
            name: args.name.clone(),
            traffic: args.traffic.clone(),
            revision: args.revision.clone(),
            has_listener: true,
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
        let mut listeners = object
            .pointer("/spec/listeners")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let is_hbone = |listener: &Value| {
            listener.get("protocol").and_then(Value::as_str) == Some("HBONE")
                && listener.get("port").and_then(Value::as_u64) == Some(15008)
        };
        Some(Self {
            namespace: text("/metadata/namespace").unwrap_or("default").to_owned(),
            name: text("/metadata/name")?.to_owned(),
            traffic: label(TRAFFIC_LABEL),
            revision: label(REVISION_LABEL),
            has_listener: listeners.any(is_hbone),
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

/// One line of `waypoint status`.
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) is_true: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What the agent makes of a waypoint: it is accepted if its file is in order, and programmed if it can be
/// bound to besides. An agent that has read the directory since has no other state of it.
pub(super) fn conditions(stored: &Stored, status: &AgentStatus) -> [Condition; 2] {
    let path = stored.path.to_string_lossy();
    let problem = status
        .problems
        .iter()
        .find(|problem| *problem.path == *path || path.ends_with(&problem.path));
    let accepted = match problem {
        None => Condition {
            kind: "Accepted",
            is_true: true,
            reason: "Accepted",
            message: "the agent has read it".to_owned(),
        },
        Some(problem) => Condition {
            kind: "Accepted",
            is_true: false,
            reason: "Invalid",
            message: problem.message.clone(),
        },
    };
    let programmed = if !accepted.is_true {
        (
            false,
            "Invalid",
            "the last good state is in force".to_owned(),
        )
    } else if stored.waypoint.has_listener {
        (
            true,
            "Programmed",
            "every node's agent does its work".to_owned(),
        )
    } else {
        let why = "it has no listener with protocol HBONE on port 15008".to_owned();
        (false, "AddressNotAssigned", why)
    };
    let (is_true, reason, message) = programmed;
    [
        accepted,
        Condition {
            kind: "Programmed",
            is_true,
            reason,
            message,
        },
    ]
}
