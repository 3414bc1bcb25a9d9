//! One row per sentence of the rules.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use userspace_l7::model::{Health, HealthPolicy, IpFamilies, LoadBalancer, Snapshot, Workload};

use super::{Answer, MAX_ADDRESSES, resolve};
use crate::admin::fixture::{add_service, add_workload, empty, endpoint, service, workload};

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn client() -> Workload {
    workload("shop", "client", &["10.0.0.1"])
}

/// Kubernetes services, entries with and without addresses, wildcards, aliases.
fn mesh() -> Snapshot {
    let mut mesh = empty();
    for (namespace, name, vips) in [
        ("shop", "cart", &["10.96.0.1", "fd00::1"][..]),
        ("other", "pay", &["10.96.0.2"][..]),
    ] {
        let added = service(namespace, name, &host(name, namespace), vips);
        add_service(&mut mesh, added, Vec::new());
    }
    for (namespace, name, host, vip) in [
        ("shop", "api", "api.example.com", "240.240.0.1"),
        ("shop", "all", "*.example.com", "240.240.0.2"),
        ("shop", "deep", "*.deep.example.com", "240.240.0.3"),
        ("other", "both", "both.example.net", "240.240.0.4"),
        ("shop", "both", "both.example.net", "240.240.0.5"),
    ] {
        let mut entry = service(namespace, name, host, &[vip]);
        entry.canonical = false;
        add_service(&mut mesh, entry, Vec::new());
    }
    let mut private = service("other", "private", "private.example.net", &["240.240.0.6"]);
    private.namespace_private = true;
    add_service(&mut mesh, private, Vec::new());
    add_service(
        &mut mesh,
        service("shop", "described", "described.org", &[]),
        Vec::new(),
    );

    headless(&mut mesh);
    aliases(&mut mesh);
    mesh
}

fn host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

fn headless(mesh: &mut Snapshot) {
    let ready = add_workload(mesh, workload("shop", "db-0", &["10.0.0.7", "fd00::7"]));
    let unready = add_workload(mesh, workload("shop", "db-1", &["10.0.0.8"]));
    let mut far = workload("shop", "db-2", &["10.0.0.9"]);
    far.network = "elsewhere".into();
    let far = add_workload(mesh, far);
    let endpoints = || {
        vec![
            endpoint(&ready, Health::Healthy),
            endpoint(&unready, Health::Unhealthy),
            endpoint(&far, Health::Healthy),
        ]
    };
    add_service(
        mesh,
        service("shop", "db", &host("db", "shop"), &[]),
        endpoints(),
    );
    let mut eager = service("shop", "eager", &host("eager", "shop"), &[]);
    eager.load_balancer = LoadBalancer {
        health: HealthPolicy::AllowAll,
        ..LoadBalancer::default()
    };
    add_service(mesh, eager, endpoints());
    let mut single = service(
        "shop",
        "single",
        &host("single", "shop"),
        &["10.96.0.9", "fd00::9"],
    );
    single.ip_families = IpFamilies::Ipv4Only;
    add_service(mesh, single, Vec::new());
}

fn aliases(mesh: &mut Snapshot) {
    for (name, target) in [
        ("outside", "db.example.org"),
        ("inside", "pay.other.svc.cluster.local"),
        ("twice", "inside.shop.svc.cluster.local"),
        ("circle", "circle.shop.svc.cluster.local"),
    ] {
        let mut alias = service("shop", name, &host(name, "shop"), &[]);
        alias.alias = Some(target.into());
        add_service(mesh, alias, Vec::new());
    }
}

/// The reply's records as text, `owner type value`; a forward or a follow as one line.
fn answer(name: &str, kind: RecordType) -> Vec<String> {
    let decided = resolve(&mesh(), &client(), &query(name, kind), &mut |_| {});
    let (reply, last) = match decided {
        Answer::Forward => return vec!["forward".to_owned()],
        Answer::Local(reply) => (reply, None),
        Answer::Follow { reply, name } => (reply, Some(format!("follow {name}"))),
    };
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    let records = reply.answers.iter().map(|record| {
        assert_eq!(record.ttl, 30);
        let value = match &record.data {
            RData::A(a) => format!("A {a}"),
            RData::AAAA(aaaa) => format!("AAAA {aaaa}"),
            RData::CNAME(cname) => format!("CNAME {cname}"),
            other => panic!("unexpected {other:?}"),
        };
        format!("{} {value}", record.name)
    });
    records.chain(last).collect()
}

