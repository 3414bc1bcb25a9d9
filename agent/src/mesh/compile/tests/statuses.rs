//! What owners are told about their objects.

use super::{compiler, upserts};
use crate::mesh::status::ObjectStatus;

/// Everything that is said about an object, as `[place: ]type status reason: message`.
pub(super) fn said(objects: &[ObjectStatus], object: &str) -> Vec<String> {
    let found = objects.iter().filter(|one| one.shown() == object);
    let lines = found.flat_map(ObjectStatus::conditions);
    lines
        .map(|(place, one)| {
            let place = if place.is_empty() {
                place
            } else {
                format!("{place}: ")
            };
            let (kind, status) = (&one.kind, one.status);
            format!("{place}{kind} {status:?} {}: {}", one.reason, one.message)
        })
        .collect()
}

#[track_caller]
fn check(yaml: &str, object: &str, expected: &[&str]) {
    assert_eq!(
        said(&compiler(yaml).object_statuses(), object),
        expected,
        "{yaml}"
    );
}

fn gateway(name: &str, extra: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{extra}}}]}}\n"
    )
}

fn service(name: &str, metadata: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, {metadata}}}\nspec: {{clusterIP: 10.9.0.1, ports: [{{name: http, port: 80}}]}}\n"
    )
}

fn route(kind: &str, name: &str, parent: &str, rules: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: a}}\nspec: {{parentRefs: [{parent}], rules: [{rules}]}}\n"
    )
}

const USE: &str = "labels: {istio.io/use-waypoint: w}";
const PARENT: &str = "{group: '', kind: Service, name: s}";
const BACKEND: &str = "{backendRefs: [{name: s, port: 80}]}";
const WAYPOINTS: &str = "ResolvedWaypoints True ResolvedWaypoints: All waypoints resolved";
const ATTACHED: &str =
    "istio.io/WaypointBound True WaypointAccepted: Successfully attached to waypoint a/w";

fn bound(extra: &str) -> String {
    format!("{}{}{extra}", gateway("a/w", ""), service("s", USE))
}

#[test]
fn a_waypoint_says_that_it_works() {
    let said = compiler(&gateway("a/w", "")).object_statuses();
    let expected = serde_json::json!([{
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "namespace": "a", "name": "w" },
        "status": {
            "conditions": [
                { "type": "Accepted", "status": "True", "reason": "Accepted", "message": "Resource accepted" },
                { "type": "Programmed", "status": "True", "reason": "Programmed",
                  "message": "Resource programmed, assigned to service(s) w.a.svc.cluster.local:15008" },
                { "type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": "All references resolved" },
            ],
            "addresses": [{ "type": "Hostname", "value": "w.a.svc.cluster.local" }],
            "listeners": [{
                "name": "mesh",
                "attachedRoutes": 0,
                "supportedKinds": [],
                "conditions": [
                    { "type": "Accepted", "status": "True", "reason": "Accepted", "message": "No errors found" },
                    { "type": "Conflicted", "status": "False", "reason": "NoConflicts", "message": "No errors found" },
                    { "type": "Programmed", "status": "True", "reason": "Programmed", "message": "No errors found" },
                    { "type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": "No errors found" },
                ],
            }],
        },
    }]);
    assert_eq!(serde_json::to_value(&said).unwrap(), expected);
}

#[test]
fn another_listener_is_not_a_waypoints() {
    let yaml = gateway("a/w", "").replace("HBONE", "HTTP");
    let found = said(&compiler(&yaml).object_statuses(), "Gateway a/w");
    let listener = "listener mesh: Accepted False UnsupportedProtocol: Expected a single listener on port 15008 with protocol \"HBONE\"";
    assert!(found.iter().any(|line| line == listener), "{found:?}");
    assert!(
        found.iter().any(|line| line.starts_with("Programmed True")),
        "{found:?}"
    );
}

