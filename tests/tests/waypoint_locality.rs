//! Which endpoints are near, and what that is worth: `localityLbSetting`, `trafficDistribution`.
//!
//! The lab's nodes are zones of one region: the client and `echo-v2` are in zone-a, `echo-v1` is in zone-b.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use e2e::echo::{EchoMesh, Seen, destination_rule};
use e2e::net::http::{Ask, Conversation};

/// A shop with a DestinationRule about `echo`.
fn shop_with(policy: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("traffic.yaml", &rule(policy))?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    Ok((mesh, to))
}

/// A DestinationRule about `echo`.
fn rule(policy: &str) -> String {
    destination_rule("echo", policy)
}

/// How often each pod answers requests of one connection of the client.
fn pods(
    mesh: &EchoMesh,
    to: SocketAddr,
    ask: &Ask,
    times: usize,
) -> Result<BTreeMap<String, usize>> {
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        let mut pods = BTreeMap::new();
        for _ in 0..times {
            let answer = conversation.ask(ask)?;
            let pod = match Seen::in_answer(&answer) {
                Ok(seen) => seen.pod,
                Err(_) => answer.status.to_string(),
            };
            *pods.entry(pod).or_default() += 1;
        }
        Ok(pods)
    })
}

/// Waits until one pod answers all.
fn only(mesh: &EchoMesh, to: SocketAddr, pod: &str) -> Result<()> {
    mesh.soon(&format!("only {pod} answers"), || {
        let found = pods(mesh, to, &Ask::get("/"), 20)?;
        ensure!(found.get(pod) == Some(&20), "{found:?}");
        Ok(())
    })
}

/// Waits until both answer.
fn both(mesh: &EchoMesh, to: SocketAddr) -> Result<()> {
    mesh.soon("both answer", || {
        let found = pods(mesh, to, &Ask::get("/"), 30)?;
        ensure!(found.len() == 2, "{found:?}");
        Ok(())
    })
}

#[test]
fn the_near_endpoint_takes_all_until_it_is_ejected() -> Result<()> {
    let (mesh, to) = shop_with(
        "outlierDetection: {consecutive5xxErrors: 3, interval: 100ms, baseEjectionTime: 60s, maxEjectionPercent: 50}",
    )?;
    only(&mesh, to, "echo-v2")?;
    // Three failures, and the other zone helps out.
    pods(&mesh, to, &Ask::get("/").wishing("status=500"), 3)?;
    only(&mesh, to, "echo-v1")
}

#[test]
fn without_outlier_detection_or_with_the_setting_off_zones_do_not_matter() -> Result<()> {
    let (mesh, to) = shop_with("loadBalancer: {simple: ROUND_ROBIN}")?;
    both(&mesh, to)?;
    mesh.apply(
        "traffic.yaml",
        &rule("{outlierDetection: {}, loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}}"),
    )?;
    both(&mesh, to)
}

#[test]
fn requests_are_shared_out_among_zones() -> Result<()> {
    let (mesh, to) = shop_with(
        "loadBalancer: {simple: RANDOM, localityLbSetting: {distribute: [{from: \"lab/zone-a/*\", to: {\"lab/zone-a/*\": 80, \
         \"lab/zone-b/*\": 20}}]}}",
    )?;
    both(&mesh, to)?;
    let found = pods(&mesh, to, &Ask::get("/"), 1_000)?;
    // 800 of 1,000, five standard deviations of 12.6 about it.
    let near = found.get("echo-v2").copied().unwrap_or_default();
    ensure!((737..=863).contains(&near), "{found:?}");
    Ok(())
}

#[test]
fn priorities_prefer_the_zone_that_they_name() -> Result<()> {
    let (mesh, to) = shop_with(
        "{outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: \
         [\"topology.kubernetes.io/zone=zone-b\"]}}}",
    )?;
    only(&mesh, to, "echo-v1")
}

#[test]
fn priorities_prefer_endpoints_by_labels_of_their_own() -> Result<()> {
    let priorities = |labels: &str| {
        format!(
            "{{outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {{failoverPriority: [{labels}]}}}}}}"
        )
    };
    // In the other zone, and preferred all the same.
    let (mesh, to) = shop_with(&priorities("version=v1"))?;
    only(&mesh, to, "echo-v1")?;
    mesh.apply("traffic.yaml", &rule(&priorities("version=v2, app")))?;
    only(&mesh, to, "echo-v2")
}

#[test]
fn traffic_distribution_of_the_service_holds_at_layer7() -> Result<()> {
    let (mesh, to) = shop_with("loadBalancer: {simple: ROUND_ROBIN}")?;
    both(&mesh, to)?;
    let address = to.ip();
    mesh.apply(
        "service-echo.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: echo\n  namespace: shop\nspec:\n  selector: {{app: \
             echo}}\n  clusterIP: {address}\n  trafficDistribution: PreferClose\n  ports:\n  - {{name: http, port: \
             80, targetPort: 8080}}\n"
        ),
    )?;
    only(&mesh, to, "echo-v2")
}
