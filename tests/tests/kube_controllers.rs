//! Beside Kubernetes' own controllers, which write EndpointSlices for every service, make the pods of a `DaemonSet` and
//! a Deployment, and delete what is in a namespace that goes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::{Cluster, PAGE};
use e2e::kubernetes::{ApiServer, Controllers, Definitions};
use e2e::lab::{Lab, eventually};
use serde_json::Value;

/// How long they may take until they have looked at everything: they wait for their own caches first, and all tests'
/// servers share the machine.
const SETTLED: Duration = Duration::from_secs(60);
/// How soon what they have written has to be in force.
const SOON: Duration = Duration::from_secs(5);

/// What a list of objects in the API holds.
fn items(api: &ApiServer, words: &[&str]) -> Result<Vec<Value>> {
    let text = api.kubectl(&[words, &["-o", "json"]].concat())?;
    let list: Value = serde_json::from_str(&text).context("kubectl does not print JSON")?;
    Ok(list["items"].as_array().context("no list")?.clone())
}

/// How many endpoints of a service Kubernetes' slices say are ready, and how many there are.
fn sliced(api: &ApiServer, service: &str) -> Result<(usize, usize)> {
    let of_service = format!("kubernetes.io/service-name={service}");
    let words = ["get", "endpointslices", "-n", "bookinfo", "-l", &of_service];
    let slices = items(api, &words)?;
    let endpoints = slices
        .iter()
        .filter_map(|slice| slice["endpoints"].as_array());
    let ready: Vec<bool> = endpoints
        .flatten()
        .map(|endpoint| endpoint["conditions"]["ready"] == true)
        .collect();
    Ok((ready.iter().filter(|ready| **ready).count(), ready.len()))
}

/// What an agent's table says of the same: `2/3`.
fn counted(cluster: &Cluster, service: &str) -> Result<String> {
    let table = cluster.culvert("a", &["get", "services"])?;
    let row = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|row| row.first() == Some(&"bookinfo") && row.get(1) == Some(&service));
    let row = row.with_context(|| format!("no {service} in\n{table}"))?;
    row.last()
        .map(|&last| last.to_owned())
        .context("an empty row")
}

#[test]
fn endpoints_that_kubernetes_slices_too_are_counted_once() -> Result<()> {
    let mut cluster = Cluster::build()?;
    cluster.register(&Definitions::ALL)?;
    cluster.lab.start()?;
    cluster.start_bookinfo()?;
    eventually("pages", SOON, || cluster.fetch("curl", PAGE).map(drop))?;
    ensure!(counted(&cluster, "reviews")? == "3/3", "before any slice");

    let load = cluster.load("curl", PAGE)?;
    let mut controllers = Controllers::beside(cluster.api()?)?;
    let api = cluster.api()?;
    let written = eventually("Kubernetes has sliced", SETTLED, || {
        let found = sliced(api, "reviews")?;
        ensure!(found == (3, 3), "{found:?}");
        Ok(())
    });
    controllers.explain(written)?;
    ensure!(counted(&cluster, "reviews")? == "3/3", "with slices");

    // One of them fails its probe.
    let pod = cluster.pod("reviews-v3")?;
    let manifest = pod.manifest_as(true, false);
    let api = cluster.api()?;
    api.apply(&manifest)?;
    let written = eventually("a slice says so", SETTLED, || {
        let found = sliced(api, "reviews")?;
        ensure!(found == (2, 3), "{found:?}");
        Ok(())
    });
    controllers.explain(written)?;
    eventually("the agent says the same", SOON, || {
        let found = counted(&cluster, "reviews")?;
        ensure!(found == "2/3", "{found}");
        Ok(())
    })?;
    let tally = cluster.count("curl", PAGE, 30)?;
    ensure!(
        tally.failed == 0 && tally.red == 0,
        "v3 is not asked: {tally}"
    );
    let tally = load.end()?;
    ensure!(tally.failed == 0 && tally.total() > 10, "{tally}");
    Ok(())
}

#[test]
fn a_namespace_that_is_deleted_takes_its_waypoint_along() -> Result<()> {
    let mut cluster = Cluster::build()?;
    cluster.register(&Definitions::ALL)?;
    let mut controllers = Controllers::beside(cluster.api()?)?;
    let waypoint = cluster.manifest("waypoint-foo.yaml")?;
    cluster.apply(&waypoint)?;
    cluster.kubectl("label ns bookinfo istio.io/use-waypoint-namespace=foo")?;
    cluster.kubectl("label ns bookinfo istio.io/use-waypoint=waypoint-foo")?;
    cluster.lab.start()?;
    cluster.start_bookinfo()?;
    let bound = |cluster: &Cluster| -> Result<bool> {
        let table = cluster.culvert("a", &["get", "services"])?;
        Ok(table.contains(" waypoint-foo "))
    };
    eventually("the waypoint is there", SOON, || {
        ensure!(bound(&cluster)?, "no service has it");
        Ok(())
    })?;
    let load = cluster.load("curl", PAGE)?;
    let deleted = cluster.kubectl("delete namespace foo --timeout=60s");
    controllers.explain(deleted)?;
    eventually("the waypoint is gone", SOON, || {
        ensure!(!bound(&cluster)?, "services still have it");
        Ok(())
    })?;
    let tally = load.end()?;
    ensure!(tally.failed == 0 && tally.total() > 10, "{tally}");
    Ok(())
}

#[test]
fn every_node_has_an_agent_whatever_is_wrong_with_it() -> Result<()> {
    let lab = Lab::two_nodes()?;
    let api = ApiServer::on_node(&lab, "a")?;
    for node in ["a", "b"] {
        api.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n  labels:\n    kubernetes.io/os: linux\n"
        ))?;
    }
    let taint = [
        "taint",
        "node",
        "b",
        "culvert.dev/agent-not-ready=:NoExecute",
        "disk=full:NoSchedule",
    ];
    api.kubectl(&taint)?;
    api.deploy()?;
    let mut controllers = Controllers::beside(&api)?;
    let of = |name: &str| {
        let label = format!("app.kubernetes.io/name={name}");
        items(&api, &["get", "pods", "-n", "culvert-system", "-l", &label])
    };
    let made = eventually("a pod for each node", SETTLED, || {
        let agents = of("culvert-agent")?;
        let field = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0\
                     /matchFields/0/values/0";
        let nodes: BTreeSet<&str> = agents
            .iter()
            .filter_map(|pod| pod.pointer(field)?.as_str())
            .collect();
        ensure!(
            agents.len() == 2 && nodes == BTreeSet::from(["a", "b"]),
            "{nodes:?}"
        );
        let controllers = of("culvert-controller")?;
        ensure!(controllers.len() == 2, "{} controllers", controllers.len());
        Ok(())
    });
    controllers.explain(made)
}
