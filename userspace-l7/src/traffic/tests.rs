//! What a node remembers of its traffic, told with three endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::{Group, GroupKey, Traffic, Wish};
use crate::model::{
    Balance, ConnectionLimits, HashAlgorithm, HashKey, Health, Locality, MeshSettings,
    NamespacedHostname, Network, NetworkMode, OutlierDetection, Peer, RateLimit, RateLimiter,
    Snapshot, TrafficPolicy, TrustDomain, TunnelProtocol, Workload, WorkloadLabels, WorkloadUid,
};
use crate::route::Candidate;
use crate::route::outlier::Outcome;
use crate::route::rate_limit::{Quota, Taken};

fn endpoint(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 80).into()
}

fn candidate(number: u8) -> Candidate {
    let address = endpoint(number);
    let workload = Workload {
        uid: WorkloadUid::new(format!("k//Pod/app/{number}")),
        name: number.to_string().into(),
        namespace: "app".into(),
        service_account: "default".into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: [address.ip()].into_iter().collect(),
        hostname: "".into(),
        node: "n".into(),
        network: Network::from(""),
        network_mode: NetworkMode::default(),
        cluster: "k".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::default(),
        canonical_name: "".into(),
        canonical_revision: "".into(),
        workload_name: "".into(),
        workload_type: "".into(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: vec![],
        labels: WorkloadLabels::default(),
        authorization_policies: vec![],
        application_tunnel: None,
        waypoint: None,
    };
    Candidate {
        workload: Arc::new(workload),
        address,
        share: 1,
        tier: 0,
    }
}

fn three() -> Vec<Candidate> {
    (0..3).map(candidate).collect()
}

fn key(subset: Option<&str>) -> GroupKey {
    GroupKey {
        service: NamespacedHostname {
            namespace: "app".into(),
            hostname: "echo".into(),
        },
        port: 80,
        subset: subset.map(Arc::from),
    }
}

fn group() -> Arc<Group> {
    Traffic::default().group(&key(None))
}

/// The places that are chosen when every draw is the lowest.
fn chosen(group: &Group, policy: &TrafficPolicy, wish: Wish) -> Vec<usize> {
    group.choose(policy, &three(), wish, &mut |_| 0).to_vec()
}

#[test]
fn the_busy_are_spared() {
    let (group, policy) = (group(), TrafficPolicy::default());
    let busy = group.attend(endpoint(0));
    let mut draws = [0, 1, 1, 1, 0, 0].into_iter().cycle();
    let mut choose = |bound: u32| draws.next().unwrap_or(0).min(bound - 1);
    let first = group.choose(&policy, &three(), Wish::default(), &mut choose)[0];
    assert_eq!(first, 1, "of the first and the second, the idle one");
    drop(busy);
    let mut draws = [0, 1, 1, 1, 0, 0].into_iter().cycle();
    let mut choose = |bound: u32| draws.next().unwrap_or(0).min(bound - 1);
    let first = group.choose(&policy, &three(), Wish::default(), &mut choose)[0];
    assert_eq!(first, 0, "idle again");
}

#[test]
fn turns_are_taken_by_all_together() {
    let policy = TrafficPolicy {
        balance: Balance::RoundRobin,
        ..TrafficPolicy::default()
    };
    let group = group();
    let firsts: Vec<_> = (0..6)
        .map(|_| chosen(&group, &policy, Wish::default())[0])
        .collect();
    assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_session_comes_first_and_a_hash_has_one_place() {
    let policy = TrafficPolicy {
        balance: Balance::ConsistentHash {
            key: HashKey::SourceIp,
            algorithm: HashAlgorithm::Ring { minimum_size: 64 },
        },
        ..TrafficPolicy::default()
    };
    let group = group();
    let wish = |hash, session: Option<u8>| Wish {
        hash,
        session: session.map(endpoint),
    };
    let by_hash = chosen(&group, &policy, wish(Some(7), None));
    assert_eq!(by_hash.len(), 1);
    assert_eq!(chosen(&group, &policy, wish(Some(7), None)), by_hash);
    for session in 0..3 {
        let places = chosen(&group, &policy, wish(Some(7), Some(session)));
        assert_eq!(places[0], usize::from(session));
    }
    let stranger = chosen(&group, &policy, wish(Some(7), Some(9)));
    assert_eq!(stranger, by_hash, "an endpoint that is none of ours");
    let without = chosen(&group, &policy, wish(None, None));
    assert_eq!(without.len(), 3, "no hash: drawn, with others to try");
}

#[test]
fn the_ejected_are_left_out_and_come_back_as_policies_go() {
    let policy = TrafficPolicy {
        outliers: Some(OutlierDetection {
            consecutive_5xx: Some(2),
            consecutive_gateway_errors: None,
            consecutive_local_failures: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 100,
            min_health_percent: 0,
        }),
        ..TrafficPolicy::default()
    };
    let group = group();
    let fail = |number| {
        let error = Outcome::Status(StatusCode::INTERNAL_SERVER_ERROR);
        group.ended(&policy, 3, endpoint(number), error)
    };
    assert!(!fail(0) && fail(0), "the second is one too many");
    assert_eq!(chosen(&group, &policy, Wish::default()), [1, 2]);
    assert!(!fail(1) && fail(1) && !fail(2) && fail(2));
    assert_eq!(chosen(&group, &policy, Wish::default()), [0_usize; 0]);
    let none = TrafficPolicy::default();
    assert_eq!(chosen(&group, &none, Wish::default()), [0, 1, 2]);
}

#[test]
fn a_client_has_one_connection_whatever_others_have() {
    let policy = TrafficPolicy {
        limits: ConnectionLimits {
            connections: Some(1),
            ..ConnectionLimits::default()
        },
        ..TrafficPolicy::default()
    };
    let group = group();
    let client = |name: &str| WorkloadUid::new(format!("k//Pod/app/{name}"));
    let admit = |name| group.admit_connection(&policy, &client(name), endpoint(1));
    let first = admit("a");
    assert!(first.is_some() && admit("a").is_none());
    let other = admit("b");
    assert!(other.is_some() && admit("b").is_none());
    drop((first, other));
    assert_eq!(group.in_use.connections.used(), 0);
    assert!(admit("a").is_some());
}

#[test]
fn what_the_mesh_has_no_more_is_forgotten() {
    let traffic = Traffic::default();
    let group = traffic.group(&key(Some("v1")));
    assert!(Arc::ptr_eq(&group, &traffic.group(&key(Some("v1")))));
    assert!(!Arc::ptr_eq(&group, &traffic.group(&key(None))));
    traffic.retain(&Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    }));
    assert!(!Arc::ptr_eq(&group, &traffic.group(&key(Some("v1")))));
}

#[test]
fn limits_have_buckets_of_their_own() {
    let traffic = Traffic::default();
    let limit = |name: &str| RateLimit {
        key: name.into(),
        route: None,
        per: vec![],
        by: RateLimiter::Local {
            requests: 1,
            period: Duration::from_secs(60),
            burst: 1,
        },
    };
    let quota = Quota {
        requests: 1,
        period: Duration::from_secs(60),
        burst: 1,
    };
    let take = |name, bucket| {
        let taken = traffic.take(&limit(name), bucket, quota);
        matches!(taken, Taken::Token { .. })
    };
    assert!(take("a", "x") && !take("a", "x"));
    assert!(take("a", "y") && take("b", "x"));
}
