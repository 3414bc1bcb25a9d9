//! What a control plane announces, beside objects that say the same, something else, or nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::smallvec;
use userspace_l7::model::{
    Action, AuthorizationPolicy, Health, IpFamilies, LoadBalancer, LoadBalancerMode,
    NamespacedHostname, Peer, PolicyKey, Rule, Scope, Service, ServicePort, Snapshot,
    TunnelProtocol, Workload, WorkloadLabels, WorkloadUid,
};

use super::{AMBIENT, Compiler, compile, endpoints, options, pod, pod_yaml, service, upserts};
use crate::mesh::compile::MeshOptions;
use crate::mesh::{AnnouncedWorkload, Announcement, Layer4};

const S: &str = "a/s.a.svc.cluster.local";
const NETNS: &str = "  annotations: {culvert.dev/netns: /run/netns/p}";
const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.9, \
    selector: {app: p}, ports: [{port: 80, targetPort: 8080, name: http-web}]}\n";

fn objects() -> String {
    let one = pod_yaml("a/p", "n1", "10.0.0.1", "app: p", NETNS);
    format!("{AMBIENT}{one}{SERVICE}")
}

/// Layer 4 is announced; nothing has been yet.
fn awaiting(yaml: &str) -> Compiler {
    let mut compiler = Compiler::new(MeshOptions {
        layer4: Layer4::Announced,
        ..options()
    });
    compiler.apply(upserts(yaml));
    compiler
}

fn key() -> NamespacedHostname {
    let (namespace, hostname) = S.split_once('/').unwrap();
    NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    }
}

/// A workload as a control plane would know it that nobody told who is captured.
fn announced(name: &str, serves: &[(u16, u16)]) -> (WorkloadUid, AnnouncedWorkload) {
    // What it is besides is the business of others.
    let like = pod_yaml(&format!("b/{name}"), "n2", "10.9.9.9", "", "");
    let like = pod(&compile(&like), &format!("b/{name}"));
    let uid = WorkloadUid::new(format!("Kubernetes//Pod/a/{name}"));
    let workload = Workload {
        uid: uid.clone(),
        namespace: "a".into(),
        service_account: "told".into(),
        addresses: smallvec!["10.0.0.1".parse().unwrap()],
        authorization_policies: vec![policy_key("told")],
        labels: WorkloadLabels::default(),
        ..Workload::clone(&like)
    };
    let ports = BTreeMap::from([(key(), serves.iter().copied().collect())]);
    let workload = Arc::new(workload);
    (uid, AnnouncedWorkload { workload, ports })
}

fn workload(name: &str, serves: &[(u16, u16)]) -> Announcement {
    let (uid, announced) = announced(name, serves);
    Announcement::Workload(uid, Some(announced))
}

fn told_service() -> Announcement {
    let port = ServicePort {
        name: "".into(),
        target_port: 8080,
        app_protocol: "tcp".into(),
    };
    let service = Service {
        name: "s".into(),
        key: key(),
        vips: smallvec!["10.96.0.1".parse().unwrap()],
        cidr_vips: Vec::new(),
        ports: BTreeMap::from([(80, port)]),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        canonical: true,
        namespace_private: false,
        alias: None,
    };
    Announcement::Service(key(), Some(Arc::new(service)))
}

fn policy_key(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "a".into(),
        name: name.into(),
    }
}

fn policy(name: &str, scope: Scope) -> Announcement {
    let key = policy_key(name);
    let policy = AuthorizationPolicy {
        key: key.clone(),
        scope,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
    };
    Announcement::Policy(key, Some(Arc::new(policy)))
}

fn is_empty(snapshot: &Snapshot) -> bool {
    snapshot.workloads.is_empty() && snapshot.services.is_empty() && snapshot.policies.is_empty()
}

#[test]
fn objects_alone_come_to_nothing_but_who_is_captured() {
    let compiler = awaiting(&objects());
    assert!(is_empty(&compiler.snapshot()));
    let local: Vec<_> = compiler
        .local_pods()
        .keys()
        .map(WorkloadUid::as_str)
        .collect();
    assert_eq!(local, ["Kubernetes//Pod/a/p"]);
}

