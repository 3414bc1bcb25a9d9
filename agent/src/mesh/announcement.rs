//! Layer 4 as a control plane tells it: workloads, services and policies that it has compiled itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{
    AuthorizationPolicy, NamespacedHostname, PolicyKey, Service, Workload, WorkloadUid,
};

/// Where the workloads, services and policies of layer 4 come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Layer4 {
    /// The objects.
    #[default]
    Compiled,
    /// What a control plane announces; the objects say what it does not (docs/adr/0017).
    Announced,
}

/// A workload as it was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedWorkload {
    /// What it is, without labels, which are not announced.
    pub workload: Arc<Workload>,
    /// Its services, with the ports by which it serves each: service port → port of its own.
    pub ports: BTreeMap<NamespacedHostname, SmallVec<[(u16, u16); 2]>>,
}

/// One difference between two states of what was announced. Without a value, it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// A workload.
    Workload(WorkloadUid, Option<AnnouncedWorkload>),
    /// A service, without its endpoints: those are the workloads that name it.
    Service(NamespacedHostname, Option<Arc<Service>>),
    /// A policy of layer 4, whether made of an AuthorizationPolicy or of a PeerAuthentication.
    Policy(PolicyKey, Option<Arc<AuthorizationPolicy>>),
}
