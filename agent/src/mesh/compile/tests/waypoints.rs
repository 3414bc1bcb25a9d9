//! Who is bound to which waypoint.

use super::{Compiler, MeshOptions, compile, compiler, options, pod, pod_yaml, service, upserts};

fn gateway(name: &str, labels: &str, allowed: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{allowed}}}]}}\n"
    )
}

fn namespace(labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{{labels}}}}}\n")
}

fn objects(labels: &str) -> String {
    let pod = pod_yaml("a/p", "n1", "10.0.0.1", labels, "");
    format!(
        "{pod}---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a, labels: {{{labels}}}}}\nspec: {{}}\n"
    )
}

/// Waypoints of service a/s and of pod a/p.
#[track_caller]
fn bound(yaml: &str, of_service: Option<&str>, of_pod: Option<&str>) {
    let snapshot = compile(yaml);
    let name = |one: &Option<userspace_l7::model::WaypointReference>| {
        one.as_ref().map(|one| one.destination.hostname.to_string())
    };
    let found = name(&service(&snapshot, "a/s.a.svc.cluster.local").waypoint);
    assert_eq!(found.as_deref(), of_service, "service: {yaml}");
    assert_eq!(
        name(&pod(&snapshot, "a/p").waypoint).as_deref(),
        of_pod,
        "pod: {yaml}"
    );
}

const W: Option<&str> = Some("w.a.svc.cluster.local");
const USE: &str = "istio.io/use-waypoint: w";

#[test]
fn the_objects_label_comes_before_the_namespaces() {
    let ns = namespace(USE);
    let gw = gateway("a/w", "", "");
    bound(&format!("{ns}{gw}{}", objects("")), W, None);
    bound(&format!("{ns}{}", objects("")), None, None);
    bound(&format!("{gw}{}", objects("")), None, None);
    bound(&format!("{gw}{}", objects(USE)), W, None);
    bound(
        &format!("{ns}{gw}{}", objects("istio.io/use-waypoint: none")),
        None,
        None,
    );
    bound(
        &format!("{ns}{gw}{}", objects("istio.io/use-waypoint: other")),
        None,
        None,
    );
}

#[test]
fn a_waypoint_takes_the_traffic_that_it_is_for() {
    let ns = namespace(USE);
    let of = |kind: &str| gateway("a/w", &format!("istio.io/waypoint-for: {kind}"), "");
    bound(&format!("{ns}{}{}", of("workload"), objects("")), None, W);
    bound(&format!("{ns}{}{}", of("all"), objects("")), W, W);
    bound(&format!("{ns}{}{}", of("none"), objects("")), None, None);
}

#[test]
fn other_namespaces_have_to_be_admitted() {
    let labels = "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: b";
    let there = Some("w.b.svc.cluster.local");
    let allow = |from: &str| {
        gateway(
            "b/w",
            "",
            &format!(", allowedRoutes: {{namespaces: {from}}}"),
        )
    };
    let yaml = |gateway: String| format!("{}{gateway}{}", namespace("team: x"), objects(labels));
    bound(&yaml(gateway("b/w", "", "")), None, None);
    bound(&yaml(allow("{from: Same}")), None, None);
    bound(&yaml(allow("{from: All}")), there, None);
    bound(
        &yaml(allow(
            "{from: Selector, selector: {matchLabels: {team: x}}}",
        )),
        there,
        None,
    );
    bound(
        &yaml(allow(
            "{from: Selector, selector: {matchLabels: {team: y}}}",
        )),
        None,
        None,
    );
    bound(
        &yaml(allow(
            "{from: Selector, selector: {matchExpressions: [{key: team, operator: In, values: [x]}]}}",
        )),
        there,
        None,
    );
    bound(
        &yaml(allow(
            "{from: Selector, selector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}",
        )),
        None,
        None,
    );
}

#[test]
fn waypoints_are_bound_to_none() {
    let own = "---\napiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: a}\nspec: {}\n";
    let snapshot = compile(&format!(
        "{}{}{own}",
        namespace(USE),
        gateway("a/w", "", "")
    ));
    assert!(
        service(&snapshot, "a/w.a.svc.cluster.local")
            .waypoint
            .is_none()
    );
    let label = "gateway.networking.k8s.io/gateway-name: w";
    bound(
        &format!(
            "{}{}{}",
            namespace(USE),
            gateway("a/w", "istio.io/waypoint-for: all", ""),
            objects(label)
        ),
        None,
        None,
    );
    let ingress = gateway("a/w", "", "").replace("istio-waypoint", "istio");
    bound(
        &format!("{}{ingress}{}", namespace(USE), objects("")),
        None,
        None,
    );
}

