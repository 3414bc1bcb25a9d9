//! How many instructions the decisions of the data plane and the frames of a tunnel take, and how many they may:
//! counted by callgrind, so that the figure is the code's and not the machine's. `cargo xtask budget` runs it.
//!
//! What a benchmark is given it forgets: taking tables down is not what is counted. A budget is some tenth above what
//! was counted when it was set. Whoever needs more raises it in the change that does, and says why.

#![expect(
    missing_docs,
    unused_qualifications,
    reason = "the harness's macros write both"
)]

use std::hint::black_box;
use std::mem::forget;
use std::sync::Arc;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use userspace_l7::hbone::measuring::Ends;
use userspace_l7::hbone::{Baggage, ConnectRequest, ConnectResponse};
use userspace_l7::model::{
    Action, AuthorizationPolicy, Clause, HeaderMatch, HeaderModifier, Health, HttpAction,
    HttpMatch, HttpRouteEntry, HttpRouteTable, HttpRule, Locality, Match, MeshSettings,
    NetworkMode, PathMatch, Peer, PolicyKey, RequestHead, RetryPolicy, Rule, Scope, Snapshot,
    SpiffeId, StringMatch, TextMatch, TrustDomain, TunnelProtocol, Workload, WorkloadLabels,
    WorkloadUid,
};
use userspace_l7::policy::{Connection, judge};
use userspace_l7::route::http::select;

/// Fails the benchmark above so many instructions.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn workload() -> Workload {
    Workload {
        uid: WorkloadUid::new("Kubernetes//Pod/shop/reviews-v1-7f99cc"),
        name: "reviews-v1-7f99cc".into(),
        namespace: "shop".into(),
        service_account: "reviews".into(),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        addresses: ["10.0.0.2".parse().unwrap()].into_iter().collect(),
        hostname: "".into(),
        node: "node".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::Culvert,
        canonical_name: "reviews".into(),
        canonical_revision: "v1".into(),
        workload_name: "reviews-v1".into(),
        workload_type: "deployment".into(),
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

/// A workload, and a namespace's policies of which only the last one allows `client-<count>`.
fn allowed_by_the_last_of(count: usize) -> (Snapshot, Workload, SpiffeId) {
    let mut snapshot = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
    });
    let principal = |number| format!("cluster.local/ns/shop/sa/client-{number}");
    let policy = |number: usize| AuthorizationPolicy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: format!("allow-{number}").into(),
        },
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![Match {
                    principals: vec![StringMatch::Exact(principal(number).into())],
                    ..Match::default()
                }],
            }],
        }],
    };
    let policies: Vec<_> = (1..=count).map(policy).map(Arc::new).collect();
    snapshot
        .namespace_policies
        .insert("shop".into(), policies.into());
    let client = format!("spiffe://{}", principal(count));
    (snapshot, workload(), client.parse().unwrap())
}

#[library_benchmark(config = at_most(42_000))]
#[bench::of_100(allowed_by_the_last_of(100))]
fn connection_judged_by_policies((snapshot, workload, client): (Snapshot, Workload, SpiffeId)) {
    let connection = Connection {
        source: [10, 0, 0, 1].into(),
        identity: Some(&client),
        waypoint: None,
        through: None,
        destination: ([10, 0, 0, 2], 9080).into(),
    };
    let verdict = judge(&snapshot, &workload, black_box(&connection));
    assert!(black_box(verdict).decision.is_ok());
    forget((snapshot, workload, client));
}

/// What the entries of a table are told apart by.
#[derive(Clone, Copy)]
enum By {
    Exact,
    Prefix,
    Header,
}

fn path(number: usize) -> String {
    format!("/api/v1/{}/things/{number}", number % 17)
}

fn tenant(number: usize) -> String {
    format!("tenant-{number}")
}

fn entry(by: By, number: usize) -> HttpMatch {
    let (path, headers) = match by {
        By::Exact => (PathMatch::Exact(path(number).into()), vec![]),
        By::Prefix => (PathMatch::Prefix(path(number).into()), vec![]),
        By::Header => {
            let tenant = HeaderMatch {
                name: HeaderName::from_static("x-tenant"),
                value: TextMatch::Exact(tenant(number).into()),
            };
            (PathMatch::Any, vec![tenant])
        }
    };
    HttpMatch {
        path,
        headers,
        ..HttpMatch::default()
    }
}