#[track_caller]
fn check(name: &str, kind: RecordType, expected: &[&str]) {
    assert_eq!(answer(name, kind), expected, "{name} {kind}");
}

#[test]
fn services_are_answered_by_every_name_that_kubernetes_gives_them() {
    use RecordType::{A, AAAA};
    check(
        "cart.shop.svc.cluster.local.",
        A,
        &["cart.shop.svc.cluster.local. A 10.96.0.1"],
    );
    check(
        "cart.shop.svc.cluster.local.",
        AAAA,
        &["cart.shop.svc.cluster.local. AAAA fd00::1"],
    );
    check("cart.", A, &["cart. A 10.96.0.1"]);
    check("cart.shop.", A, &["cart.shop. A 10.96.0.1"]);
    check("cart.shop.svc.", A, &["cart.shop.svc. A 10.96.0.1"]);
    check("pay.", A, &["forward"]);
    check("pay.other.", A, &["pay.other. A 10.96.0.2"]);
    check(
        "CART.Shop.svc.Cluster.local.",
        A,
        &["CART.Shop.svc.Cluster.local. A 10.96.0.1"],
    );
}

#[test]
fn a_stripped_search_domain_shows_as_an_alias() {
    check(
        "pay.other.shop.svc.cluster.local.",
        RecordType::A,
        &[
            "pay.other.shop.svc.cluster.local. CNAME pay.other.",
            "pay.other. A 10.96.0.2",
        ],
    );
    check(
        "api.example.com.shop.svc.cluster.local.",
        RecordType::A,
        &[
            "api.example.com.shop.svc.cluster.local. CNAME api.example.com.",
            "api.example.com. A 240.240.0.1",
        ],
    );
    check(
        "api.example.com.cluster.local.",
        RecordType::A,
        &[
            "api.example.com.cluster.local. CNAME api.example.com.",
            "api.example.com. A 240.240.0.1",
        ],
    );
    // Another namespace's search list is not this client's.
    check(
        "api.example.com.other.svc.cluster.local.",
        RecordType::A,
        &["forward"],
    );
}

#[test]
fn an_exact_name_beats_a_wildcard_and_a_longer_wildcard_a_shorter_one() {
    use RecordType::A;
    check("api.example.com.", A, &["api.example.com. A 240.240.0.1"]);
    check("x.example.com.", A, &["x.example.com. A 240.240.0.2"]);
    check("a.b.example.com.", A, &["a.b.example.com. A 240.240.0.2"]);
    check(
        "x.deep.example.com.",
        A,
        &["x.deep.example.com. A 240.240.0.3"],
    );
    check("example.com.", A, &["forward"]);
}

#[test]
fn a_hostname_of_two_namespaces_is_the_clients_own_and_a_private_one_nobody_elses() {
    check(
        "both.example.net.",
        RecordType::A,
        &["both.example.net. A 240.240.0.5"],
    );
    check("private.example.net.", RecordType::A, &["forward"]);
}

#[test]
fn a_known_name_without_an_address_of_the_family_is_empty_not_unknown() {
    check("pay.other.", RecordType::AAAA, &[]);
    check("single.", RecordType::A, &["single. A 10.96.0.9"]);
    check("single.", RecordType::AAAA, &[]);
}

#[test]
fn headless_services_are_their_ready_endpoints_on_our_network() {
    check("db.", RecordType::A, &["db. A 10.0.0.7"]);
    check("db.", RecordType::AAAA, &["db. AAAA fd00::7"]);
    check(
        "eager.",
        RecordType::A,
        &["eager. A 10.0.0.7", "eager. A 10.0.0.8"],
    );
    // Names of single pods are the cluster's own resolver's affair.
    check(
        "db-0.db.shop.svc.cluster.local.",
        RecordType::A,
        &["forward"],
    );
}

#[test]
fn a_service_entry_without_an_address_is_left_to_the_resolver() {
    check("described.org.", RecordType::A, &["forward"]);
}

