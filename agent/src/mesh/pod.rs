//! Pods: what runs, where, as whom, and whether this mesh captures it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use smallvec::SmallVec;

use super::field::{Faults, at};
use super::meta::{Interner, Meta};
use super::syntax::{is_dns_name, read_address, read_port};

/// Names the pod's network namespace, and thereby says that this node can capture it (design: contracts). Only where
/// whoever writes Pods may say so: in a directory of manifests.
pub(crate) const NETNS: &str = "culvert.dev/netns";
/// On what the kubelet shows of a pod that it runs from a file of the node; the value is the UID that it has given it.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// On the pods that `KubeVirt` runs machines in.
const VIRTUAL_MACHINE: (&str, &str) = ("kubevirt.io", "virt-launcher");

/// A Pod, reduced to what the mesh depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The UID that an API server has given it; empty in a directory.
    pub uid: Arc<str>,
    /// Which of the node's container runtimes runs it, if not the usual one.
    pub runtime_class: Option<Arc<str>>,
    /// Its node; empty while it is not scheduled.
    pub node: Arc<str>,
    /// Service account, `default` if it names none.
    pub service_account: Arc<str>,
    /// Whether it shares its node's network namespace.
    pub host_network: bool,
    /// `status.podIPs`, the primary one first.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// Takes traffic: ready and not being deleted.
    pub ready: bool,
    /// Ended for good: phase Succeeded or Failed.
    pub finished: bool,
    /// Named container ports.
    pub ports: Box<[(Arc<str>, u16)]>,
    /// Kind and name of the controller that made it.
    pub controller: Option<(Arc<str>, Arc<str>)>,
}

impl Pod {
    pub(crate) fn read(pod: v1::Pod, texts: &mut Interner, faults: &mut Faults) -> Self {
        let controller = read_controller(&pod, texts);
        let deleted = pod.metadata.deletion_timestamp.is_some();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default().into();
        let meta = Meta::read(pod.metadata, texts, faults);
        if meta
            .annotations
            .get(NETNS)
            .is_some_and(|netns| !netns.starts_with('/'))
        {
            let rule = "name the namespace by an absolute path, such as /run/netns/reviews-v1";
            faults.add(
                at!["metadata", "annotations", NETNS],
                format!("is not a path: {rule}"),
            );
        }
        let spec = faults.require(pod.spec, at!["spec"], "say at least which containers run");
        let spec = spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let account = spec
            .service_account_name
            .as_deref()
            .or(spec.service_account.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        if !is_dns_name(account) {
            let rule =
                "use lower-case letters, digits, `-` and `.`: it becomes part of a SPIFFE ID";
            let problem = format!("`{account}` is not a service account name: {rule}");
            faults.add(at!["spec", "serviceAccountName"], problem);
        }
        Self {
            uid,
            runtime_class: spec
                .runtime_class_name
                .as_deref()
                .map(|name| texts.intern(name)),
            node: texts.intern(spec.node_name.as_deref().unwrap_or_default()),
            service_account: texts.intern(account),
            host_network: spec.host_network == Some(true),
            addresses: read_addresses(&status, faults),
            ready: !deleted && is_ready(&status),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ports: read_ports(&spec, texts, faults),
            controller,
            meta,
        }
    }

    /// Whether its applications' sockets are the node's kernel's, where capture can see them. Runtimes that put a pod into
    /// a machine of its own, or a kernel of their own before it, are known by the names that their installers give the
    /// `RuntimeClass` (kata-deploy: `kata-qemu` and others; gVisor and GKE Sandbox: `gvisor`).
    pub(crate) fn shares_kernel(&self) -> bool {
        let class = self.runtime_class.as_deref().unwrap_or_default();
        let (label, value) = VIRTUAL_MACHINE;
        !class.starts_with("kata")
            && !matches!(class, "gvisor" | "runsc")
            && self.meta.labels.get(label) != Some(value)
    }

    /// The UID under which the kubelet runs it, if it runs it from a file of its own: not the Pod's.
    pub(crate) fn static_uid(&self) -> Option<&Arc<str>> {
        self.meta.annotations.shared(MIRROR)
    }

    /// The container port called `name`.
    pub(crate) fn named_port(&self, name: &str) -> Option<u16> {
        self.ports
            .iter()
            .find(|(own, _)| **own == *name)
            .map(|(_, port)| *port)
    }
}

fn read_controller(pod: &v1::Pod, texts: &mut Interner) -> Option<(Arc<str>, Arc<str>)> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some((texts.intern(&owner.kind), texts.intern(&owner.name)))
}

/// The kubelet sets a Ready condition on every pod that it runs. Where nobody did (a pod written by hand),
/// a phase of Running, or none, stands for it.
fn is_ready(status: &v1::PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    match conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
    {
        Some(ready) => ready.status == "True",
        None => status
            .phase
            .as_deref()
            .is_none_or(|phase| phase == "Running"),
    }
}

fn read_addresses(status: &v1::PodStatus, faults: &mut Faults) -> SmallVec<[IpAddr; 2]> {
    let mut addresses = SmallVec::new();
    for (index, one) in status.pod_ips.iter().flatten().enumerate() {
        let place = at!["status", "podIPs", index, "ip"];
        addresses.extend(read_address(&one.ip, place, faults));
    }
    if addresses.is_empty()
        && let Some(one) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())
    {
        addresses.extend(read_address(one, at!["status", "podIP"], faults));
    }
    addresses
}

fn read_ports(
    spec: &v1::PodSpec,
    texts: &mut Interner,
    faults: &mut Faults,
) -> Box<[(Arc<str>, u16)]> {
    let mut ports = Vec::new();
    for (index, container) in spec.containers.iter().enumerate() {
        for (number, port) in container.ports.iter().flatten().enumerate() {
            let place = at![
                "spec",
                "containers",
                index,
                "ports",
                number,
                "containerPort"
            ];
            let found = read_port(port.container_port.into(), place, faults);
            if let (Some(name), Some(port)) = (&port.name, found) {
                ports.push((texts.intern(name), port));
            }
        }
    }
    ports.into()
}
