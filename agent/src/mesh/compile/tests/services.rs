//! Services → services.

use userspace_l7::model::{HealthPolicy, IpFamilies, LoadBalancerMode, RoutingScope};

use super::{compile, compiler, service};

fn yaml(spec: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\n"
    )
}

const S: &str = "a/s.a.svc.cluster.local";

#[test]
fn a_service_is_found_by_address_and_name() {
    let snapshot = compile(&yaml(
        "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6], ports: [{port: 80, targetPort: 8080, name: http, appProtocol: HTTP2}]",
        "",
    ));
    let found = service(&snapshot, S);
    assert_eq!(found.ip_families, IpFamilies::Dual);
    assert!(found.canonical && found.alias.is_none());
    let port = &found.ports[&80];
    assert_eq!(
        (&*port.name, port.target_port, &*port.app_protocol),
        ("http", 8080, "http2")
    );
    for address in ["10.96.0.1", "fd00::1", "::ffff:10.96.0.1"] {
        let at = snapshot.service_at(address.parse().unwrap(), "b");
        assert_eq!(at.map(|one| &one.key), Some(&found.key), "{address}");
    }
    assert!(
        snapshot
            .service_named("s.a.svc.cluster.local", "b")
            .is_some()
    );
}

#[test]
fn headless_services_have_a_name_but_no_address() {
    let snapshot = compile(&yaml("clusterIP: None, ports: [{port: 80}]", ""));
    assert!(service(&snapshot, S).vips.is_empty());
}

#[test]
fn external_names_are_aliases() {
    let snapshot = compile(&yaml(
        "type: ExternalName, externalName: DB.example.com.",
        "",
    ));
    let found = service(&snapshot, S);
    assert_eq!(found.alias.as_deref(), Some("db.example.com"));
    assert!(found.vips.is_empty());
}

#[test]
fn udp_ports_are_left_to_the_kernel() {
    let snapshot = compile(&yaml(
        "ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]",
        "",
    ));
    let names: Vec<_> = service(&snapshot, S)
        .ports
        .values()
        .map(|port| port.name.to_string())
        .collect();
    assert_eq!(names, ["dns-tcp"]);
}

#[track_caller]
fn balances(yaml: &str, mode: LoadBalancerMode, scopes: &[RoutingScope]) {
    let found = service(&compile(yaml), S);
    assert_eq!(found.load_balancer.mode, mode, "{yaml}");
    assert_eq!(found.load_balancer.scopes.as_slice(), scopes, "{yaml}");
}

#[test]
fn preferences_follow_istiod() {
    use LoadBalancerMode::{Any, Failover, Strict};
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    let zone = [Network, Region, Zone];
    let node = [Network, Region, Zone, Subzone, Node];
    let annotation = "networking.istio.io/traffic-distribution";
    balances(&yaml("", ""), Any, &[]);
    balances(&yaml("internalTrafficPolicy: Local", ""), Strict, &[Node]);
    balances(
        &yaml(
            "internalTrafficPolicy: Local, trafficDistribution: PreferClose",
            "",
        ),
        Strict,
        &[Node],
    );
    balances(
        &yaml("trafficDistribution: PreferClose", ""),
        Failover,
        &zone,
    );
    balances(
        &yaml("trafficDistribution: PreferSameZone", ""),
        Failover,
        &zone,
    );
    balances(
        &yaml("trafficDistribution: PreferSameNode", ""),
        Failover,
        &node,
    );
    balances(
        &yaml("", &format!("{annotation}: PreferSameNode")),
        Failover,
        &node,
    );
    balances(
        &yaml(
            "trafficDistribution: PreferClose",
            &format!("{annotation}: PreferSameNode"),
        ),
        Failover,
        &zone,
    );
    let namespace = format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: a, annotations: {{{annotation}: PreferClose}}}}\n"
    );
    balances(&format!("{namespace}{}", yaml("", "")), Failover, &zone);
    balances(
        &format!("{namespace}{}", yaml("", &format!("{annotation}: Any"))),
        Any,
        &[],
    );
}

#[test]
fn unready_addresses_are_published_on_request() {
    let health = |spec| service(&compile(&yaml(spec, "")), S).load_balancer.health;
    assert_eq!(
        health("publishNotReadyAddresses: true"),
        HealthPolicy::AllowAll
    );
    assert_eq!(health(""), HealthPolicy::OnlyHealthy);
}

#[test]
fn session_affinity_is_said_to_be_lost() {
    let compiler = compiler(&yaml("sessionAffinity: ClientIP", ""));
    let notices: Vec<_> = compiler
        .notices()
        .map(|one| (one.warning, one.message.clone()))
        .collect();
    assert_eq!(
        notices,
        [(
            false,
            "asks for session affinity, which connections in the mesh do not keep".to_owned()
        )]
    );
}