#[test]
fn gateways_and_classes_of_other_controllers_are_theirs_to_speak_about() {
    check(
        &gateway("a/w", "").replace("istio-waypoint", "istio"),
        "Gateway a/w",
        &[],
    );
    let class = |controller: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: istio-waypoint}}\nspec: {{controllerName: {controller}}}\n"
        )
    };
    check(
        &class("istio.io/mesh-controller"),
        "GatewayClass istio-waypoint",
        &["Accepted True Accepted: Handled by the node agents"],
    );
    check(&class("example.com/x"), "GatewayClass istio-waypoint", &[]);
}

#[test]
fn a_service_says_whether_it_has_its_waypoint() {
    let at = |yaml: &str, expected: &[&str]| check(yaml, "Service a/s", expected);
    at(&service("s", ""), &[]);
    at(&bound(""), &[ATTACHED]);
    at(
        &service("s", USE),
        &["istio.io/WaypointBound False WaypointIsNotReady: waypoint \"a/w\" is not ready"],
    );
    at(
        &format!(
            "{}{}",
            gateway("a/w", ", allowedRoutes: {namespaces: {from: None}}"),
            service("s", USE)
        ),
        &[
            "istio.io/WaypointBound False AttachmentDenied: we are not permitted to attach to waypoint \"a/w\" (missing allowedRoutes?)",
        ],
    );
    let workloads = gateway("a/w", "").replace(
        "namespace: a",
        "namespace: a, labels: {istio.io/waypoint-for: workload}",
    );
    at(
        &format!("{workloads}{}", service("s", USE)),
        &[
            "istio.io/WaypointBound False UnsupportedTrafficType: attempting to bind to traffic type \"service\" which the waypoint \"a/w\" does not support",
        ],
    );
    for (flag, end) in [
        ("true", ". Ingress traffic will traverse the waypoint"),
        (
            "false",
            ". Ingress traffic is not using the waypoint, set the istio.io/ingress-use-waypoint label to true if desired.",
        ),
    ] {
        let labels = format!(
            "labels: {{istio.io/use-waypoint: w, istio.io/ingress-use-waypoint: '{flag}'}}"
        );
        let yaml = format!("{}{}", gateway("a/w", ""), service("s", &labels));
        at(&yaml, &[&format!("{ATTACHED}{end}")]);
    }
}

#[test]
fn a_service_says_why_it_has_no_canary() {
    let yaml = |canary: &str, weight: &str| {
        let metadata = format!(
            "labels: {{istio.io/use-waypoint: w, istio.io/use-waypoint-canary: {canary}}}, annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}"
        );
        let waypoints = [gateway("a/w", ""), gateway("a/v", "")].concat();
        format!("{waypoints}{}", service("s", &metadata))
    };
    let at = |yaml: &str, end: &str| check(yaml, "Service a/s", &[&format!("{ATTACHED}{end}")]);
    at(&yaml("v", "10"), "");
    at(&yaml("none", "10"), "");
    let not = ". Canary waypoint not attached: ";
    at(
        &yaml("v", "110"),
        &format!("{not}weight \"110\" is not a number from 0 to 100"),
    );
    at(
        &yaml("w", "10"),
        &format!("{not}waypoint \"a/w\" is the primary waypoint already"),
    );
    at(
        &yaml("x", "10"),
        &format!("{not}waypoint \"a/x\" is not ready"),
    );
}

#[test]
fn namespaces_entries_and_workloads_say_it_too() {
    let namespace = format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: a, {USE}}}\n");
    let attached = &[ATTACHED];
    let with = |yaml: &str| format!("{}{yaml}", gateway("a/w", ""));
    check(&with(&namespace), "Namespace a", attached);
    check(
        &namespace,
        "Namespace a",
        &["istio.io/WaypointBound False WaypointIsNotReady: waypoint \"a/w\" is not ready"],
    );
    let entry = |name: &str, export: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {name}, labels: {{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}}}\nspec: {{hosts: [x.example], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS, exportTo: [{export}]}}\n"
        )
    };
    check(&with(&entry("a", "'*'")), "ServiceEntry a/e", attached);
    let all = gateway("a/w", ", allowedRoutes: {namespaces: {from: All}}");
    check(
        &format!("{all}{}", entry("b", "'.'")),
        "ServiceEntry b/e",
        &[
            "istio.io/WaypointBound False CrossNamespaceWaypointForbidden: a service of its namespace only is not permitted to attach to waypoint \"a/w\" of another",
        ],
    );
    let workload = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: m, namespace: a, {USE}}}\nspec: {{address: 10.0.0.9}}\n"
    );
    let any = gateway("a/w", "").replace(
        "namespace: a",
        "namespace: a, labels: {istio.io/waypoint-for: all}",
    );
    check(&format!("{any}{workload}"), "WorkloadEntry a/m", attached);
}

