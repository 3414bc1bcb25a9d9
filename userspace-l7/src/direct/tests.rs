//! Who may go straight, one row per reason.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Passage, Reason, passage, spread};
use crate::model::{
    Action, ApplicationTunnel, AuthorizationPolicy, Clause, Endpoint, Health, IpFamilies,
    LoadBalancer, LoadBalancerMode, Locality, Match, MeshSettings, NamespacedHostname, NetworkMode,
    Peer, PolicyKey, Rule, Scope, Service, ServicePort, Snapshot, StringMatch, TrustDomain,
    TunnelProtocol, WaypointReference, Workload, WorkloadLabels, WorkloadUid,
};
use crate::policy::Denial;

fn workload(name: &str, address: &str) -> Workload {
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

fn client() -> Workload {
    workload("client", "10.0.0.1 fd00::1")
}

fn server() -> Workload {
    workload("server", "10.0.0.2 fd00::2")
}

fn mesh() -> Snapshot {
    Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    })
}

fn policy(action: Action, one: Match) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: PolicyKey {
            namespace: "app".into(),
            name: "p".into(),
        },
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![one] }],
        }],
    }
}

fn ruled(by: AuthorizationPolicy) -> Snapshot {
    let mut mesh = mesh();
    let by = Arc::new(by);
    mesh.namespace_policies
        .insert("app".into(), [Arc::clone(&by)].into());
    mesh.policies.insert(by.key.clone(), by);
    mesh
}

fn from(principal: &str) -> Match {
    Match {
        principals: vec![StringMatch::Exact(principal.into())],
        ..Match::default()
    }
}

#[track_caller]
fn goes(mesh: &Snapshot, client: &Workload, server: &Workload, to: &str, expected: &Passage) {
    let to: SocketAddr = to.parse().unwrap();
    assert_eq!(passage(mesh, client, server, to), *expected, "{to}");
}

#[test]
fn what_only_policies_of_layer_4_speak_about_goes_straight() {
    goes(
        &mesh(),
        &client(),
        &server(),
        "10.0.0.2:80",
        &Passage::Straight,
    );
    goes(
        &mesh(),
        &client(),
        &server(),
        "[fd00::2]:80",
        &Passage::Straight,
    );
    // STRICT is a policy that asks for an identity, whichever: the kernel's word is one.
    let strict = policy(
        Action::Deny,
        Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        },
    );
    goes(
        &ruled(strict),
        &client(),
        &server(),
        "10.0.0.2:80",
        &Passage::Straight,
    );
}

#[test]
fn policies_hold_for_the_clients_identity() {
    let denied = |denial| Passage::Denied(denial);
    let by = "td/ns/app/sa/client";
    let key = || policy(Action::Deny, Match::default()).key;
    let table = [
        (Action::Allow, by, Passage::Straight),
        (
            Action::Allow,
            "td/ns/app/sa/other",
            denied(Denial::NotAllowed),
        ),
        (Action::Deny, by, denied(Denial::Explicit(key()))),
        (Action::Deny, "td/ns/app/sa/other", Passage::Straight),
    ];
    for (action, principal, expected) in table {
        let mesh = ruled(policy(action, from(principal)));
        goes(&mesh, &client(), &server(), "10.0.0.2:80", &expected);
    }
}

#[test]
fn what_the_kernel_cannot_judge_is_the_proxys() {
    let plain = Workload {
        protocol: TunnelProtocol::Tcp,
        ..server()
    };
    let ztunnels = Workload {
        peer: Peer::Ztunnel,
        ..server()
    };
    let bound = Workload {
        waypoint: Some(WaypointReference {
            destination: NamespacedHostname {
                namespace: "app".into(),
                hostname: "waypoint".into(),
            },
            hbone_port: 15008,
            is_foreign: false,
        }),
        ..server()
    };
    let handed = Workload {
        application_tunnel: Some(ApplicationTunnel {
            has_header: true,
            port: None,
        }),
        ..server()
    };
    let table = [
        (plain, Reason::Uncaptured),
        (ztunnels, Reason::Uncaptured),
        (client(), Reason::Itself),
        (bound, Reason::Layer7),
        (handed, Reason::Handed),
    ];
    for (server, reason) in table {
        goes(
            &mesh(),
            &client(),
            &server,
            "10.0.0.2:80",
            &Passage::Proxied(reason),
        );
    }
    for port in [15001, 15006, 15008] {
        goes(
            &mesh(),
            &client(),
            &server(),
            &format!("10.0.0.2:{port}"),
            &Passage::Proxied(Reason::OwnPort),
        );
    }
}

#[test]
fn a_policy_that_is_watched_or_asks_for_addresses_is_the_proxys() {
    let watched = AuthorizationPolicy {
        dry_run: true,
        ..policy(Action::Deny, from("td/ns/app/sa/client"))
    };
    let net = "10.0.0.0/8".parse().unwrap();
    let addressed = policy(
        Action::Allow,
        Match {
            source_ips: vec![net],
            ..Match::default()
        },
    );
    let not_addressed = policy(
        Action::Deny,
        Match {
            not_source_ips: vec![net],
            ..Match::default()
        },
    );
    let table = [
        (watched, Reason::Watched),
        (addressed, Reason::Addressed),
        (not_addressed, Reason::Addressed),
    ];
    for (policy, reason) in table {
        goes(
            &ruled(policy),
            &client(),
            &server(),
            "10.0.0.2:80",
            &Passage::Proxied(reason),
        );
    }
}

