//! Istio's outbound decision table, row by row.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{HBONE_PORT, RACERS, Refusal, Target, Towards, Transport, candidates, plan, race};
use crate::model::{
    ApplicationTunnel, Endpoint, Health, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode,
    Locality, MeshSettings, NamespacedHostname, NetworkMode, Peer, RoutingScope, Service,
    ServiceLayer7, ServicePort, Snapshot, TrustDomain, TunnelProtocol, WaypointKey,
    WaypointReference, Workload, WorkloadLabels, WorkloadUid,
};

pub(super) fn workload(name: &str, address: &str) -> Workload {
    Workload {
        uid: WorkloadUid::new(format!("k//Pod/app/{name}")),
        name: name.into(),
        namespace: "app".into(),
        service_account: name.into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: address
            .split_whitespace()
            .map(|text| text.parse().unwrap())
            .collect(),
        hostname: "".into(),
        node: "here".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        cluster: "k".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::Culvert,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        workload_type: "pod".into(),
        locality: Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "".into(),
        },
        health: Health::Healthy,
        capacity: 1,
        services: vec![],
        labels: WorkloadLabels::default(),
        authorization_policies: vec![],
        application_tunnel: None,
        waypoint: None,
    }
}

fn service(name: &str, vip: &str) -> Service {
    let key = NamespacedHostname {
        namespace: "app".into(),
        hostname: format!("{name}.app.svc.cluster.local").into(),
    };
    let port = ServicePort {
        name: "http".into(),
        target_port: 8080,
        app_protocol: "".into(),
    };
    Service {
        name: name.into(),
        key,
        vips: vip
            .split_whitespace()
            .map(|text| text.parse().unwrap())
            .collect(),
        cidr_vips: vec![],
        ports: BTreeMap::from([(80, port)]),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: vec![],
        waypoint: None,
        canonical: true,
        namespace_private: false,
        alias: None,
    }
}

struct Mesh(Snapshot);

impl Mesh {
    fn new() -> Self {
        Self(Snapshot::empty(MeshSettings {
            trust_domain: TrustDomain::new("td").unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster: "k".into(),
            network: "".into(),
        }))
    }

    fn with(mut self, workload: Workload) -> Self {
        let workload = Arc::new(workload);
        for address in &workload.addresses {
            self.0
                .workloads_by_address
                .insert(*address, Arc::clone(&workload));
        }
        self.0.workloads.insert(workload.uid.clone(), workload);
        self
    }

    fn serving(mut self, service: Service, endpoints: &[&str]) -> Self {
        let endpoint = |name: &&str| Endpoint {
            workload: WorkloadUid::new(format!("k//Pod/app/{name}")),
            ports: [].into_iter().collect(),
            health: Health::Healthy,
        };
        let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
        self.0
            .endpoints
            .insert(service.key.clone(), endpoints.into());
        for vip in &service.vips {
            self.0
                .services_by_vip
                .entry(*vip)
                .or_default()
                .push(service.key.clone());
        }
        let service = Arc::new(service);
        if !service.cidr_vips.is_empty() {
            self.0.services_with_ranges.push(Arc::clone(&service));
        }
        self.0.services.insert(service.key.clone(), service);
        self
    }

    /// Destinations in order, from a client at 10.0.0.1 on node `here`, always drawing the first candidate.
    fn plan(&self, dialled: &str) -> Result<Vec<Target>, Refusal> {
        let dialled: SocketAddr = dialled.parse().unwrap();
        let client = workload("client", "10.0.0.1");
        plan(&self.0, &client, dialled, &mut |_bound| 0).map(|plan| plan.targets.into_vec())
    }

    #[track_caller]
    fn check(&self, dialled: &str, expected: &[&str]) {
        let targets = self.plan(dialled).unwrap();
        let mut shown: Vec<_> = targets.iter().map(show).collect();
        shown.sort();
        assert_eq!(shown, expected, "{dialled}");
    }
}

fn show(target: &Target) -> String {
    match &target.transport {
        Transport::Plain => format!("tcp {}", target.destination),
        Transport::Hbone { tunnel, .. } => format!("hbone {} via {tunnel}", target.destination),
    }
}

#[test]
fn an_address_unknown_to_the_mesh_passes_as_it_is() {
    Mesh::new().check("203.0.113.9:443", &["tcp 203.0.113.9:443"]);
    Mesh::new().check("[2001:db8::1]:443", &["tcp [2001:db8::1]:443"]);
    Mesh::new().check("[::ffff:203.0.113.9]:443", &["tcp 203.0.113.9:443"]);
}