#[test]
fn a_route_says_what_became_of_it() {
    let accepted = "Service s: Accepted True Accepted: Route was valid";
    let resolved = "Service s: ResolvedRefs True ResolvedRefs: All references resolved";
    let waypoints = &format!("Service s: {WAYPOINTS}");
    let at = |yaml: &str, expected: &[&str]| check(yaml, "HTTPRoute a/r", expected);
    let http = |parent: &str, rules: &str| route("HTTPRoute", "r", parent, rules);
    at(
        &bound(&http(PARENT, BACKEND)),
        &[accepted, resolved, waypoints],
    );
    at(
        &bound(&http(PARENT, "{backendRefs: [{name: x, port: 80}]}")),
        &[
            accepted,
            "Service s: ResolvedRefs False BackendNotFound: backend(x.a.svc.cluster.local) not found",
            waypoints,
        ],
    );
    at(
        &bound(&http(
            PARENT,
            "{backendRefs: [{group: x.io, kind: Thing, name: x, port: 80}]}",
        )),
        &[
            accepted,
            "Service s: ResolvedRefs False InvalidKind: backend kind Thing of group x.io is not supported",
            waypoints,
        ],
    );
    let missing = "istio.io/use-waypoint label missing from parent a/s and its namespace: the route has no effect";
    at(
        &format!("{}{}", service("s", ""), http(PARENT, BACKEND)),
        &[
            accepted,
            resolved,
            &format!("Service s: ResolvedWaypoints True ResolvedWaypoints: {missing}"),
        ],
    );
    let first = |yaml: &str, expected: &str| {
        let all = said(&compiler(yaml).object_statuses(), "HTTPRoute a/r");
        assert_eq!(all.first().map(String::as_str), Some(expected), "{yaml}");
    };
    first(
        &bound(&http("{group: '', kind: Service, name: x}", BACKEND)),
        "Service x: Accepted False NoMatchingParent: parent service: \"x\" not found",
    );
    first(
        &bound(&http(
            "{group: '', kind: Service, name: s, port: 81}",
            BACKEND,
        )),
        "Service s:81: Accepted False NoMatchingParent: parent service: \"s\" has no port 81",
    );
    first(
        &bound(&http("{name: w}", BACKEND)),
        "Gateway w: Accepted False NotAllowedByListeners: a waypoint takes no routes: attach the route to a Service",
    );
    let filter = "{filters: [{type: ExtensionRef, extensionRef: {group: x.io, kind: X, name: x}}], backendRefs: [{name: s, port: 80}]}";
    let all = said(
        &compiler(&bound(&http(PARENT, filter))).object_statuses(),
        "HTTPRoute a/r",
    );
    assert!(
        all[0].starts_with("Service s: Accepted False InvalidFilter: "),
        "{all:?}"
    );
    // At a Gateway that is not ours, its controller speaks.
    at(&bound(&http("{name: ingress}", BACKEND)), &[]);
}

