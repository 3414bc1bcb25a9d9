//! Pods → workloads and local pods.

use userspace_l7::model::{Health, NetworkMode, Peer, TunnelProtocol};

use super::{AMBIENT, NETNS, compile, compiler, options, pod, pod_yaml, upserts};
use crate::mesh::{Compiler, MeshOptions, PodNetns, SameNode};

#[track_caller]
fn part(yaml: &str, expected: (TunnelProtocol, Peer), local: bool) {
    let compiler = compiler(yaml);
    let found = pod(&compiler.snapshot(), "a/p");
    assert_eq!((found.protocol, found.peer), expected, "{yaml}");
    assert_eq!(!compiler.local_pods().is_empty(), local, "{yaml}");
}

const HBONE: (TunnelProtocol, Peer) = (TunnelProtocol::Hbone, Peer::Culvert);
const ZTUNNEL: (TunnelProtocol, Peer) = (TunnelProtocol::Hbone, Peer::Ztunnel);
const PLAIN: (TunnelProtocol, Peer) = (TunnelProtocol::Tcp, Peer::Culvert);

fn p(node: &str, labels: &str, extra: &str) -> String {
    pod_yaml("a/p", node, "10.0.0.1", labels, extra)
}

#[test]
fn a_pod_is_captured_if_it_is_enrolled_and_has_a_netns() {
    part(&format!("{AMBIENT}{}", p("n1", "", NETNS)), HBONE, true);
    part(&format!("{AMBIENT}{}", p("n1", "", "")), PLAIN, false);
    part(&p("n1", "", NETNS), PLAIN, false);
    part(
        &p("n1", "istio.io/dataplane-mode: ambient", NETNS),
        HBONE,
        true,
    );
    part(
        &format!(
            "{AMBIENT}{}",
            p("n1", "istio.io/dataplane-mode: none", NETNS)
        ),
        PLAIN,
        false,
    );
    part(&format!("{AMBIENT}{}", p("n2", "", NETNS)), HBONE, false);
    let sidecar = "  annotations: {culvert.dev/netns: /n, sidecar.istio.io/status: '{}'}";
    part(&format!("{AMBIENT}{}", p("n1", "", sidecar)), PLAIN, false);
}

/// What an agent says that finds its pods' namespaces by itself.
#[track_caller]
fn in_cluster(yaml: &str, expected: (TunnelProtocol, Peer), says: &[&str]) {
    let mut compiler = Compiler::new(MeshOptions {
        pod_netns: PodNetns::Found,
        ..options()
    });
    compiler.apply(upserts(yaml));
    let found = pod(&compiler.snapshot(), "a/p");
    assert_eq!((found.protocol, found.peer), expected, "{yaml}");
    let said: Vec<_> = compiler.notices().map(|one| one.message.as_str()).collect();
    assert_eq!(said.len(), says.len(), "{said:?}");
    for (said, part) in said.iter().zip(says) {
        assert!(said.contains(part), "{said}");
    }
    let here = found.node == options().node;
    let captured = here && expected == HBONE;
    assert_eq!(compiler.local_pods().len(), usize::from(captured), "{yaml}");
    let bystanders = usize::from(here && !captured);
    assert_eq!(compiler.bystanders().count(), bystanders, "{yaml}");
    for local in compiler.local_pods().values() {
        assert_eq!((&*local.pod_uid, &local.netns), ("u-1", &None));
    }
    compiler.apply(upserts(
        &yaml.replace("  conditions", "  phase: Failed\n  conditions"),
    ));
    assert_eq!(
        compiler.notices().count() + compiler.bystanders().count(),
        0
    );
}

#[test]
fn in_a_cluster_the_label_is_enough_and_the_annotation_says_nothing() {
    let q = |node: &str, labels: &str, more: &str| {
        format!(
            "{AMBIENT}{}",
            p(node, labels, &format!("  uid: u-1\n{more}"))
        )
    };
    in_cluster(&q("n1", "", ""), HBONE, &[]);
    in_cluster(&q("n2", "", ""), HBONE, &[]);
    in_cluster(&q("n1", "", NETNS), HBONE, &["remove the annotation"]);
    in_cluster(&q("n2", "", NETNS), HBONE, &[]);
    in_cluster(&q("n1", "istio.io/dataplane-mode: none", ""), PLAIN, &[]);
    let nobody = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {culvert.dev/dataplane: none}}\n";
    in_cluster(&format!("{nobody}{}", q("n2", "", "")), PLAIN, &[]);
}

