//! Messages and what they come to, in tables.

use std::num::NonZeroU16;

use userspace_l7::model::{
    Action, Clause, Health, IpFamilies, LoadBalancerMode, Match, NetworkMode, Peer, RoutingScope,
    Rule, Scope, Service, ServiceAccountMatch, StringMatch, TunnelProtocol, Workload,
};

use super::{ADDRESS, AUTHORIZATION, Defaults, announcement};
use crate::mesh::{AnnouncedWorkload, Announcement};
use crate::sources::istiod::messages as wire;

fn defaults() -> Defaults {
    Defaults {
        cluster: "east".into(),
    }
}

fn read(type_url: &str, message: &impl prost::Message) -> Result<Announcement, String> {
    let any = wire::Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    };
    announcement(Some(&any), &defaults()).map_err(|refused| refused.to_string())
}

fn address(kind: wire::AddressKind) -> Result<Announcement, String> {
    read(ADDRESS, &wire::Address { kind: Some(kind) })
}

fn workload(one: wire::Workload) -> Result<AnnouncedWorkload, String> {
    match address(wire::AddressKind::Workload(Box::new(one)))? {
        Announcement::Workload(uid, Some(announced)) => {
            assert_eq!(uid, announced.workload.uid);
            Ok(announced)
        }
        other => panic!("{other:?}"),
    }
}

fn service(one: wire::Service) -> Result<Service, String> {
    match address(wire::AddressKind::Service(Box::new(one)))? {
        Announcement::Service(key, Some(service)) => {
            assert_eq!(key, service.key);
            Ok(Service::clone(&service))
        }
        other => panic!("{other:?}"),
    }
}

/// The least that a workload has.
fn bare() -> wire::Workload {
    wire::Workload {
        uid: "c//Pod/ns/p".to_owned(),
        ..wire::Workload::default()
    }
}

fn named() -> wire::Service {
    wire::Service {
        hostname: "a.example".to_owned(),
        namespace: "ns".to_owned(),
        ..wire::Service::default()
    }
}

/// A workload that says everything.
fn full() -> wire::Workload {
    let port = |service, target| wire::Port {
        service,
        target,
        app_protocol: 1,
    };
    let ports = wire::PortList {
        ports: vec![port(80, 8080), port(81, 8081)],
    };
    wire::Workload {
        name: "p".to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![vec![10, 0, 0, 1], [[0xfd; 1].as_slice(), &[0; 15]].concat()],
        tunnel_protocol: 1,
        trust_domain: "td.example".to_owned(),
        service_account: "sa".to_owned(),
        node: "n1".to_owned(),
        owner_type: 3,
        services: [("ns/A.example".to_owned(), ports)].into(),
        authorization_policies: vec!["ns/policy".to_owned(), "istio-system/strict".to_owned()],
        status: 1,
        cluster_id: "west".to_owned(),
        network_mode: 1,
        locality: Some(wire::Locality {
            region: "r".to_owned(),
            zone: "z".to_owned(),
            subzone: "s".to_owned(),
        }),
        capacity: Some(wire::UInt32Value { value: 0 }),
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        }),
        ..bare()
    }
}

#[test]
fn a_workload_is_read_field_by_field() {
    let announced = workload(full()).unwrap();
    let one = &announced.workload;
    assert_eq!(
        one.identity().to_string(),
        "spiffe://td.example/ns/ns/sa/sa"
    );
    assert_eq!(
        one.addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.1", "fd00::"]
    );
    assert_eq!(
        (one.protocol, one.peer),
        (TunnelProtocol::Hbone, Peer::Ztunnel)
    );
    assert_eq!(one.network_mode, NetworkMode::HostNetwork);
    let tunnel = one.application_tunnel.unwrap();
    assert_eq!(
        (tunnel.has_header, tunnel.port),
        (true, NonZeroU16::new(15088))
    );
    assert_eq!(one.health, Health::Unhealthy);
    assert_eq!(
        (one.capacity, &*one.cluster, &*one.workload_type),
        (0, "west", "job")
    );
    assert_eq!(
        (
            &*one.locality.region,
            &*one.locality.zone,
            &*one.locality.subzone
        ),
        ("r", "z", "s")
    );
    let policies: Vec<_> = one
        .authorization_policies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(policies, ["ns/policy", "istio-system/strict"]);
    let services: Vec<_> = one.services.iter().map(ToString::to_string).collect();
    assert_eq!(services, ["ns/a.example"]);
    let ports: Vec<_> = announced
        .ports
        .values()
        .map(|ports| ports.to_vec())
        .collect();
    assert_eq!(ports, [[(80, 8080), (81, 8081)]]);
}

