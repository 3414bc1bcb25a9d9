//! Objects → snapshot, change by change. A change marks what depends on it, what is marked is computed anew
//! from the objects alone, and what came out different is published: so the result never depends on the
//! order of changes, and the cost only on what they touch.
//!
//! ```text
//! Change ─▶ store (objects, indexes) ─▶ marks ─▶ policies ─▶ workloads ─▶ services ─▶ layer 7 ─▶ snapshot
//! ```
//!
//! What a control plane announces replaces what policies, workloads and services of layer 4 would come to, where they are
//! put into the snapshot ([`announced`]).

mod announced;
mod authentication;
mod authorizers;
mod backends;
mod entries;
mod http_policies;
mod layer7;
mod mark;
mod mark_layer7;
mod opening;
mod peers;
mod policies;
mod precedence;
mod publish;
mod publish_policies;
mod rate_limits;
mod routes;
mod services;
mod settings;
mod statuses;
mod store;
mod strict;
mod targets;
mod telemetry;
#[cfg(test)]
mod tests;
mod tracing;
mod traffic;
mod vips;
mod waypoint;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use userspace_l7::model::{
    HttpPolicy, JwksSource, JwtKeys, JwtRule, MeshSettings, NamespacedHostname, PolicyKey,
    Snapshot, SpiffeId, WorkloadUid,
};

use self::announced::Announced;
use self::mark::Marks;
use self::peers::PeerRules;
pub use self::policies::PolicyStatus;
use self::routes::CompiledRoute;
use self::services::{Claims, Output};
use self::store::{ByName, Owner, Store};
use self::vips::Wanting;
pub use self::workloads::{Bystander, LocalPod, SameNode};
use super::announcement::{Announcement, Layer4};
use super::meta::{Labels, ObjectName};
use super::object::{Change, Kind, ObjectKey};

/// What the result depends on besides the objects.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// Mesh-wide settings.
    pub mesh: MeshSettings,
    /// This node.
    pub node: Arc<str>,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: Arc<str>,
    /// How the agent knows where its pods run.
    pub pod_netns: PodNetns,
    /// Where the workloads, services and policies of layer 4 come from.
    pub layer4: Layer4,
    /// The `ConfigMap` of the root namespace that holds Istio's mesh configuration: `istio`, or `istio-<revision>`.
    pub mesh_config: Arc<str>,
    /// Values of `istio.io/rev` of the waypoints that are ours; a waypoint without the label has `default`.
    pub revisions: Arc<[String]>,
}

/// How an agent knows the network namespaces of its node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetns {
    /// By the annotation `culvert.dev/netns`; a pod without it cannot be captured.
    Annotated,
    /// The runtime tells it, or its processes do.
    Found,
}

/// Something about an object that is worth saying, though the object is valid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The object.
    pub object: ObjectKey,
    /// Whether somebody should act on it.
    pub warning: bool,
    /// What, in the form "… asks for …", to be read after the object's name.
    pub message: String,
}

/// Notices of the object that is being compiled.
#[derive(Debug, Default)]
struct Notices(Vec<Notice>);

impl Notices {
    fn warn(&mut self, kind: Kind, name: &ObjectName, message: String) {
        self.0.push(Notice {
            object: ObjectKey {
                kind,
                name: name.clone(),
            },
            warning: true,
            message,
        });
    }

    fn inform(&mut self, kind: Kind, name: &ObjectName, message: String) {
        self.0.push(Notice {
            object: ObjectKey {
                kind,
                name: name.clone(),
            },
            warning: false,
            message,
        });
    }
}

/// Who said what, so that it can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Unit {
    Owner(Owner),
    Pod(ObjectName),
    Enrolment(ObjectName),
    Entry(ObjectName),
    Policy(ObjectName),
    Namespace(Arc<str>),
    MeshConfig,
    Telemetry(ObjectName),
    Traffic(NamespacedHostname),
}

/// Policies that select by label, with what they select by.
type SelectingPolicies = HashMap<Arc<str>, Vec<(Labels, PolicyKey)>>;

/// Compiles objects, one change at a time.
#[derive(Debug)]
pub struct Compiler {
    options: MeshOptions,
    store: Store,
    /// What a control plane has announced; nothing where the objects are all there is.
    announced: Option<Announced>,
    outputs: HashMap<Owner, Output>,
    /// Who declares a service; the first one's declaration counts.
    declared: HashMap<NamespacedHostname, SmallVec<[Owner; 1]>>,
    claims: Claims,
    /// Hostnames that workloads are known by, and how many are.
    hostnames: BTreeMap<Arc<str>, usize>,
    automatic: BTreeMap<Wanting, [IpAddr; 2]>,
    selecting_policies: SelectingPolicies,
    peer_rules: HashMap<Arc<str>, PeerRules>,
    local: BTreeMap<WorkloadUid, Arc<LocalPod>>,
    /// Pods of this node that are not to be captured.
    bystanders: BTreeMap<WorkloadUid, Bystander>,
    /// Waypoints of workloads.
    bindings: HashMap<WorkloadUid, ObjectName>,
    routes: ByName<ObjectKey, Arc<CompiledRoute>>,
    /// Policies with targets.
    http_policies: HashMap<ObjectName, Arc<HttpPolicy>>,
    /// Rules of RequestAuthentications with targets.
    jwt_rules: HashMap<ObjectName, Vec<Arc<JwtRule>>>,
    statuses: BTreeMap<ObjectKey, PolicyStatus>,
    notices: BTreeMap<Unit, Vec<Notice>>,
    current: Snapshot,
    published: Arc<Snapshot>,
    empty: Arc<str>,
    latest: Arc<str>,
}

