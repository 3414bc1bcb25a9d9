//! ServiceEntries and WorkloadEntries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use userspace_l7::model::{HealthPolicy, LoadBalancerMode, Peer, TunnelProtocol};

use super::{Compiler, compile, compiler, endpoints, pod_yaml, service, upserts, workload};

fn entry(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a}}\nspec: {{{spec}}}\n"
    )
}

fn workload_entry(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: a}}\nspec: {{{spec}}}\n"
    )
}

const PORTS: &str = "ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]";

#[test]
fn static_endpoints_are_workloads() {
    let spec = format!(
        "hosts: [API.example.com, b.example.com], addresses: [10.5.0.1], {PORTS}, resolution: STATIC, endpoints: [{{address: 192.0.2.1, ports: {{tls: 9443}}, weight: 3, locality: r/z, serviceAccount: acc}}, {{address: '2001:db8::1', labels: {{networking.istio.io/tunnel: http}}}}]"
    );
    let snapshot = compile(&entry(&spec));
    let found = service(&snapshot, "a/api.example.com");
    assert_eq!(
        (
            found.ports[&443].target_port,
            &*found.ports[&443].app_protocol
        ),
        (8443, "tls")
    );
    assert!(!found.canonical && !found.namespace_private);
    assert_eq!(
        endpoints(&snapshot, "a/api.example.com"),
        ["192.0.2.1 443→9443", "2001:db8::1"]
    );
    assert_eq!(endpoints(&snapshot, "a/b.example.com").len(), 2);
    let one = workload(
        &snapshot,
        "Kubernetes/networking.istio.io/ServiceEntry/a/e/192.0.2.1",
    );
    assert_eq!(
        (one.capacity, &*one.service_account, &*one.locality.zone),
        (3, "acc", "z")
    );
    assert_eq!(one.services.len(), 2);
    let other = workload(
        &snapshot,
        "Kubernetes/networking.istio.io/ServiceEntry/a/e/2001:db8::1",
    );
    assert_eq!(
        (one.protocol, other.protocol, other.peer),
        (TunnelProtocol::Tcp, TunnelProtocol::Hbone, Peer::Ztunnel)
    );
}

#[test]
fn dns_entries_are_workloads_with_a_name() {
    let snapshot = compile(&entry(&format!(
        "hosts: [a.example.com, b.example.com], {PORTS}, resolution: DNS"
    )));
    assert_eq!(endpoints(&snapshot, "a/a.example.com"), ["a.example.com"]);
    assert_eq!(endpoints(&snapshot, "a/b.example.com"), ["b.example.com"]);
    let one = workload(
        &snapshot,
        "Kubernetes/networking.istio.io/ServiceEntry/a/e/a.example.com",
    );
    assert_eq!(
        (&*one.hostname, one.addresses.len(), one.services.len()),
        ("a.example.com", 0, 1)
    );
    let snapshot = compile(&entry(&format!(
        "hosts: ['*.example.com'], {PORTS}, resolution: DNS, endpoints: [{{address: real.example.com}}]"
    )));
    assert_eq!(
        endpoints(&snapshot, "a/*.example.com"),
        ["real.example.com"]
    );
}