#[test]
fn a_route_that_another_overrules_says_so() {
    let grpc = route("GRPCRoute", "g", PARENT, BACKEND);
    let http = route("HTTPRoute", "r", PARENT, BACKEND);
    let first =
        |yaml: &str, object: &str| said(&compiler(yaml).object_statuses(), object).remove(0);
    let both = bound(&format!("{grpc}{http}"));
    assert_eq!(
        first(&both, "HTTPRoute a/r"),
        "Service s: Accepted False Conflicted: GRPCRoute a/g is attached to port 80 too and comes first: remove one of the two"
    );
    assert_eq!(
        first(&both, "GRPCRoute a/g"),
        "Service s: Accepted True Accepted: Route was valid"
    );
    let tcp = |name: &str| route("TCPRoute", name, PARENT, BACKEND);
    let streams = bound(&format!("{}{}", tcp("one"), tcp("two")));
    assert_eq!(
        first(&streams, "TCPRoute a/two"),
        "Service s: Accepted False Conflicted: TCPRoute a/one is attached to port 80 too and comes first: remove one of the two"
    );
    let spec = "{hosts: [s], http: [{route: [{destination: {host: s}}]}]}";
    let virtual_service = |name: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: a}}\nspec: {spec}\n"
        )
    };
    let accepted = "Accepted True Accepted: Route was valid";
    assert_eq!(
        first(&bound(&virtual_service("v")), "VirtualService a/v"),
        accepted
    );
    assert_eq!(
        first(
            &bound(&format!("{}{http}", virtual_service("v"))),
            "VirtualService a/v"
        ),
        "Accepted False Conflicted: HTTPRoute a/r is about s.a.svc.cluster.local:80 too and comes first: remove one of the two"
    );
    let two = bound(&format!("{}{}", virtual_service("v"), virtual_service("u")));
    assert_eq!(
        first(&two, "VirtualService a/v"),
        "Accepted False Conflicted: VirtualService a/u is about s.a.svc.cluster.local:80 too and comes first: remove one of the two"
    );
    let elsewhere = virtual_service("v").replace("hosts: [s]", "hosts: [x.example]");
    assert!(
        first(&bound(&elsewhere), "VirtualService a/v")
            .starts_with("Accepted False NoMatchingParent")
    );
}

#[test]
fn a_policy_says_where_it_holds() {
    let policy = |kind: &str, targets: &str| {
        let (group, spec) = match kind {
            "Telemetry" => ("telemetry.istio.io/v1", ""),
            "RequestAuthentication" => ("security.istio.io/v1", ""),
            _ => ("security.istio.io/v1", ", rules: [{}]"),
        };
        format!(
            "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: p, namespace: a}}\nspec: {{targetRefs: [{targets}]{spec}}}\n"
        )
    };
    let at = |targets: &str, expected: &str| {
        for kind in ["AuthorizationPolicy", "RequestAuthentication", "Telemetry"] {
            let yaml = bound(&format!("{}{}", service("free", ""), policy(kind, targets)));
            check(
                &yaml,
                &format!("{kind} a/p"),
                &[&format!("WaypointAccepted {expected}")],
            );
        }
    };
    at("{kind: Service, name: s}", "True Accepted: bound to a/w");
    at(
        "{kind: Gateway, group: gateway.networking.k8s.io, name: w}",
        "True Accepted: bound to a/w",
    );
    at(
        "{kind: Service, name: free}",
        "False AncestorNotBound: Service a/free is not bound to a waypoint",
    );
    at(
        "{kind: Service, name: x}",
        "False TargetNotFound: Service a/x was not found",
    );
    at(
        "{kind: Service, name: s}, {kind: Service, name: x}, {kind: Service, name: free}",
        "True PartiallyInvalid: Invalid targetRefs: Service x, Service free",
    );
    at(
        "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}",
        "False Invalid: GatewayClass may be targeted only from the root namespace istio-system",
    );
    let limits = "---\napiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{kind: Service, name: s}, {kind: Service, name: x}], limits: [{requests: 1}]}\n";
    check(
        &bound(limits),
        "RateLimitPolicy a/p",
        &[
            "Service s: Accepted True Accepted: bound to a/w",
            "Service x: Accepted False TargetNotFound: Service a/x was not found",
        ],
    );
    let layer4 = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {rules: [{from: [{source: {namespaces: [a]}}]}]}\n";
    check(
        layer4,
        "AuthorizationPolicy a/p",
        &["ZtunnelAccepted True Accepted: attached to ztunnel"],
    );
}

