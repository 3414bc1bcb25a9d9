//! Pods and WorkloadEntries → workloads.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};
use userspace_l7::model::{
    Health, Locality, NamespacedHostname, NetworkMode, Peer, SpiffeId, TrustDomain, TunnelProtocol,
    Workload, WorkloadUid,
};

use super::store::{Member, Owner};
use super::waypoint::Traffic;
use super::{Compiler, Notices, PodNetns, Unit, owner_names};
use crate::mesh::external::{WorkloadEntry, WorkloadEntrySpec};
use crate::mesh::meta::{Labels, Meta, ObjectName};
use crate::mesh::object::Kind;
use crate::mesh::pod::{NETNS, Pod};

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Where Kubernetes keeps its own pods.
const SYSTEM_NAMESPACE: &str = "kube-system";
const DATAPLANE: &str = "culvert.dev/dataplane";
const SAME_NODE: &str = "culvert.dev/same-node";
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const SIDECAR: &str = "sidecar.istio.io/status";
const TUNNEL: &str = "networking.istio.io/tunnel";

/// A pod of this node that is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its workload in the snapshot.
    pub uid: WorkloadUid,
    /// Namespace and name.
    pub name: ObjectName,
    /// The UID that the API server has given it, by which the node's runtime knows it; empty in a directory.
    pub pod_uid: Arc<str>,
    /// Its network namespace, where the Pod itself says it; else it has to be found.
    pub netns: Option<PathBuf>,
    /// Its addresses; empty until it has one.
    pub addresses: SmallVec<[std::net::IpAddr; 2]>,
    /// Whether its DNS queries are answered by the agent.
    pub dns_capture: bool,
    /// Whether only its outbound traffic is captured.
    pub bypass_inbound: bool,
    /// How its traffic within the node travels.
    pub same_node: SameNode,
    /// Who it is.
    pub identity: SpiffeId,
}

/// A pod of this node that is not to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bystander {
    /// Namespace and name.
    pub name: ObjectName,
    /// The UID by which the node's runtime knows it.
    pub pod_uid: Arc<str>,
}

/// How traffic between two captured pods of one node travels (`culvert.dev/same-node`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SameNode {
    /// The kernel may carry it, once authorized.
    #[default]
    Direct,
    /// As HBONE, like traffic to another node.
    Encrypted,
}

/// How a pod takes part in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    protocol: TunnelProtocol,
    peer: Peer,
}

impl Compiler {
    /// The workload of a pod; none once it has ended.
    pub(super) fn pod_workload(&self, pod: &Pod) -> Option<Workload> {
        if pod.finished {
            return None;
        }
        let name = &pod.meta.name;
        let labels = &pod.meta.labels;
        let part = self.part(pod);
        let (workload_name, workload_type) = workload_name(pod);
        let bound = self.waypoint(&pod.meta, Traffic::Workload);
        Some(Workload {
            uid: self.pod_uid(name),
            name: Arc::clone(&name.name),
            namespace: Arc::clone(&name.namespace),
            service_account: Arc::clone(&pod.service_account),
            trust_domain: self.options.mesh.trust_domain.clone(),
            addresses: pod.addresses.clone(),
            hostname: Arc::clone(&self.empty),
            node: Arc::clone(&pod.node),
            network: Arc::clone(&self.options.mesh.network),
            network_mode: if pod.host_network {
                NetworkMode::HostNetwork
            } else {
                NetworkMode::Standard
            },
            cluster: Arc::clone(&self.options.mesh.cluster),
            protocol: part.protocol,
            peer: part.peer,
            canonical_name: canonical_name(labels, &workload_name),
            canonical_revision: self.canonical_revision(labels),
            workload_name,
            workload_type: workload_type.into(),
            labels: labels.of_workload(),
            locality: self.node_locality(&pod.node),
            health: if pod.ready {
                Health::Healthy
            } else {
                Health::Unhealthy
            },
            capacity: 1,
            services: self.services_of_pod(pod),
            authorization_policies: self.policies_selecting(&name.namespace, labels),
            waypoint: bound.ok().flatten().map(|one| one.reference),
            application_tunnel: self.application_tunnel(&pod.meta),
        })
    }

    pub(super) fn pod_uid(&self, name: &ObjectName) -> WorkloadUid {
        let cluster = &self.options.mesh.cluster;
        WorkloadUid::new(format!("{cluster}//Pod/{}/{}", name.namespace, name.name))
    }

