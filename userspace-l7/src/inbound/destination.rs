//! Which port of the local workload a CONNECT request is for, and what the application is told where it is for others.
//! Pure.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::hbone::Authority;
use crate::model::{Service, Snapshot, WaypointReference, Workload};
use crate::route::OWN_PORTS;

/// Why a request names nothing that this workload could serve; each answers with its own status
/// (spec: ztunnel's status codes).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misdirected {
    #[error("ip mismatch: the request is for {wanted}, this is {own}")]
    OtherAddress { wanted: SocketAddr, own: SocketAddr },
    #[error("no service {0} is known here")]
    UnknownHost(String),
    #[error("service {host} does not serve port {port} from this workload")]
    NoSuchPort { host: String, port: u16 },
    #[error("attempted recursive call to ourselves")]
    OwnPort,
    #[error(
        "port {0} takes what the mesh announces: whoever else spoke to it could call himself anybody"
    )]
    Announced(u16),
    #[error("a connection of the pod's own lost its way out: capture's table of openings is full")]
    Outbound,
    #[error("the connection was for {0}, which is no address of this workload")]
    Elsewhere(SocketAddr),
}

impl Misdirected {
    /// The status to answer with.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::OtherAddress { .. } => 400,
            Self::UnknownHost(_)
            | Self::NoSuchPort { .. }
            | Self::OwnPort
            | Self::Announced(_)
            | Self::Outbound
            | Self::Elsewhere(_) => 503,
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// The application: always the workload's own address.
    pub(super) to: SocketAddr,
    /// What was called, where the application is told in a header.
    pub(super) called: Option<Called>,
}

/// What a client called that came to a waypoint instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Called {
    pub(super) address: SocketAddr,
    /// The service's, if it was one.
    pub(super) hostname: Option<Arc<str>>,
}

/// The application's address for plaintext that came from `peer` to `dialled`.
///
/// A captured connection of the pod's own arrives here when the kernel had no room to note that it is
/// outbound. Its destination is not this workload: dialling it would carry it past the mesh.
pub(super) fn of_plaintext(
    workload: &Workload,
    peer: SocketAddr,
    dialled: SocketAddr,
) -> Result<SocketAddr, Misdirected> {
    if OWN_PORTS.contains(&dialled.port()) {
        return Err(Misdirected::OwnPort);
    }
    if workload.addresses.contains(&peer.ip().to_canonical()) {
        return Err(Misdirected::Outbound);
    }
    let announced = workload.application_tunnel.filter(|one| one.has_header);
    let announced = announced.and_then(|one| one.port).map(NonZeroU16::get);
    if announced == Some(dialled.port()) {
        return Err(Misdirected::Announced(dialled.port()));
    }
    Ok(dialled)
}

/// Where a request goes that arrived on `own` (the tunnel connection's local address). Always to the workload's own
/// address: an authority never redirects a connection elsewhere. One for another's address is for a waypoint: for a
/// workload that takes such connections for whomever they are, or that is the very waypoint of what was called.
pub(super) fn of_request(
    snapshot: &Snapshot,
    workload: &Workload,
    own: SocketAddr,
    authority: &Authority,
) -> Result<Destination, Misdirected> {
    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
    let (called, port) = match authority {
        Authority::Address(wanted) => by_address(snapshot, workload, own, *wanted)?,
        Authority::Host { host, port } => by_name(snapshot, workload, own.ip(), (host, *port))?,
    };
    let tunnel = workload.application_tunnel;
    let instead = tunnel.and_then(|tunnel| tunnel.port);
    let to = instead.map_or(port, NonZeroU16::get);
    if OWN_PORTS.contains(&port) || OWN_PORTS.contains(&to) {
        return Err(Misdirected::OwnPort);
    }
    Ok(Destination {
        to: SocketAddr::new(own.ip(), to),
        called: tunnel.filter(|tunnel| tunnel.has_header).map(|_| called),
    })
}

fn by_address(
    snapshot: &Snapshot,
    workload: &Workload,
    own: SocketAddr,
    wanted: SocketAddr,
) -> Result<(Called, u16), Misdirected> {
    let wanted_ip = wanted.ip().to_canonical();
    let other = snapshot.workload_at(wanted_ip);
    let service = match other {
        None => snapshot.service_at(wanted_ip, &workload.namespace),
        Some(_) => None,
    };
    let waypoint = match other {
        Some(other) => other.waypoint.as_ref(),
        None => service.and_then(|service| service.waypoint.as_ref()),
    };
    if wanted_ip != own.ip() && !fronts(snapshot, workload, waypoint) {
        return Err(Misdirected::OtherAddress { wanted, own });
    }
    let called = Called {
        address: SocketAddr::new(wanted_ip, wanted.port()),
        hostname: service.map(|service| Arc::clone(&service.key.hostname)),
    };
    Ok((called, wanted.port()))
}

