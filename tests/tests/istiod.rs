//! Layer 4 out of a real istiod, as a ztunnel would have it, beside a real API server.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::{Cluster, PAGE};
use e2e::kubernetes::{Definitions, Istiod, istioctl};
use e2e::lab::{Agent, eventually};
use serde_json::Value;

/// How soon a change has to be in force: istiod hands changes on after a tenth of a second, if two cores let it.
const SOON: Duration = Duration::from_secs(10);
/// How soon an agent has to find an istiod back that was away: the longest wait of one that failed.
const BACK: Duration = Duration::from_secs(30);

/// Bookinfo in an API server, and an istiod that follows it; no agents yet.
fn registered() -> Result<(Cluster, Istiod)> {
    let mut cluster = Cluster::build()?;
    cluster.register(&Definitions::ALL)?;
    let istiod = cluster.start_istiod()?;
    Ok((cluster, istiod))
}

/// Agents from now on take layer 4 from istiod.
fn follow(cluster: &mut Cluster, istiod: &Istiod) {
    let options = istiod.agent_options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    cluster.lab.agent_options(&options);
}

/// Bookinfo in service, layer 4 from istiod.
fn running() -> Result<(Cluster, Istiod)> {
    let (mut cluster, istiod) = registered()?;
    follow(&mut cluster, &istiod);
    cluster.lab.start()?;
    cluster.start_bookinfo()?;
    eventually("pages", SOON, || cluster.fetch("curl", PAGE).map(drop))?;
    Ok((cluster, istiod))
}

/// What an agent says of istiod.
fn condition(agent: &Agent) -> Result<Value> {
    let answer = agent.get(15000, "/status")?;
    let status: Value = serde_json::from_slice(&answer.body).context("/status is not JSON")?;
    Ok(status["istiod"].clone())
}

