//! Why capture failed: what it was doing, for which pod, and the cause.

use std::io;

use super::{programs::LoadError, repair::Repair};

/// What capture was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    FindCgroup,
    PrepareBpffs,
    OpenMaps,
    AttachHooks,
    Beat,
    PrepareRunDirectory,
    Prepare,
    OpenNetns,
    Arm(Repair),
    OpenDnsSockets,
    OpenAnswerSockets,
    MakeRings,
    Observe,
    Disarm,
    HandOver,
    Remove,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FindCgroup => "find the cgroup2 hierarchy",
            Self::PrepareBpffs => "prepare the bpf file system",
            Self::OpenMaps => "open the pinned maps",
            Self::AttachHooks => "attach the cgroup programs",
            Self::Beat => "renew the heartbeat",
            Self::PrepareRunDirectory => "prepare the run directory",
            Self::Prepare => "start the thread that prepares pods",
            Self::OpenNetns => "open the network namespace",
            Self::Arm(repair) => return write!(f, "put the {repair} in place"),
            Self::OpenDnsSockets => "open the DNS proxy's sockets on port 15053",
            Self::OpenAnswerSockets => "open the sockets that answer held connections",
            Self::MakeRings => "make the rings of held connections",
            Self::Observe => "observe capture",
            Self::Disarm => "remove capture",
            Self::HandOver => "leave connections to the next agent",
            Self::Remove => "remove all programs",
        })
    }
}

/// Why capture failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// Something that concerns all pods.
    #[error("cannot {operation}")]
    Node {
        operation: Operation,
        source: io::Error,
    },
    /// Something that concerns one pod.
    #[error("cannot {operation} of pod {pod}")]
    Pod {
        operation: Operation,
        pod: String,
        source: io::Error,
    },
    /// The kernel refused the programs.
    #[error("cannot load the eBPF programs")]
    Load(#[source] LoadError),
    /// The kernel refused a pod's programs.
    #[error("cannot load the eBPF programs of pod {pod}")]
    LoadPod { pod: String, source: LoadError },
    /// The pod has no network namespace of its own.
    #[error("pod {pod} shares the node's network namespace and cannot be captured")]
    HostNetwork { pod: String },
    /// The pod is not enrolled.
    #[error("pod {pod} is not enrolled")]
    NotEnrolled { pod: String },
}
