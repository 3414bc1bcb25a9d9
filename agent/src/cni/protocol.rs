//! What the plugin and the agent say to each other: one request, one answer, both JSON, over a Unix socket that only root
//! may use.
//!
//! The plugin connects, writes its request and closes its side; the agent answers and closes. A connection carries one
//! request. `docs/operations.md` shows both.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of this protocol. Both sides refuse any other.
pub(crate) const VERSION: u32 = 1;
/// Most bytes of a request: names of as many sandboxes as a node can have.
pub(super) const MOST_BYTES: u64 = 1 << 20;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// What for.
    #[serde(flatten)]
    pub(crate) command: Command,
}

/// The runtime's command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub(crate) enum Command {
    /// A pod is about to start: answered once it is captured, or known not to be for the mesh.
    Add(Sandbox),
    /// Whether a pod that was started is as it should be.
    Check(Sandbox),
    /// A sandbox has ended.
    Del {
        /// The runtime's name of it.
        container: String,
    },
    /// All sandboxes that there are.
    Gc {
        /// The runtime's names of them.
        containers: BTreeSet<String>,
    },
    /// Whether pods can be started.
    Status,
}

/// What the runtime has made for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The runtime's name of it.
    pub(crate) container: String,
    /// Path of its network namespace, on the node.
    pub(crate) netns: PathBuf,
    /// The pod.
    pub(crate) pod: PodName,
    /// What the network's own plugin has given it.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
}

/// A pod, as the kubelet names it to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodName {
    /// Kubernetes namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// UID.
    pub(crate) uid: String,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// What became of it.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub(crate) enum Outcome {
    /// The pod is captured.
    Captured,
    /// The pod is not for the mesh.
    NotInMesh,
    /// It was noted.
    Done,
    /// It cannot be; later it may.
    Refused {
        /// One sentence.
        reason: String,
    },
}

impl Answer {
    /// In this version.
    pub(super) fn of(outcome: Outcome) -> Self {
        Self {
            version: VERSION,
            outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Answer, Command, Outcome, PodName, Request, Sandbox, VERSION};

    #[test]
    fn the_wire_format_is_as_documented() {
        let request = Request {
            version: VERSION,
            command: Command::Add(Sandbox {
                container: "0123".to_owned(),
                netns: "/var/run/netns/cni-1".into(),
                pod: PodName {
                    namespace: "shop".to_owned(),
                    name: "web-0".to_owned(),
                    uid: "u-1".to_owned(),
                },
                addresses: vec!["10.244.1.5".parse().unwrap()],
            }),
        };
        let wire = json!({
            "version": 1,
            "command": "add",
            "container": "0123",
            "netns": "/var/run/netns/cni-1",
            "pod": { "namespace": "shop", "name": "web-0", "uid": "u-1" },
            "addresses": ["10.244.1.5"],
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), wire);
        assert_eq!(serde_json::from_value::<Request>(wire).unwrap(), request);
        for (outcome, wire) in [
            (
                Outcome::Captured,
                json!({ "version": 1, "outcome": "captured" }),
            ),
            (
                Outcome::NotInMesh,
                json!({ "version": 1, "outcome": "notInMesh" }),
            ),
            (
                Outcome::Refused {
                    reason: "why".to_owned(),
                },
                json!({ "version": 1, "outcome": "refused", "reason": "why" }),
            ),
        ] {
            let answer = Answer::of(outcome);
            assert_eq!(serde_json::to_value(&answer).unwrap(), wire);
            assert_eq!(serde_json::from_value::<Answer>(wire).unwrap(), answer);
        }
    }
}