/// What the tables of a node's agent show of Bookinfo and its clients.
fn tables(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for table in ["services", "workloads", "policies"] {
        let text = cluster.culvert(node, &["get", table])?;
        let rows = text.lines().filter(|line| !line.contains(" kubernetes "));
        lines.extend(rows.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(lines)
}

fn is_denied(cluster: &Cluster, pod: &str) -> Result<()> {
    eventually(&format!("{pod} is refused"), SOON, || {
        ensure!(
            cluster.fetch(pod, PAGE).is_err(),
            "{pod} still sees the page"
        );
        Ok(())
    })
}

#[test]
fn istiod_tells_what_the_api_says() -> Result<()> {
    let (mut cluster, istiod) = registered()?;
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    cluster.lab.start()?;
    let compiled = tables(&cluster, "a")?;
    ensure!(compiled.len() > 20, "{compiled:#?}");
    for node in ["a", "b"] {
        cluster.lab.take_agent(node)?.stop()?;
    }
    follow(&mut cluster, &istiod);
    cluster.lab.start()?;
    eventually("both show the same", SOON, || {
        let announced = tables(&cluster, "a")?;
        let less = |one: &[String], other: &[String]| -> Vec<String> {
            let lacking = one.iter().filter(|line| !other.contains(line));
            lacking.cloned().collect()
        };
        let missing = less(&compiled, &announced);
        let new = less(&announced, &compiled);
        ensure!(
            missing.is_empty() && new.is_empty(),
            "missing {missing:#?}\nnew {new:#?}"
        );
        Ok(())
    })
}

#[test]
fn traffic_flows_and_a_policy_denies_at_once() -> Result<()> {
    let (mut cluster, _istiod) = running()?;
    for node in ["a", "b"] {
        let condition = condition(cluster.lab.agent(node)?)?;
        ensure!(condition["connected"] == true, "{condition}");
        ensure!(condition["refused"] == serde_json::json!([]), "{condition}");
    }
    cluster.fetch("visitor", PAGE)?;
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    is_denied(&cluster, "visitor")?;
    cluster.fetch("curl", PAGE).context("curl may")?;
    cluster.kubectl("delete -n bookinfo authorizationpolicy productpage-viewer")?;
    eventually("the visitor sees the page again", SOON, || {
        cluster.fetch("visitor", PAGE).map(drop)
    })
}

#[test]
fn an_outage_of_istiod_changes_nothing() -> Result<()> {
    let (mut cluster, mut istiod) = running()?;
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    is_denied(&cluster, "visitor")?;
    let load = cluster.load("curl", PAGE)?;
    istiod.stop()?;
    for node in ["a", "b"] {
        let agent = cluster.lab.agent(node)?;
        eventually(
            &format!("agent {node} says that istiod is away"),
            SOON,
            || {
                let condition = condition(agent)?;
                ensure!(condition["connected"] == false, "{condition}");
                let metric = agent.metric("culvert_istiod_connected", &[])?;
                ensure!(metric < 0.5, "the metric says {metric}");
                Ok(())
            },
        )?;
    }
    let said = cluster.culvert("a", &["status"])?;
    for part in [
        "state     ready",
        "is not connected",
        "the last state stays in force",
    ] {
        ensure!(said.contains(part), "no `{part}` in {said}");
    }
    cluster
        .fetch("curl", PAGE)
        .context("while istiod is away")?;
    ensure!(
        cluster.fetch("visitor", PAGE).is_err(),
        "an outage lets the visitor in"
    );
    // What is deleted meanwhile is gone when istiod is back, and not before.
    cluster.kubectl("delete -n bookinfo authorizationpolicy productpage-viewer")?;
    ensure!(
        cluster.fetch("visitor", PAGE).is_err(),
        "the policy is gone before istiod said so"
    );

    istiod.start_again()?;
    for node in ["a", "b"] {
        let agent = cluster.lab.agent(node)?;
        eventually(&format!("agent {node} follows again"), BACK, || {
            let condition = condition(agent)?;
            ensure!(condition["connected"] == true, "{condition}");
            Ok(())
        })?;
    }
    eventually("what was deleted meanwhile is gone", BACK, || {
        cluster.fetch("visitor", PAGE).map(drop)
    })?;
    cluster.apply(&policy)?;
    is_denied(&cluster, "visitor")?;
    let tally = load.end()?;
    ensure!(tally.failed == 0 && tally.total() > 10, "{tally}");
    Ok(())
}

#[test]
fn istioctl_reads_an_agent_as_it_reads_ztunnel() -> Result<()> {
    let (mut cluster, _istiod) = running()?;
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    is_denied(&cluster, "visitor")?;
    let dump = cluster.lab.directory().join("config_dump.json");
    let config = cluster.lab.agent("a")?.config_dump()?;
    std::fs::write(&dump, config.to_string())?;
    let kubeconfig = cluster.api()?.admin_kubeconfig();
    let table = |what: &str| -> Result<Vec<String>> {
        let file = dump.to_string_lossy();
        let text = istioctl(&kubeconfig, &["ztunnel-config", what, "--file", &file])?;
        let rows = text.lines();
        Ok(rows
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect())
    };
    for (what, rows) in [
        (
            "services",
            &[
                "NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS",
                "bookinfo details 172.30.16.130 None 1/1",
                "bookinfo productpage 172.30.131.128 None 1/1",
                "bookinfo reviews 172.30.48.169 None 3/3",
                "bookinfo reviews-v3 172.30.166.227 None 1/1",
            ][..],
        ),
        (
            "policies",
            &["bookinfo productpage-viewer Allow WorkloadSelector"],
        ),
    ] {
        let found = table(what)?;
        for row in rows {
            ensure!(
                found.iter().any(|line| line == row),
                "no `{row}` in {found:#?}"
            );
        }
    }
    let workloads = table("workloads")?;
    for (name, node) in [("productpage-v1", "a"), ("reviews-v2", "b"), ("curl", "b")] {
        let pod = cluster.pod(name)?;
        let row = format!(
            "{} {name} {},{} {node} None HBONE",
            pod.spec().namespace,
            pod.v4(),
            pod.v6()
        );
        ensure!(workloads.contains(&row), "no `{row}` in {workloads:#?}");
    }
    let certificates = table("certificates")?;
    let productpage =
        "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage Leaf Available true";
    let has = certificates
        .iter()
        .any(|line| line.starts_with(productpage));
    ensure!(has, "no `{productpage}` in {certificates:#?}");
    Ok(())
}
