//! A second waypoint for some of a service's connections, and clients that no waypoint routes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use e2e::net::http::Ask;

/// Refuses everything that goes through waypoint `next`.
const CLOSED: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: shop}\n\
    spec:\n  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: next}]\n  action: DENY\n  rules: [{}]\n";

/// Gives the shop's namespace a canary with this weight.
fn weigh(mesh: &EchoMesh, weight: &str) -> Result<()> {
    mesh.apply(
        "namespace-shop.yaml",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    istio.io/dataplane-mode: ambient\n    \
             istio.io/use-waypoint: waypoint\n    istio.io/use-waypoint-canary: next\n  annotations:\n    \
             istio.io/use-waypoint-canary-weight: \"{weight}\"\n"
        ),
    )
}

#[test]
fn a_canary_takes_its_share_of_connections() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    mesh.waypoint("shop", "next", "{}", "")?;
    mesh.apply("policy.yaml", CLOSED)?;
    let ask = Ask::get("/");
    for service in ["echo", "echo-v1"] {
        let to = mesh.at(service, 80)?;
        weigh(&mesh, "100")?;
        mesh.soon_answers("client", to, &ask, 403)?;
        weigh(&mesh, "0")?;
        mesh.soon_answers("client", to, &ask, 200)?;
    }
    weigh(&mesh, "30")?;
    let to = mesh.at("echo", 80)?;
    let refused = |times: usize| -> Result<usize> {
        let mut refused = 0;
        for _ in 0..times {
            // One connection is of one waypoint, whatever it asks.
            let statuses = mesh.statuses("client", to, &ask, 3)?;
            ensure!(statuses.len() == 1, "{statuses:?}");
            refused += usize::from(statuses.contains_key(&403));
        }
        Ok(refused)
    };
    eventually("the canary is in force", Duration::from_secs(5), || {
        let found = refused(10)?;
        ensure!((1..10).contains(&found), "{found} of 10");
        Ok(())
    })?;
    // 90 are expected, and the standard deviation is 8.
    let found = refused(300)?;
    ensure!((50..=130).contains(&found), "{found} of 300");

    weigh(&mesh, "many")?;
    mesh.soon_answers("client", to, &ask, 200)?;
    let output = mesh.lab.node("a")?.culvert(&["status", "-o", "yaml"])?;
    let text = String::from_utf8(output.stdout)?;
    let why = "Canary waypoint not attached: weight \\\"many\\\" is not a number from 0 to 100";
    ensure!(
        text.contains(why) || text.contains(&why.replace('\\', "")),
        "{text}"
    );
    Ok(())
}

/// While there is no such waypoint, all goes through the first one, as it does again when the second one goes.
#[test]
fn a_canary_that_is_not_there_takes_nothing() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("policy.yaml", CLOSED)?;
    let (to, ask) = (mesh.at("echo", 80)?, Ask::get("/"));
    let all_pass = || -> Result<()> {
        for _ in 0..20 {
            let statuses = mesh.statuses("client", to, &ask, 1)?;
            ensure!(statuses.keys().eq([&200]), "{statuses:?}");
        }
        Ok(())
    };
    weigh(&mesh, "100")?;
    let said = || -> Result<String> {
        let output = mesh.lab.node("a")?.culvert(&["status", "-o", "yaml"])?;
        Ok(String::from_utf8(output.stdout)?)
    };
    mesh.soon("the canary is missed", || {
        let text = said()?;
        ensure!(text.contains("Canary waypoint not attached"), "{text}");
        Ok(())
    })?;
    all_pass()?;
    mesh.waypoint("shop", "next", "{}", "")?;
    mesh.soon_answers("client", to, &ask, 403)?;
    // Its policies hold for it, whatever they say by then.
    mesh.lab.manifests().delete("policy.yaml")?;
    mesh.soon_answers("client", to, &ask, 200)?;
    mesh.apply("policy.yaml", CLOSED)?;
    mesh.soon_answers("client", to, &ask, 403)?;
    mesh.lab.manifests().delete("waypoint-shop-next.yaml")?;
    mesh.soon_answers("client", to, &ask, 200)?;
    all_pass()
}