#[test]
fn announcements_count_whatever_comes_first() {
    let announcements = || [workload("p", &[(80, 8080)]), told_service()];
    let mut late = awaiting(&objects());
    late.announce(announcements());
    let mut early = awaiting("");
    early.announce(announcements());
    early.apply(upserts(&objects()));
    for compiler in [late, early] {
        let snapshot = compiler.snapshot();
        let found = pod(&snapshot, "a/p");
        // Who it is and what holds for it is announced; who captures it, and its labels, is what its object says.
        assert_eq!(&*found.service_account, "told");
        assert_eq!(found.authorization_policies, [policy_key("told")]);
        assert_eq!(
            (found.protocol, found.peer),
            (TunnelProtocol::Hbone, Peer::Culvert)
        );
        assert_eq!(found.labels.get("app"), Some("p"));
        assert!(snapshot.workload_at("10.0.0.1".parse().unwrap()).is_some());

        let found = service(&snapshot, S);
        assert_eq!(
            found.vips.as_slice(),
            ["10.96.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
        let port = &found.ports[&80];
        assert_eq!((&*port.name, &*port.app_protocol), ("http-web", ""));
        assert_eq!(endpoints(&snapshot, S), ["p"]);
        assert!(
            snapshot
                .service_at("10.96.0.9".parse().unwrap(), "a")
                .is_none()
        );
    }
}

#[test]
fn endpoints_come_and_go_with_the_workloads_that_name_the_service() {
    let mut compiler = awaiting(SERVICE);
    compiler.announce([told_service()]);
    assert_eq!(endpoints(&compiler.snapshot(), S), [""; 0]);
    compiler.announce([workload("p", &[(80, 8080)]), workload("q", &[(80, 9090)])]);
    assert_eq!(endpoints(&compiler.snapshot(), S), ["p", "q 80→9090"]);
    let (uid, mut changed) = announced("p", &[]);
    changed.ports.clear();
    compiler.announce([Announcement::Workload(uid, Some(changed))]);
    assert_eq!(endpoints(&compiler.snapshot(), S), ["q 80→9090"]);
    let (uid, mut ailing) = announced("q", &[(80, 9090)]);
    let workload = Workload {
        health: Health::Unhealthy,
        ..Workload::clone(&ailing.workload)
    };
    ailing.workload = Arc::new(workload);
    compiler.announce([Announcement::Workload(uid.clone(), Some(ailing))]);
    assert_eq!(endpoints(&compiler.snapshot(), S), ["q! 80→9090"]);
    compiler.announce([
        Announcement::Workload(uid, None),
        Announcement::Service(key(), None),
    ]);
    let snapshot = compiler.snapshot();
    assert!(snapshot.services.is_empty() && snapshot.endpoints.is_empty());
    assert_eq!(snapshot.workloads.len(), 1);
}

#[test]
fn who_answers_for_a_workload_is_what_its_object_says() {
    let plain = pod_yaml("a/p", "n1", "10.0.0.1", "app: p", "");
    let ours = pod_yaml("a/p", "n2", "10.0.0.1", "app: p", NETNS);
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {culvert.dev/dataplane: ztunnel}}\n";
    for (objects, told, expected) in [
        // Nobody wrote on it that it is captured, as nobody does where there is no istio-cni.
        (
            format!("{AMBIENT}{ours}"),
            TunnelProtocol::Tcp,
            (TunnelProtocol::Hbone, Peer::Culvert),
        ),
        (
            format!("{AMBIENT}{ours}{node}"),
            TunnelProtocol::Hbone,
            (TunnelProtocol::Hbone, Peer::Ztunnel),
        ),
        (
            plain.clone(),
            TunnelProtocol::Tcp,
            (TunnelProtocol::Tcp, Peer::Culvert),
        ),
        (
            plain,
            TunnelProtocol::Hbone,
            (TunnelProtocol::Hbone, Peer::Ztunnel),
        ),
        (
            String::new(),
            TunnelProtocol::Hbone,
            (TunnelProtocol::Hbone, Peer::Ztunnel),
        ),
    ] {
        let mut compiler = awaiting(&objects);
        let (uid, mut announced) = announced("p", &[]);
        let workload = Workload {
            protocol: told,
            peer: Peer::Ztunnel,
            ..Workload::clone(&announced.workload)
        };
        announced.workload = Arc::new(workload);
        compiler.announce([Announcement::Workload(uid, Some(announced))]);
        let found = pod(&compiler.snapshot(), "a/p");
        assert_eq!((found.protocol, found.peer), expected, "{objects}");
    }
}

#[test]
fn only_announced_policies_hold() {
    let own = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: own, namespace: a}\nspec: {}\n\
        ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: a}\nspec: {mtls: \
        {mode: STRICT}}\n";
    let mut compiler = awaiting(&format!("{}{own}", objects()));
    compiler.announce([workload("p", &[])]);
    assert!(compiler.snapshot().policies.is_empty());
    compiler.announce([
        policy("told", Scope::WorkloadSelector),
        policy("space", Scope::Namespace),
        policy("mesh", Scope::Global),
        policy("other", Scope::WorkloadSelector),
    ]);
    let names = |snapshot: &Snapshot| {
        let found = pod(snapshot, "a/p");
        let policies = snapshot.policies_for(&found);
        policies
            .map(|one| one.key.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&compiler.snapshot()), ["mesh", "space", "told"]);
    compiler.announce([Announcement::Policy(policy_key("space"), None)]);
    assert_eq!(names(&compiler.snapshot()), ["mesh", "told"]);
}

#[test]
fn other_names_for_hosts_outside_are_the_objects() {
    let alias = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {type: ExternalName, \
        externalName: db.example.com}\n";
    let snapshot = awaiting(alias).snapshot();
    assert_eq!(
        service(&snapshot, S).alias.as_deref(),
        Some("db.example.com")
    );
}

#[test]
fn announcements_say_nothing_where_the_objects_are_all_there_is() {
    let mut compiler = super::compiler("");
    compiler.announce([
        workload("p", &[]),
        told_service(),
        policy("p", Scope::Global),
    ]);
    assert!(is_empty(&compiler.snapshot()));
}

#[test]
fn how_a_waypoint_connects_is_said_by_the_entry() {
    let Announcement::Service(_, Some(told)) = told_service() else {
        panic!("no service")
    };
    let key = NamespacedHostname {
        namespace: "a".into(),
        hostname: "*.wild.example".into(),
    };
    let told = Service {
        key: key.clone(),
        canonical: false,
        ..Service::clone(&told)
    };
    let mut compiler = awaiting(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a, labels: {istio.io/use-waypoint: w}, annotations: {istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT}}\nspec: {hosts: ['*.wild.example'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DYNAMIC_DNS}\n",
    );
    compiler.announce([Announcement::Service(key, Some(Arc::new(told)))]);
    let found = service(&compiler.snapshot(), "a/*.wild.example");
    assert_eq!(found.load_balancer.mode, LoadBalancerMode::ByName);
    assert!(found.load_balancer.is_raced);
}