/// A Gateway of another controller's, and its class, each with these annotations; a pod of it, and a service that asks
/// for it from another namespace.
fn others(class: &str, own: &str, more: &str) -> String {
    let pod = pod_yaml(
        "a/p",
        "n1",
        "10.0.0.1",
        "gateway.networking.k8s.io/gateway-name: w",
        "",
    );
    let gateway_api = "---\napiVersion: gateway.networking.k8s.io/v1\nkind:";
    format!(
        "{pod}{gateway_api} GatewayClass\nmetadata: {{name: other, annotations: {{{class}}}}}\nspec: {{controllerName: \
         x.y/z}}\n{gateway_api} Gateway\nmetadata: {{name: w, namespace: a, annotations: {{{own}}}}}\nspec: \
         {{gatewayClassName: other, listeners: [{{name: h, port: 15008, protocol: HBONE}}, {{name: p, port: 15088, \
         protocol: istio.io/PROXY{more}}}]}}\nstatus: {{addresses: [{{type: Hostname, value: \
         w.a.svc.cluster.local}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: b, labels: \
         {{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}}}\nspec: {{}}\n"
    )
}

#[test]
fn pods_of_another_controllers_waypoint_are_handed_connections_as_it_binds_them() {
    let bind = |text: &str| format!("ambient.istio.io/waypoint-inbound-binding: {text}");
    let (proxy, port) = (bind("PROXY"), bind("PROXY/15088"));
    let none = bind("NONE/80");
    for (class, own, expected) in [
        ("", "", None),
        ("", proxy.as_str(), Some((true, None))),
        ("", &port, Some((true, Some(15088)))),
        ("", &none, Some((false, Some(80)))),
        (&port, "", Some((true, Some(15088)))),
        (&port, &none, Some((false, Some(80)))),
        (&bind("PROXY/0"), "", None),
        (&bind("TLS"), "", None),
    ] {
        let snapshot = compile(&others(class, own, ""));
        let found = pod(&snapshot, "a/p").application_tunnel;
        let found = found.map(|one| (one.has_header, one.port.map(std::num::NonZeroU16::get)));
        assert_eq!(found, expected, "{class} {own}");
    }
    // Whoever is ours is handed nothing.
    let ours = others("", &port, "").replace(
        "gatewayClassName: other",
        "gatewayClassName: istio-waypoint",
    );
    assert_eq!(pod(&compile(&ours), "a/p").application_tunnel, None);
}

#[test]
fn a_binding_that_changes_is_that_of_the_pods_that_there_are() {
    let tunnel = |compiler: &Compiler| {
        let found = pod(&compiler.snapshot(), "a/p").application_tunnel;
        found.and_then(|one| one.port.map(std::num::NonZeroU16::get))
    };
    let bind = |port: u16| format!("ambient.istio.io/waypoint-inbound-binding: PROXY/{port}");
    let mut compiler = compiler(&others("", "", ""));
    for (class, own, expected) in [
        (String::new(), bind(1), Some(1)),
        (bind(2), String::new(), Some(2)),
        (bind(3), String::new(), Some(3)),
        (String::new(), String::new(), None),
    ] {
        compiler.apply(upserts(&others(&class, &own, "")));
        assert_eq!(tunnel(&compiler), expected, "{class} {own}");
    }
}

#[test]
fn the_listener_of_the_binding_says_who_is_admitted() {
    let all = ", allowedRoutes: {namespaces: {from: All}}";
    let bind = |text: &str| format!("ambient.istio.io/waypoint-inbound-binding: {text}");
    for (own, is_bound) in [
        (String::new(), false),
        (bind("PROXY"), true),
        (bind("PROXY/15088"), true),
        (bind("PROXY/15008"), false),
        (bind("NONE"), false),
    ] {
        let snapshot = compile(&others("", &own, all));
        let found = &service(&snapshot, "b/s.b.svc.cluster.local").waypoint;
        assert_eq!(found.is_some(), is_bound, "{own}");
    }
}

