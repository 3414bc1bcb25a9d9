//! What a request means at pod `gate`, which is the waypoint of service `web` and of pod `server`: a row each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Behind, Unserved, fronted};
use crate::hbone::Authority;
use crate::model::{
    AppProtocol, Demands, Endpoint, Health, IpFamilies, LoadBalancer, Locality, MeshSettings,
    NamespacedHostname, NetworkMode, Peer, PortLayer7, PortRoutes, Service, ServiceLayer7,
    ServicePort, Snapshot, Telemetry, TrustDomain, TunnelProtocol, WaypointKey, WaypointReference,
    Workload, WorkloadLabels, WorkloadLayer7, WorkloadUid,
};

fn key(name: &str) -> NamespacedHostname {
    NamespacedHostname {
        namespace: "shop".into(),
        hostname: name.into(),
    }
}

fn reference(name: &str) -> WaypointReference {
    WaypointReference {
        destination: key(name),
        hbone_port: 15008,
        is_foreign: false,
    }
}

fn workload(name: &str, address: &str, waypoint: Option<&str>) -> Arc<Workload> {
    Arc::new(Workload {
        uid: WorkloadUid::new(format!("k//Pod/shop/{name}")),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: [address.parse().unwrap()].into_iter().collect(),
        hostname: "".into(),
        node: "n".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        cluster: "k".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::Culvert,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        workload_type: "pod".into(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: vec![],
        labels: WorkloadLabels::default(),
        authorization_policies: vec![],
        application_tunnel: None,
        waypoint: waypoint.map(reference),
    })
}

fn add_service(mesh: &mut Snapshot, name: &str, vips: &[&str], waypoint: Option<&str>) {
    let vips: Vec<IpAddr> = vips.iter().map(|vip| vip.parse().unwrap()).collect();
    let port = || ServicePort {
        name: "".into(),
        target_port: 8080,
        app_protocol: "".into(),
    };
    let service = Service {
        name: name.into(),
        key: key(name),
        vips: vips.clone().into(),
        cidr_vips: vec![],
        ports: BTreeMap::from([(80, port()), (90, port())]),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: vec![],
        waypoint: waypoint.map(reference),
        canonical: true,
        namespace_private: false,
        alias: None,
    };
    if waypoint.is_some() {
        let port = |protocol| {
            Arc::new(PortLayer7 {
                protocol,
                routes: PortRoutes::None,
                consumer_routes: BTreeMap::new(),
                rate_limits: Arc::new([]),
            })
        };
        let layer7 = ServiceLayer7 {
            waypoint: waypoint_key(),
            waypoint_identity: "spiffe://td/ns/shop/sa/waypoint".parse().unwrap(),
            ports: BTreeMap::from([(80, port(AppProtocol::Http1)), (90, port(AppProtocol::Tcp))]),
            demands: Arc::new(Demands::default()),
            telemetry: Arc::new(Telemetry::default()),
            ingress: false,
            canary: None,
        };
        mesh.services_layer7.insert(key(name), Arc::new(layer7));
    }
    for vip in vips {
        mesh.services_by_vip
            .insert(vip, [key(name)].into_iter().collect());
    }
    mesh.services_by_hostname
        .insert(name.into(), [key(name)].into_iter().collect());
    mesh.services.insert(key(name), Arc::new(service));
}

fn waypoint_key() -> WaypointKey {
    WaypointKey {
        namespace: "shop".into(),
        name: "waypoint".into(),
    }
}

fn mesh() -> Snapshot {
    let mut mesh = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    let vips = ["10.96.0.1", "fd96::1"];
    add_service(&mut mesh, "web", &vips, Some("waypoint"));
    add_service(&mut mesh, "elsewhere", &["10.96.0.2"], Some("another"));
    add_service(&mut mesh, "unbound", &["10.96.0.3"], None);
    add_service(&mut mesh, "nameless", &[], Some("waypoint"));
    let waypoint = Some("waypoint");
    for one in [
        workload("gate", "10.0.0.1", waypoint),
        workload("server", "10.0.0.2", waypoint),
        workload("plain", "10.0.0.3", None),
    ] {
        if one.waypoint.is_some() {
            let layer7 = WorkloadLayer7 {
                waypoint: waypoint_key(),
                waypoint_identity: "spiffe://td/ns/shop/sa/waypoint".parse().unwrap(),
                demands: Arc::new(Demands::default()),
            };
            mesh.workloads_layer7.insert(one.uid.clone(), layer7.into());
        }
        mesh.workloads_by_address
            .insert(one.addresses[0], Arc::clone(&one));
        mesh.workloads.insert(one.uid.clone(), one);
    }
    let instance = Endpoint {
        workload: WorkloadUid::new("k//Pod/shop/gate"),
        ports: [].into_iter().collect(),
        health: Health::Healthy,
    };
    mesh.endpoints.insert(key("waypoint"), [instance].into());
    mesh
}

/// What is behind the waypoint and at which address; `None`: nothing of its.
#[track_caller]
fn asks(wanted: &str, own: &str, expected: Result<Option<&str>, Unserved>) {
    let mesh = mesh();
    let gate = &mesh.workloads[&WorkloadUid::new("k//Pod/shop/gate")];
    let authority = Authority::parse(wanted).unwrap();
    let found = fronted(&mesh, gate, &authority, own.parse().unwrap());
    let shown = found.map(|found| {
        found.map(|found| {
            let what = match &found.what {
                Behind::Service(service, protocol) => format!("{} {protocol:?}", service.name),
                Behind::Workload(workload) => workload.name.to_string(),
            };
            format!("{what} at {}", found.dialled)
        })
    });
    assert_eq!(
        shown,
        expected.map(|one| one.map(str::to_owned)),
        "{wanted}"
    );
}

const OWN: &str = "10.0.0.1";

#[test]
fn services_are_asked_for_by_address_and_by_name() {
    let web = Ok(Some("web Http1 at 10.96.0.1:80"));
    asks("10.96.0.1:80", OWN, web.clone());
    asks("[::ffff:10.96.0.1]:80", OWN, web.clone());
    asks("web:80", OWN, web);
    asks("10.96.0.1:90", OWN, Ok(Some("web Tcp at 10.96.0.1:90")));
    // By name in the family in which the waypoint was dialled.
    asks("web:80", "fd00::1", Ok(Some("web Http1 at [fd96::1]:80")));
    asks("web:81", OWN, Err(Unserved::Port(81)));
    asks("10.96.0.1:81", OWN, Err(Unserved::Port(81)));
    let nameless = Unserved::Nameless("shop/nameless".to_owned());
    asks("nameless:80", OWN, Err(nameless));
}

#[test]
fn workloads_are_asked_for_by_their_own_address() {
    asks("10.0.0.2:9090", OWN, Ok(Some("server at 10.0.0.2:9090")));
    // The mesh's own listeners; the pod itself, which serves its own port; one that is bound to nothing.
    asks("10.0.0.2:15008", OWN, Ok(None));
    asks("10.0.0.1:8080", OWN, Ok(None));
    asks("10.0.0.3:8080", OWN, Ok(None));
}

#[test]
fn of_what_it_is_not_the_waypoint_nothing_is_asked() {
    for other in ["10.96.0.2:80", "elsewhere:80", "10.96.0.3:80", "unbound:80"] {
        asks(other, OWN, Ok(None));
    }
    for nobodys in ["10.96.9.9:80", "nowhere:80"] {
        asks(nobodys, OWN, Ok(None));
    }
}
