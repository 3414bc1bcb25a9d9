//! However the objects came, the result is that of compiling them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proptest::prelude::*;
use userspace_l7::model::{ServiceTraffic, Snapshot};

use super::{Compiler, NETNS, objects, options, pod_yaml};
use crate::mesh::{Change, Notice, Object, ObjectKey, PolicyStatus};

/// Everything that a compiler gives, in an order of its own.
#[derive(Debug, PartialEq)]
struct Result(BTreeMap<String, String>, Vec<Notice>, Vec<PolicyStatus>);

fn result(compiler: &Compiler) -> Result {
    let snapshot = compiler.snapshot();
    let Snapshot {
        generation: _,
        mesh: _,
        // What resolvers say is no object's.
        looked_up: _,
        workloads,
        workloads_by_address,
        services,
        services_by_vip,
        services_by_hostname,
        services_with_ranges,
        endpoints,
        policies,
        namespace_policies,
        global_policies,
        services_layer7,
        workloads_layer7,
        traffic,
        path_normalization,
        strict_namespaces,
    } = &*snapshot;
    let mut all = BTreeMap::new();
    let mut put = |table: &str, key: String, value: String| {
        all.insert(format!("{table} {key}"), value);
    };
    workloads
        .iter()
        .for_each(|(key, one)| put("workload", key.to_string(), format!("{one:?}")));
    workloads_by_address
        .iter()
        .for_each(|(key, one)| put("address", key.to_string(), one.uid.to_string()));
    services
        .iter()
        .for_each(|(key, one)| put("service", key.to_string(), format!("{one:?}")));
    services_by_vip
        .iter()
        .for_each(|(key, one)| put("vip", key.to_string(), format!("{one:?}")));
    services_by_hostname
        .iter()
        .for_each(|(key, one)| put("host", key.to_string(), format!("{one:?}")));
    endpoints
        .iter()
        .for_each(|(key, one)| put("endpoints", key.to_string(), format!("{one:?}")));
    policies
        .iter()
        .for_each(|(key, one)| put("policy", key.to_string(), format!("{one:?}")));
    namespace_policies
        .iter()
        .for_each(|(key, one)| put("namespace", key.to_string(), format!("{one:?}")));
    services_layer7
        .iter()
        .for_each(|(key, one)| put("layer7", key.to_string(), format!("{one:#?}")));
    workloads_layer7
        .iter()
        .for_each(|(key, one)| put("own layer7", key.to_string(), format!("{one:#?}")));
    traffic
        .iter()
        .for_each(|(key, one)| put("traffic", key.to_string(), traffic_text(one)));
    compiler
        .local_pods()
        .iter()
        .for_each(|(key, one)| put("local", key.to_string(), format!("{one:?}")));
    put("ranges", String::new(), format!("{services_with_ranges:?}"));
    put("global", String::new(), format!("{global_policies:?}"));
    let strict: BTreeSet<_> = strict_namespaces.iter().collect();
    put("strict", String::new(), format!("{strict:?}"));
    put("paths", String::new(), format!("{path_normalization:?}"));
    let mut notices: Vec<_> = compiler.notices().cloned().collect();
    notices.sort();
    Result(all, notices, compiler.policy_statuses().cloned().collect())
}

/// With the members of subsets in an order.
fn traffic_text(traffic: &ServiceTraffic) -> String {
    let mut text = format!("{:?} {:?}", traffic.policy, traffic.ports);
    for (name, subset) in &traffic.subsets {
        let members: BTreeSet<_> = subset.members.iter().map(ToString::to_string).collect();
        let rest = (&subset.policy, &subset.ports);
        let _infallible = write!(text, " {name} {members:?} {rest:?}");
    }
    text
}

/// Objects that all have something to do with each other: few names, labels and addresses.
fn universe() -> Vec<Object> {
    let parts = [
        cluster(),
        pods(),
        services(),
        entries(),
        policies(),
        settings(),
        limits_and_records(),
        openings(),
        routes(),
    ];
    objects(&parts.concat().concat())
}

fn manifest(version: &str, kind: &str, metadata: &str, rest: &str) -> String {
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\n{rest}\n")
}