    pub(super) fn entry_uid(&self, name: &ObjectName) -> WorkloadUid {
        let cluster = &self.options.mesh.cluster;
        let group = "networking.istio.io/WorkloadEntry";
        WorkloadUid::new(format!(
            "{cluster}/{group}/{}/{}",
            name.namespace, name.name
        ))
    }

    /// Whether peers reach the pod by HBONE, and who answers.
    fn part(&self, pod: &Pod) -> Part {
        let plain = Part {
            protocol: TunnelProtocol::Tcp,
            peer: Peer::Culvert,
        };
        let ztunnel = Part {
            protocol: TunnelProtocol::Hbone,
            peer: Peer::Ztunnel,
        };
        if pod.host_network {
            return plain;
        }
        if speaks_hbone_itself(&pod.meta.labels) || dataplane(&pod.meta) == Some("ztunnel") {
            return ztunnel;
        }
        if !self.is_enrolled(pod) {
            return plain;
        }
        match self
            .store
            .nodes
            .get(&pod.node)
            .and_then(|node| dataplane(node))
        {
            Some("ztunnel") => return ztunnel,
            Some("none") => return plain,
            _ => {}
        }
        if self.can_be_captured(pod) {
            Part {
                protocol: TunnelProtocol::Hbone,
                peer: Peer::Culvert,
            }
        } else {
            plain
        }
    }

    fn can_be_captured(&self, pod: &Pod) -> bool {
        match self.options.pod_netns {
            PodNetns::Annotated => pod.meta.annotations.get(NETNS).is_some(),
            PodNetns::Found => pod.shares_kernel() && pod.static_uid().is_none(),
        }
    }

    /// Says of a pod of this node that is labelled for the mesh why it is not in it.
    pub(super) fn say_enrolment(&mut self, pod: Option<&Pod>, name: &ObjectName) {
        let mut notices = Notices::default();
        if let Some(pod) = pod.filter(|pod| pod.node == self.options.node && !pod.finished) {
            if let Some(why) = self.left_alone(pod) {
                let what = format!(
                    "is labelled for the mesh and left alone: {why}; its traffic is plain text, and it has no identity"
                );
                notices.warn(Kind::Pod, name, what);
            }
            let is_annotated = pod.meta.annotations.get(NETNS).is_some();
            if is_annotated && self.options.pod_netns == PodNetns::Found {
                let what = format!(
                    "names its network namespace by {NETNS}, which says nothing in a cluster: remove the annotation"
                );
                notices.warn(Kind::Pod, name, what);
            }
        }
        self.say(Unit::Enrolment(name.clone()), notices.0);
    }