#[test]
fn what_a_workload_does_not_say_has_istios_default() {
    let announced = workload(bare()).unwrap();
    let one: &Workload = &announced.workload;
    assert_eq!(
        one.identity().to_string(),
        "spiffe://cluster.local/ns//sa/default"
    );
    assert_eq!(one.protocol, TunnelProtocol::Tcp);
    assert_eq!(one.health, Health::Healthy);
    assert_eq!(
        (one.capacity, &*one.cluster, &*one.workload_type),
        (1, "east", "deployment")
    );
    assert_eq!(&*one.canonical_revision, "latest");
    assert!(one.addresses.is_empty() && one.waypoint.is_none());
}

#[test]
fn a_service_is_read_field_by_field() {
    let vip = |address: &[u8], length| wire::NetworkAddress {
        network: String::new(),
        address: address.to_vec(),
        length,
    };
    let one = service(wire::Service {
        name: "a".to_owned(),
        hostname: "A.example".to_owned(),
        addresses: vec![vip(&[10, 1, 0, 1], None), vip(&[10, 2, 3, 4], Some(16))],
        ports: [(80, 8080, 1), (81, 0, 3), (82, 82, 9)]
            .map(|(service, target, app_protocol)| wire::Port {
                service,
                target,
                app_protocol,
            })
            .to_vec(),
        subject_alt_names: vec!["spiffe://x".to_owned()],
        waypoint: Some(wire::GatewayAddress {
            hostname: Some(wire::NamespacedHostname {
                namespace: "ns".to_owned(),
                hostname: "waypoint.ns.svc.cluster.local".to_owned(),
            }),
            address: None,
            hbone_mtls_port: 15008,
        }),
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![6, 1, 2, 3, 4, 5],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 3,
        canonical: true,
        visibility: 1,
        ..named()
    })
    .unwrap();
    assert_eq!(one.key.to_string(), "ns/a.example");
    assert_eq!(
        one.vips.as_slice(),
        ["10.1.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        one.cidr_vips,
        ["10.2.0.0/16".parse::<ipnet::IpNet>().unwrap()]
    );
    let ports: Vec<_> = one
        .ports
        .iter()
        .map(|(port, meaning)| (*port, meaning.target_port, &*meaning.app_protocol))
        .collect();
    assert_eq!(ports, [(80, 8080, "http"), (81, 0, "grpc"), (82, 82, "")]);
    assert_eq!(one.ip_families, IpFamilies::Dual);
    assert_eq!(one.load_balancer.mode, LoadBalancerMode::Failover);
    assert_eq!(
        one.load_balancer.scopes.first(),
        Some(&RoutingScope::Network)
    );
    assert_eq!(one.load_balancer.scopes.len(), 6);
    let waypoint = one.waypoint.unwrap();
    assert!(waypoint.is_foreign && waypoint.hbone_port == 15008);
    assert!(one.canonical && one.namespace_private);
}

#[test]
fn a_policy_keeps_its_rules_clauses_and_matches() {
    let text = |kind| wire::StringMatch { kind: Some(kind) };
    let one = wire::Match {
        namespaces: vec![text(wire::StringMatchKind::Exact("a".to_owned()))],
        principals: vec![
            text(wire::StringMatchKind::Prefix("p".to_owned())),
            text(wire::StringMatchKind::Suffix("s".to_owned())),
        ],
        not_principals: vec![text(wire::StringMatchKind::Presence(wire::Empty {}))],
        service_accounts: vec![wire::ServiceAccountMatch {
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
        }],
        source_ips: vec![wire::Cidr {
            address: vec![10, 0, 0, 9],
            length: 8,
        }],
        not_destination_ports: vec![80],
        ..wire::Match::default()
    };
    let read = read(
        AUTHORIZATION,
        &wire::Authorization {
            name: "p".to_owned(),
            namespace: "ns".to_owned(),
            scope: 2,
            action: 1,
            groups: vec![wire::Group {
                rules: vec![wire::Rules { matches: vec![one] }, wire::Rules::default()],
            }],
            dry_run: true,
        },
    );
    let Ok(Announcement::Policy(key, Some(policy))) = read else {
        panic!("{read:?}");
    };
    assert_eq!(key.to_string(), "ns/p");
    assert_eq!(
        (policy.scope, policy.action, policy.dry_run),
        (Scope::WorkloadSelector, Action::Deny, true)
    );
    let expected = Match {
        namespaces: vec![StringMatch::Exact("a".into())],
        principals: vec![
            StringMatch::Prefix("p".into()),
            StringMatch::Suffix("s".into()),
        ],
        not_principals: vec![StringMatch::Presence],
        service_accounts: vec![ServiceAccountMatch {
            namespace: "ns".into(),
            service_account: "sa".into(),
        }],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        not_destination_ports: vec![80],
        ..Match::default()
    };
    let clauses = vec![
        Clause {
            matches: vec![expected],
        },
        Clause::default(),
    ];
    assert_eq!(policy.rules, [Rule { clauses }]);
}

#[test]
fn what_means_nothing_here_is_refused() {
    let of = |change: fn(&mut wire::Workload)| {
        let mut one = bare();
        change(&mut one);
        workload(one).map(drop)
    };
    let serve = |change: fn(&mut wire::Service)| {
        let mut one = named();
        change(&mut one);
        service(one).map(drop)
    };
    let policy = |change: fn(&mut wire::Authorization)| {
        let mut one = wire::Authorization {
            name: "p".to_owned(),
            ..wire::Authorization::default()
        };
        change(&mut one);
        read(AUTHORIZATION, &one).map(drop)
    };
    let waypoint = |one: &mut wire::Service| {
        one.waypoint = Some(wire::GatewayAddress {
            address: Some(wire::NetworkAddress::default()),
            ..wire::GatewayAddress::default()
        });
    };
    for (found, says) in [
        (of(|one| one.uid.clear()), "has no uid"),
        (
            of(|one| one.addresses.push(vec![1, 2, 3])),
            "has an address of 3 bytes",
        ),
        (of(|one| one.tunnel_protocol = 9), "tunnel protocol 9"),
        (of(|one| one.network_mode = 9), "network mode 9"),
        (
            of(|one| one.trust_domain = "A B".to_owned()),
            "trust domain A B",
        ),
        (
            of(|one| one.authorization_policies.push("x".to_owned())),
            "names policy `x`",
        ),
        (serve(|one| one.hostname.clear()), "has no hostname"),
        (serve(waypoint), "named by an address alone"),
        (
            serve(|one| {
                one.load_balancing = Some(wire::LoadBalancing {
                    mode: 9,
                    ..wire::LoadBalancing::default()
                });
            }),
            "load balancing mode 9",
        ),
        (policy(|one| one.name.clear()), "has no name"),
        (policy(|one| one.scope = 9), "scope 9"),
        (policy(|one| one.action = 9), "action 9"),
        (
            announcement(None, &defaults())
                .map(drop)
                .map_err(|error| error.to_string()),
            "has no content",
        ),
        (read("x", &wire::Empty {}).map(drop), "is of type x"),
        (
            read(ADDRESS, &wire::Empty {}).map(drop),
            "neither a workload nor a service",
        ),
    ] {
        let error = found.unwrap_err();
        assert!(error.contains(says), "{error}, not {says}");
    }
    // A sidecar that speaks its own tunnel takes plain text, too.
    assert_eq!(of(|one| one.tunnel_protocol = 2), Ok(()));
}