#[test]
fn a_condition_goes_with_its_cause() {
    let mut compiler = compiler(&bound(&route(
        "HTTPRoute",
        "r",
        PARENT,
        "{backendRefs: [{name: x, port: 80}]}",
    )));
    let unresolved = |compiler: &super::Compiler| {
        let all = said(&compiler.object_statuses(), "HTTPRoute a/r");
        all.iter().any(|line| line.contains("BackendNotFound"))
    };
    assert!(unresolved(&compiler));
    compiler.apply(upserts(&service("x", "")));
    assert!(!unresolved(&compiler));
}

/// Generous: what grows with the square of the routes would take minutes.
#[test]
fn many_routes_of_one_service_are_told_in_time() {
    let routes: String = (0..2_000)
        .map(|number| route("HTTPRoute", &format!("r{number}"), PARENT, BACKEND))
        .collect();
    let compiler = compiler(&bound(&routes));
    let began = std::time::Instant::now();
    let told = compiler.object_statuses();
    let took = began.elapsed();
    assert_eq!(told.len(), 2_002);
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
}

#[test]
fn what_has_no_effect_is_said_though_nothing_is_wrong() {
    let faults = |yaml: &str| -> Vec<String> {
        let found = compiler(yaml).silent_faults();
        let shown = found
            .iter()
            .map(|one| format!("{} {}", one.object, one.message));
        shown.collect()
    };
    let attached = route("HTTPRoute", "r", PARENT, BACKEND);
    // No waypoint.
    assert_eq!(
        faults(&format!("{}{attached}", service("s", ""))),
        [
            "HTTPRoute a/r has no effect at a/s: neither it nor its namespace has the label istio.io/use-waypoint"
        ]
    );
    // Said by the service's condition: it asks for one that is not there.
    assert_eq!(faults(&format!("{}{attached}", service("s", USE))), [""; 0]);
    assert_eq!(faults(&bound(&attached)), [""; 0]);
    // No such service: said by the route's condition.
    assert_eq!(faults(&attached), [""; 0]);
    // A port that nobody looks into.
    let tcp = bound(&attached).replace("name: http, port", "name: tcp, port");
    assert_eq!(
        faults(&tcp),
        [
            "Service a/s has HTTP routes that say nothing about port 80, which is TCP by its appProtocol, name or number: \
             declare it as http, http2 or grpc if it is that"
        ]
    );
}

#[test]
fn entries_say_that_they_need_a_waypoint() {
    let entry = |metadata: &str, host: &str, resolution: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a, {metadata}}}\nspec: {{hosts: ['{host}'], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: {resolution}}}\n"
        )
    };
    let race = "annotations: {istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT}";
    let wildcard = "istio.io/WaypointMissing True NoWaypointForWildcardService: ServiceEntry will not apply until it is bound to a valid waypoint.";
    let racing = "istio.io/WaypointMissing True NoWaypointForRacingConnectStrategy: The connect strategy will not apply until the ServiceEntry is bound to a valid waypoint.";
    let unready = "istio.io/WaypointBound False WaypointIsNotReady: waypoint \"a/w\" is not ready";
    let dynamic = |metadata: &str| entry(metadata, "*.x.example", "DYNAMIC_DNS");
    let named = |metadata: &str| entry(metadata, "x.example", "DNS");
    let both = format!("{USE}, {race}");
    for (yaml, expected) in [
        (dynamic("labels: {}"), &[wildcard][..]),
        (dynamic(race), &[wildcard]),
        (dynamic(USE), &[unready, wildcard]),
        (named("labels: {}"), &[]),
        (named(race), &[racing]),
        (named(&both), &[unready, racing]),
    ] {
        check(&yaml, "ServiceEntry a/e", expected);
    }
    for yaml in [dynamic(USE), named(&both)] {
        let yaml = format!("{}{yaml}", gateway("a/w", ""));
        check(&yaml, "ServiceEntry a/e", &[ATTACHED]);
    }
}