#[test]
fn names_of_endpoints_are_wanted_as_long_as_there_are_some() {
    let dns = |hosts: &str, more: &str| {
        entry(&format!("hosts: [{hosts}], {PORTS}, resolution: DNS{more}"))
    };
    let mut compiler = compiler(&dns("a.example.com, b.example.com", ""));
    let wanted = |compiler: &Compiler| {
        let hosts = compiler.hostnames().into_iter();
        hosts.map(|host| host.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(wanted(&compiler), ["a.example.com", "b.example.com"]);
    let place: Arc<[IpAddr]> = Arc::new([IpAddr::from([192, 0, 2, 1])]);
    let found = BTreeMap::from([("a.example.com".into(), place)]);
    let before = compiler.snapshot().generation;
    let snapshot = compiler.look_up(found.clone());
    assert_eq!(snapshot.generation, before + 1);
    assert_eq!(*snapshot.looked_up, found);
    assert_eq!(compiler.look_up(found).generation, before + 1);
    // An address is nobody's name, and one name may be several endpoints'.
    let endpoints = ", endpoints: [{address: c.example.com}, {address: 192.0.2.7}]";
    compiler.apply(upserts(&dns("a.example.com, b.example.com", endpoints)));
    assert_eq!(wanted(&compiler), ["c.example.com"]);
    compiler.apply(upserts(&workload_entry("address: c.example.com")));
    compiler.apply(upserts(&entry(&format!("hosts: [a.example.com], {PORTS}"))));
    assert_eq!(wanted(&compiler), ["c.example.com"]);
    compiler.apply(upserts(&workload_entry("address: 192.0.2.8")));
    assert!(wanted(&compiler).is_empty());
}

#[test]
fn resolution_none_passes_through() {
    let snapshot = compile(&entry(&format!(
        "hosts: [a.example.com], addresses: [10.0.0.0/8, 10.5.0.0/16], {PORTS}"
    )));
    let found = service(&snapshot, "a/a.example.com");
    assert_eq!(found.load_balancer.mode, LoadBalancerMode::Passthrough);
    assert_eq!(found.load_balancer.health, HealthPolicy::AllowAll);
    assert_eq!((found.vips.len(), found.cidr_vips.len()), (0, 2));
    let at = snapshot.service_at("10.5.1.1".parse().unwrap(), "b");
    assert_eq!(at.map(|one| &*one.name), Some("e"));
}

#[test]
fn hosts_without_address_get_one_and_keep_it() {
    let spec = format!("hosts: [a.example.com], {PORTS}, resolution: DNS");
    let found = service(&compile(&entry(&spec)), "a/a.example.com");
    let [v4, v6] = found.vips.as_slice() else {
        panic!("{:?}", found.vips)
    };
    assert!(v4.to_string().starts_with("240.240.") && v6.to_string().starts_with("2001:2:"));
    assert_eq!(
        service(&compile(&entry(&spec)), "a/a.example.com").vips,
        found.vips
    );
    for other in [
        format!("hosts: ['*.example.com'], {PORTS}, resolution: DYNAMIC_DNS"),
        format!("hosts: [a.example.com], {PORTS}"),
    ] {
        let snapshot = compile(&entry(&other));
        assert!(
            snapshot.services.values().all(|one| one.vips.is_empty()),
            "{other}"
        );
    }
    let given = format!(
        "{}status: {{addresses: [{{host: a.example.com, value: 240.240.1.2}}]}}\n",
        entry(&spec)
    );
    let found = service(&compile(&given), "a/a.example.com");
    assert_eq!(
        found.vips.as_slice(),
        ["240.240.1.2".parse::<IpAddr>().unwrap()]
    );
}

#[test]
fn private_entries_and_names() {
    let found = service(
        &compile(&entry(
            "hosts: [a.b], exportTo: ['.'], subjectAltNames: ['spiffe://x/ns/a/sa/b']",
        )),
        "a/a.b",
    );
    assert!(found.namespace_private);
    assert_eq!(found.subject_alt_names.len(), 1);
}

#[test]
fn private_entries_are_not_bound_to_waypoints_of_other_namespaces() {
    let waypoint = |namespace: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: {namespace}}}\nspec:\n  \
             gatewayClassName: istio-waypoint\n  listeners:\n  - {{name: mesh, port: 15008, protocol: HBONE, \
             allowedRoutes: {{namespaces: {{from: All}}}}}}\n"
        )
    };
    for (namespace, export, is_bound) in [
        ("a", "['.']", true),
        ("b", "['.']", false),
        ("b", "['*']", true),
        ("b", "[]", true),
        // Its own namespace by name; others by name are not told apart from all.
        ("b", "[a]", false),
        ("b", "[a, c]", true),
    ] {
        let entry = entry(&format!("hosts: [a.b], exportTo: {export}")).replace(
            "metadata: {",
            &format!(
                "metadata: {{labels: {{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: {namespace}}}, "
            ),
        );
        let found = service(
            &compile(&format!("{entry}{}", waypoint(namespace))),
            "a/a.b",
        );
        assert_eq!(found.waypoint.is_some(), is_bound, "{namespace} {export}");
    }
}

#[test]
fn a_workload_selector_selects_pods_and_entries() {
    let yaml = format!(
        "{}{}{}",
        pod_yaml("a/p", "n1", "10.0.0.1", "app: x", ""),
        workload_entry("address: 192.0.2.9, labels: {app: x}, ports: {tls: 1443}"),
        entry(&format!(
            "hosts: [a.b], {PORTS}, resolution: STATIC, workloadSelector: {{labels: {{app: x}}}}"
        )),
    );
    let snapshot = compile(&yaml);
    assert_eq!(endpoints(&snapshot, "a/a.b"), ["p", "vm 443→1443"]);
    let vm = workload(
        &snapshot,
        "Kubernetes/networking.istio.io/WorkloadEntry/a/vm",
    );
    assert_eq!(vm.services.len(), 1);
}