fn cluster() -> Vec<String> {
    let ambient = "istio.io/dataplane-mode: ambient";
    let bound = "istio.io/use-waypoint: w, istio.io/dataplane-mode: ambient";
    let mut all = Vec::new();
    let strict = "culvert.dev/strict-waypoint: 'true', istio.io/dataplane-mode: ambient";
    let unclear = "culvert.dev/strict-waypoint: 'on'";
    for labels in [ambient, bound, strict, unclear, ""] {
        let metadata = format!("name: a, labels: {{{labels}}}");
        all.push(manifest("v1", "Namespace", &metadata, ""));
    }
    for labels in [
        "topology.kubernetes.io/zone: z",
        "culvert.dev/dataplane: ztunnel",
    ] {
        let metadata = format!("name: n1, labels: {{{labels}}}");
        all.push(manifest("v1", "Node", &metadata, ""));
    }
    for (labels, class) in [
        ("istio.io/waypoint-for: all", "istio-waypoint"),
        ("", "istio-waypoint"),
        ("", "other"),
    ] {
        let metadata = format!(
            "name: w, namespace: a, labels: {{{labels}}}, annotations: {{gateway.istio.io/service-account: x}}"
        );
        let spec = format!(
            "spec: {{gatewayClassName: {class}}}\nstatus: {{addresses: [{{type: Hostname, value: w.x}}]}}"
        );
        all.push(manifest(GATEWAY_API, "Gateway", &metadata, &spec));
    }
    for traffic in ["all", "workload"] {
        let metadata =
            format!("name: istio-waypoint, labels: {{istio.io/waypoint-for: {traffic}}}");
        let spec = "spec: {controllerName: istio.io/mesh-controller}";
        all.push(manifest(GATEWAY_API, "GatewayClass", &metadata, spec));
    }
    all
}

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

fn routes() -> Vec<String> {
    let mut all = Vec::new();
    for (name, namespace) in [("r", "a"), ("q", "a"), ("r", "b")] {
        for spec in [
            "parentRefs: [{group: '', kind: Service, name: s, namespace: a}], rules: [{matches: [{path: {value: /x}}], backendRefs: [{name: s, port: 80, namespace: b}]}]",
            "parentRefs: [{group: '', kind: Service, name: s, namespace: a, port: 80}], rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname, name: e.x, port: 80}]}]",
            "parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: e, namespace: a}], rules: [{backendRefs: [{name: t, port: 80}]}]",
        ] {
            let metadata = format!("name: {name}, namespace: {namespace}");
            let spec = format!("spec: {{{spec}}}");
            all.push(manifest(GATEWAY_API, "HTTPRoute", &metadata, &spec));
        }
        for (kind, spec) in [
            (
                "GRPCRoute",
                "parentRefs: [{group: '', kind: Service, name: s, namespace: a}], rules: [{matches: [{method: {service: x.Y}}]}]",
            ),
            (
                "TCPRoute",
                "parentRefs: [{group: '', kind: Service, name: s, namespace: a}], rules: [{backendRefs: [{name: s, port: 80, namespace: b}]}]",
            ),
            (
                "TLSRoute",
                "parentRefs: [{group: '', kind: Service, name: s, namespace: a, port: 80}], rules: [{backendRefs: [{name: s, port: 80}]}]",
            ),
        ] {
            let metadata = format!("name: {name}, namespace: {namespace}");
            let spec = format!("spec: {{{spec}}}");
            all.push(manifest(GATEWAY_API, kind, &metadata, &spec));
        }
    }
    all
}

fn pods() -> Vec<String> {
    let mut all = Vec::new();
    for (name, address) in [
        ("a/p1", "10.0.0.1"),
        ("a/p2", "10.0.0.2"),
        ("b/p1", "10.0.0.1"),
    ] {
        for labels in ["app: x", "app: y, tier: t", "istio.io/use-waypoint: w"] {
            all.push(pod_yaml(name, "n1", address, labels, NETNS));
        }
        all.push(pod_yaml(name, "n2", "10.0.0.3", "app: x", ""));
    }
    all
}

fn services() -> Vec<String> {
    let mut all = Vec::new();
    for (namespace, spec) in [
        (
            "a",
            "selector: {app: x}, ports: [{port: 80, targetPort: web}], clusterIP: 10.9.0.1",
        ),
        (
            "a",
            "selector: {app: y, tier: t}, ports: [{port: 80}], clusterIP: 10.9.0.2",
        ),
        ("a", "type: ExternalName, externalName: x.y"),
        (
            "b",
            "selector: {app: x}, ports: [{port: 80}], clusterIP: 10.9.0.1",
        ),
    ] {
        let metadata = format!("name: s, namespace: {namespace}");
        all.push(manifest(
            "v1",
            "Service",
            &metadata,
            &format!("spec: {{{spec}}}"),
        ));
    }
    for (name, of, list) in [
        (
            "s1",
            "s",
            "[{addresses: [10.0.0.1]}, {addresses: [10.0.0.8]}]",
        ),
        ("s1", "t", "[{addresses: [10.0.0.8]}]"),
        (
            "s2",
            "s",
            "[{addresses: [10.0.0.3], targetRef: {kind: Pod, name: p2}}]",
        ),
    ] {
        let labels = format!("labels: {{kubernetes.io/service-name: {of}}}");
        let metadata = format!("name: {name}, namespace: a, {labels}");
        let rest = format!("addressType: IPv4\nports: [{{port: 90}}]\nendpoints: {list}");
        all.push(manifest(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            &metadata,
            &rest,
        ));
    }
    all
}

