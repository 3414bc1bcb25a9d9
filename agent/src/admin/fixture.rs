//! A small mesh for the tests of this crate's edges.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{
    Action, AuthorizationPolicy, Clause, Endpoint, Health, IpFamilies, LoadBalancer,
    LoadBalancerMode, Locality, Match, MeshSettings, NamespacedHostname, NetworkMode, Peer,
    PolicyKey, RoutingScope, Rule, Scope, Service, ServiceAccountMatch, ServicePort, Snapshot,
    StringMatch, TrustDomain, TunnelProtocol, WaypointReference, Workload, WorkloadLabels,
    WorkloadUid,
};

pub(crate) fn empty() -> Snapshot {
    Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
    })
}

pub(crate) fn key(namespace: &str, hostname: &str) -> NamespacedHostname {
    NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    }
}

pub(crate) fn workload(namespace: &str, name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: WorkloadUid::new(format!("Kubernetes//Pod/{namespace}/{name}")),
        name: name.into(),
        namespace: namespace.into(),
        service_account: "default".into(),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        hostname: "".into(),
        node: "node-a".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::Culvert,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        workload_type: "deployment".into(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: Vec::new(),
        labels: WorkloadLabels::default(),
        authorization_policies: Vec::new(),
        application_tunnel: None,
        waypoint: None,
    }
}

pub(crate) fn service(namespace: &str, name: &str, hostname: &str, vips: &[&str]) -> Service {
    let port = ServicePort {
        name: "http".into(),
        target_port: 8080,
        app_protocol: "".into(),
    };
    Service {
        name: name.into(),
        key: key(namespace, hostname),
        vips: vips.iter().map(|text| text.parse().unwrap()).collect(),
        cidr_vips: Vec::new(),
        ports: BTreeMap::from([(80, port)]),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        canonical: true,
        namespace_private: false,
        alias: None,
    }
}

pub(crate) fn endpoint(workload: &Workload, health: Health) -> Endpoint {
    Endpoint {
        workload: workload.uid.clone(),
        ports: SmallVec::new(),
        health,
    }
}

pub(crate) fn add_workload(snapshot: &mut Snapshot, workload: Workload) -> Arc<Workload> {
    let workload = Arc::new(workload);
    for address in &workload.addresses {
        snapshot
            .workloads_by_address
            .insert(*address, Arc::clone(&workload));
    }
    snapshot
        .workloads
        .insert(workload.uid.clone(), Arc::clone(&workload));
    workload
}

pub(crate) fn add_service(snapshot: &mut Snapshot, service: Service, endpoints: Vec<Endpoint>) {
    let key = service.key.clone();
    let mut by_hostname = snapshot
        .services_by_hostname
        .get(&key.hostname)
        .cloned()
        .unwrap_or_default();
    by_hostname.push(key.clone());
    snapshot
        .services_by_hostname
        .insert(Arc::clone(&key.hostname), by_hostname);
    for vip in &service.vips {
        let vip: IpAddr = *vip;
        let mut by_vip = snapshot
            .services_by_vip
            .get(&vip)
            .cloned()
            .unwrap_or_default();
        by_vip.push(key.clone());
        snapshot.services_by_vip.insert(vip, by_vip);
    }
    snapshot.endpoints.insert(key.clone(), endpoints.into());
    snapshot.services.insert(key, Arc::new(service));
}

/// Two services behind a waypoint, one without, a waypoint that does not exist, and a policy.
pub(crate) fn bookinfo() -> Snapshot {
    let mut snapshot = empty();
    let waypoint = |hostname: &str| {
        Some(WaypointReference {
            destination: key("bookinfo", hostname),
            hbone_port: 15008,
            is_foreign: false,
        })
    };

    let mut reviews = workload("bookinfo", "reviews-v1-abc", &["10.1.0.5", "fd00::5"]);
    reviews.service_account = "bookinfo-reviews".into();
    reviews.locality = Locality {
        region: "eu".into(),
        ..Locality::default()
    };
    reviews.services = vec![key("bookinfo", "reviews.bookinfo.svc.cluster.local")];
    reviews.authorization_policies = vec![PolicyKey {
        namespace: "bookinfo".into(),
        name: "callers".into(),
    }];
    let reviews = add_workload(&mut snapshot, reviews);
    let mut old = workload("bookinfo", "reviews-v2-def", &["10.1.0.6"]);
    old.health = Health::Unhealthy;
    old.node = "node-b".into();
    let old = add_workload(&mut snapshot, old);
    let mut plain = workload("default", "vm", &["10.9.0.1"]);
    plain.protocol = TunnelProtocol::Tcp;
    plain.node = "".into();
    plain.waypoint = waypoint("gone.bookinfo.svc.cluster.local");
    add_workload(&mut snapshot, plain);

    add_services(&mut snapshot, &reviews, &old, waypoint);
    snapshot
        .policies
        .insert(policy().key.clone(), Arc::new(policy()));
    snapshot.generation = 7;
    snapshot
}

fn add_services(
    snapshot: &mut Snapshot,
    reviews: &Workload,
    old: &Workload,
    waypoint: impl Fn(&str) -> Option<WaypointReference>,
) {
    let waypoint_host = "waypoint.bookinfo.svc.cluster.local";
    let mut service_ = service(
        "bookinfo",
        "reviews",
        "reviews.bookinfo.svc.cluster.local",
        &["172.30.48.169", "fd00:1::9"],
    );
    service_.waypoint = waypoint(waypoint_host);
    service_.ip_families = IpFamilies::Dual;
    service_.load_balancer = LoadBalancer {
        mode: LoadBalancerMode::Failover,
        scopes: SmallVec::from_slice(&[RoutingScope::Region, RoutingScope::Zone]),
        ..LoadBalancer::default()
    };
    let mut moved = endpoint(reviews, Health::Healthy);
    moved.ports.push((80, 9080));
    add_service(
        snapshot,
        service_,
        vec![moved, endpoint(old, Health::Unhealthy)],
    );
    add_service(
        snapshot,
        service("bookinfo", "waypoint", waypoint_host, &["172.30.27.85"]),
        Vec::new(),
    );
    let mut lost = service("default", "lost", "lost.default.svc.cluster.local", &[]);
    lost.waypoint = waypoint("gone.bookinfo.svc.cluster.local");
    add_service(snapshot, lost, Vec::new());
}

fn policy() -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: PolicyKey {
            namespace: "bookinfo".into(),
            name: "callers".into(),
        },
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![policy_match()],
            }],
        }],
    }
}

fn policy_match() -> Match {
    Match {
        namespaces: vec![StringMatch::Exact("default".into()), StringMatch::Presence],
        not_principals: vec![
            StringMatch::Prefix("cluster.local/".into()),
            StringMatch::Suffix("/sa/curl".into()),
        ],
        service_accounts: vec![ServiceAccountMatch {
            namespace: "default".into(),
            service_account: "curl".into(),
        }],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        destination_ports: vec![8080],
        ..Match::default()
    }
}