#[test]
fn services_select_workload_entries_too() {
    let svc = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {selector: {app: x}, ports: [{name: http, port: 80, targetPort: web}]}\n";
    let snapshot = compile(&format!(
        "{svc}{}",
        workload_entry("address: 192.0.2.9, labels: {app: x}, ports: {web: 8080}")
    ));
    assert_eq!(
        endpoints(&snapshot, "a/s.a.svc.cluster.local"),
        ["vm 80→8080"]
    );
}

#[test]
fn a_service_comes_before_an_entry_of_its_name() {
    let svc = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";
    let spec = "hosts: [s.a.svc.cluster.local], addresses: [10.0.0.2], resolution: STATIC";
    for yaml in [
        format!("{svc}{}", entry(spec)),
        format!("{}{svc}", entry(spec)),
    ] {
        assert!(service(&compile(&yaml), "a/s.a.svc.cluster.local").canonical);
    }
}

/// A waypoint, and the entry bound to it.
fn bound(entry: &str) -> String {
    let bound = entry.replace(
        "metadata: {",
        "metadata: {labels: {istio.io/use-waypoint: w}, ",
    );
    format!(
        "{bound}---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: a}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
    )
}

fn notices(yaml: &str) -> Vec<String> {
    let compiler = compiler(yaml);
    let all = compiler.notices();
    all.map(|notice| notice.message.clone()).collect()
}

#[test]
fn names_of_a_wildcard_are_its_waypoints_to_look_up() {
    let spec = format!("hosts: ['*.Wild.example'], {PORTS}, resolution: DYNAMIC_DNS");
    let snapshot = compile(&bound(&entry(&spec)));
    let found = service(&snapshot, "a/*.wild.example");
    assert_eq!(found.load_balancer.mode, LoadBalancerMode::ByName);
    assert_eq!(found.ports[&443].target_port, 8443);
    let [v4, v6] = found.vips.as_slice() else {
        panic!("{:?}", found.vips)
    };
    assert!(v4.to_string().starts_with("240.240.") && v6.to_string().starts_with("2001:2:"));
    assert!(endpoints(&snapshot, "a/*.wild.example").is_empty());
    assert!(snapshot.services_layer7.contains_key(&found.key));
    let compiler = compiler(&bound(&entry(&spec)));
    assert!(compiler.hostnames().is_empty(), "clients say the names");
    assert_eq!(compiler.notices().count(), 0);
    // Whoever writes an address down has it.
    let spec = format!("{spec}, addresses: [10.5.0.1]");
    let found = service(&compile(&bound(&entry(&spec))), "a/*.wild.example");
    assert_eq!(
        found.vips.as_slice(),
        ["10.5.0.1".parse::<IpAddr>().unwrap()]
    );
    // Without a waypoint there is no such service.
    assert!(compile(&entry(&spec)).services.is_empty());
    let [notice] = &notices(&entry(&spec))[..] else {
        panic!("not one notice")
    };
    assert!(notice.contains("takes a waypoint"), "{notice}");
    let silent = spec.replace("name: tls, protocol: TLS", "name: tcp, protocol: TCP");
    let [notice] = &notices(&bound(&entry(&silent)))[..] else {
        panic!("not one notice")
    };
    assert!(notice.starts_with("port 443 has no effect"), "{notice}");
}

const RACE: &str = "RACE_FIRST_TCP_CONNECT";

#[test]
fn connections_race_where_a_waypoint_makes_them() {
    let entry = |word: &str, resolution: &str| {
        let spec = format!("hosts: [a.example.com], {PORTS}, resolution: {resolution}");
        entry(&spec).replace(
            "metadata: {",
            &format!("metadata: {{annotations: {{istio.io/connect-strategy: '{word}'}}, "),
        )
    };
    for (word, resolution, is_bound, is_raced, notice) in [
        (RACE, "DNS", true, true, None),
        (RACE, "DNS_ROUND_ROBIN", true, true, None),
        ("", "DNS", true, false, None),
        ("DEFAULT", "DNS", true, false, None),
        (RACE, "DNS", false, false, Some("takes a waypoint to race")),
        (RACE, "NONE", true, false, Some("addresses of a name")),
        (
            "FASTEST",
            "DNS",
            true,
            false,
            Some("`FASTEST` is no strategy"),
        ),
    ] {
        let yaml = entry(word, resolution);
        let yaml = if is_bound { bound(&yaml) } else { yaml };
        let found = service(&compile(&yaml), "a/a.example.com");
        assert_eq!(found.load_balancer.is_raced, is_raced, "{yaml}");
        let said = notices(&yaml);
        assert_eq!(said.len(), usize::from(notice.is_some()), "{said:?}");
        let is_as_expected = |said: &String| notice.is_some_and(|notice| said.contains(notice));
        assert!(said.iter().all(is_as_expected), "{said:?}");
    }
}
