//! What is known about this node's pods, for operators.

use std::collections::BTreeMap;

use userspace_l7::model::WorkloadUid;

use crate::admin::{PodState, PodStatus};
use crate::mesh::{LocalPod, SameNode};

/// What is known about this node's pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(super) pods: BTreeMap<WorkloadUid, Entry>,
    /// Whether the first list of pods has come.
    pub(super) told: bool,
    /// Repairs since the start, by kind.
    pub(crate) repairs: BTreeMap<String, u64>,
    /// Pods armed since the start.
    pub(crate) started: u64,
    /// Pods released since the start.
    pub(crate) stopped: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) pod: LocalPod,
    /// Why it is not captured; `None` if it is.
    pub(super) pending: Option<Pending>,
}

/// Why a pod is not captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// Nothing of it runs yet, so nothing of it can get past the mesh.
    NotStarted,
    /// Something is in the way.
    Hindered(String),
    /// It is not for the mesh any more, and what it had begun is.
    Draining,
}

impl std::fmt::Display for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted => f.write_str("it has not started on this node"),
            Self::Hindered(why) => f.write_str(why),
            Self::Draining => f.write_str("it has left the mesh: connections that it had end"),
        }
    }
}

impl Ledger {
    /// This node's pods, in the order of their names.
    pub(crate) fn pods(&self) -> Vec<PodStatus> {
        let status = |(uid, entry): (&WorkloadUid, &Entry)| PodStatus {
            uid: uid.to_string(),
            name: entry.pod.name.name.to_string(),
            namespace: entry.pod.name.namespace.to_string(),
            service_account: entry.pod.identity.service_account().to_owned(),
            state: match entry.pending {
                None => PodState::Up,
                Some(Pending::NotStarted | Pending::Hindered(_)) => PodState::Pending,
                Some(Pending::Draining) => PodState::Draining,
            },
            reason: entry.pending.as_ref().map(ToString::to_string),
            encrypted_within_node: entry.pod.same_node == SameNode::Encrypted,
        };
        self.pods.iter().map(status).collect()
    }

    /// What has to happen before every known pod is armed.
    pub(crate) fn pending(&self) -> Vec<String> {
        if !self.told {
            return vec!["the first list of pods".to_owned()];
        }
        self.hindered().map(|uid| format!("pod {uid}")).collect()
    }

    /// Pods that run, and are not captured because something is in the way.
    pub(crate) fn hindered(&self) -> impl Iterator<Item = &WorkloadUid> {
        let hindered = |entry: &Entry| matches!(entry.pending, Some(Pending::Hindered(_)));
        let pods = self.pods.iter();
        pods.filter(move |(_, entry)| hindered(entry))
            .map(|(uid, _)| uid)
    }
}