#[test]
fn a_pod_address_goes_to_that_pod() {
    let mesh = Mesh::new().with(workload("a", "10.0.0.5 fd00::5"));
    mesh.check("10.0.0.5:99", &["hbone 10.0.0.5:99 via 10.0.0.5:15008"]);
    mesh.check("[fd00::5]:99", &["hbone [fd00::5]:99 via [fd00::5]:15008"]);
    let plain = Workload {
        protocol: TunnelProtocol::Tcp,
        ..workload("a", "10.0.0.5")
    };
    Mesh::new()
        .with(plain)
        .check("10.0.0.5:99", &["tcp 10.0.0.5:99"]);
}

#[test]
fn a_service_goes_to_an_endpoint_on_its_target_port() {
    let mesh = Mesh::new()
        .with(workload("a", "10.0.0.5"))
        .serving(service("s", "10.96.0.1"), &["a"]);
    mesh.check("10.96.0.1:80", &["hbone 10.0.0.5:8080 via 10.0.0.5:15008"]);
    assert_eq!(mesh.plan("10.96.0.1:81"), Err(Refusal::NoSuchPort(81)));
}

#[test]
fn an_endpoint_may_have_a_port_of_its_own() {
    let mut mesh = Mesh::new()
        .with(workload("a", "10.0.0.5"))
        .serving(service("s", "10.96.0.1"), &[]);
    let endpoint = Endpoint {
        workload: WorkloadUid::new("k//Pod/app/a"),
        ports: [(80, 9999)].into_iter().collect(),
        health: Health::Healthy,
    };
    let key = service("s", "").key;
    mesh.0.endpoints.insert(key, Arc::new([endpoint]));
    mesh.check("10.96.0.1:80", &["hbone 10.0.0.5:9999 via 10.0.0.5:15008"]);
}

