//! Which port of the local workload a CONNECT request is for. Pure.

use std::net::SocketAddr;

use crate::hbone::Authority;
use crate::model::{Snapshot, Workload};
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
    #[error("a connection of the pod's own lost its way out: capture's table of openings is full")]
    Outbound,
}

impl Misdirected {
    /// The status to answer with.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::OtherAddress { .. } => 400,
            Self::UnknownHost(_) | Self::NoSuchPort { .. } | Self::OwnPort | Self::Outbound => 503,
        }
    }
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
    Ok(dialled)
}

/// The application's address for a request that arrived on `own` (the tunnel connection's local address).
/// Always the workload's own address: an authority never redirects a connection elsewhere.
pub(super) fn of_request(
    snapshot: &Snapshot,
    workload: &Workload,
    own: SocketAddr,
    authority: &Authority,
) -> Result<SocketAddr, Misdirected> {
    let port = match authority {
        Authority::Address(wanted) => {
            if wanted.ip().to_canonical() != own.ip().to_canonical() {
                return Err(Misdirected::OtherAddress {
                    wanted: *wanted,
                    own,
                });
            }
            wanted.port()
        }
        Authority::Host { host, port } => served_port(snapshot, workload, host, *port)?,
    };
    if OWN_PORTS.contains(&port) {
        return Err(Misdirected::OwnPort);
    }
    Ok(SocketAddr::new(own.ip().to_canonical(), port))
}

fn served_port(
    snapshot: &Snapshot,
    workload: &Workload,
    host: &str,
    port: u16,
) -> Result<u16, Misdirected> {
    let service = snapshot
        .service_named(host, &workload.namespace)
        .ok_or_else(|| Misdirected::UnknownHost(host.to_owned()))?;
    snapshot
        .endpoints_of(&service.key)
        .iter()
        .find(|endpoint| endpoint.workload == workload.uid)
        .and_then(|endpoint| endpoint.target_port(service, port))
        .ok_or_else(|| Misdirected::NoSuchPort {
            host: host.to_owned(),
            port,
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::{Misdirected, of_plaintext, of_request};
    use crate::hbone::Authority;
    use crate::model::{
        Endpoint, Health, IpFamilies, LoadBalancer, Locality, MeshSettings, NamespacedHostname,
        NetworkMode, Peer, Service, ServicePort, Snapshot, TrustDomain, TunnelProtocol, Workload,
        WorkloadLabels, WorkloadUid,
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
}
