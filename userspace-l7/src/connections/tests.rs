//! What is kept of a connection to judge it again says the same as what it was judged by.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{Bytes, Carriage, Connections, Direction, LiveConnection, Via};
use crate::model::{
    Action, AuthorizationPolicy, Clause, Demands, Health, HttpPolicy, HttpPolicyAction,
    HttpPolicyRule, Locality, Match, MeshSettings, NamespacedHostname, NetworkMode, Peer,
    PolicyKey, Rule, Scope, ServiceLayer7, Side, Snapshot, SourceMatch, SpiffeId, StringMatch,
    Telemetry, TrustDomain, TunnelProtocol, WaypointKey, Workload, WorkloadLabels, WorkloadLayer7,
    WorkloadUid,
};
use crate::policy::{self, BytesClaim, CalledPort, Connection, Denial};

const CLIENT: &str = "spiffe://td/ns/web/sa/client";
const WAYPOINT: &str = "spiffe://td/ns/app/sa/waypoint";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn uid() -> WorkloadUid {
    WorkloadUid::new("k//Pod/app/server")
}

fn service() -> NamespacedHostname {
    NamespacedHostname {
        namespace: "app".into(),
        hostname: "web".into(),
    }
}

fn key(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "app".into(),
        name: name.into(),
    }
}

fn workload() -> Workload {
    Workload {
        uid: uid(),
        name: "server".into(),
        namespace: "app".into(),
        service_account: "server".into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: ["10.0.0.2".parse().unwrap()].into_iter().collect(),
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
        services: vec![service()],
        labels: WorkloadLabels::default(),
        authorization_policies: vec![],
        application_tunnel: None,
        waypoint: None,
    }
}

fn mesh() -> Snapshot {
    let mut mesh = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    mesh.workloads.insert(uid(), Arc::new(workload()));
    mesh
}

/// The workload's own policy.
fn with_policy(action: Action, one: Match) -> Snapshot {
    let policy = AuthorizationPolicy {
        key: key("layer4"),
        scope: Scope::Global,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![one] }],
        }],
    };
    Snapshot {
        global_policies: [Arc::new(policy)].into(),
        ..mesh()
    }
}

/// A policy of the workload's waypoint, and of the service's, against the client.
fn with_demands() -> [Snapshot; 2] {
    let from = SourceMatch {
        principals: vec![StringMatch::Exact("td/ns/web/sa/client".into())],
        ..SourceMatch::default()
    };
    let policy = HttpPolicy {
        key: key("layer7"),
        action: HttpPolicyAction::Deny,
        dry_run: false,
        rules: vec![HttpPolicyRule {
            from: vec![from],
            ..HttpPolicyRule::default()
        }],
    };
    let demands = Arc::new(Demands {
        authorization: vec![Arc::new(policy)],
        ..Demands::default()
    });
    let waypoint = WaypointKey {
        namespace: "app".into(),
        name: "waypoint".into(),
    };
    let (mut of_workload, mut of_service) = (mesh(), mesh());
    let layer7 = WorkloadLayer7 {
        waypoint: waypoint.clone(),
        waypoint_identity: id(WAYPOINT),
        demands: Arc::clone(&demands),
    };
    of_workload.workloads_layer7.insert(uid(), Arc::new(layer7));
    let layer7 = ServiceLayer7 {
        waypoint,
        waypoint_identity: id(WAYPOINT),
        ports: BTreeMap::new(),
        demands,
        telemetry: Arc::new(Telemetry::default()),
        ingress: false,
        canary: None,
    };
    of_service
        .services_layer7
        .insert(service(), Arc::new(layer7));
    [of_workload, of_service]
}

/// Meshes in which some of the connections have a right and others have none.
fn meshes() -> Vec<Snapshot> {
    let principal = |text: &str| Match {
        principals: vec![StringMatch::Exact(text.into())],
        ..Match::default()
    };
    let source = Match {
        source_ips: vec!["10.0.0.1/32".parse().unwrap()],
        ..Match::default()
    };
    let port = Match {
        destination_ports: vec![80],
        ..Match::default()
    };
    let mut gone = mesh();
    gone.workloads.clear();
    let [of_workload, of_service] = with_demands();
    let mut strict = of_service.clone();
    strict.strict_namespaces.insert("app".into());
    vec![
        mesh(),
        gone,
        with_policy(Action::Deny, principal("td/ns/web/sa/client")),
        with_policy(Action::Allow, principal("td/ns/web/sa/client")),
        with_policy(Action::Allow, principal("td/ns/app/sa/waypoint")),
        with_policy(Action::Deny, source),
        with_policy(Action::Deny, port),
        of_workload,
        of_service,
        strict,
    ]
}