#[test]
fn external_names_are_aliases() {
    use RecordType::A;
    check(
        "outside.",
        A,
        &["outside. CNAME db.example.org.", "follow db.example.org."],
    );
    check(
        "outside.shop.shop.svc.cluster.local.",
        A,
        &[
            "outside.shop.shop.svc.cluster.local. CNAME outside.shop.",
            "outside.shop. CNAME db.example.org.",
            "follow db.example.org.",
        ],
    );
    let pay = "pay.other.svc.cluster.local.";
    check(
        "inside.",
        A,
        &[
            &format!("inside. CNAME {pay}"),
            &format!("{pay} A 10.96.0.2"),
        ],
    );
    assert_eq!(answer("twice.", A).len(), 3);
    assert_eq!(
        answer("circle.", A).len(),
        super::MAX_ALIASES,
        "a circle ends"
    );
}

#[test]
fn everything_but_address_questions_is_forwarded() {
    for kind in [
        RecordType::SRV,
        RecordType::PTR,
        RecordType::TXT,
        RecordType::ANY,
        RecordType::HTTPS,
    ] {
        check("cart.", kind, &["forward"]);
    }
    check("www.unknown.org.", RecordType::A, &["forward"]);
    check(".", RecordType::A, &["forward"]);
    let cart = || query("cart.", RecordType::A);
    let decide = |query: &Message| resolve(&mesh(), &client(), query, &mut |_| {});
    let mut chaos = cart();
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut two = cart();
    two.add_query(two.queries[0].clone());
    let mut none = cart();
    none.queries.clear();
    let mut notify = cart();
    notify.metadata.op_code = OpCode::Notify;
    let mut new_edns = cart();
    new_edns.set_edns(Edns::new().set_version(1).clone());
    for odd in [chaos, two, none, notify, new_edns] {
        assert_eq!(decide(&odd), Answer::Forward, "{odd}");
    }
}

#[test]
fn a_reply_repeats_the_question_and_says_where_it_comes_from() {
    let mut asked = query("cart.", RecordType::A);
    let Answer::Local(reply) = resolve(&mesh(), &client(), &asked, &mut |_| {}) else {
        panic!()
    };
    assert_eq!(
        (reply.metadata.id, reply.metadata.message_type),
        (7, MessageType::Response)
    );
    assert_eq!(reply.queries, asked.queries);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    assert!(reply.metadata.recursion_desired && !reply.metadata.truncation);
    assert!(reply.edns.is_none(), "EDNS only to those who speak it");
    asked.set_edns(Edns::new());
    let Answer::Local(reply) = resolve(&mesh(), &client(), &asked, &mut |_| {}) else {
        panic!()
    };
    assert_eq!(reply.edns.unwrap().max_payload(), 1232);
}

#[test]
fn addresses_are_shuffled_distinct_and_bounded() {
    let mut mesh = empty();
    let mut endpoints = Vec::new();
    for host in 0..1500_u16 {
        let [high, low] = host.to_be_bytes();
        let pod = workload(
            "shop",
            &format!("p-{host}"),
            &[&format!("10.1.{high}.{low}")],
        );
        let pod = add_workload(&mut mesh, pod);
        endpoints.push(endpoint(&pod, Health::Healthy));
        endpoints.push(endpoint(&pod, Health::Healthy));
    }
    add_service(
        &mut mesh,
        service("shop", "many", "many.shop.svc.cluster.local", &[]),
        endpoints,
    );
    let mut seen = Vec::new();
    let mut reverse = |addresses: &mut [IpAddr]| {
        addresses.reverse();
        seen = addresses.to_vec();
    };
    let asked = query("many.", RecordType::A);
    let Answer::Local(reply) = resolve(&Arc::new(mesh), &client(), &asked, &mut reverse) else {
        panic!("known")
    };
    assert_eq!(seen.len(), 1500, "each address once");
    assert_eq!(reply.answers.len(), MAX_ADDRESSES);
    let RData::A(first) = &reply.answers[0].data else {
        panic!("an address")
    };
    assert_eq!(IpAddr::V4(first.0), seen[0], "in the order of the shuffle");
    assert!(reply.to_vec().unwrap().len() < usize::from(u16::MAX));
}