fn by_name(
    snapshot: &Snapshot,
    workload: &Workload,
    own: IpAddr,
    (host, port): (&str, u16),
) -> Result<(Called, u16), Misdirected> {
    let service = snapshot
        .service_named(host, &workload.namespace)
        .ok_or_else(|| Misdirected::UnknownHost(host.to_owned()))?;
    let fronted = || {
        let fronts = fronts(snapshot, workload, service.waypoint.as_ref());
        let declared = service.ports.get(&port).filter(|_| fronts)?.target_port;
        let tunnel = workload.application_tunnel;
        let has_another = tunnel.is_some_and(|tunnel| tunnel.port.is_some());
        (declared != 0 || has_another).then_some(declared)
    };
    let target = served_port(snapshot, workload, service, port).or_else(fronted);
    let target = target.ok_or_else(|| Misdirected::NoSuchPort {
        host: host.to_owned(),
        port,
    })?;
    let mut addresses = service.vips.iter();
    let address = addresses.find(|vip| vip.is_ipv4() == own.is_ipv4());
    let called = Called {
        address: SocketAddr::new(address.copied().unwrap_or(own), port),
        hostname: Some(Arc::clone(&service.key.hostname)),
    };
    Ok((called, target))
}

/// The workload's own port for a service that it serves.
fn served_port(
    snapshot: &Snapshot,
    workload: &Workload,
    service: &Service,
    port: u16,
) -> Option<u16> {
    let mut endpoints = snapshot.endpoints_of(&service.key).iter();
    let endpoint = endpoints.find(|endpoint| endpoint.workload == workload.uid)?;
    endpoint.target_port(service, port)
}

