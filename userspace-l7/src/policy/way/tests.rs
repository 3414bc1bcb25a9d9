//! Service `front`, whose own pod is another, and which routes lead from it to the server of `web` at port 8080.

use std::sync::Arc;

use super::{Way, is_for, way};
use crate::model::{
    AppProtocol, BackendTarget, HeaderModifier, NamespacedHostname, PortLayer7, PortRoutes,
    Service, Snapshot, WeightedBackend,
};
use crate::policy::strict::tests::{add_service, key, mesh, server, workload};

fn to(service: NamespacedHostname, port: u16) -> PortRoutes {
    let backend = WeightedBackend {
        weight: 1,
        target: BackendTarget::Service {
            service,
            port,
            subset: None,
        },
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
    };
    PortRoutes::Tcp(Arc::new([backend]))
}

fn port(routes: PortRoutes, consumer: Option<(&str, PortRoutes)>) -> PortLayer7 {
    let consumer = consumer.map(|(namespace, routes)| (namespace.into(), routes));
    PortLayer7 {
        protocol: AppProtocol::Http1,
        routes,
        consumer_routes: consumer.into_iter().collect(),
        rate_limits: [].into(),
    }
}

fn shop() -> Snapshot {
    let mut mesh = mesh();
    let other = workload("shop", "other", "10.0.0.9");
    add_service(&mut mesh, "front", (80, 8080), true, &other);
    mesh
}

/// How `front` leads to the server for clients of a namespace.
#[track_caller]
fn check(layer7: &PortLayer7, client: Option<&str>, expected: Option<&Way>) {
    let (mesh, server) = (shop(), server());
    let front = key("shop", "front");
    let found = way(&mesh, (&server, 8080), (&front, 80), layer7, client);
    assert_eq!(found.as_ref(), expected, "{client:?}");
}

#[test]
fn a_namespace_sends_its_own_calls_elsewhere_and_nobody_elses() {
    let web = key("shop", "web");
    let by_consumer = port(PortRoutes::None, Some(("evil", to(web.clone(), 80))));
    let consumer = Way::Consumer([(web.clone(), 80)].into());
    check(&by_consumer, Some("evil"), Some(&consumer));
    check(&by_consumer, Some("clients"), None);
    check(&by_consumer, None, None);
    // One that leads to another port, or to somebody else.
    for elsewhere in [
        to(web, 81),
        to(key("shop", "raw"), 90),
        to(key("shop", "front"), 80),
    ] {
        let elsewhere = port(PortRoutes::None, Some(("evil", elsewhere)));
        check(&elsewhere, Some("evil"), None);
    }
}

#[test]
fn who_offers_a_service_chooses_who_answers_everybodys_calls() {
    let web = key("shop", "web");
    let by_producer = port(to(web.clone(), 80), Some(("evil", to(web.clone(), 80))));
    for client in [Some("evil"), Some("clients"), None] {
        check(&by_producer, client, Some(&Way::Producer));
    }
    let nothing = port(PortRoutes::None, None);
    check(&nothing, Some("clients"), None);
    let (mesh, server) = (shop(), server());
    let itself = way(&mesh, (&server, 8080), (&web, 80), &nothing, None);
    assert_eq!(itself, Some(Way::Producer));
}

#[test]
fn only_the_port_that_a_service_leads_to_is_for_it() {
    let (mut mesh, server) = (mesh(), server());
    // Of the same pod as `web`, at another of its ports.
    add_service(&mut mesh, "authz", (9000, 9191), false, &server);
    let authz = key("shop", "authz");
    let mut service = Service::clone(&mesh.services[&authz]);
    service.vips = ["10.96.0.9".parse().unwrap()].into_iter().collect();
    mesh.services.insert(authz.clone(), service.into());
    for (destination, expected) in [
        ("10.0.0.2:9191", true),
        ("[::ffff:10.0.0.2]:9191", true),
        ("10.0.0.2:8080", false),
        ("10.0.0.2:9000", false),
        ("10.0.0.3:9191", false),
        ("10.96.0.9:9000", true),
        ("10.96.0.9:9191", false),
    ] {
        let found = is_for(&mesh, destination.parse().unwrap(), (&authz, 9000));
        assert_eq!(found, expected, "{destination}");
    }
    let (to, nobody) = ("10.0.0.2:9191".parse().unwrap(), key("shop", "nobody"));
    assert!(!is_for(&mesh, to, (&nobody, 9000)));
    assert!(!is_for(&mesh, to, (&authz, 9001)));
}