/// What the service `echo` demands: reading only, of writers that they are of the mesh, and of whoever deletes that he is
/// the waypoint, which nobody is to itself.
const DEMANDS: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: readers, namespace: shop}\n\
    spec:\n  targetRefs: [{kind: Service, group: \"\", name: echo}]\n  rules:\n  - to: [{operation: {methods: [GET]}}]\n  \
    - from: [{source: {namespaces: [clients]}}]\n    to: [{operation: {methods: [POST]}}]\n  \
    - from: [{source: {principals: [cluster.local/ns/shop/sa/waypoint]}}]\n";

#[test]
fn clients_outside_the_mesh_meet_the_demands_of_the_canary_as_often_as_its_weight_says()
-> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    mesh.waypoint("shop", "next", "{}", "")?;
    mesh.apply("policy.yaml", CLOSED)?;
    let labels = "{istio.io/ingress-use-waypoint: 'true'}";
    mesh.service("shop", "echo", labels, "{app: echo}")?;
    let to = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    let ask = Ask::get("/");
    weigh(&mesh, "100")?;
    mesh.soon_answers("outside", to, &ask, 403)?;
    weigh(&mesh, "0")?;
    mesh.soon_answers("outside", to, &ask, 200)?;
    weigh(&mesh, "30")?;
    let refused = |times: usize| -> Result<usize> {
        let mut refused = 0;
        for _ in 0..times {
            // What holds for the first request of a connection holds for all of them.
            let statuses = mesh.statuses("outside", to, &ask, 2)?;
            ensure!(statuses.len() == 1, "{statuses:?}");
            refused += usize::from(statuses.contains_key(&403));
        }
        Ok(refused)
    };
    eventually("the canary is in force", Duration::from_secs(5), || {
        let found = refused(10)?;
        ensure!((1..10).contains(&found), "{found} of 10");
        Ok(())
    })?;
    // 90 are expected, and the standard deviation is 8. One count in 370 is further away than three of them, by chance,
    // and two in a row are not.
    let counts = [refused(300)?, refused(300)?];
    let is_near = |found: &usize| (67..=113).contains(found);
    ensure!(counts.iter().any(is_near), "{counts:?} of 300 each");
    Ok(())
}

#[test]
fn clients_outside_the_mesh_meet_the_demands_where_the_label_says_so() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    mesh.apply("policy.yaml", DEMANDS)?;
    let pod = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    let (read, write) = (Ask::get("/"), Ask::new("POST", "/"));
    mesh.soon_answers("stranger", mesh.at("echo", 80)?, &write, 200)?;
    mesh.soon_answers(
        "stranger",
        mesh.at("echo", 80)?,
        &Ask::new("DELETE", "/"),
        403,
    )?;
    mesh.soon_answers("outside", pod, &write, 200)?;
    mesh.service(
        "shop",
        "echo",
        "{istio.io/ingress-use-waypoint: 'true'}",
        "{app: echo}",
    )?;
    let answer = mesh.soon_answers("outside", pod, &write, 403)?;
    ensure!(answer.text() == "RBAC: access denied", "{}", answer.text());
    ensure!(
        !answer
            .headers
            .iter()
            .any(|line| line.to_ascii_lowercase().starts_with("x-culvert")),
        "{:?}",
        answer.headers
    );
    mesh.soon_answers("outside", pod, &read, 200)?;
    // Another pod's port that no such service leads to is open as before.
    mesh.service(
        "shop",
        "echo",
        "{istio.io/ingress-use-waypoint: 'false'}",
        "{app: echo}",
    )?;
    mesh.soon_answers("outside", pod, &write, 200).map(drop)
}
