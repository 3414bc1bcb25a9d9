//! What bound services and workloads demand and speak.

use std::sync::Arc;

use userspace_l7::model::{
    AppProtocol, HttpPolicyAction, NamespacedHostname, PathPattern, ServiceLayer7, Snapshot,
    SourceMatch, StringMatch, WorkloadUid,
};

use super::{Compiler, compile, compiler, options, pod_yaml, upserts};

const GATEWAY: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a, labels: {istio.io/waypoint-for: all}}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
const NAMESPACE: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n";
const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, ports: [{name: http, port: 80}, {name: tcp-x, port: 90}, {name: x, port: 91}]}\n";

fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn key(name: &str) -> NamespacedHostname {
    let (namespace, hostname) = name.split_once('/').unwrap();
    NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    }
}

#[track_caller]
fn layer7(snapshot: &Snapshot, name: &str) -> Arc<ServiceLayer7> {
    let found = snapshot.services_layer7.get(&key(name));
    Arc::clone(found.unwrap_or_else(|| panic!("no layer 7 of {name}")))
}

const S: &str = "a/s.a.svc.cluster.local";

#[test]
fn a_bound_service_has_every_port_with_its_protocol() {
    let snapshot = compile(&[NAMESPACE, GATEWAY, SERVICE].concat());
    let found = layer7(&snapshot, S);
    let ports: Vec<_> = found
        .ports
        .iter()
        .map(|(port, found)| (*port, found.protocol))
        .collect();
    assert_eq!(
        ports,
        [
            (80, AppProtocol::Http1),
            (90, AppProtocol::Tcp),
            (91, AppProtocol::Detect)
        ]
    );
    assert_eq!(found.waypoint.to_string(), "a/w");
    assert_eq!(
        found.waypoint_identity.to_string(),
        "spiffe://td.example/ns/a/sa/w"
    );
    assert!(found.demands.is_empty());
}

#[test]
fn the_waypoints_account_can_be_renamed() {
    let renamed = GATEWAY.replace(
        "namespace: a,",
        "namespace: a, annotations: {gateway.istio.io/service-account: x},",
    );
    let mut compiler = compiler(&[NAMESPACE, GATEWAY, SERVICE].concat());
    let snapshot = compiler.apply(upserts(&renamed));
    assert_eq!(
        layer7(&snapshot, S).waypoint_identity.to_string(),
        "spiffe://td.example/ns/a/sa/x"
    );
}

#[test]
fn a_waypoint_of_somebody_else_is_reached_not_played() {
    let foreign = GATEWAY.replace("istio-waypoint", "kgateway-waypoint");
    let snapshot = compile(&[NAMESPACE, &foreign, SERVICE].concat());
    assert!(snapshot.services[&key(S)].waypoint.is_none(), "not ready");
    let ready = format!(
        "{foreign}status: {{addresses: [{{type: Hostname, value: wp.b.svc.cluster.local}}]}}\n"
    );
    let snapshot = compile(&[NAMESPACE, &ready, SERVICE].concat());
    assert!(snapshot.services_layer7.is_empty());
    let waypoint = snapshot.services[&key(S)].waypoint.clone().unwrap();
    assert_eq!(waypoint.destination.to_string(), "b/wp.b.svc.cluster.local");
}

#[test]
fn unbound_services_have_no_layer_7() {
    let unbound = NAMESPACE.replace("istio.io/use-waypoint: w", "");
    let external = "---\napiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: a}\nspec: {type: ExternalName, externalName: x.y, ports: [{port: 80}]}\n";
    assert!(
        compile(&[&unbound, GATEWAY, SERVICE].concat())
            .services_layer7
            .is_empty()
    );
    assert!(
        compile(&[NAMESPACE, GATEWAY, external].concat())
            .services_layer7
            .is_empty()
    );
}

/// Names of the policies that the service a/s and the pod a/p are under.
#[track_caller]
fn demanded(policies: &str, of_service: &[&str], of_pod: &[&str]) {
    let pod = pod_yaml("a/p", "n1", "10.0.0.1", "app: x", "");
    let snapshot = compile(&[NAMESPACE, GATEWAY, SERVICE, &pod, policies].concat());
    let names = |demands: &userspace_l7::model::Demands| -> Vec<String> {
        let policies = demands.authorization.iter();
        policies.map(|one| one.key.to_string()).collect()
    };
    assert_eq!(
        names(&layer7(&snapshot, S).demands),
        of_service,
        "{policies}"
    );
    let uid = WorkloadUid::new("Kubernetes//Pod/a/p");
    let found = &snapshot.workloads_layer7[&uid];
    assert_eq!(names(&found.demands), of_pod, "{policies}");
}