#[test]
fn a_service_without_endpoints_refuses() {
    let mesh = Mesh::new().serving(service("s", "10.96.0.1"), &[]);
    assert_eq!(mesh.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
    let gone = Mesh::new().serving(service("s", "10.96.0.1"), &["never-existed"]);
    assert_eq!(gone.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
}

#[test]
fn a_workload_address_wins_over_a_virtual_one() {
    let mesh = Mesh::new()
        .with(workload("a", "10.0.0.5"))
        .with(workload("b", "10.0.0.6"))
        .serving(service("s", "10.0.0.5"), &["b"]);
    mesh.check("10.0.0.5:80", &["hbone 10.0.0.5:80 via 10.0.0.5:15008"]);
}

/// A waypoint `w` at 10.0.0.8 and 10.0.0.9, whoever it is, that fronts service `s` and pod `a`.
fn fronted(is_foreign: bool, endpoints: &[&str]) -> Mesh {
    let hbone = ServicePort {
        name: "hbone".into(),
        target_port: HBONE_PORT,
        app_protocol: "".into(),
    };
    let waypoint = Service {
        ports: BTreeMap::from([(HBONE_PORT, hbone)]),
        ..service("w", "10.96.0.9")
    };
    let reference = Some(WaypointReference {
        destination: waypoint.key.clone(),
        hbone_port: HBONE_PORT,
        is_foreign,
    });
    let mut bound = service("s", "10.96.0.1");
    bound.waypoint.clone_from(&reference);
    let mut pod = workload("a", "10.0.0.5");
    pod.waypoint = reference;
    Mesh::new()
        .with(pod)
        .with(workload("w1", "10.0.0.8"))
        .with(workload("w2", "10.0.0.9"))
        .serving(bound, &["a"])
        .serving(waypoint, endpoints)
}

#[test]
fn what_a_foreign_waypoint_fronts_is_reached_through_it() {
    let mesh = fronted(true, &["w1", "w2"]);
    let through =
        |dialled: &str| ["10.0.0.8", "10.0.0.9"].map(|w| format!("hbone {dialled} via {w}:15008"));
    // Row 1: the address that was dialled, not an endpoint's; row 6: the pod's own.
    for dialled in ["10.96.0.1:80", "10.0.0.5:99"] {
        let expected = through(dialled);
        mesh.check(dialled, &expected.each_ref().map(String::as_str));
    }
    let targets = mesh.plan("10.96.0.1:80").unwrap();
    let Transport::Hbone { expected, .. } = &targets[0].transport else {
        panic!("{targets:?}");
    };
    assert_eq!(
        expected[0],
        workload("w1", "").identity(),
        "it proves to be the waypoint"
    );
    // The waypoint itself goes on by itself.
    let own = workload("w1", "10.0.0.8");
    let plan = plan(
        &mesh.0,
        &own,
        "10.96.0.1:80".parse().unwrap(),
        &mut |_bound| 0,
    );
    let shown: Vec<_> = plan.unwrap().targets.iter().map(show).collect();
    assert_eq!(shown, ["hbone 10.0.0.5:8080 via 10.0.0.5:15008"]);
}

#[test]
fn a_waypoint_behind_an_application_tunnel_need_not_declare_the_tunnels_port() {
    let mut mesh = fronted(true, &["w1", "w2"]);
    let undeclared = service("w", "10.96.0.9");
    mesh.0
        .services
        .insert(undeclared.key.clone(), Arc::new(undeclared));
    assert_eq!(mesh.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
    let tunnelled = Workload {
        application_tunnel: Some(ApplicationTunnel {
            has_header: true,
            port: None,
        }),
        ..workload("w2", "10.0.0.9")
    };
    let mesh = mesh.with(tunnelled);
    for dialled in ["10.96.0.1:80", "10.0.0.5:99"] {
        mesh.check(dialled, &[&format!("hbone {dialled} via 10.0.0.9:15008")]);
    }
}

#[test]
fn nobody_goes_around_a_foreign_waypoint() {
    let none_ready = fronted(true, &[]);
    assert_eq!(
        none_ready.plan("10.96.0.1:80"),
        Err(Refusal::NoHealthyUpstream)
    );
    let mut gone = fronted(true, &["w1"]);
    gone.0.services.remove(&service("w", "").key);
    for dialled in ["10.96.0.1:80", "10.0.0.5:99"] {
        assert_eq!(
            gone.plan(dialled),
            Err(Refusal::UnknownWaypoint),
            "{dialled}"
        );
    }
    // One that the agents are needs no endpoints.
    let ours = fronted(false, &[]);
    ours.check("10.96.0.1:80", &["hbone 10.0.0.5:8080 via 10.0.0.5:15008"]);
    ours.check("10.0.0.5:99", &["hbone 10.0.0.5:99 via 10.0.0.5:15008"]);
}

#[test]
fn unready_endpoints_are_left_out_unless_published() {
    let unready = |health_policy| {
        let mut service = service("s", "10.96.0.1");
        service.load_balancer.health = health_policy;
        let mut mesh = Mesh::new()
            .with(workload("a", "10.0.0.5"))
            .serving(service.clone(), &[]);
        let endpoint = Endpoint {
            workload: WorkloadUid::new("k//Pod/app/a"),
            ports: [].into_iter().collect(),
            health: Health::Unhealthy,
        };
        mesh.0.endpoints.insert(service.key, Arc::new([endpoint]));
        mesh
    };
    let strict = unready(HealthPolicy::OnlyHealthy);
    assert_eq!(strict.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
    unready(HealthPolicy::AllowAll)
        .check("10.96.0.1:80", &["hbone 10.0.0.5:8080 via 10.0.0.5:15008"]);
}

#[test]
fn every_endpoint_is_tried_once_and_no_more_than_three() {
    let mut mesh = Mesh::new();
    let names = ["a", "b", "c", "d"];
    for (index, name) in names.iter().enumerate() {
        mesh = mesh.with(workload(name, &format!("10.0.0.{}", index + 5)));
    }
    let mesh = mesh.serving(service("s", "10.96.0.1"), &names);
    let targets = mesh.plan("10.96.0.1:80").unwrap();
    let mut destinations: Vec<_> = targets.iter().map(|target| target.destination).collect();
    destinations.dedup();
    assert_eq!(destinations.len(), 3);
}

#[test]
fn capacity_is_the_weight_and_zero_is_never_chosen() {
    let mesh = Mesh::new()
        .with(Workload {
            capacity: 3,
            ..workload("a", "10.0.0.5")
        })
        .with(Workload {
            capacity: 1,
            ..workload("b", "10.0.0.6")
        })
        .with(Workload {
            capacity: 0,
            ..workload("c", "10.0.0.7")
        })
        .serving(service("s", "10.96.0.1"), &["a", "b", "c"]);
    let client = workload("client", "10.0.0.1");
    let mut first = BTreeMap::<SocketAddr, u32>::new();
    for point in 0..4 {
        let mut choose = |bound: u32| if bound == 4 { point } else { 0 };
        let dialled = "10.96.0.1:80".parse().unwrap();
        let plan = plan(&mesh.0, &client, dialled, &mut choose).unwrap();
        assert_eq!(plan.targets.len(), 2);
        *first.entry(plan.targets[0].destination).or_default() += 1;
    }
    let expected = [("10.0.0.5:8080", 3), ("10.0.0.6:8080", 1)];
    assert_eq!(
        first,
        expected
            .map(|(address, count)| (address.parse().unwrap(), count))
            .into()
    );
}

#[test]
fn the_family_that_the_client_used_is_preferred() {
    let mesh = || {
        Mesh::new()
            .with(workload("a", "10.0.0.5 fd00::5"))
            .with(workload("b", "fd00::6"))
    };
    let both = mesh().serving(service("s", "10.96.0.1 fd96::1"), &["a"]);
    both.check("10.96.0.1:80", &["hbone 10.0.0.5:8080 via 10.0.0.5:15008"]);
    both.check(
        "[fd96::1]:80",
        &["hbone [fd00::5]:8080 via [fd00::5]:15008"],
    );
    let other = mesh().serving(service("s", "10.96.0.1"), &["b"]);
    other.check(
        "10.96.0.1:80",
        &["hbone [fd00::6]:8080 via [fd00::6]:15008"],
    );
    let mut only_v4 = service("s", "10.96.0.1");
    only_v4.ip_families = IpFamilies::Ipv4Only;
    let none = mesh().serving(only_v4, &["b"]);
    assert_eq!(none.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
}

#[test]
fn scopes_keep_traffic_close() {
    use LoadBalancerMode::{Failover, Strict};
    use RoutingScope::{Network, Node, Region, Zone};
    let elsewhere = Workload {
        node: "there".into(),
        ..workload("b", "10.0.0.6")
    };
    let far = Workload {
        node: "there".into(),
        locality: Locality {
            region: "r".into(),
            zone: "other".into(),
            subzone: "".into(),
        },
        ..workload("c", "10.0.0.7")
    };
    let balanced = |mode, scopes: &[RoutingScope], endpoints: &[&str]| {
        let mut service = service("s", "10.96.0.1");
        service.load_balancer = LoadBalancer {
            mode,
            scopes: scopes.into(),
            ..LoadBalancer::default()
        };
        Mesh::new()
            .with(workload("a", "10.0.0.5"))
            .with(elsewhere.clone())
            .with(far.clone())
            .serving(service, endpoints)
    };
    let here = "hbone 10.0.0.5:8080 via 10.0.0.5:15008";
    let there = "hbone 10.0.0.6:8080 via 10.0.0.6:15008";
    let other_zone = "hbone 10.0.0.7:8080 via 10.0.0.7:15008";
    balanced(Strict, &[Node], &["a", "b", "c"]).check("10.96.0.1:80", &[here]);
    let none = balanced(Strict, &[Node], &["b", "c"]);
    assert_eq!(none.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
    let close = [Network, Region, Zone];
    balanced(Failover, &close, &["a", "b", "c"]).check("10.96.0.1:80", &[here, there]);
    balanced(Failover, &close, &["c"]).check("10.96.0.1:80", &[other_zone]);
}

#[test]
fn a_service_entry_without_resolution_passes_through() {
    let mut service = service("s", "");
    service.cidr_vips = vec!["198.51.100.0/24".parse().unwrap()];
    service.load_balancer.mode = LoadBalancerMode::Passthrough;
    Mesh::new()
        .serving(service, &[])
        .check("198.51.100.7:8443", &["tcp 198.51.100.7:8443"]);
}

#[test]
fn such_a_service_with_a_waypoint_passes_what_it_declares() {
    let mut service = service("s", "198.51.100.7");
    service.cidr_vips = vec!["203.0.113.0/24".parse().unwrap()];
    service.load_balancer.mode = LoadBalancerMode::Passthrough;
    let key = service.key.clone();
    let mut mesh = Mesh::new().serving(service, &[]);
    let layer7 = ServiceLayer7 {
        waypoint: WaypointKey {
            namespace: "app".into(),
            name: "w".into(),
        },
        waypoint_identity: "spiffe://td/ns/app/sa/w".parse().unwrap(),
        ports: BTreeMap::new(),
        demands: Arc::default(),
        telemetry: Arc::default(),
        ingress: false,
        canary: None,
    };
    mesh.0.services_layer7.insert(key, layer7.into());
    mesh.check("198.51.100.7:80", &["tcp 198.51.100.7:80"]);
    mesh.check("203.0.113.9:80", &["tcp 203.0.113.9:80"]);
    let undeclared = mesh.plan("203.0.113.9:81");
    assert_eq!(undeclared, Err(Refusal::NoSuchPort(81)));
}

#[test]
fn an_endpoint_with_a_name_is_all_the_places_that_the_name_stands_for() {
    let named = Workload {
        hostname: "api.example.com".into(),
        protocol: TunnelProtocol::Tcp,
        ..workload("a", "")
    };
    let mut mesh = Mesh::new()
        .with(named)
        .serving(service("s", "10.96.0.1"), &["a"]);
    assert_eq!(mesh.plan("10.96.0.1:80"), Err(Refusal::NoHealthyUpstream));
    let mut look_up = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        let found = ("api.example.com".into(), addresses.collect());
        mesh.0.looked_up = Arc::new([found].into());
        let shown = mesh.plan("10.96.0.1:80").unwrap();
        shown.iter().map(show).collect::<Vec<_>>()
    };
    let v4 = ["198.51.100.1", "198.51.100.2", "2001:db8::1"];
    let mut places = look_up(&v4);
    places.sort();
    assert_eq!(places, ["tcp 198.51.100.1:8080", "tcp 198.51.100.2:8080"]);
    assert_eq!(look_up(&["2001:db8::1"]), ["tcp [2001:db8::1]:8080"]);
}

#[test]
fn addresses_of_one_name_race_as_one_target() {
    let named = |name: &str| Workload {
        hostname: format!("{name}.example.com").into(),
        protocol: TunnelProtocol::Tcp,
        ..workload(name, "")
    };
    let mut raced = service("s", "10.96.0.1");
    raced.load_balancer.is_raced = true;
    let mut mesh = Mesh::new()
        .with(named("a"))
        .with(named("b"))
        .with(workload("pod", "10.0.0.5"))
        .serving(raced.clone(), &["a", "b", "pod"]);
    let read = |text: &&str| text.parse().unwrap();
    let many: Vec<String> = (1..=20).map(|host| format!("192.0.2.{host}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let places = [
        ("a.example.com", &["198.51.100.1", "2001:db8::1"][..]),
        ("b.example.com", &many[..]),
    ];
    let places = places.map(|(name, all)| (name.into(), all.iter().map(read).collect()));
    mesh.0.looked_up = Arc::new(places.into());
    let towards = Towards {
        service: &raced,
        subset: None,
        address: SocketAddr::from(([10, 96, 0, 1], 80)),
    };
    let all = candidates(&mesh.0, &workload("c", "10.0.0.9"), &towards, None);
    assert_eq!(all.len(), 2 + 20 + 1, "both families take part");
    let mut targets = all.iter().map(|one| one.target(&raced)).collect();
    race(&mut targets, &all);
    let raced_by: Vec<_> = targets
        .iter()
        .map(|target| {
            (
                target.workload.as_ref().unwrap().name.to_string(),
                target.addresses().count(),
            )
        })
        .collect();
    let of = |name: &str| -> Vec<usize> {
        let all = raced_by.iter().filter(|(of, _)| of == name);
        all.map(|(_, addresses)| *addresses).collect()
    };
    // All addresses of a name are one target's, as long as they are few; a tunnel has none but its own.
    assert_eq!(of("a"), [2]);
    assert_eq!(of("pod"), [1]);
    assert_eq!(of("b"), [RACERS, RACERS, 4]);
}

#[test]
fn the_server_may_prove_the_names_that_its_service_lists() {
    let mut named = service("s", "10.96.0.1");
    named.subject_alt_names = vec!["spiffe://td/ns/x/sa/y".into(), "not-an-identity".into()];
    let mesh = Mesh::new()
        .with(workload("a", "10.0.0.5"))
        .serving(named, &["a"]);
    let target = mesh.plan("10.96.0.1:80").unwrap().remove(0);
    let Transport::Hbone { tunnel, expected } = target.transport else {
        panic!("no tunnel")
    };
    assert_eq!(tunnel.port(), HBONE_PORT);
    let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    assert_eq!(
        expected,
        ["spiffe://td/ns/app/sa/a", "spiffe://td/ns/x/sa/y"]
    );
}

#[test]
fn conflicting_services_are_settled_the_same_way_each_time() {
    let mut foreign = service("s", "10.96.0.1");
    foreign.key.namespace = "other".into();
    let mut private = service("p", "10.96.0.1");
    private.key.namespace = "elsewhere".into();
    private.namespace_private = true;
    let mesh = Mesh::new()
        .with(workload("a", "10.0.0.5"))
        .with(workload("b", "10.0.0.6"))
        .serving(private, &["b"])
        .serving(foreign, &["b"])
        .serving(service("s", "10.96.0.1"), &["a"]);
    mesh.check("10.96.0.1:80", &["hbone 10.0.0.5:8080 via 10.0.0.5:15008"]);
}

#[test]
fn the_mesh_never_dials_itself() {
    let mesh = Mesh::new();
    for port in [15001, 15006, 15008] {
        assert_eq!(
            mesh.plan(&format!("127.0.0.1:{port}")),
            Err(Refusal::OwnPort)
        );
    }
}
