//! What is said of hosts that only their clients name.

use std::collections::BTreeMap;
use std::sync::Arc;

use userspace_l7::model::{LoadBalancerMode, PortRoutes, Snapshot};

use super::{REVIEWS, expect, mesh};
use crate::admin::fixture::{add_service, key, service};

/// The mesh with `*.wild.example`, which a waypoint serves.
fn mesh_with_wildcard() -> Snapshot {
    let mut snapshot = mesh(Vec::new());
    let mut wildcard = service("egress", "wild", "*.wild.example", &["240.240.0.1"]);
    wildcard.load_balancer.mode = LoadBalancerMode::ByName;
    let own = wildcard.key.clone();
    let mut layer7 = (*snapshot.services_layer7[&key("bookinfo", REVIEWS)]).clone();
    let mut port = (*layer7.ports[&80]).clone();
    port.routes = PortRoutes::None;
    layer7.ports = BTreeMap::from([(80, Arc::new(port))]);
    add_service(&mut snapshot, wildcard, Vec::new());
    snapshot.services_layer7.insert(own, Arc::new(layer7));
    snapshot
}

#[test]
fn a_wildcard_leads_to_the_host_that_the_request_names() {
    let mesh = mesh_with_wildcard();
    for (to, host) in [
        ("a.wild.example:80", ""),
        ("240.240.0.1:80", "&header=host:a.wild.example"),
    ] {
        let query = format!("from=default/curl&to={to}&path=/{host}");
        let found = expect(&mesh, &query, None, "if its name leads to an address");
        assert_eq!(
            found.backends[0].endpoints[0].address,
            "a.wild.example:8080"
        );
    }
    let query = "from=default/curl&to=a.wild.example:80&path=/&header=host:elsewhere.example";
    expect(
        &mesh,
        query,
        Some(404),
        "*.wild.example does not stand for elsewhere.example",
    );
}
