//! Pods of a service that come into the mesh and leave it while they are asked.
//!
//! Names follow Istio's ambient integration tests where there is one.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use e2e::net::http::Ask;
use e2e::traffic::{Connections, Outcome, Traffic};

/// The shop's namespace, bound to its waypoint, with its pods in the mesh or not.
fn enrol(mesh: &EchoMesh, mode: &str) -> Result<()> {
    mesh.apply(
        "namespace-shop.yaml",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    istio.io/use-waypoint: waypoint\n    \
             istio.io/dataplane-mode: {mode}\n"
        ),
    )
}

/// Waits until both nodes have the pods of the shop in the mesh, or out of it.
fn is_enrolled(mesh: &EchoMesh, expected: bool) -> Result<()> {
    for (node, pod) in [("a", "echo-v2"), ("b", "echo-v1")] {
        let what = format!("{pod} is enrolled: {expected}");
        eventually(&what, Duration::from_secs(20), || {
            let status = mesh.lab.agent(node)?.get(15000, "/status")?.text();
            let status: serde_json::Value = serde_json::from_str(&status)?;
            let pods = status["pods"].as_array().into_iter().flatten();
            let mut own = pods.filter(|one| one["name"] == pod);
            let state = own.next().map(|one| one["state"].clone());
            let is_so = match &state {
                None => !expected,
                Some(state) => expected && state == "Up",
            };
            ensure!(is_so, "{state:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What nobody may ask of the service `echo`.
const NO_SECRETS: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-secrets, \
    namespace: shop}\nspec:\n  targetRefs: [{kind: Service, group: \"\", name: echo}]\n  action: DENY\n  rules: [{to: \
    [{operation: {paths: [/secret]}}]}]\n";

#[test]
fn service_dynamic_enroll() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let secret = Ask::get("/secret");
    mesh.apply("policy.yaml", NO_SECRETS)?;
    mesh.soon_answers("client", to, &secret, 403)?;
    let client = mesh.pod("client")?;
    let both = [Connections::Kept, Connections::New];
    let traffic = both.map(|connections| Traffic::start(client, to, Ask::get("/"), connections));
    // Less of it: it is only to see that whoever judges, somebody does.
    let pause = Duration::from_millis(5);
    let forbidden = both.map(|one| Traffic::paced(client, to, secret.clone(), one, pause));
    for _ in 0..3 {
        enrol(&mesh, "none")?;
        is_enrolled(&mesh, false)?;
        mesh.soon_at_layer7("client", to, true)?;
        enrol(&mesh, "ambient")?;
        is_enrolled(&mesh, true)?;
        mesh.soon_at_layer7("client", to, true)?;
    }
    // Two agents do not hear of a label at the same moment: a request that finds no way in between waits until they agree, and
    // one that is under way when its pod leaves has its time.
    for outcome in traffic.map(Traffic::end) {
        outcome.all_good()?;
    }
    for Outcome { good, bad, .. } in forbidden.map(Traffic::end) {
        let strange = bad.iter().find(|why| !why.starts_with("403"));
        ensure!(good == 0 && strange.is_none(), "{good} passed; {strange:?}");
        ensure!(!bad.is_empty(), "nobody asked");
    }
    Ok(())
}
