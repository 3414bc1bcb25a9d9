//! How many requests somebody may make: RateLimitPolicy, kept at the client's node. Limits that a service keeps are in
//! `waypoint_asking.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::echo::EchoMesh;
use e2e::net::http::{Ask, Conversation, Response};

/// A shop with these manifests, and where `echo` is.
fn shop_with(manifests: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("limits.yaml", manifests)?;
    let to = mesh.at("echo", 80)?;
    Ok((mesh, to))
}

/// A RateLimitPolicy about `echo` with these limits.
fn limits(limits: &str) -> String {
    format!(
        "apiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata:\n  name: few\n  namespace: shop\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: echo}}]\n  limits:\n{limits}"
    )
}

/// The answers to requests of one connection of the client.
fn answers(mesh: &EchoMesh, to: SocketAddr, ask: &Ask, times: usize) -> Result<Vec<Response>> {
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        (0..times).map(|_| conversation.ask(ask)).collect()
    })
}

#[test]
fn local_rate_limits_are_kept() -> Result<()> {
    let (mesh, to) = shop_with(&limits(
        "  - {requests: 5, period: 60s, burst: 5, per: [clientIdentity]}\n",
    ))?;
    mesh.soon("the sixth request is too many", || {
        let answer = mesh.ask("client", to, &Ask::get("/"))?;
        ensure!(answer.status == 429, "{}", answer.status);
        ensure!(answer.text() == "local_rate_limited", "{}", answer.text());
        ensure!(answer.header("retry-after").is_some(), "{answer:?}");
        ensure!(
            answer.header("x-ratelimit-limit") == Some("5"),
            "{answer:?}"
        );
        ensure!(
            answer.header("x-ratelimit-remaining") == Some("0"),
            "{answer:?}"
        );
        Ok(())
    })?;
    mesh.counts("429", "RL")?;
    // Everybody has a bucket of their own.
    let other = mesh.ask("stranger", to, &Ask::get("/"))?;
    ensure!(other.status == 200, "{other:?}");
    ensure!(
        other.header("x-ratelimit-remaining") == Some("4"),
        "{other:?}"
    );
    Ok(())
}

#[test]
fn local_rate_limits_tell_headers_apart_and_fill_again() -> Result<()> {
    let (mesh, to) = shop_with(&limits(
        "  - {requests: 2, period: 1s, burst: 2, per: [{header: x-user}]}\n",
    ))?;
    let by = |user: &str| Ask::get("/").with("x-user", user);
    let statuses = |user: &str, times| -> Result<Vec<u16>> {
        let answers = answers(&mesh, to, &by(user), times)?;
        Ok(answers.iter().map(|answer| answer.status).collect())
    };
    mesh.soon("a burst of two", || {
        let burst = statuses("first", 4)?;
        ensure!(burst.contains(&429), "{burst:?}");
        Ok(())
    })?;
    ensure!(statuses("second", 2)? == [200, 200]);
    // One token comes every half second.
    e2e::lab::eventually("tokens come again", Duration::from_secs(5), || {
        mesh.seen("client", to, &by("first")).map(drop)
    })
}

#[test]
fn local_rate_limits_hold_for_the_rule_that_they_name() -> Result<()> {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: parts\n  namespace: \
                 shop\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: echo}]\n  rules:\n  - name: dear\n    \
                 matches: [{path: {value: /dear}}]\n    backendRefs: [{name: echo, port: 80}]\n  - backendRefs: \
                 [{name: echo, port: 80}]\n---\n";
    let few = limits("  - {route: dear, requests: 1, period: 60s}\n");
    let (mesh, to) = shop_with(&[route, &few].concat())?;
    mesh.soon_answers("client", to, &Ask::get("/dear"), 429)?;
    // The client's node keeps one bucket for all, as the limit tells nobody apart.
    mesh.soon_answers("stranger", to, &Ask::get("/dear"), 429)?;
    let cheap = answers(&mesh, to, &Ask::get("/cheap"), 20)?;
    ensure!(cheap.iter().all(|answer| answer.status == 200), "{cheap:?}");
    Ok(())
}