impl Compiler {
    /// A mesh without objects.
    pub fn new(options: MeshOptions) -> Self {
        let current = Snapshot::empty(options.mesh.clone());
        let is_announced = options.layer4 == Layer4::Announced;
        Self {
            options,
            store: Store::default(),
            announced: is_announced.then(Announced::default),
            outputs: HashMap::new(),
            declared: HashMap::new(),
            claims: Claims::default(),
            hostnames: BTreeMap::new(),
            automatic: BTreeMap::new(),
            selecting_policies: HashMap::new(),
            peer_rules: HashMap::new(),
            local: BTreeMap::new(),
            bystanders: BTreeMap::new(),
            bindings: HashMap::new(),
            routes: ByName::new(),
            http_policies: HashMap::new(),
            jwt_rules: HashMap::new(),
            statuses: BTreeMap::new(),
            notices: BTreeMap::new(),
            published: Arc::new(current.clone()),
            current,
            empty: "".into(),
            latest: "latest".into(),
        }
    }

    /// Takes changes in, and gives the mesh as it is with them. The same snapshot as before, if they make
    /// no difference to it.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Arc<Snapshot> {
        let mut marks = Marks::default();
        for change in changes {
            self.ingest(&change, &mut marks);
        }
        self.update(marks)
    }

    /// Takes in what a control plane announces, and gives the mesh as it is with that. Without effect where layer 4 is
    /// compiled from the objects.
    pub fn announce(
        &mut self,
        announcements: impl IntoIterator<Item = Announcement>,
    ) -> Arc<Snapshot> {
        let mut marks = Marks::default();
        for announcement in announcements {
            self.hear(announcement, &mut marks);
        }
        self.update(marks)
    }

    /// Computes what is marked, and publishes it if it came out different.
    fn update(&mut self, mut marks: Marks) -> Arc<Snapshot> {
        self.spread(&mut marks);
        let mut different = self.update_settings(&mut marks);
        different |= self.update_strict(&mut marks);
        different |= self.update_policies(&mut marks);
        different |= self.update_announced_policies(&mut marks);
        different |= self.update_workloads(&mut marks);
        different |= self.update_services(&mut marks);
        different |= self.update_traffic(&mut marks);
        different |= self.update_layer7(&mut marks);
        self.say_providers(&mut marks);
        if different {
            self.current.generation += 1;
            self.published = Arc::new(self.current.clone());
        }
        Arc::clone(&self.published)
    }

    /// Takes over which addresses [`hostnames`](Self::hostnames) have, and gives the mesh as it is with that. What is not
    /// among them has none.
    pub fn look_up(&mut self, found: BTreeMap<Arc<str>, Arc<[IpAddr]>>) -> Arc<Snapshot> {
        if *self.current.looked_up != found {
            self.current.looked_up = Arc::new(found);
            self.current.generation += 1;
            self.published = Arc::new(self.current.clone());
        }
        self.snapshot()
    }

    /// Hostnames that endpoints are known by, whose addresses have to be looked up.
    pub fn hostnames(&self) -> BTreeSet<Arc<str>> {
        self.hostnames.keys().cloned().collect()
    }

    /// The mesh as it is.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    /// Pods of this node that are to be captured.
    pub fn local_pods(&self) -> &BTreeMap<WorkloadUid, Arc<LocalPod>> {
        &self.local
    }

    /// Pods of this node that are not to be captured.
    pub fn bystanders(&self) -> impl Iterator<Item = &Bystander> {
        self.bystanders.values()
    }

    /// Identities that this node needs SVIDs for.
    pub fn identities(&self) -> BTreeSet<SpiffeId> {
        self.local
            .values()
            .map(|pod| pod.identity.clone())
            .collect()
    }

    /// Where keys of tokens have to be fetched from, and how long that may take.
    pub fn key_sources(&self) -> BTreeMap<JwksSource, Duration> {
        let mut sources = BTreeMap::new();
        for rule in self.jwt_rules.values().flatten() {
            if let JwtKeys::Remote { source, timeout } = &rule.keys {
                // Of several rules the most patient one counts.
                let known = sources.entry(source.clone()).or_insert(*timeout);
                *known = (*known).max(*timeout);
            }
        }
        sources
    }

    /// What became of each policy.
    pub fn policy_statuses(&self) -> impl Iterator<Item = &PolicyStatus> {
        self.statuses.values()
    }

    /// What is worth saying about valid objects.
    pub fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.notices.values().flatten()
    }

    fn say(&mut self, unit: Unit, notices: Vec<Notice>) {
        if notices.is_empty() {
            self.notices.remove(&unit);
        } else {
            self.notices.insert(unit, notices);
        }
    }
}

/// Names of the services that an owner declares.
fn owner_names(compiler: &Compiler, owner: &Owner) -> Vec<NamespacedHostname> {
    match owner {
        Owner::Service(name) => {
            let there = compiler.store.services.get(name);
            there
                .map(|_| compiler.service_key(name))
                .into_iter()
                .collect()
        }
        Owner::Entry(name) => {
            let entry = compiler.store.service_entries.get(name);
            entry
                .into_iter()
                .flat_map(|entry| entries::host_keys(entry))
                .collect()
        }
    }
}