fn shown(peer: Option<&str>, direction: Direction) -> LiveConnection {
    LiveConnection {
        workload: uid(),
        direction,
        source: "10.0.0.1:40000".parse().unwrap(),
        original_destination: "10.0.0.2:15008".parse().unwrap(),
        service: None,
        destination: "10.0.0.2:80".parse().unwrap(),
        peer: peer.map(id),
        carriage: Carriage::Hbone,
    }
}

/// What bytes may have to meet: the workload's waypoint, a service's, or either in another's name.
fn claims(shown: &LiveConnection) -> Vec<Option<BytesClaim>> {
    let of_workload = BytesClaim {
        called: None,
        besides: Vec::new(),
        workload: uid(),
        identity: shown.peer.clone(),
        source: shown.source.ip(),
        destination: shown.destination,
        is_declared: true,
    };
    let of_service = BytesClaim {
        called: Some(CalledPort {
            service: service(),
            side: Side::Primary,
            port: 80,
        }),
        ..of_workload.clone()
    };
    let besides = BytesClaim {
        besides: vec![(service(), 80)],
        ..of_workload.clone()
    };
    let undeclared = BytesClaim {
        is_declared: false,
        ..of_workload.clone()
    };
    let another = BytesClaim {
        identity: Some(id("spiffe://td/ns/web/sa/other")),
        ..of_workload.clone()
    };
    let elsewhere = BytesClaim {
        workload: WorkloadUid::new("k//Pod/app/other"),
        ..of_workload.clone()
    };
    let claims = [
        of_workload,
        of_service,
        besides,
        undeclared,
        another,
        elsewhere,
    ];
    claims.into_iter().map(Some).chain([None]).collect()
}

/// By the very words of the claims.
fn expected(
    mesh: &Snapshot,
    (shown, via): (&LiveConnection, Option<&Via>),
    bytes: Option<&BytesClaim>,
) -> Option<Denial> {
    let own = via.and_then(|via| {
        let workload = mesh.workloads.get(&shown.workload)?;
        let connection = Connection {
            source: shown.source.ip(),
            identity: shown.peer.as_ref(),
            waypoint: via.waypoint.as_ref(),
            through: via.service.as_ref(),
            destination: shown.destination,
        };
        policy::judge(mesh, workload, &connection).decision.err()
    });
    own.or_else(|| bytes?.judge(mesh).err().map(Denial::Demanded))
}

#[test]
fn a_connection_is_judged_again_as_it_was_judged() {
    let vias = [
        None,
        Some(Via::default()),
        Some(Via {
            waypoint: Some(id(WAYPOINT)),
            service: None,
        }),
        Some(Via {
            waypoint: Some(id(WAYPOINT)),
            service: Some(service()),
        }),
    ];
    let (mut refused, mut allowed) = (0, 0);
    for peer in [None, Some(CLIENT), Some(WAYPOINT)] {
        for via in &vias {
            let direction = match via {
                Some(_) => Direction::Inbound,
                None => Direction::Outbound,
            };
            let shown = shown(peer, direction);
            for (bytes, mesh) in claims(&shown)
                .iter()
                .flat_map(|bytes| meshes().into_iter().map(move |mesh| (bytes, mesh)))
            {
                let connections = Rc::<Connections>::default();
                let tracked = match via {
                    Some(via) => connections.track_judged(shown.clone(), via.clone()),
                    None => connections.track(shown.clone()),
                };
                if let Some(bytes) = bytes {
                    tracked.meet(bytes.clone());
                }
                let expected = expected(&mesh, (&shown, via.as_ref()), bytes.as_ref());
                let again = connections.judge_again(&mesh);
                let cx = Context::from_waker(Waker::noop());
                let denial = match tracked.poll_refused(&cx) {
                    Poll::Ready(denial) => Some(denial),
                    Poll::Pending => None,
                };
                assert_eq!(denial, expected, "{shown:?} {via:?} {bytes:?}");
                assert_eq!(again, usize::from(expected.is_some()));
                let count = if again > 0 {
                    &mut refused
                } else {
                    &mut allowed
                };
                *count += 1;
            }
        }
    }
    assert!(refused > 100 && allowed > 100, "{refused} {allowed}");
}

#[test]
fn what_is_shown_is_not_kept_twice() {
    let shown = shown(Some(CLIENT), Direction::Inbound);
    let kept: Vec<_> = claims(&shown)
        .into_iter()
        .flatten()
        .map(|claim| matches!(Bytes::of(&shown, claim), Bytes::OfWorkload { .. }))
        .collect();
    assert_eq!(kept, [true, false, false, true, false, false]);
}
