//! The mesh out of a real API server: everything applied with the real `kubectl`, the agents as their own service
//! account. What the seed says works there, too, is in `seed.rs`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::{Cluster, PAGE, repository};
use e2e::kubernetes::Definitions;
use e2e::lab::{Agent, eventually};
use serde_json::Value;

/// How soon a change has to be in force.
const SOON: Duration = Duration::from_secs(5);
/// How soon an agent has to find a server back that was away, or a right that it had not: the longest wait of one that
/// failed, and time to list.
const BACK: Duration = Duration::from_secs(25);

/// Bookinfo in an API server, with agents that follow it, in service.
fn running(definitions: &[Definitions]) -> Result<Cluster> {
    let mut cluster = Cluster::build()?;
    // Longer than an agent is held in these scenarios: a stopped agent renews no heartbeat.
    cluster.lab.agent_options(&["--lease", "120"]);
    cluster.register(definitions)?;
    cluster.lab.start()?;
    cluster.start_bookinfo()?;
    eventually("pages", SOON, || cluster.fetch("curl", PAGE).map(drop))?;
    Ok(cluster)
}

/// What an agent says of the cluster that it follows.
fn condition(agent: &Agent) -> Result<Value> {
    let answer = agent.get(15000, "/status")?;
    let status: Value = serde_json::from_slice(&answer.body).context("/status is not JSON")?;
    Ok(status["cluster"].clone())
}

