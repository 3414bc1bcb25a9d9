//! What owners are told about their objects, by `culvert status` and `culvert waypoint status`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::eventually;
use serde_json::Value;

/// What `culvert` prints on node a.
fn told(mesh: &EchoMesh, arguments: &[&str]) -> Result<String> {
    let output = mesh.lab.node("a")?.culvert(arguments)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {complaint}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The `status` of an object.
fn status(mesh: &EchoMesh, kind: &str, name: &str) -> Result<Value> {
    let whole: Value = serde_json::from_str(&told(mesh, &["status", "-o", "json"])?)?;
    let objects = whole["objects"].as_array().context("objects")?;
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let found = found.with_context(|| format!("no {kind} {name} in {whole}"))?;
    ensure!(found["metadata"]["namespace"] == "shop", "{found}");
    Ok(found["status"].clone())
}

/// A condition of a type, as `status reason`.
fn condition(conditions: &Value, kind: &str) -> Result<(String, Value)> {
    let all = conditions.as_array().context("conditions")?;
    let found = all.iter().find(|one| one["type"] == kind);
    let found = found.with_context(|| format!("no {kind} in {conditions}"))?;
    let word = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Ok((
        format!("{} {}", word("status"), word("reason")),
        found["lastTransitionTime"].clone(),
    ))
}

fn soon(what: &str, claim: impl Fn() -> Result<()>) -> Result<()> {
    eventually(what, Duration::from_secs(5), claim)
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo, namespace: shop}\n\
    spec:\n  parentRefs: [{group: \"\", kind: Service, name: echo}]\n  rules:\n  - backendRefs: [{name: late, port: 80}]\n";

#[test]
fn a_broken_backend_is_told_until_it_is_repaired() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    mesh.apply("route.yaml", ROUTE)?;
    let line = "HTTPRoute shop/echo at Service echo: ResolvedRefs is False, BackendNotFound: \
                backend(late.shop.svc.cluster.local) not found";
    soon("the missing backend is told", || {
        let text = told(&mesh, &["status"])?;
        ensure!(text.contains(line), "{text}");
        Ok(())
    })?;
    let of_route = |mesh: &EchoMesh| status(mesh, "HTTPRoute", "echo");
    let broken = of_route(&mesh)?;
    let parent = &broken["parents"][0];
    ensure!(parent["parentRef"]["name"] == "echo", "{broken}");
    ensure!(
        parent["controllerName"] == "istio.io/gateway-controller",
        "{broken}"
    );
    let (accepted, since) = condition(&parent["conditions"], "Accepted")?;
    ensure!(accepted == "True Accepted", "{accepted}");
    let yaml = told(&mesh, &["status", "-o", "yaml"])?;
    ensure!(yaml.contains("reason: BackendNotFound"), "{yaml}");

    mesh.service("shop", "late", "{}", "{app: echo, version: v1}")?;
    soon("the condition goes", || {
        let repaired = of_route(&mesh)?;
        let conditions = &repaired["parents"][0]["conditions"];
        let (resolved, _) = condition(conditions, "ResolvedRefs")?;
        ensure!(resolved == "True ResolvedRefs", "{resolved}");
        // What did not change over is so since then.
        let (_, still) = condition(conditions, "Accepted")?;
        ensure!(still == since, "{still} is not {since}");
        let text = told(&mesh, &["status"])?;
        ensure!(!text.contains("BackendNotFound"), "{text}");
        Ok(())
    })
}

#[test]
fn a_service_is_told_whether_it_has_its_waypoint() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let bound = |mesh: &EchoMesh| {
        let status = status(mesh, "Service", "echo")?;
        Ok::<_, anyhow::Error>(condition(&status["conditions"], "istio.io/WaypointBound")?.0)
    };
    ensure!(
        bound(&mesh)? == "True WaypointAccepted",
        "{}",
        bound(&mesh)?
    );
    let listed = told(&mesh, &["waypoint", "status", "-n", "shop"])?;
    ensure!(
        listed.contains(
            "Resource programmed, assigned to service(s) waypoint.shop.svc.cluster.local:15008"
        ),
        "{listed}"
    );
    let asks = "{istio.io/use-waypoint: bogus}";
    mesh.service("shop", "echo", asks, "{app: echo}")?;
    soon("the service has no waypoint", || {
        let found = bound(&mesh)?;
        ensure!(found == "False WaypointIsNotReady", "{found}");
        Ok(())
    })
}

#[test]
fn a_field_without_effect_is_a_warning_at_its_line() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    mesh.apply(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: echo, namespace: shop}\nspec:\n  \
         host: echo\n  trafficPolicy:\n    tunnel:\n      protocol: CONNECT\n",
    )?;
    let line =
        "rule.yaml:7: DestinationRule shop/echo: spec.trafficPolicy.tunnel: is not acted on: ";
    soon("the field is named", || {
        let text = told(&mesh, &["status"])?;
        ensure!(text.contains(line), "{text}");
        Ok(())
    })?;
    let log = mesh.lab.agent("a")?.log()?;
    ensure!(
        log.contains("spec.trafficPolicy.tunnel"),
        "the log is silent"
    );
    Ok(())
}
