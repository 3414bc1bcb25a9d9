//! What objects come to. Written as the YAML that a person would apply.

mod announced;
mod authorization;
mod delegation;
mod endpoints;
mod external;
mod http_routes;
mod incremental;
mod layer7;
mod openings;
mod peers;
mod pods;
mod scale;
mod services;
mod statuses;
mod stream_routes;
mod traffic;
mod waypoints;

use std::sync::Arc;

use userspace_l7::model::{
    MeshSettings, NamespacedHostname, Service, Snapshot, TrustDomain, Workload, WorkloadUid,
};

use super::{Compiler, MeshOptions, PodNetns};
use crate::mesh::{Change, Interner, Layer4, Object, decode};
use crate::sources::for_test::documents;

fn options() -> MeshOptions {
    MeshOptions {
        mesh: MeshSettings {
            trust_domain: TrustDomain::new("td.example").unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            network: "".into(),
        },
        node: "n1".into(),
        root_namespace: "istio-system".into(),
        pod_netns: PodNetns::Annotated,
        layer4: Layer4::Compiled,
        mesh_config: "istio".into(),
        revisions: ["default".to_owned()].into(),
    }
}

/// Valid objects, in the order in which they are written.
#[track_caller]
fn objects(yaml: &str) -> Vec<Object> {
    let mut texts = Interner::default();
    let read = |value| decode(value, &mut texts).map(|decoded| decoded.object);
    let read: Result<Vec<_>, _> = documents(yaml).into_iter().map(read).collect();
    read.unwrap_or_else(|errors| panic!("{errors:?} in {yaml}"))
}

#[track_caller]
fn upserts(yaml: &str) -> Vec<Change> {
    objects(yaml).into_iter().map(Change::Upsert).collect()
}

#[track_caller]
fn compiler(yaml: &str) -> Compiler {
    let mut compiler = Compiler::new(options());
    compiler.apply(upserts(yaml));
    compiler
}

#[track_caller]
fn compile(yaml: &str) -> Arc<Snapshot> {
    compiler(yaml).snapshot()
}

#[track_caller]
fn service(snapshot: &Snapshot, name: &str) -> Arc<Service> {
    let (namespace, hostname) = name.split_once('/').unwrap();
    let key = NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    };
    let found = snapshot.services.get(&key);
    Arc::clone(found.unwrap_or_else(|| panic!("no {name}")))
}

#[track_caller]
fn pod(snapshot: &Snapshot, name: &str) -> Arc<Workload> {
    workload(snapshot, &format!("Kubernetes//Pod/{name}"))
}

#[track_caller]
fn workload(snapshot: &Snapshot, uid: &str) -> Arc<Workload> {
    let found = snapshot.workloads.get(&WorkloadUid::new(uid));
    Arc::clone(found.unwrap_or_else(|| panic!("no {uid}")))
}

/// Endpoints as `<last part of the uid>[!][ port→port]`, `!` meaning unhealthy.
#[track_caller]
fn endpoints(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let key = service(snapshot, name).key.clone();
    let describe = |one: &userspace_l7::model::Endpoint| {
        let name = one.workload.as_str().rsplit('/').next().unwrap_or_default();
        let mark = if one.health == userspace_l7::model::Health::Healthy {
            ""
        } else {
            "!"
        };
        let ports: Vec<_> = one
            .ports
            .iter()
            .map(|(from, to)| format!(" {from}→{to}"))
            .collect();
        format!("{name}{mark}{}", ports.concat())
    };
    snapshot.endpoints_of(&key).iter().map(describe).collect()
}

/// A Pod. `extra` is put at the level of `metadata`'s fields, two spaces deep.
fn pod_yaml(name: &str, node: &str, address: &str, labels: &str, extra: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{{labels}}}\n{extra}\nspec:\n  nodeName: {node}\n  serviceAccountName: {name}-sa\n  containers: [{{name: c, ports: [{{name: web, containerPort: 9080}}]}}]\nstatus:\n  podIPs: [{{ip: {address}}}]\n  conditions: [{{type: Ready, status: 'True'}}]\n"
    )
}

const AMBIENT: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}\n";
const NETNS: &str = "  annotations: {culvert.dev/netns: /run/netns/x}";