/// Whether a workload takes connections for others that have this waypoint.
fn fronts(snapshot: &Snapshot, workload: &Workload, waypoint: Option<&WaypointReference>) -> bool {
    let is_waypoint = |waypoint: &WaypointReference| {
        let mut instances = snapshot.endpoints_of(&waypoint.destination).iter();
        waypoint.is_foreign && instances.any(|instance| instance.workload == workload.uid)
    };
    workload.application_tunnel.is_some() || waypoint.is_some_and(is_waypoint)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, SocketAddr};
    use std::num::NonZeroU16;
    use std::sync::Arc;

    use super::{Called, Destination, Misdirected, of_plaintext, of_request};
    use crate::hbone::Authority;
    use crate::model::{
        ApplicationTunnel, Endpoint, Health, IpFamilies, LoadBalancer, Locality, MeshSettings,
        NamespacedHostname, NetworkMode, Peer, Service, ServicePort, Snapshot, TrustDomain,
        TunnelProtocol, WaypointReference, Workload, WorkloadLabels, WorkloadUid,
    };

    fn workload() -> Workload {
        Workload {
            uid: WorkloadUid::new("k//Pod/app/server"),
            name: "server".into(),
            namespace: "app".into(),
            service_account: "server".into(),
            trust_domain: TrustDomain::new("td").unwrap(),
            addresses: ["10.0.0.2", "fd00::2"]
                .map(|text| text.parse().unwrap())
                .into(),
            hostname: "".into(),
            node: "n".into(),
            network: "".into(),
            network_mode: NetworkMode::Standard,
            cluster: "k".into(),
            protocol: TunnelProtocol::Hbone,
            peer: Peer::Culvert,
            canonical_name: "server".into(),
            canonical_revision: "v1".into(),
            workload_name: "server".into(),
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

    #[track_caller]
    fn check(peer: &str, dialled: &str, expected: Result<(), Misdirected>) {
        let dialled = dialled.parse().unwrap();
        let to = of_plaintext(&workload(), peer.parse().unwrap(), dialled);
        assert_eq!(to, expected.map(|()| dialled), "{peer} to {dialled}");
    }

    #[test]
    fn plaintext_goes_to_the_address_it_was_for() {
        check("10.0.0.9:4000", "10.0.0.2:80", Ok(()));
        check("[fd00::9]:4000", "[fd00::2]:80", Ok(()));
        // An interface that the mesh has not heard of is still the pod's.
        check("10.0.0.9:4000", "192.168.7.2:80", Ok(()));
    }

    #[test]
    fn the_meshs_own_ports_are_nobodys_application() {
        for port in [15001, 15006, 15008] {
            check(
                "10.0.0.9:4000",
                &format!("10.0.0.2:{port}"),
                Err(Misdirected::OwnPort),
            );
        }
    }

    #[test]
    fn a_connection_of_the_pods_own_is_never_dialled_on_as_inbound() {
        check(
            "10.0.0.2:4000",
            "203.0.113.9:443",
            Err(Misdirected::Outbound),
        );
        check(
            "[::ffff:10.0.0.2]:4000",
            "203.0.113.9:443",
            Err(Misdirected::Outbound),
        );
        check(
            "[fd00::2]:4000",
            "[2001:db8::9]:443",
            Err(Misdirected::Outbound),
        );
    }
    /// A mesh whose service `shop` sends port 80 to the workload's 8080 and port 81 to nobody's, and whose
    /// service `other` is served by somebody else.
    fn mesh() -> Snapshot {
        let mut mesh = Snapshot::empty(MeshSettings {
            trust_domain: TrustDomain::new("td").unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster: "k".into(),
            network: "".into(),
        });
        let port = |target_port| ServicePort {
            name: "".into(),
            target_port,
            app_protocol: "".into(),
        };
        for (name, endpoint) in [
            ("shop", "k//Pod/app/server"),
            ("other", "k//Pod/app/another"),
        ] {
            let key = NamespacedHostname {
                namespace: "app".into(),
                hostname: name.into(),
            };
            let service = Service {
                name: name.into(),
                key: key.clone(),
                vips: vec![].into(),
                cidr_vips: vec![],
                ports: BTreeMap::from([(80, port(8080)), (81, port(0)), (82, port(15008))]),
                load_balancer: LoadBalancer::default(),
                ip_families: IpFamilies::default(),
                subject_alt_names: vec![],
                waypoint: None,
                canonical: true,
                namespace_private: false,
                alias: None,
            };
            let endpoint = Endpoint {
                workload: WorkloadUid::new(endpoint),
                ports: [].into_iter().collect(),
                health: Health::Healthy,
            };
            mesh.services.insert(key.clone(), Arc::new(service));
            mesh.services_by_hostname
                .insert(name.into(), [key.clone()].into_iter().collect());
            mesh.endpoints.insert(key, [endpoint].into());
        }
        mesh
    }

    /// What a request that arrived on the workload's `own` address comes to: where it goes, or its status.
    #[track_caller]
    fn asks(own: &str, authority: &str, expected: Result<&str, u16>) {
        let own = format!("{own}:15008").parse().unwrap();
        let wanted = Authority::parse(authority).unwrap();
        let to = of_request(&mesh(), &workload(), own, &wanted);
        let to = to.map(|found| found.to);
        let to = to.map_err(|misdirected| misdirected.status());
        let expected = expected.map(|text| text.parse().unwrap());
        assert_eq!(to, expected, "{authority} at {own}");
    }

    #[test]
    fn a_request_goes_to_the_workload_itself_or_nowhere() {
        asks("10.0.0.2", "10.0.0.2:9080", Ok("10.0.0.2:9080"));
        asks("[fd00::2]", "[fd00::2]:9080", Ok("[fd00::2]:9080"));
        // One address, however it is written.
        asks("10.0.0.2", "[::ffff:10.0.0.2]:9080", Ok("10.0.0.2:9080"));
        asks("[::ffff:10.0.0.2]", "10.0.0.2:9080", Ok("10.0.0.2:9080"));
        // Another address than the one that was dialled: another pod's, a loopback, the pod's own second one.
        asks("10.0.0.2", "10.0.0.3:9080", Err(400));
        asks("10.0.0.2", "127.0.0.1:9080", Err(400));
        asks("10.0.0.2", "[fd00::2]:9080", Err(400));
        // The mesh's own listeners are no application.
        for port in [15001, 15006, 15008] {
            asks("10.0.0.2", &format!("10.0.0.2:{port}"), Err(503));
        }
    }

    #[test]
    fn a_request_by_name_goes_where_the_service_leads_on_this_workload() {
        asks("10.0.0.2", "shop:80", Ok("10.0.0.2:8080"));
        asks("[fd00::2]", "SHOP.:80", Ok("[fd00::2]:8080"));
        // No such name; no such port; a port that this endpoint lacks; one that leads back to us.
        asks("10.0.0.2", "nowhere:80", Err(503));
        asks("10.0.0.2", "shop:8080", Err(503));
        asks("10.0.0.2", "shop:81", Err(503));
        asks("10.0.0.2", "shop:82", Err(503));
        // A service that does not select this workload.
        asks("10.0.0.2", "other:80", Err(503));
    }

    /// The service `shop` at its address, with a waypoint of another controller's that `instance` is.
    fn behind_a_waypoint(instance: &str) -> Snapshot {
        let mut mesh = mesh();
        let name = |hostname: &str| NamespacedHostname {
            namespace: "app".into(),
            hostname: hostname.into(),
        };
        let shop = Service::clone(&mesh.services[&name("shop")]);
        let vip: IpAddr = "10.96.0.1".parse().unwrap();
        let shop = Service {
            vips: [vip].into_iter().collect(),
            waypoint: Some(WaypointReference {
                destination: name("wp"),
                hbone_port: 15008,
                is_foreign: true,
            }),
            ..shop
        };
        mesh.services.insert(name("shop"), Arc::new(shop));
        mesh.services_by_vip
            .insert(vip, [name("shop")].into_iter().collect());
        let instance = Endpoint {
            workload: WorkloadUid::new(instance),
            ports: [].into_iter().collect(),
            health: Health::Healthy,
        };
        mesh.endpoints.insert(name("wp"), [instance].into());
        // The one that the service is of is another.
        mesh.endpoints.insert(name("shop"), [].into());
        mesh
    }

    fn tunnelled(tunnel: Option<(bool, u16)>) -> Workload {
        let tunnel = tunnel.map(|(has_header, port)| ApplicationTunnel {
            has_header,
            port: NonZeroU16::new(port),
        });
        Workload {
            application_tunnel: tunnel,
            ..workload()
        }
    }

    /// Where a request comes to that arrived on 10.0.0.2, and what the application is told: `address hostname`.
    #[track_caller]
    fn fronts(mesh: &Snapshot, workload: &Workload, authority: &str, expected: Result<&str, u16>) {
        let own = "10.0.0.2:15008".parse().unwrap();
        let wanted = Authority::parse(authority).unwrap();
        let found = of_request(mesh, workload, own, &wanted);
        let found = found.map(|Destination { to, called }| match called {
            None => to.to_string(),
            Some(Called { address, hostname }) => {
                format!("{to} {address} {}", hostname.as_deref().unwrap_or("-"))
            }
        });
        let found = found.map_err(|misdirected| misdirected.status());
        assert_eq!(found, expected.map(str::to_owned), "{authority}");
    }

    #[test]
    fn a_waypoint_behind_a_tunnel_takes_what_is_for_others_and_is_told_what() {
        let mesh = behind_a_waypoint("k//Pod/app/nobody");
        let proxy = tunnelled(Some((true, 15088)));
        let on_the_port = "10.0.0.2:15088 10.96.0.1:80 shop";
        fronts(&mesh, &proxy, "10.96.0.1:80", Ok(on_the_port));
        fronts(&mesh, &proxy, "shop:80", Ok(on_the_port));
        fronts(
            &mesh,
            &proxy,
            "10.0.0.9:90",
            Ok("10.0.0.2:15088 10.0.0.9:90 -"),
        );
        // Its own address, too: whoever reads headers is not reached without one.
        fronts(
            &mesh,
            &proxy,
            "10.0.0.2:90",
            Ok("10.0.0.2:15088 10.0.0.2:90 -"),
        );
        fronts(&mesh, &proxy, "shop:83", Err(503));
        fronts(&mesh, &proxy, "nowhere:80", Err(503));
        fronts(&mesh, &proxy, "10.96.0.1:15008", Err(503));

        let keeps_port = tunnelled(Some((true, 0)));
        fronts(
            &mesh,
            &keeps_port,
            "10.96.0.1:80",
            Ok("10.0.0.2:80 10.96.0.1:80 shop"),
        );
        fronts(
            &mesh,
            &keeps_port,
            "shop:80",
            Ok("10.0.0.2:8080 10.96.0.1:80 shop"),
        );
        fronts(&mesh, &keeps_port, "shop:81", Err(503));
        let silent = tunnelled(Some((false, 8888)));
        fronts(&mesh, &silent, "10.96.0.1:80", Ok("10.0.0.2:8888"));
    }

    #[test]
    fn the_very_waypoint_of_what_was_called_takes_it_and_nobody_else_does() {
        let mesh = behind_a_waypoint("k//Pod/app/server");
        let plain = tunnelled(None);
        fronts(&mesh, &plain, "10.96.0.1:80", Ok("10.0.0.2:80"));
        fronts(&mesh, &plain, "shop:80", Ok("10.0.0.2:8080"));
        fronts(&mesh, &plain, "10.0.0.9:80", Err(400));
        fronts(&mesh, &plain, "other:80", Err(503));
        let mesh = behind_a_waypoint("k//Pod/app/nobody");
        fronts(&mesh, &plain, "10.96.0.1:80", Err(400));
        fronts(&mesh, &plain, "shop:80", Err(503));
    }

    #[test]
    fn nobody_announces_himself_to_a_waypoint() {
        let to = |workload: &Workload, port: u16| {
            let dialled = SocketAddr::from(([10, 0, 0, 2], port));
            of_plaintext(workload, "10.0.0.9:4000".parse().unwrap(), dialled)
        };
        let proxy = tunnelled(Some((true, 15088)));
        assert_eq!(to(&proxy, 15088), Err(Misdirected::Announced(15088)));
        assert!(to(&proxy, 15021).is_ok());
        assert!(to(&tunnelled(Some((false, 15088))), 15088).is_ok());
    }
}
