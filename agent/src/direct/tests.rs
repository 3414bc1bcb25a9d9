//! What is ruled, and what a change makes of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ebpf::{
    Address, FLOW_CLIENT, FLOW_REFUSED, FLOW_SERVER, FlowEntry, LostEntry, LostKey,
};
use userspace_l7::model::{
    Action, AuthorizationPolicy, Health, Locality, MeshSettings, NetworkMode, Peer, PolicyKey,
    Rule, Scope, Snapshot, TrustDomain, TunnelProtocol, Workload, WorkloadLabels, WorkloadUid,
};
use userspace_l7::telemetry::Metrics;

use super::accounts::Accounts;
use super::book::{Book, Change, End, Ruling, Wrong};
use super::metrics::DirectMetrics;
use crate::mesh::SameNode;

const CLIENT: u64 = 101;
const SERVER: u64 = 102;

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new(format!("k//Pod/app/{name}"))
}

fn workload(name: &str, address: &str) -> Workload {
    Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "app".into(),
        service_account: name.into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: [address.parse().unwrap()].into_iter().collect(),
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

/// A mesh of a client, a server, and a neighbour of both that is not captured here.
fn mesh() -> Snapshot {
    let mut mesh = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    for (name, address) in [
        ("client", "10.0.0.1"),
        ("server", "10.0.0.2"),
        ("elsewhere", "10.0.0.3"),
    ] {
        let workload = Arc::new(workload(name, address));
        mesh.workloads_by_address
            .insert(address.parse().unwrap(), Arc::clone(&workload));
        mesh.workloads.insert(workload.uid.clone(), workload);
    }
    mesh
}

/// The same mesh, in which nobody may do anything.
fn closed_mesh() -> Snapshot {
    let mut mesh = mesh();
    let policy = Arc::new(AuthorizationPolicy {
        key: PolicyKey {
            namespace: "app".into(),
            name: "nobody".into(),
        },
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
    });
    mesh.namespace_policies
        .insert("app".into(), [policy].into());
    mesh
}

fn book() -> Book<()> {
    let mut book = Book::new(Arc::new(mesh()));
    for (name, netns) in [("client", CLIENT), ("server", SERVER)] {
        let changes = book.admit(&uid(name), SameNode::Direct, (netns, ()));
        assert_eq!(changes, []);
    }
    book
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn change(to: &str, ruling: Option<Ruling>) -> Change {
    Change {
        client: CLIENT,
        to: at(to),
        ruling,
    }
}

const STRAIGHT: Ruling = Ruling::Straight { server: SERVER };

/// A book in which the client may go to the server.
fn ruled() -> Book<()> {
    let mut book = book();
    let changes = book.consider(&uid("client"), at("10.0.0.2:80"));
    assert_eq!(changes, [change("10.0.0.2:80", Some(STRAIGHT))]);
    book
}

#[test]
fn a_destination_is_ruled_about_once() {
    let mut book = ruled();
    assert_eq!(book.consider(&uid("client"), at("10.0.0.2:80")), []);
    let mapped = at("[::ffff:10.0.0.2]:80");
    assert_eq!(book.consider(&uid("client"), mapped), []);
    assert_eq!(book.len(), 1);
    // Not captured here, unknown to the mesh, a client that nobody knows.
    assert_eq!(book.consider(&uid("client"), at("10.0.0.3:80")), []);
    assert_eq!(book.consider(&uid("client"), at("203.0.113.9:80")), []);
    assert_eq!(book.consider(&uid("elsewhere"), at("10.0.0.2:80")), []);
    assert_eq!(book.len(), 1);
}

#[test]
fn a_new_mesh_takes_back_what_it_forbids_and_refuses_instead() {
    let mut book = ruled();
    assert_eq!(book.publish(Arc::new(mesh())), []);
    let refused = [
        change("10.0.0.2:80", None),
        change("10.0.0.2:80", Some(Ruling::Refused)),
    ];
    assert_eq!(book.publish(Arc::new(closed_mesh())), refused);
    let allowed = [
        change("10.0.0.2:80", None),
        change("10.0.0.2:80", Some(STRAIGHT)),
    ];
    assert_eq!(book.publish(Arc::new(mesh())), allowed);
}

#[test]
fn a_pod_that_leaves_or_wants_encryption_takes_its_rulings_with_it() {
    let taken_back = [change("10.0.0.2:80", None)];
    for name in ["client", "server"] {
        let mut book = ruled();
        assert_eq!(
            book.dismiss(&uid(name), Instant::now()),
            taken_back,
            "{name}"
        );
        assert_eq!(book.len(), 0);
        let mut book = ruled();
        let netns = if name == "client" { CLIENT } else { SERVER };
        let changes = book.admit(&uid(name), SameNode::Encrypted, (netns, ()));
        assert_eq!(changes, taken_back, "{name}");
        assert_eq!(book.consider(&uid("client"), at("10.0.0.2:80")), []);
    }
    // It comes back in another namespace: what was ruled about the old one does not hold.
    let mut book = ruled();
    let changes = book.admit(&uid("server"), SameNode::Direct, (200, ()));
    assert_eq!(changes, taken_back);
}

#[test]
fn a_pod_that_knocks_everywhere_fills_no_more_than_its_page() {
    let mut book = book();
    for port in 20_000..22_000 {
        let to = SocketAddr::new("10.0.0.2".parse().unwrap(), port);
        assert!(!book.consider(&uid("client"), to).is_empty());
    }
    assert_eq!(book.len(), 1024);
    // The oldest went, and may come again.
    let changes = book.consider(&uid("client"), at("10.0.0.2:20000"));
    let oldest = change("10.0.0.2:20976", None);
    assert_eq!(changes[0], oldest);
}

fn flow(client_netns: u64, server_netns: u64, end: u16) -> FlowEntry {
    let address = |text: &str| Address::from(text.parse::<std::net::IpAddr>().unwrap());
    FlowEntry {
        client_netns,
        server_netns,
        since_ns: 0,
        client: address("10.0.0.1"),
        server: address("10.0.0.2"),
        dialled: address("10.0.0.2"),
        client_port: 40_000,
        server_port: 80,
        dialled_port: 80,
        end,
    }
}

fn cookie(end: Option<&End<()>>) -> Option<u64> {
    end.map(|end| end.cookie)
}

#[test]
fn live_connections_are_judged_where_both_pods_are_known() {
    let flows = [
        (1, flow(CLIENT, SERVER, FLOW_CLIENT)),
        (2, flow(CLIENT, SERVER, FLOW_SERVER)),
        (3, flow(CLIENT, 7, FLOW_CLIENT)),
        (4, flow(7, SERVER, FLOW_CLIENT)),
    ];
    let wrong = |book: &Book<()>| -> Vec<u64> {
        let wrong = book.wrong(&flows);
        let ends = |one: &Wrong<()>| [Some(&one.client), one.server.as_ref()].map(cookie);
        wrong.iter().flat_map(ends).flatten().collect()
    };
    let mut book = ruled();
    assert_eq!(wrong(&book), [0_u64; 0]);
    book.publish(Arc::new(closed_mesh()));
    assert_eq!(wrong(&book), [1, 2]);
    let mut book = ruled();
    book.admit(&uid("server"), SameNode::Encrypted, (SERVER, ()));
    assert_eq!(wrong(&book), [1, 2]);
    // Who has left is somebody else's to end; who terminates may finish.
    let mut book = ruled();
    book.dismiss(&uid("server"), Instant::now());
    assert_eq!(wrong(&book), [0_u64; 0]);
    let mut book = ruled();
    let mut without = mesh();
    without.workloads.remove(&uid("server"));
    book.publish(Arc::new(without));
    assert_eq!(wrong(&book), [0_u64; 0]);
}

/// What the kernel has added up: so many at this end.
fn sum(client_netns: u64, server_netns: u64, (end, ended): (u16, u64)) -> (LostKey, LostEntry) {
    let ends = LostKey {
        client_netns,
        server_netns,
        dialled: flow(0, 0, end).dialled,
        dialled_port: 80,
        end,
        pad: 0,
    };
    let sum = LostEntry {
        ended,
        ..LostEntry::default()
    };
    (ends, sum)
}

#[test]
fn sums_of_pods_that_are_gone_are_forgotten_once_nothing_comes_to_them() {
    const GONE: u64 = 7;
    let mut book = ruled();
    let kept = [
        sum(CLIENT, GONE, (FLOW_CLIENT, 1)),
        sum(GONE, SERVER, (FLOW_SERVER, 1)),
        sum(CLIENT, 0, (FLOW_REFUSED, 1)),
    ];
    let settled = [
        sum(GONE, SERVER, (FLOW_CLIENT, 1)),
        sum(CLIENT, GONE, (FLOW_SERVER, 1)),
    ];
    let refused = |count| sum(GONE, 0, (FLOW_REFUSED, count));
    let all = |refusals| [&kept[..], &settled[..], &[refused(refusals)]].concat();
    let metrics = DirectMetrics::default();
    let traffic = Arc::new(Metrics::new());
    let mut accounts = Accounts::new(traffic, metrics.clone(), all(1));
    // Something has come to one of them.
    let gone = accounts.settle_the_gone(&book, all(5));
    assert_eq!(gone, settled.map(|(ends, _)| ends));
    assert_eq!(metrics.denied.get(), 4);
    for ends in &gone {
        accounts.forget(ends);
    }
    let left = [&kept[..], &[refused(5)]].concat();
    let gone = accounts.settle_the_gone(&book, left);
    assert_eq!(gone, [refused(5).0]);
    assert_eq!(metrics.denied.get(), 4);
    for ends in &gone {
        accounts.forget(ends);
    }
    // What is forgotten counts from zero.
    accounts.make_up_for(&book, vec![refused(2)]);
    assert_eq!(metrics.denied.get(), 6);
    let now = Instant::now();
    book.dismiss(&uid("client"), now);
    assert_eq!(accounts.settle_the_gone(&book, kept.to_vec()), []);
    book.forget_the_gone(now + Duration::from_secs(60));
    let gone = accounts.settle_the_gone(&book, kept.to_vec());
    assert_eq!(gone, [kept[0].0, kept[2].0]);
}

#[test]
fn a_pod_is_remembered_for_a_while() {
    let mut book = ruled();
    let now = Instant::now();
    book.dismiss(&uid("server"), now);
    book.forget_the_gone(now + Duration::from_secs(59));
    assert!(book.member(SERVER).is_some());
    book.forget_the_gone(now + Duration::from_secs(60));
    assert!(book.member(SERVER).is_none());
}