    /// Why a pod is not captured whose labels ask for that.
    fn left_alone(&self, pod: &Pod) -> Option<&'static str> {
        if self.dataplane_mode(pod) != Some("ambient") {
            return None;
        }
        if pod.host_network {
            Some("it uses its node's network (hostNetwork)")
        } else if pod.meta.annotations.get(SIDECAR).is_some() {
            Some("it has a sidecar")
        } else if self.options.pod_netns == PodNetns::Annotated {
            None
        } else if !pod.shares_kernel() {
            Some(
                "its runtime puts it into a machine or a kernel of its own, which capture cannot see into",
            )
        } else if pod.static_uid().is_some() {
            Some("its node runs it from a file, so the API server does not know it by its own UID")
        } else {
            None
        }
    }

    /// A pod of this node that is not captured.
    pub(super) fn bystander(&self, pod: &Pod) -> Option<Bystander> {
        let pod_uid = pod.static_uid().unwrap_or(&pod.uid);
        let is_here = pod.node == self.options.node && !pod.finished;
        is_here.then(|| Bystander {
            name: pod.meta.name.clone(),
            pod_uid: Arc::clone(pod_uid),
        })
    }

    /// Whether the pod is in the mesh: its own label, else its namespace's. A pod with a sidecar has one
    /// already.
    fn is_enrolled(&self, pod: &Pod) -> bool {
        self.dataplane_mode(pod) == Some("ambient") && pod.meta.annotations.get(SIDECAR).is_none()
    }

    fn dataplane_mode<'a>(&'a self, pod: &'a Pod) -> Option<&'a str> {
        let namespace = self.store.namespaces.get(&pod.meta.name.namespace);
        let inherited = namespace.and_then(|meta| meta.labels.get(DATAPLANE_MODE));
        pod.meta.labels.get(DATAPLANE_MODE).or(inherited)
    }

    /// The pod as capture needs it, if this node captures it.
    pub(super) fn local_pod(&self, pod: &Pod, workload: &Workload) -> Option<LocalPod> {
        let captured = workload.protocol == TunnelProtocol::Hbone && workload.peer == Peer::Culvert;
        if !captured || pod.node != self.options.node {
            return None;
        }
        let meta = &pod.meta;
        let namespace = self.store.namespaces.get(&meta.name.namespace);
        let inherited = |key| {
            namespace.and_then(|meta| meta.annotations.get(key).or_else(|| meta.labels.get(key)))
        };
        let own = |key| meta.annotations.get(key).or_else(|| meta.labels.get(key));
        let encrypted = own(SAME_NODE).or_else(|| inherited(SAME_NODE)) == Some("encrypted");
        Some(LocalPod {
            uid: workload.uid.clone(),
            name: meta.name.clone(),
            pod_uid: Arc::clone(&pod.uid),
            netns: match self.options.pod_netns {
                PodNetns::Annotated => Some(PathBuf::from(meta.annotations.get(NETNS)?)),
                PodNetns::Found => None,
            },
            addresses: pod.addresses.clone(),
            dns_capture: meta.annotations.get(DNS_CAPTURE) != Some("false"),
            bypass_inbound: meta.annotations.get(BYPASS_INBOUND) == Some("true"),
            same_node: if encrypted {
                SameNode::Encrypted
            } else {
                SameNode::Direct
            },
            identity: workload.identity(),
        })
    }

    fn node_locality(&self, node: &str) -> Locality {
        let labels = self.store.nodes.get(node).map(|node| &node.labels);
        let part = |key| {
            let value = labels.and_then(|labels| labels.shared(key));
            Arc::clone(value.unwrap_or(&self.empty))
        };
        Locality {
            region: part("topology.kubernetes.io/region"),
            zone: part("topology.kubernetes.io/zone"),
            subzone: part("topology.istio.io/subzone"),
        }
    }

    fn services_of_pod(&self, pod: &Pod) -> Vec<NamespacedHostname> {
        let name = &pod.meta.name;
        let mut owners = self.selecting_owners(&name.namespace, &pod.meta.labels);
        for slice in self.store.slices_of_pod.get(name).iter() {
            let slice = ObjectName {
                namespace: Arc::clone(&name.namespace),
                name: Arc::clone(slice),
            };
            owners.extend(self.store.service_of_slice(&slice));
        }
        let addresses = pod.addresses.iter().filter(|_| !pod.host_network);
        let slices = addresses.flat_map(|address| self.store.slices_of_address.get(address).iter());
        for slice in slices {
            owners.extend(self.store.service_of_slice(slice));
        }
        self.names_of(&owners)
    }

    /// Owners whose selector counts: a Service with slices has its endpoints from them.
    fn selecting_owners(&self, namespace: &str, labels: &Labels) -> BTreeSet<Owner> {
        let mut owners = self.store.selecting(namespace, labels);
        owners.retain(|owner| match owner {
            Owner::Service(name) => self.store.slices_of.get(name).is_empty(),
            Owner::Entry(_) => true,
        });
        owners
    }

    fn names_of(&self, owners: &BTreeSet<Owner>) -> Vec<NamespacedHostname> {
        let mut names: Vec<_> = owners
            .iter()
            .flat_map(|owner| owner_names(self, owner))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn canonical_revision(&self, labels: &Labels) -> Arc<str> {
        let keys = [
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ];
        let found = keys.iter().find_map(|key| labels.shared(key));
        Arc::clone(found.unwrap_or(&self.latest))
    }

    /// The workload of a WorkloadEntry.
    pub(super) fn entry_workload(&self, entry: &WorkloadEntry) -> Workload {
        let name = &entry.meta.name;
        let owners = self.selecting_owners(&name.namespace, &entry.labels);
        let bound = self.waypoint(&entry.meta, Traffic::Workload);
        Workload {
            services: self.names_of(&owners),
            authorization_policies: self.policies_selecting(&name.namespace, &entry.labels),
            waypoint: bound.ok().flatten().map(|one| one.reference),
            ..self.outside_workload(self.entry_uid(name), name, &entry.spec, &entry.labels)
        }
    }

    /// A workload that is no pod.
    pub(super) fn outside_workload(
        &self,
        uid: WorkloadUid,
        name: &ObjectName,
        spec: &WorkloadEntrySpec,
        labels: &Labels,
    ) -> Workload {
        let address: Option<std::net::IpAddr> = spec.address.parse().ok();
        let hostname = if address.is_some() {
            ""
        } else {
            spec.address.as_str()
        };
        let account = Some(spec.service_account.as_str()).filter(|account| !account.is_empty());
        let tunnel = speaks_hbone_itself(labels);
        let mut locality = spec.locality.splitn(3, '/').map(Arc::<str>::from);
        let mut part = || locality.next().unwrap_or_else(|| Arc::clone(&self.empty));
        Workload {
            uid,
            name: Arc::clone(&name.name),
            namespace: Arc::clone(&name.namespace),
            service_account: account.unwrap_or("default").into(),
            trust_domain: TrustDomain::clone(&self.options.mesh.trust_domain),
            addresses: address.map_or_else(SmallVec::new, |one| smallvec![one.to_canonical()]),
            hostname: hostname.to_ascii_lowercase().into(),
            node: Arc::clone(&self.empty),
            network: spec.network.as_str().into(),
            network_mode: NetworkMode::Standard,
            cluster: Arc::clone(&self.options.mesh.cluster),
            protocol: if tunnel {
                TunnelProtocol::Hbone
            } else {
                TunnelProtocol::Tcp
            },
            peer: if tunnel { Peer::Ztunnel } else { Peer::Culvert },
            canonical_name: canonical_name(labels, &name.name),
            canonical_revision: self.canonical_revision(labels),
            workload_name: Arc::clone(&name.name),
            workload_type: "pod".into(),
            labels: labels.of_workload(),
            locality: Locality {
                region: part(),
                zone: part(),
                subzone: part(),
            },
            health: Health::Healthy,
            capacity: spec.weight.unwrap_or(1),
            services: Vec::new(),
            authorization_policies: Vec::new(),
            waypoint: None,
            application_tunnel: None,
        }
    }

    /// The workload behind a selector's member.
    pub(super) fn member_uid(&self, namespace: &Arc<str>, member: &Member) -> WorkloadUid {
        let (Member::Pod(name) | Member::Entry(name)) = member;
        let name = ObjectName {
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
        };
        match member {
            Member::Pod(_) => self.pod_uid(&name),
            Member::Entry(_) => self.entry_uid(&name),
        }
    }
}

