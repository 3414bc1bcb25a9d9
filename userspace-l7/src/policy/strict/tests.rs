//! A strict namespace `shop`, row by row: who gets to its pod at port 8080, which service `web` leads to.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::circumvented;
use crate::model::{
    Demands, Endpoint, Health, IpFamilies, LoadBalancer, Locality, MeshSettings,
    NamespacedHostname, NetworkMode, Peer, Service, ServiceLayer7, ServicePort, Snapshot, SpiffeId,
    Telemetry, TrustDomain, TunnelProtocol, WaypointKey, WaypointReference, Workload,
    WorkloadLabels, WorkloadUid,
};
use crate::policy::{Connection, Denial, judge};

pub(in crate::policy) fn key(namespace: &str, name: &str) -> NamespacedHostname {
    NamespacedHostname {
        namespace: namespace.into(),
        hostname: name.into(),
    }
}

pub(in crate::policy) fn workload(namespace: &str, name: &str, address: &str) -> Workload {
    Workload {
        uid: WorkloadUid::new(format!("k//Pod/{namespace}/{name}")),
        name: name.into(),
        namespace: namespace.into(),
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
        waypoint: None,
    }
}

pub(in crate::policy) fn server() -> Workload {
    Workload {
        services: ["web", "raw"].map(|name| key("shop", name)).into(),
        ..workload("shop", "server", "10.0.0.2")
    }
}

pub(in crate::policy) fn add_service(
    mesh: &mut Snapshot,
    name: &str,
    ports: (u16, u16),
    bound: bool,
    by: &Workload,
) {
    let port = ServicePort {
        name: "".into(),
        target_port: ports.1,
        app_protocol: "".into(),
    };
    let waypoint = WaypointReference {
        destination: key("shop", "waypoint"),
        hbone_port: 15008,
        is_foreign: false,
    };
    let service = Service {
        name: name.into(),
        key: key("shop", name),
        vips: vec![].into(),
        cidr_vips: vec![],
        ports: BTreeMap::from([(ports.0, port)]),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: vec![],
        waypoint: bound.then_some(waypoint),
        canonical: true,
        namespace_private: false,
        alias: None,
    };
    let endpoint = Endpoint {
        workload: by.uid.clone(),
        ports: [].into_iter().collect(),
        health: Health::Healthy,
    };
    mesh.endpoints
        .insert(service.key.clone(), [endpoint].into());
    mesh.services.insert(service.key.clone(), service.into());
}

fn layer7() -> Arc<ServiceLayer7> {
    Arc::new(ServiceLayer7 {
        waypoint: WaypointKey {
            namespace: "shop".into(),
            name: "waypoint".into(),
        },
        waypoint_identity: "spiffe://td/ns/shop/sa/waypoint".parse().unwrap(),
        ports: BTreeMap::new(),
        demands: Arc::new(Demands::default()),
        telemetry: Arc::new(Telemetry::default()),
        ingress: false,
        canary: None,
    })
}

/// `web` (80 to 8080) is bound to a waypoint whose instance is pod `gate`; `raw` (90 to 9090) is bound to none, and
/// so is `other/web`, whose namespace has a waypoint of its own.
pub(in crate::policy) fn mesh() -> Snapshot {
    let mut mesh = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    let gate = workload("shop", "gate", "10.0.0.3");
    add_service(&mut mesh, "web", (80, 8080), true, &server());
    add_service(&mut mesh, "raw", (90, 9090), false, &server());
    add_service(&mut mesh, "waypoint", (15008, 15008), false, &gate);
    for key in [key("shop", "web"), key("other", "web")] {
        mesh.services_layer7.insert(key, layer7());
    }
    for one in [server(), gate, workload("clients", "client", "10.0.0.1")] {
        let one = Arc::new(one);
        mesh.workloads_by_address
            .insert(one.addresses[0], Arc::clone(&one));
        mesh.workloads.insert(one.uid.clone(), one);
    }
    mesh.strict_namespaces.insert("shop".into());
    mesh
}

/// A caller's address and what it proved to be.
type Caller = (&'static str, Option<&'static str>);

const CLIENT: Caller = ("10.0.0.1", Some("spiffe://td/ns/clients/sa/client"));
const GATE: Caller = ("10.0.0.3", Some("spiffe://td/ns/shop/sa/gate"));

#[track_caller]
fn check(
    mesh: &Snapshot,
    (source, identity): Caller,
    through: Option<(&str, &str)>,
    port: u16,
    is_around: bool,
) {
    let identity: Option<SpiffeId> = identity.map(|text| text.parse().unwrap());
    let through = through.map(|(namespace, name)| key(namespace, name));
    let connection = Connection {
        source: source.parse().unwrap(),
        identity: identity.as_ref(),
        waypoint: None,
        through: through.as_ref(),
        destination: format!("10.0.0.2:{port}").parse().unwrap(),
    };
    let around = circumvented(mesh, &server(), &connection).cloned();
    let expected = is_around.then(|| key("shop", "web"));
    assert_eq!(around, expected, "{source} {through:?} {port}");
    let decision = judge(mesh, &server(), &connection).decision.map(drop);
    assert_eq!(
        decision,
        expected.map_or(Ok(()), |one| Err(Denial::Around(one)))
    );
}

#[test]
fn only_the_service_leads_to_its_port() {
    let mesh = mesh();
    check(&mesh, CLIENT, None, 8080, true);
    check(&mesh, ("192.0.2.1", None), None, 8080, true);
    check(&mesh, CLIENT, Some(("shop", "web")), 8080, false);
    // A service that is bound to no waypoint, and one of whoever writes other namespaces' policies.
    check(&mesh, CLIENT, Some(("shop", "raw")), 8080, true);
    check(&mesh, CLIENT, Some(("other", "web")), 8080, true);
}

#[test]
fn ports_of_no_service_behind_a_waypoint_stay_open() {
    let mesh = mesh();
    check(&mesh, CLIENT, None, 9090, false);
    check(&mesh, CLIENT, None, 5432, false);
    // A service's own port is not its pods'.
    check(&mesh, CLIENT, None, 80, false);
}

#[test]
fn the_waypoint_itself_comes_in() {
    let mesh = mesh();
    check(&mesh, GATE, None, 8080, false);
    // Its identity alone does not do, and neither does its address.
    check(&mesh, (CLIENT.0, GATE.1), None, 8080, true);
    check(&mesh, (GATE.0, CLIENT.1), None, 8080, true);
    check(&mesh, (GATE.0, None), None, 8080, true);
}

#[test]
fn elsewhere_nobody_is_kept_out() {
    let mut mesh = mesh();
    mesh.strict_namespaces.clear();
    check(&mesh, CLIENT, None, 8080, false);
    mesh.strict_namespaces.insert("clients".into());
    check(&mesh, CLIENT, None, 8080, false);
}

#[test]
fn a_service_that_is_no_longer_bound_leads_nowhere() {
    let mut mesh = mesh();
    mesh.services_layer7.clear();
    check(&mesh, CLIENT, Some(("shop", "web")), 8080, true);
}