fn entries() -> Vec<String> {
    let version = "networking.istio.io/v1";
    let mut all = Vec::new();
    for spec in [
        "hosts: [s.a.svc.cluster.local], resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 10.0.0.8}]",
        "hosts: [e.x, f.x], resolution: STATIC, workloadSelector: {labels: {app: x}}",
        "hosts: [e.x], addresses: [10.0.0.0/8]",
        "hosts: [e.x], resolution: DNS",
    ] {
        for name in ["e", "f"] {
            let metadata = format!("name: {name}, namespace: a");
            all.push(manifest(
                version,
                "ServiceEntry",
                &metadata,
                &format!("spec: {{{spec}}}"),
            ));
        }
    }
    for spec in [
        "address: 10.0.0.8, labels: {app: x}",
        "address: vm.x, labels: {app: y, tier: t}",
    ] {
        let spec = format!("spec: {{{spec}}}");
        all.push(manifest(
            version,
            "WorkloadEntry",
            "name: v, namespace: a",
            &spec,
        ));
    }
    all
}

fn policies() -> Vec<String> {
    let version = "security.istio.io/v1";
    let mut all = Vec::new();
    for namespace in ["a", "istio-system"] {
        for spec in [
            "{}",
            "{selector: {matchLabels: {app: x}}}",
            "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
            "{targetRefs: [{kind: Service, name: s}]}",
            "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: e}], action: DENY}",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}], rules: [{}]}",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]}",
        ] {
            let metadata = format!("name: z, namespace: {namespace}");
            all.push(manifest(
                version,
                "AuthorizationPolicy",
                &metadata,
                &format!("spec: {spec}"),
            ));
        }
        for spec in [
            "{mtls: {mode: STRICT}}",
            "{mtls: {mode: PERMISSIVE}}",
            "{selector: {matchLabels: {app: x}}, portLevelMtls: {80: {mode: STRICT}}}",
        ] {
            for name in ["m", "n"] {
                let metadata = format!("name: {name}, namespace: {namespace}");
                all.push(manifest(
                    version,
                    "PeerAuthentication",
                    &metadata,
                    &format!("spec: {spec}"),
                ));
            }
        }
    }
    all
}

fn settings() -> Vec<String> {
    let version = "security.istio.io/v1";
    let mut all = Vec::new();
    for spec in [
        "{targetRefs: [{kind: Service, name: s}], jwtRules: [{issuer: i}]}",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}], jwtRules: [{issuer: j, jwks: '{\"keys\": []}'}]}",
    ] {
        all.push(manifest(
            version,
            "RequestAuthentication",
            "name: z, namespace: a",
            &format!("spec: {spec}"),
        ));
    }
    for (kind, spec) in [
        (
            "DestinationRule",
            "{host: s, subsets: [{name: v, labels: {app: x}}]}",
        ),
        (
            "DestinationRule",
            "{host: e.x, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v, labels: {tier: t}}]}",
        ),
        (
            "VirtualService",
            "{hosts: [s], http: [{route: [{destination: {host: e.x}}]}]}",
        ),
        (
            "VirtualService",
            "{hosts: [e.x, s], http: [{match: [{port: 80}], route: [{destination: {host: s}}]}]}",
        ),
        (
            "VirtualService",
            "{hosts: [s], http: [{match: [{uri: {prefix: /}}], delegate: {name: l}}]}",
        ),
        (
            "VirtualService",
            "{http: [{match: [{uri: {prefix: /l}}], route: [{destination: {host: e.x}}]}]}",
        ),
    ] {
        for name in ["k", "l"] {
            let metadata = format!("name: {name}, namespace: a");
            let spec = format!("spec: {spec}");
            all.push(manifest("networking.istio.io/v1", kind, &metadata, &spec));
        }
    }
    all.push(manifest(
        version,
        "AuthorizationPolicy",
        "name: y, namespace: a",
        "spec: {targetRefs: [{kind: Service, name: s}], action: CUSTOM, provider: {name: x}}",
    ));
    all
}

