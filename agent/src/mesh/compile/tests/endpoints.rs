//! Who serves a Service.

use super::{AMBIENT, NETNS, compile, compiler, endpoints, pod, pod_yaml, workload};

const S: &str = "a/s.a.svc.cluster.local";

fn service(spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{{spec}}}\n"
    )
}

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: a, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{{name: http, port: 9080}}]\nendpoints: {endpoints}\n"
    )
}

fn app(name: &str, address: &str) -> String {
    pod_yaml(name, "n1", address, "app: x, tier: t", "")
}

#[test]
fn a_selector_selects_pods_of_its_namespace() {
    let pods = format!(
        "{}{}{}",
        app("a/p1", "10.0.0.1"),
        app("b/p2", "10.0.0.2"),
        pod_yaml("a/p3", "n1", "10.0.0.3", "app: x", "")
    );
    let of = |selector: &str| {
        let spec = format!("selector: {{{selector}}}, ports: [{{port: 80, targetPort: 8080}}]");
        endpoints(&compile(&format!("{pods}{}", service(&spec))), S)
    };
    assert_eq!(of("app: x"), ["p1", "p3"]);
    assert_eq!(of("app: x, tier: t"), ["p1"]);
    assert_eq!(of("app: y"), [""; 0]);
    assert_eq!(of(""), [""; 0], "no selector selects nothing");
}

#[test]
fn named_target_ports_are_each_pods_own() {
    let other = app("a/p2", "10.0.0.2").replace("9080", "9090");
    let none = app("a/p3", "10.0.0.3").replace("name: web, ", "");
    let spec = "selector: {app: x}, ports: [{name: http, port: 80, targetPort: web}]";
    let snapshot = compile(&format!(
        "{}{other}{none}{}",
        app("a/p1", "10.0.0.1"),
        service(spec)
    ));
    assert_eq!(endpoints(&snapshot, S), ["p1 80→9080", "p2 80→9090", "p3"]);
    assert_eq!(super::service(&snapshot, S).ports[&80].target_port, 0);
}

#[test]
fn unready_and_ended_pods() {
    let unready = app("a/p1", "10.0.0.1").replace("'True'", "'False'");
    let ended = app("a/p2", "10.0.0.2").replace(
        "  conditions: [{type: Ready, status: 'True'}]",
        "  phase: Failed",
    );
    let spec = "selector: {app: x}, ports: [{port: 80}]";
    assert_eq!(
        endpoints(&compile(&format!("{unready}{ended}{}", service(spec))), S),
        ["p1!"]
    );
}

#[test]
fn slices_count_instead_of_the_selector() {
    let spec = "selector: {app: x}, ports: [{name: http, port: 80, targetPort: 9080}]";
    let pods = format!("{}{}", app("a/p1", "10.0.0.1"), app("a/p2", "10.0.0.2"));
    let one = slice(
        "s1",
        "[{addresses: [10.0.0.2], targetRef: {kind: Pod, name: p2}}]",
    );
    let snapshot = compile(&format!("{pods}{one}{}", service(spec)));
    assert_eq!(endpoints(&snapshot, S), ["p2"]);
    assert!(pod(&snapshot, "a/p1").services.is_empty());
    assert_eq!(pod(&snapshot, "a/p2").services.len(), 1);
}

#[test]
fn slices_name_pods_addresses_or_strangers() {
    let spec = "ports: [{name: http, port: 80, targetPort: 1}]";
    let list = "[{addresses: [10.0.0.1], conditions: {ready: false}}, {addresses: [10.9.9.9], nodeName: n7}]";
    let yaml = format!(
        "{}{}{}",
        app("a/p1", "10.0.0.1"),
        slice("s1", list),
        service(spec)
    );
    let snapshot = compile(&yaml);
    assert_eq!(endpoints(&snapshot, S), ["p1! 80→9080", "10.9.9.9 80→9080"]);
    let stranger = workload(
        &snapshot,
        "Kubernetes/discovery.k8s.io/EndpointSlice/a/s1/10.9.9.9",
    );
    assert_eq!((&*stranger.node, stranger.services.len()), ("n7", 1));
    assert!(snapshot.workload_at("10.9.9.9".parse().unwrap()).is_some());
}

#[test]
fn a_dual_stack_pod_is_one_endpoint() {
    let list = |address: &str| {
        format!("[{{addresses: ['{address}'], targetRef: {{kind: Pod, name: p1}}}}]")
    };
    let six = slice("s2", &list("fd00::1")).replace("IPv4", "IPv6");
    let spec = "ports: [{name: http, port: 80, targetPort: 9080}]";
    let yaml = format!(
        "{}{}{six}{}",
        app("a/p1", "10.0.0.1"),
        slice("s1", &list("10.0.0.1")),
        service(spec)
    );
    assert_eq!(endpoints(&compile(&yaml), S), ["p1"]);
}

#[test]
fn a_slice_without_its_service_is_noticed() {
    let compiler = compiler(&slice("s1", "[{addresses: [10.0.0.1]}]"));
    let notices: Vec<_> = compiler
        .notices()
        .map(|one| format!("{} {}", one.object, one.message))
        .collect();
    assert_eq!(
        notices,
        [
            "EndpointSlice a/s1 belongs to Service a/s, which is not there: apply it or correct the label kubernetes.io/service-name"
        ]
    );
}

#[test]
fn host_network_pods_serve() {
    let spec = "selector: {app: x}, ports: [{port: 80}]";
    let host = pod_yaml("a/p1", "n1", "192.0.2.1", "app: x", NETNS)
        .replace("spec:\n", "spec:\n  hostNetwork: true\n");
    assert_eq!(
        endpoints(&compile(&format!("{AMBIENT}{host}{}", service(spec))), S),
        ["p1"]
    );
}