/// A table of `size` entries, and a request for one of them.
fn table(by: By, size: usize) -> (HttpRouteTable, String, HeaderMap) {
    let rule = Arc::new(HttpRule {
        name: "r".into(),
        origin: "HTTPRoute shop/r".into(),
        action: HttpAction::Forward(vec![]),
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
        rewrite: None,
        mirrors: vec![],
        cors: None,
        fault: None,
        timeout: None,
        retry: RetryPolicy::default(),
        session: None,
        is_usable: true,
    });
    let entries = (0..size).map(|number| HttpRouteEntry {
        matches: Arc::new(entry(by, number)),
        rule: Arc::clone(&rule),
    });
    let table = HttpRouteTable::new(entries.collect(), false);
    let asked = size * 2 / 3;
    let headers = [
        ("accept", "*/*".to_owned()),
        ("user-agent", "curl/8.5.0".to_owned()),
        (
            "x-request-id",
            "5f3f4a0e-3a52-4d0e-9d0f-3f5f0a0e3a52".to_owned(),
        ),
        ("x-tenant", tenant(asked)),
    ];
    let headers = headers.map(|(name, value)| {
        let value = HeaderValue::try_from(value).unwrap();
        (HeaderName::from_static(name), value)
    });
    (table, path(asked), headers.into_iter().collect())
}

// The goal is 2 us of a table of 10,000, and no more than logarithmic growth: as many instructions as 500 ns have at most.
#[library_benchmark]
#[bench::of_1000_prefixes(args = (table(By::Prefix, 1_000)), config = at_most(1_450))]
#[bench::of_10000_prefixes(args = (table(By::Prefix, 10_000)), config = at_most(1_700))]
#[bench::of_10000_paths(args = (table(By::Exact, 10_000)), config = at_most(600))]
#[bench::of_10000_headers(args = (table(By::Header, 10_000)), config = at_most(1_400))]
fn request_matched_by_routes((table, path, headers): (HttpRouteTable, String, HeaderMap)) {
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "things.shop",
        path: &path,
        query: None,
        headers: &headers,
    };
    assert!(black_box(select(&table, black_box(&head))).is_some());
    forget((table, path, headers));
}

fn heads() -> (ConnectRequest, ConnectResponse) {
    let baggage = Baggage::of(&workload());
    let client = ([10, 0, 0, 1], 41_000).into();
    let request = ConnectRequest::to_address(([10, 0, 0, 2], 9080).into())
        .from_workload(&baggage)
        .forwarded(Some(client), Some("reviews.shop.svc.cluster.local"));
    (request, ConnectResponse::accepted(Some(&baggage)))
}

fn ends() -> (Ends, ConnectRequest, ConnectResponse) {
    let (request, answer) = heads();
    (Ends::connected(&request, &answer), request, answer)
}

#[library_benchmark(config = at_most(21_000))]
#[bench::one(ends())]
fn tunnel_asked_for_and_granted(
    (mut ends, request, answer): (Ends, ConnectRequest, ConnectResponse),
) {
    black_box(ends.open(&request, &answer));
    forget((ends, request, answer));
}

#[library_benchmark]
#[bench::of_64_bytes(args = (ends(), vec![7; 64]), config = at_most(1_700))]
// Two copies, each byte of which callgrind counts as an instruction (`rep movsb`).
#[bench::of_64_kib(args = (ends(), vec![7; 64 << 10]), config = at_most(140_000))]
fn bytes_carried(
    (mut ends, request, answer): (Ends, ConnectRequest, ConnectResponse),
    payload: Vec<u8>,
) {
    black_box(ends.carry(black_box(&payload)));
    forget((ends, request, answer, payload));
}

library_benchmark_group!(
    name = budget,
    benchmarks = [
        connection_judged_by_policies,
        request_matched_by_routes,
        tunnel_asked_for_and_granted,
        bytes_carried,
    ]
);
main!(library_benchmark_groups = budget);