/// `culvert status` of a node, ready or not.
fn status(cluster: &Cluster, node: &str) -> Result<String> {
    let output = cluster.lab.node(node)?.culvert(&["status"])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn follows_again(agent: &Agent) -> Result<()> {
    eventually(
        &format!("agent {} follows again", agent.node()),
        BACK,
        || {
            let condition = condition(agent)?;
            let is_well =
                condition["reachable"] == true && condition["troubles"] == serde_json::json!([]);
            ensure!(is_well, "{condition}");
            Ok(())
        },
    )
}

/// What the tables of a node's agent show, less the API server's own service, which no directory has.
fn tables(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for table in ["services", "workloads", "policies"] {
        let text = cluster.culvert(node, &["get", table, "-o", "wide"])?;
        let rows = text
            .lines()
            .filter(|line| !line.contains(" kubernetes ") && !line.starts_with("culvert-system "));
        lines.extend(rows.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(lines)
}

#[test]
fn the_cluster_is_the_directory() -> Result<()> {
    let mut cluster = Cluster::build()?;
    for file in [
        "waypoint.yaml",
        "http-route.yaml",
        "authorization-policy-waypoint.yaml",
    ] {
        let text = cluster.manifest(file)?;
        cluster.apply(&text)?;
    }
    cluster.kubectl("label ns bookinfo istio.io/use-waypoint=waypoint")?;
    cluster.lab.start()?;
    let from_directory = tables(&cluster, "a")?;
    ensure!(from_directory.len() > 20, "{from_directory:#?}");
    for node in ["a", "b"] {
        cluster.lab.take_agent(node)?.stop()?;
    }
    cluster.register(&Definitions::ALL)?;
    cluster.lab.start()?;
    eventually("both sources show the same", SOON, || {
        let from_cluster = tables(&cluster, "a")?;
        let less = |one: &[String], other: &[String]| -> Vec<String> {
            one.iter()
                .filter(|line| !other.contains(line))
                .cloned()
                .collect()
        };
        let missing = less(&from_directory, &from_cluster);
        let new = less(&from_cluster, &from_directory);
        ensure!(
            missing.is_empty() && new.is_empty(),
            "missing {missing:#?}\nnew {new:#?}"
        );
        Ok(())
    })
}

#[test]
fn an_outage_of_the_api_server_changes_nothing() -> Result<()> {
    let mut cluster = running(&Definitions::ALL)?;
    let load = cluster.load("curl", PAGE)?;
    cluster.api()?.stop()?;
    for node in ["a", "b"] {
        let agent = cluster.lab.agent(node)?;
        eventually(
            &format!("agent {node} says that the server is away"),
            SOON,
            || {
                let condition = condition(agent)?;
                ensure!(condition["reachable"] == false, "{condition}");
                let metric = agent.metric("culvert_kubernetes_reachable", &[])?;
                ensure!(metric < 0.5, "the metric says {metric}");
                Ok(())
            },
        )?;
    }
    let said = status(&cluster, "a")?;
    for part in [
        "state     ready",
        "cannot be reached",
        "the API server cannot be reached: ",
        "the last state stays in force: ",
    ] {
        ensure!(said.contains(part), "no `{part}` in {said}");
    }
    cluster
        .fetch("curl", PAGE)
        .context("while the server is away")?;

    cluster.api()?.start_again()?;
    for node in ["a", "b"] {
        follows_again(cluster.lab.agent(node)?)?;
    }
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    eventually("a policy from after the outage is in force", SOON, || {
        ensure!(
            cluster.fetch("visitor", PAGE).is_err(),
            "the visitor still sees the page"
        );
        Ok(())
    })?;
    let tally = load.end()?;
    ensure!(tally.failed == 0 && tally.total() > 10, "{tally}");
    Ok(())
}

/// What the agent would go on from is forgotten: it lists anew, and what was deleted meanwhile goes.
#[test]
fn an_agent_that_slept_too_long_lists_anew() -> Result<()> {
    let mut cluster = running(&Definitions::ALL)?;
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    eventually("the policy is in force", SOON, || {
        ensure!(
            cluster.fetch("visitor", PAGE).is_err(),
            "the visitor sees the page"
        );
        Ok(())
    })?;
    // productpage is on node a, whose agent decides.
    cluster.lab.agent("a")?.pause()?;
    let api = cluster.api()?;
    api.kubectl(&[
        "delete",
        "authorizationpolicy",
        "-n",
        "bookinfo",
        "productpage-viewer",
    ])?;
    api.kubectl(&["annotate", "ns", "--all", "test/later=1"])?;
    api.stop()?;
    api.forget_history()?;
    api.start_again()?;
    cluster.lab.agent("a")?.go_on()?;
    eventually("the policy is gone", BACK, || {
        cluster.fetch("visitor", PAGE).map(drop)
    })?;
    follows_again(cluster.lab.agent("a")?)
}

#[test]
fn a_kind_is_followed_from_its_installation_to_its_removal() -> Result<()> {
    let mut cluster = running(&[Definitions::GatewayApi])?;
    let policies = "authorizationpolicies.security.istio.io";
    let is_missing = |cluster: &Cluster| -> Result<bool> {
        let condition = condition(cluster.lab.agent("a")?)?;
        let missing = condition["notInstalled"]
            .as_array()
            .context("no notInstalled")?;
        Ok(missing.iter().any(|one| one == policies))
    };
    ensure!(is_missing(&cluster)?, "{}", status(&cluster, "a")?);

    cluster.api()?.install(Definitions::Istio)?;
    let policy = cluster.manifest("authorization-policy.yaml")?;
    cluster.apply(&policy)?;
    // A server establishes a new kind when it gets to it, and all tests' servers share the machine.
    eventually("a policy of the new kind is in force", BACK, || {
        ensure!(
            cluster.fetch("visitor", PAGE).is_err(),
            "the visitor still sees the page"
        );
        Ok(())
    })?;
    cluster.fetch("curl", PAGE).context("curl may")?;
    ensure!(!is_missing(&cluster)?, "{}", status(&cluster, "a")?);

    cluster.kubectl(&format!("delete crd {policies}"))?;
    eventually("policies go with their kind", BACK, || {
        cluster.fetch("visitor", PAGE).map(drop)
    })?;
    eventually("and it is waited for again", BACK, || {
        ensure!(is_missing(&cluster)?, "{}", status(&cluster, "a")?);
        Ok(())
    })
}

#[test]
fn what_the_agent_may_not_read_it_says_and_waits_for() -> Result<()> {
    let mut cluster = Cluster::build()?;
    cluster.register(&Definitions::ALL)?;
    let whole = std::fs::read_to_string(repository()?.join("deploy/base/rbac.yaml"))?;
    let rule = "  - apiGroups: [telemetry.istio.io]\n    resources: [telemetries]\n    verbs: [list, watch]\n";
    ensure!(whole.contains(rule), "the role has another shape");
    cluster.apply(&whole.replace(rule, ""))?;
    cluster.lab.start_agent("a")?;
    eventually("the agent says what it may not read", BACK, || {
        let said = status(&cluster, "a")?;
        for part in [
            "the API server does not let the agent (telemetries.telemetry.istio.io is forbidden: User \
             \"system:serviceaccount:culvert-system:culvert-agent\" cannot",
            "grant its account what deploy/base/rbac.yaml lists",
            "nothing is in force before: telemetries.telemetry.istio.io",
            "the first list of telemetries.telemetry.istio.io",
        ] {
            ensure!(said.contains(part), "no `{part}` in {said}");
        }
        Ok(())
    })?;
    let ready = cluster.lab.agent("a")?.get(15021, "/healthz/ready")?;
    ensure!(ready.status != 200, "half a mesh is not ready");
    cluster.api()?.deploy()?;
    cluster.lab.agent("a")?.wait_ready()
}

/// A DestinationRule whose Secret nobody lets the agent read yet.
const SEALED: &str = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: \
    bookinfo}\nspec: {host: reviews, trafficPolicy: {tls: {mode: SIMPLE, credentialName: ca}}}\n";

#[test]
fn secrets_that_rules_name_are_read_where_a_role_binding_lets_the_agent() -> Result<()> {
    let mut cluster = running(&Definitions::ALL)?;
    let authority = e2e::tls::Authority::new("bookinfo")?;
    let secret = authority.secret("ca", None)?;
    cluster.apply(&secret.replace("namespace: shop", "namespace: bookinfo"))?;
    cluster.apply(SEALED)?;
    let missing = "names Secret bookinfo/ca, which is not there";
    eventually("the agent says what it may not read", BACK, || {
        let said = status(&cluster, "a")?;
        ensure!(
            said.contains("secrets") && said.contains("cannot"),
            "{said}"
        );
        ensure!(said.contains(missing), "{said}");
        Ok(())
    })?;
    // Whoever is not asked about TLS does not notice.
    let ready = cluster.lab.agent("a")?.get(15021, "/healthz/ready")?;
    ensure!(ready.status == 200, "the agent waits for a Secret");
    cluster.kubectl(
        "create rolebinding credentials -n bookinfo --clusterrole=culvert-agent-credentials \
         --serviceaccount=culvert-system:culvert-agent",
    )?;
    eventually("the Secret is read", BACK, || {
        let said = status(&cluster, "a")?;
        ensure!(!said.contains(missing), "{said}");
        Ok(())
    })?;
    follows_again(cluster.lab.agent("a")?)
}