#[test]
fn in_a_cluster_what_cannot_be_captured_is_left_alone_and_said() {
    let q = |labels: &str, more: &str| format!("{AMBIENT}{}", p("n1", labels, more));
    let sidecar = "  annotations: {sidecar.istio.io/status: '{}'}";
    in_cluster(&q("", sidecar), PLAIN, &["it has a sidecar"]);
    let mirror = "  annotations: {kubernetes.io/config.mirror: hash}";
    in_cluster(&q("", mirror), PLAIN, &["its node runs it from a file"]);
    let machine = "kubevirt.io: virt-launcher";
    in_cluster(
        &q(machine, ""),
        PLAIN,
        &["a machine or a kernel of its own"],
    );
    for class in ["kata", "kata-clh", "gvisor", "runsc"] {
        let yaml = q("", "").replace("spec:\n", &format!("spec:\n  runtimeClassName: {class}\n"));
        in_cluster(&yaml, PLAIN, &["a machine or a kernel of its own"]);
    }
    let host = q("", "").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    in_cluster(&host, PLAIN, &["hostNetwork"]);
    // Not labelled, nothing to say.
    in_cluster(&host.replace(AMBIENT, ""), PLAIN, &[]);
}

#[test]
fn host_network_pods_are_never_captured_nor_found_by_address() {
    let yaml = format!("{AMBIENT}{}", p("n1", "", NETNS))
        .replace("spec:\n", "spec:\n  hostNetwork: true\n");
    part(&yaml, PLAIN, false);
    let snapshot = compile(&yaml);
    assert_eq!(pod(&snapshot, "a/p").network_mode, NetworkMode::HostNetwork);
    assert!(snapshot.workload_at("10.0.0.1".parse().unwrap()).is_none());
}

#[test]
fn ztunnel_peers_speak_hbone_without_being_ours() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {culvert.dev/dataplane: ztunnel}}\n";
    part(
        &format!("{AMBIENT}{node}{}", p("n2", "", "")),
        ZTUNNEL,
        false,
    );
    part(&format!("{node}{}", p("n2", "", "")), PLAIN, false);
    part(
        &p("n2", "culvert.dev/dataplane: ztunnel", ""),
        ZTUNNEL,
        false,
    );
    part(
        &p("n2", "", "  annotations: {culvert.dev/dataplane: ztunnel}"),
        ZTUNNEL,
        false,
    );
    part(
        &p("n1", "networking.istio.io/tunnel: http", NETNS),
        ZTUNNEL,
        false,
    );
    part(
        &p("n1", "networking.istio.io/tunnel: other", NETNS),
        PLAIN,
        false,
    );
}

#[test]
fn readiness_is_kubernetes_and_ended_pods_are_gone() {
    let health = |yaml: &str| pod(&compile(yaml), "a/p").health;
    let ready = p("n1", "", "");
    assert_eq!(health(&ready), Health::Healthy);
    assert_eq!(
        health(&ready.replace("'True'", "'False'")),
        Health::Unhealthy
    );
    let deleted = p("n1", "", "  deletionTimestamp: '2026-01-01T00:00:00Z'");
    assert_eq!(health(&deleted), Health::Unhealthy);
    let conditions = "  conditions: [{type: Ready, status: 'True'}]\n";
    assert_eq!(health(&ready.replace(conditions, "")), Health::Healthy);
    assert_eq!(
        health(&ready.replace(conditions, "  phase: Pending\n")),
        Health::Unhealthy
    );
    for phase in ["Succeeded", "Failed"] {
        let ended = ready.replace(conditions, &format!("  phase: {phase}\n"));
        assert!(compile(&ended).workloads.is_empty(), "{phase}");
    }
}