/// Says so if the namespace of what the cluster itself needs is in the mesh as a whole.
pub(super) fn warn_of_system(namespace: Option<&Meta>, notices: &mut Notices) {
    let Some(meta) = namespace.filter(|meta| &*meta.name.name == SYSTEM_NAMESPACE) else {
        return;
    };
    if meta.labels.get(DATAPLANE_MODE) == Some("ambient") {
        let what = format!(
            "is labelled {DATAPLANE_MODE}=ambient: what the cluster itself needs, its DNS among it, is then closed while its node \
             has no agent; Istio leaves this namespace out, so remove the label unless that is meant"
        );
        notices.warn(Kind::Namespace, &meta.name, what);
    }
}

/// Istio's way to say that a workload terminates HBONE itself.
fn speaks_hbone_itself(labels: &Labels) -> bool {
    labels
        .get(TUNNEL)
        .is_some_and(|tunnels| tunnels.split(',').any(|one| one.trim() == "http"))
}

/// Who serves a node or a pod, if not this mesh's agents: `ztunnel`, or, on a node, `none`.
fn dataplane(meta: &Meta) -> Option<&str> {
    let own = meta.labels.get(DATAPLANE);
    own.or_else(|| meta.annotations.get(DATAPLANE))
}

fn canonical_name(labels: &Labels, workload_name: &Arc<str>) -> Arc<str> {
    let keys = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ];
    let found = keys.iter().find_map(|key| labels.shared(key));
    Arc::clone(found.unwrap_or(workload_name))
}

/// Name and type of what made a pod, guessed from its controller's name as istiod does.
fn workload_name(pod: &Pod) -> (Arc<str>, &'static str) {
    let Some((kind, name)) = &pod.controller else {
        return (Arc::clone(&pod.meta.name.name), "pod");
    };
    match &**kind {
        "ReplicaSet" => {
            let hash = pod.meta.labels.get("pod-template-hash");
            let stem = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
            (
                stem.map_or_else(|| Arc::clone(name), Arc::from),
                "deployment",
            )
        }
        "Job" => match cron_job(name) {
            Some(stem) => (stem.into(), "cronjob"),
            None => (Arc::clone(name), "job"),
        },
        _ => (Arc::clone(name), "pod"),
    }
}

/// The `CronJob` of a Job called `<cron job>-<minutes since 1970>`.
fn cron_job(job: &str) -> Option<&str> {
    let (stem, minutes) = job.rsplit_once('-')?;
    let scheduled =
        (8..=11).contains(&minutes.len()) && minutes.bytes().all(|b| b.is_ascii_digit());
    (scheduled && !stem.is_empty()).then_some(stem)
}
