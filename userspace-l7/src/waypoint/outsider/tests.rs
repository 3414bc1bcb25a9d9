//! Whom a client outside the mesh reaches by a route of service `web`, to which it came at pod `own`: a row each.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::keep_open;
use crate::model::{
    Action, AuthorizationPolicy, Clause, Health, Locality, Match, MeshSettings, NamespacedHostname,
    NetworkMode, Peer, PolicyKey, Rule, Scope, Snapshot, StringMatch, TrustDomain, TunnelProtocol,
    Workload, WorkloadLabels, WorkloadUid,
};
use crate::policy::Denial;
use crate::route::{HBONE_PORT, MAX_ATTEMPTS, Target, Transport};

const CLIENT: [u8; 4] = [10, 0, 0, 1];

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new(format!("k//Pod/shop/{name}"))
}

fn policy_key(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn workload(name: &str, host: u8) -> Arc<Workload> {
    let address: IpAddr = [10, 0, 0, host].into();
    Arc::new(Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: [address].into_iter().collect(),
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
        // Each has those of its own name.
        authorization_policies: vec![policy_key(name)],
        application_tunnel: None,
        waypoint: None,
    })
}

/// Pods `own`, at 10.0.0.2, and `other`, at 10.0.0.3, to which this policy speaks of the pod of its name.
fn mesh(policy: Option<AuthorizationPolicy>) -> Snapshot {
    let mut mesh = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    for (name, host) in [("own", 2), ("other", 3)] {
        let workload = workload(name, host);
        let address = workload.addresses[0];
        drop(
            mesh.workloads_by_address
                .insert(address, Arc::clone(&workload)),
        );
        drop(mesh.workloads.insert(workload.uid.clone(), workload));
    }
    if let Some(policy) = policy {
        drop(mesh.policies.insert(policy.key.clone(), Arc::new(policy)));
    }
    mesh
}

fn policy(about: &str, action: Action, condition: Match) -> AuthorizationPolicy {
    let clause = Clause {
        matches: vec![condition],
    };
    AuthorizationPolicy {
        key: policy_key(about),
        scope: Scope::WorkloadSelector,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![clause],
        }],
    }
}

fn of_principals(names: &[&str]) -> Match {
    let names = names.iter().map(|name| StringMatch::Exact((*name).into()));
    Match {
        principals: names.collect(),
        ..Match::default()
    }
}

fn tunnelled(mesh: &Snapshot, name: &str, port: u16) -> Target {
    let workload = mesh.workloads.get(&uid(name)).unwrap();
    Target {
        destination: SocketAddr::new(workload.addresses[0], port),
        rivals: Vec::new(),
        transport: Transport::Hbone {
            tunnel: SocketAddr::new(workload.addresses[0], HBONE_PORT),
            expected: [workload.identity()].into_iter().collect(),
        },
        workload: Some(Arc::clone(workload)),
    }
}

/// What is left of targets `own` and `other`, each at port 80, and how it is reached.
#[track_caller]
fn check(policy: Option<AuthorizationPolicy>, expected: &[(&str, bool)]) {
    let mesh = mesh(policy);
    let both = ["own", "other"].map(|name| tunnelled(&mesh, name, 80));
    let mut targets: SmallVec<[Target; MAX_ATTEMPTS]> = both.into_iter().collect();
    let about = (CLIENT.into(), &called());
    keep_open(&mesh, about, &uid("own"), &mut targets).unwrap();
    let left = targets.iter().map(|target| {
        let workload = target.workload.as_ref().unwrap();
        (&*workload.name, target.transport != Transport::Plain)
    });
    assert_eq!(left.collect::<Vec<_>>(), expected);
}

fn called() -> NamespacedHostname {
    NamespacedHostname {
        namespace: "shop".into(),
        hostname: "web".into(),
    }
}

#[test]
fn its_own_pod_is_reached_as_it_is_and_others_by_tunnel() {
    check(None, &[("own", false), ("other", true)]);
}

#[test]
fn nobody_is_reached_who_would_not_let_the_client_itself_in() {
    let own_only = [("own", false)];
    let of_pod = of_principals(&["td/ns/shop/sa/own"]);
    // The pod that passes it on would be let in, and so would the waypoint.
    check(
        Some(policy("other", Action::Allow, of_pod.clone())),
        &own_only,
    );
    let of_waypoint = of_principals(&["td/ns/shop/sa/waypoint"]);
    check(Some(policy("other", Action::Allow, of_waypoint)), &own_only);
    // STRICT, as it is compiled.
    let of_nobody = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    check(
        Some(policy("other", Action::Deny, of_nobody.clone())),
        &own_only,
    );
    check(
        Some(policy("own", Action::Deny, of_nobody)),
        &[("other", true)],
    );
    // Another policy's business is the tunnel's: it is judged there.
    check(
        Some(policy("other", Action::Deny, of_pod)),
        &[("own", false), ("other", true)],
    );
}

#[test]
fn a_denial_is_told_where_nobody_is_left_and_hosts_outside_the_mesh_have_none() {
    let of_client = Match {
        source_ips: vec!["10.0.0.1/32".parse().unwrap()],
        ..Match::default()
    };
    let mesh = mesh(Some(policy("other", Action::Deny, of_client)));
    let (called, own) = (called(), uid("own"));
    let about = || (CLIENT.into(), &called);
    let mut targets: SmallVec<[Target; MAX_ATTEMPTS]> =
        [tunnelled(&mesh, "other", 80)].into_iter().collect();
    let denial = keep_open(&mesh, about(), &own, &mut targets).unwrap_err();
    assert_eq!(denial, Denial::Explicit(policy_key("other")));
    // An address is whose it is, whoever names it.
    let outside = |address: &str| Target::outside(address.parse().unwrap());
    let mut targets: SmallVec<[Target; MAX_ATTEMPTS]> = [
        outside("10.0.0.3:80"),
        outside("[::ffff:10.0.0.3]:80"),
        outside("203.0.113.9:80"),
    ]
    .into_iter()
    .collect();
    keep_open(&mesh, about(), &own, &mut targets).unwrap();
    let left: Vec<_> = targets.iter().map(|target| target.destination).collect();
    assert_eq!(left, ["203.0.113.9:80".parse().unwrap()]);
}