#[test]
fn a_local_pod_carries_what_capture_needs() {
    let extra = "  annotations: {culvert.dev/netns: /run/netns/p, ambient.istio.io/dns-capture: 'false', ambient.istio.io/bypass-inbound-capture: 'true', culvert.dev/same-node: encrypted}";
    let compiler = compiler(&format!("{AMBIENT}{}", p("n1", "", extra)));
    let local = compiler.local_pods().values().next().unwrap();
    assert_eq!(local.uid.as_str(), "Kubernetes//Pod/a/p");
    let netns = local.netns.as_ref().and_then(|path| path.to_str());
    assert_eq!(netns, Some("/run/netns/p"));
    assert_eq!(
        local.addresses.as_slice(),
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(!local.dns_capture && local.bypass_inbound);
    assert_eq!(local.same_node, SameNode::Encrypted);
    let wanted: Vec<_> = compiler
        .identities()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(wanted, ["spiffe://td.example/ns/a/sa/p-sa"]);
}

#[test]
fn same_node_encryption_is_inherited_from_the_namespace() {
    let namespace = AMBIENT.replace(
        "labels:",
        "annotations: {culvert.dev/same-node: encrypted}, labels:",
    );
    let compiler = compiler(&format!("{namespace}{}", p("n1", "", NETNS)));
    let local = compiler.local_pods().values().next().unwrap();
    assert_eq!(
        (local.same_node, local.dns_capture),
        (SameNode::Encrypted, true)
    );
}

#[track_caller]
fn names(labels: &str, owner: &str, expected: [&str; 4]) {
    let owner = owner.split_once('/').map(|(kind, name)| {
        format!("  ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u, controller: true}}]")
    });
    let snapshot = compile(&p("n1", labels, &owner.unwrap_or_default()));
    let found = pod(&snapshot, "a/p");
    let found: [&str; 4] = [
        &found.canonical_name,
        &found.canonical_revision,
        &found.workload_name,
        &found.workload_type,
    ];
    assert_eq!(found, expected, "{labels}");
}

#[test]
fn names_follow_istiod() {
    names("", "", ["p", "latest", "p", "pod"]);
    names(
        "app: reviews, version: v1",
        "",
        ["reviews", "v1", "p", "pod"],
    );
    names(
        "app.kubernetes.io/name: x, app: y",
        "",
        ["x", "latest", "p", "pod"],
    );
    names(
        "service.istio.io/canonical-name: z, app: y, service.istio.io/canonical-revision: r",
        "",
        ["z", "r", "p", "pod"],
    );
    names(
        "pod-template-hash: 5d8f",
        "ReplicaSet/reviews-v1-5d8f",
        ["reviews-v1", "latest", "reviews-v1", "deployment"],
    );
    names(
        "",
        "ReplicaSet/reviews-v1-5d8f",
        ["reviews-v1-5d8f", "latest", "reviews-v1-5d8f", "deployment"],
    );
    names(
        "",
        "Job/backup-28000000",
        ["backup", "latest", "backup", "cronjob"],
    );
    names(
        "",
        "Job/backup-1",
        ["backup-1", "latest", "backup-1", "job"],
    );
    names("", "StatefulSet/db", ["db", "latest", "db", "pod"]);
}

#[test]
fn locality_comes_from_the_node() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}\n";
    let found = pod(&compile(&format!("{}{node}", p("n1", "", ""))), "a/p");
    let place = [
        &found.locality.region,
        &found.locality.zone,
        &found.locality.subzone,
    ];
    assert_eq!(place.map(|part| &**part), ["r", "z", "s"]);
}

#[test]
fn of_two_pods_with_one_address_the_captured_one_has_it() {
    let plain = pod_yaml("b/old", "n2", "10.0.0.1", "", "");
    let captured = format!("{AMBIENT}{}", p("n1", "", NETNS));
    for yaml in [format!("{plain}{captured}"), format!("{captured}{plain}")] {
        let snapshot = compile(&yaml);
        let winner = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(&*winner.name, "p");
    }
}

#[test]
fn a_workload_has_its_pods_labels() {
    let snapshot = compile(&p("n1", "team: red", ""));
    let labels = &pod(&snapshot, "a/p").labels;
    assert_eq!(labels.get("team"), Some("red"));
    assert_eq!(labels.get("track"), None);
}