#[test]
fn a_policy_is_demanded_by_what_it_targets() {
    let gateway = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}]";
    let class = "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]";
    demanded(
        &policy("a/p", "targetRefs: [{kind: Service, name: s}]"),
        &["a/p"],
        &[],
    );
    demanded(
        &policy("a/p", "targetRefs: [{group: core, kind: Service, name: s}]"),
        &["a/p"],
        &[],
    );
    demanded(
        &policy("a/p", "targetRef: {kind: Service, name: s}"),
        &["a/p"],
        &[],
    );
    demanded(
        &policy("b/p", "targetRefs: [{kind: Service, name: s}]"),
        &[],
        &[],
    );
    demanded(&policy("a/p", gateway), &["a/p"], &["a/p"]);
    demanded(&policy("b/p", gateway), &[], &[]);
    demanded(
        &policy("istio-system/p", class),
        &["istio-system/p"],
        &["istio-system/p"],
    );
    demanded(&policy("a/p", class), &[], &[]);
    // Without a target a policy is layer 4's.
    demanded(&policy("a/p", ""), &[], &[]);
    demanded(
        &policy("a/p", "selector: {matchLabels: {app: x}}"),
        &[],
        &[],
    );
}

#[test]
fn policies_come_and_go_with_their_targets() {
    let mut compiler = compiler(&[NAMESPACE, GATEWAY, SERVICE].concat());
    let there = policy("a/p", "targetRefs: [{kind: Service, name: s}]");
    let snapshot = compiler.apply(upserts(&there));
    assert_eq!(layer7(&snapshot, S).demands.authorization.len(), 1);
    let elsewhere = policy("a/p", "targetRefs: [{kind: Service, name: t}]");
    let snapshot = compiler.apply(upserts(&elsewhere));
    assert!(layer7(&snapshot, S).demands.is_empty());
}

#[test]
fn the_seeds_policy_reads_as_it_is_written() {
    let spec = "targetRefs: [{kind: Service, group: '', name: s}], action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/curl]}}], to: [{operation: {methods: [GET], paths: ['/a/{*}', /b*]}}]}]";
    let snapshot = compile(&[NAMESPACE, GATEWAY, SERVICE, &policy("a/p", spec)].concat());
    let found = layer7(&snapshot, S);
    let policy = &found.demands.authorization[0];
    assert_eq!(policy.action, HttpPolicyAction::Allow);
    let rule = &policy.rules[0];
    assert_eq!(
        rule.from,
        [SourceMatch {
            principals: vec![StringMatch::Exact("td.example/ns/default/sa/curl".into())],
            ..SourceMatch::default()
        }]
    );
    let [to] = &rule.to[..] else {
        panic!("{rule:?}")
    };
    assert_eq!(to.methods, [StringMatch::Exact("GET".into())]);
    assert!(matches!(to.paths[0], PathPattern::Template(_)));
    assert_eq!(
        to.paths[1],
        PathPattern::Text(StringMatch::Prefix("/b".into()))
    );
    // Layer 4 has nothing to do with it.
    assert!(snapshot.policies.is_empty());
}

#[test]
fn one_changed_policy_touches_only_its_service() {
    let other = SERVICE.replace("name: s,", "name: t,");
    let mut compiler = Compiler::new(options());
    compiler.apply(upserts(&[NAMESPACE, GATEWAY, SERVICE, &other].concat()));
    let before = compiler.snapshot();
    let after = compiler.apply(upserts(&policy(
        "a/p",
        "targetRefs: [{kind: Service, name: s}]",
    )));
    let same = |name: &str| Arc::ptr_eq(&layer7(&before, name), &layer7(&after, name));
    assert!(!same(S));
    assert!(same("a/t.a.svc.cluster.local"));
    let ports = |snapshot: &Snapshot| Arc::clone(&layer7(snapshot, S).ports[&80]);
    assert!(Arc::ptr_eq(&ports(&before), &ports(&after)));
}