/// A mesh with a service `shop` at 10.96.0.1 and at `fd96::1`, which `near`, `far` and `heavy` serve.
fn shop(change: impl FnOnce(&mut Service)) -> Snapshot {
    let mut mesh = mesh();
    let key = NamespacedHostname {
        namespace: "app".into(),
        hostname: "shop.app.svc.cluster.local".into(),
    };
    let mut service = Service {
        name: "shop".into(),
        key: key.clone(),
        vips: ["10.96.0.1", "fd96::1"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .collect(),
        cidr_vips: vec![],
        ports: BTreeMap::from([(
            80,
            ServicePort {
                name: "".into(),
                target_port: 8080,
                app_protocol: "".into(),
            },
        )]),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: vec![],
        waypoint: None,
        canonical: true,
        namespace_private: false,
        alias: None,
    };
    change(&mut service);
    for vip in &service.vips {
        mesh.services_by_vip
            .insert(*vip, [key.clone()].into_iter().collect());
    }
    let heavy = Workload {
        capacity: 3,
        ..workload("heavy", "10.0.0.4")
    };
    let far = Workload {
        node: "there".into(),
        ..workload("far", "10.0.0.3 fd00::3")
    };
    let servers = [workload("near", "10.0.0.2 fd00::2"), far, heavy];
    let endpoints: Vec<_> = servers
        .iter()
        .map(|server| Endpoint {
            workload: server.uid.clone(),
            ports: [].into_iter().collect(),
            health: Health::Healthy,
        })
        .collect();
    mesh.endpoints.insert(key.clone(), endpoints.into());
    for server in servers {
        mesh.workloads.insert(server.uid.clone(), server.into());
    }
    mesh.services.insert(key, service.into());
    mesh
}

/// Endpoints with weights, and the sum of all; `None` if it is the proxy's.
fn spreads(mesh: &Snapshot, dialled: &str) -> Option<(Vec<(String, u32)>, u32)> {
    let is_here = |workload: &Workload| &*workload.node == "here";
    let spread = spread(mesh, &client(), dialled.parse().unwrap(), (is_here, 8))?;
    let mut shown: Vec<_> = spread
        .straight
        .iter()
        .map(|(address, _, weight)| (address.to_string(), *weight))
        .collect();
    shown.sort();
    Some((shown, spread.total))
}

#[test]
fn a_services_endpoints_of_this_node_keep_their_weight() {
    let mesh = shop(|_| {});
    let expected = vec![
        ("10.0.0.2:8080".to_owned(), 1),
        ("10.0.0.4:8080".to_owned(), 3),
    ];
    assert_eq!(spreads(&mesh, "10.96.0.1:80"), Some((expected.clone(), 5)));
    assert_eq!(spreads(&mesh, "[::ffff:10.96.0.1]:80"), Some((expected, 5)));
    // `heavy` has no address of the family, and an application cannot change families under way.
    let expected = vec![("[fd00::2]:8080".to_owned(), 1)];
    assert_eq!(spreads(&mesh, "[fd96::1]:80"), Some((expected, 5)));
    // No such port, no such service.
    assert_eq!(spreads(&mesh, "10.96.0.1:81"), None);
    assert_eq!(spreads(&mesh, "10.96.0.2:80"), None);
}

#[test]
fn a_service_that_more_than_weights_decide_about_is_the_proxys() {
    let passes_through = shop(|service| {
        service.load_balancer.mode = LoadBalancerMode::Passthrough;
    });
    assert_eq!(spreads(&passes_through, "10.96.0.1:80"), None);
    let bound = shop(|service| {
        service.waypoint = Some(WaypointReference {
            destination: service.key.clone(),
            hbone_port: 15008,
            is_foreign: true,
        });
    });
    assert_eq!(spreads(&bound, "10.96.0.1:80"), None);
}

#[test]
fn nobody_goes_straight_around_a_waypoint_where_that_is_forbidden() {
    let mut mesh = shop(|service| {
        service.waypoint = Some(WaypointReference {
            destination: service.key.clone(),
            hbone_port: 15008,
            is_foreign: true,
        });
    });
    let service = mesh.services.keys().next().unwrap().clone();
    let near = Workload {
        services: vec![service.clone()],
        ..workload("near", "10.0.0.2 fd00::2")
    };
    let straight = Passage::Straight;
    goes(&mesh, &client(), &near, "10.0.0.2:8080", &straight);
    mesh.strict_namespaces.insert("app".into());
    let denied = Passage::Denied(Denial::Around(service));
    goes(&mesh, &client(), &near, "10.0.0.2:8080", &denied);
    goes(&mesh, &client(), &near, "[fd00::2]:8080", &denied);
    goes(&mesh, &client(), &near, "10.0.0.2:9090", &straight);
}

#[test]
fn endpoints_that_the_client_may_not_reach_stay_with_the_proxy() {
    let mut mesh = shop(|_| {});
    let by = ruled(policy(Action::Allow, from("td/ns/app/sa/other")));
    mesh.namespace_policies = by.namespace_policies;
    assert_eq!(spreads(&mesh, "10.96.0.1:80"), None);
}