/// TLS towards applications, with what it names.
fn openings() -> Vec<String> {
    let mut all = Vec::new();
    for spec in [
        "{host: s, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}}",
        "{host: e.x, trafficPolicy: {tls: {mode: SIMPLE}, proxyProtocol: {version: V2}}}",
    ] {
        let metadata = "name: sealed, namespace: a";
        let version = "networking.istio.io/v1";
        all.push(manifest(
            version,
            "DestinationRule",
            metadata,
            &format!("spec: {spec}"),
        ));
    }
    for section in ["", ", sectionName: http"] {
        let spec = format!(
            "spec: {{targetRefs: [{{kind: Service, name: s{section}}}], validation: {{hostname: h, caCertificateRefs: [{{kind: ConfigMap, name: c}}]}}}}"
        );
        let version = "gateway.networking.k8s.io/v1";
        all.push(manifest(
            version,
            "BackendTLSPolicy",
            "name: p, namespace: a",
            &spec,
        ));
    }
    for authority in ["no certificate", "neither"] {
        let metadata = "name: c, namespace: a";
        let data = format!("{{ca.crt: {authority}}}");
        all.push(manifest(
            "v1",
            "ConfigMap",
            metadata,
            &format!("data: {data}"),
        ));
        all.push(manifest(
            "v1",
            "Secret",
            metadata,
            &format!("stringData: {data}"),
        ));
    }
    all
}

fn limits_and_records() -> Vec<String> {
    let mut all = Vec::new();
    for (kind, version, spec) in [
        (
            "RateLimitPolicy",
            "culvert.dev/v1alpha1",
            "{targetRefs: [{kind: Service, name: s}], limits: [{requests: 5, per: [clientIdentity]}]}",
        ),
        (
            "RateLimitPolicy",
            "culvert.dev/v1alpha1",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}, {group: gateway.networking.k8s.io, kind: Gateway, name: w}], limits: [{requests: 5}]}",
        ),
        (
            "Telemetry",
            "telemetry.istio.io/v1",
            "{accessLogging: [{providers: [{name: envoy}]}]}",
        ),
        (
            "Telemetry",
            "telemetry.istio.io/v1",
            "{targetRefs: [{kind: Service, name: s}], tracing: [{randomSamplingPercentage: 5}]}",
        ),
    ] {
        for namespace in ["a", "istio-system"] {
            let metadata = format!("name: y, namespace: {namespace}");
            all.push(manifest(version, kind, &metadata, &format!("spec: {spec}")));
        }
    }
    for (service, more) in [
        ("e.x", ""),
        (
            "b/e.x",
            ", localityLbSetting: {distribute: [{from: r, to: {r: 100}}]}, pathNormalization: {normalization: NONE}, trustDomainAliases: [old], defaultHttpRetryPolicy: {attempts: 5}",
        ),
    ] {
        let mesh = format!(
            "data: {{mesh: {{extensionProviders: [{{name: x, envoyExtAuthzGrpc: {{service: {service}, port: 9}}}}]{more}}}}}"
        );
        let metadata = "name: istio, namespace: istio-system";
        all.push(manifest("v1", "ConfigMap", metadata, &mesh));
    }
    all
}

/// One step: an object of the universe comes, or goes; and whether a batch ends after it.
fn steps() -> impl Strategy<Value = Vec<(prop::sample::Index, bool, bool)>> {
    prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            prop::bool::weighted(0.7),
            any::<bool>(),
        ),
        0..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_gives_what_its_end_gives(steps in steps()) {
        let universe = universe();
        let mut compiler = Compiler::new(options());
        let mut state: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut batch = Vec::new();
        for (which, comes, ends) in steps {
            let object = which.get(&universe).clone();
            let key = object.key();
            if comes {
                state.insert(key, object.clone());
                batch.push(Change::Upsert(object));
            } else {
                state.remove(&key);
                batch.push(Change::Remove(key));
            }
            if ends {
                compiler.apply(batch.drain(..));
            }
        }
        compiler.apply(batch);
        let mut fresh = Compiler::new(options());
        fresh.apply(state.values().rev().cloned().map(Change::Upsert));
        prop_assert_eq!(result(&compiler), result(&fresh));
        // And nothing stays of what is gone.
        compiler.apply(state.into_keys().map(Change::Remove));
        prop_assert_eq!(result(&compiler), result(&Compiler::new(options())));
    }
}

#[test]
fn what_makes_no_difference_publishes_nothing() {
    let mut compiler = Compiler::new(options());
    let universe = universe();
    let all = || universe.iter().cloned().map(Change::Upsert);
    let first = compiler.apply(all());
    let last: BTreeMap<_, _> = universe
        .iter()
        .map(|object| (object.key(), object.clone()))
        .collect();
    let again = compiler.apply(last.into_values().map(Change::Upsert));
    assert_eq!(first.generation, 1);
    assert!(std::sync::Arc::ptr_eq(&first, &again));
}