#[test]
fn a_binding_that_fails_is_noticed_until_it_holds() {
    let mut compiler = compiler(&objects(USE));
    let notices: Vec<_> = compiler
        .notices()
        .map(|one| format!("{} {}", one.object, one.message))
        .collect();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].ends_with("asks for waypoint a/w, which is not there: apply that Gateway or remove the label istio.io/use-waypoint"), "{notices:?}");
    compiler.apply(upserts(&gateway("a/w", "istio.io/waypoint-for: all", "")));
    assert_eq!(compiler.notices().count(), 0);
}

/// What is said of objects that were applied to an agent with these revisions.
fn noticed(yaml: &str, revisions: &[&str]) -> Vec<String> {
    let mut compiler = Compiler::new(MeshOptions {
        revisions: revisions.iter().map(|one| (*one).to_owned()).collect(),
        ..options()
    });
    compiler.apply(upserts(yaml));
    let notices = compiler.notices();
    notices
        .map(|one| format!("{} {}", one.object, one.message))
        .collect()
}

#[test]
fn a_waypoint_of_another_revision_is_not_ours_and_the_notice_names_it() {
    let yaml = |labels: &str| format!("{}{}", gateway("a/w", labels, ""), objects(USE));
    let canary = yaml("istio.io/rev: canary, istio.io/waypoint-for: all");
    for (yaml, revisions, is_bound) in [
        (&canary, &["default"][..], false),
        (&canary, &["canary"], true),
        (&canary, &["default", "canary"], true),
        (&yaml("istio.io/waypoint-for: all"), &["default"], true),
        (&yaml("istio.io/waypoint-for: all"), &["canary"], false),
    ] {
        let said = noticed(yaml, revisions);
        assert_eq!(said.is_empty(), is_bound, "{revisions:?}: {said:?}");
    }
    let said = noticed(&canary, &["default"]);
    let named = said
        .iter()
        .filter(|one| one.contains("which is of revision canary"));
    assert_eq!(named.count(), 2, "{said:?}");
}

#[test]
fn the_clusters_own_namespace_is_not_taken_into_the_mesh_unsaid() {
    let labelled = |name: &str, mode: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{istio.io/dataplane-mode: {mode}}}}}\n"
        )
    };
    for (name, mode, is_said) in [
        ("kube-system", "ambient", true),
        ("kube-system", "none", false),
        ("shop", "ambient", false),
    ] {
        let said = noticed(&labelled(name, mode), &["default"]);
        assert_eq!(!said.is_empty(), is_said, "{name} {mode}: {said:?}");
    }
}

#[test]
fn another_trust_domain_in_istios_configuration_is_told() {
    let config = |name: &str, domain: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\ndata: {{mesh: {{trustDomain: '{domain}'}}}}\n"
        )
    };
    for (name, domain, is_said) in [
        ("istio", "td.example", false),
        ("istio", "", false),
        ("istio", "other.example", true),
        // Not the one that counts.
        ("istio-canary", "other.example", false),
    ] {
        let said = noticed(&config(name, domain), &["default"]);
        assert_eq!(!said.is_empty(), is_said, "{name} {domain}: {said:?}");
    }
}

#[test]
fn a_namespace_is_strict_about_its_waypoints_if_it_says_so() {
    let is_strict = |compiler: &Compiler| {
        let snapshot = compiler.snapshot();
        snapshot.strict_namespaces.contains("a")
    };
    let label = |value: &str| namespace(&format!("culvert.dev/strict-waypoint: '{value}'"));
    let mut compiler = compiler(&label("true"));
    assert!(is_strict(&compiler));
    for (text, expected, notices) in [
        (label("false"), false, 0),
        (label("true"), true, 0),
        (label("on"), false, 1),
        (
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {culvert.dev/strict-waypoint: 'true'}}\n"
                .to_owned(),
            true,
            0,
        ),
        (namespace(""), false, 0),
    ] {
        compiler.apply(upserts(&text));
        assert_eq!(is_strict(&compiler), expected, "{text}");
        assert_eq!(compiler.notices().count(), notices, "{text}");
    }
}
