//! What the demo shows, step by step; a step that does not hold ends it.

mod layer7;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::bookinfo::cluster::{Cluster, PAGE};
use e2e::lab::{Pod, eventually};

use crate::screen::{check, note, step};

/// Texts of the story that nobody on the wire may read: request, page, answers of the inner services.
const SECRETS: [&str; 5] = [
    "GET /productpage",
    "Comedy of Errors",
    "GET /reviews/",
    "Quarto House",
    "Reviewer1",
];

/// How soon a changed manifest has to be in force.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// Enough pages for round-robin or chance to show each of three versions.
const PAGES: usize = 60;

/// The whole story, up to clean-up.
pub(crate) fn tell(cluster: &mut Cluster) -> Result<()> {
    enrol(cluster)?;
    serve(cluster)?;
    encrypted(cluster)?;
    identities(cluster)?;
    policy(cluster)?;
    layer7::tell(cluster)
}

fn enrol(cluster: &mut Cluster) -> Result<()> {
    step("two nodes, eight pods of the mesh, one agent per node");
    for pod in cluster.lab.pods() {
        let spec = pod.spec();
        note(&format!(
            "node {}  {:<9} {:<15} {:<11} {}",
            spec.node,
            spec.namespace,
            spec.name,
            pod.v4(),
            pod.v6()
        ));
    }
    check("both agents have armed every pod of their node", || {
        cluster.lab.start()?;
        Ok(String::new())
    })?;
    check(
        "every pod is enrolled and known by its identity on both nodes",
        || {
            for node in ["a", "b"] {
                let dump = cluster.lab.agent(node)?.config_dump()?;
                let workloads = dump["workloads"]
                    .as_array()
                    .context("no workloads in /config_dump")?;
                for pod in cluster.lab.pods().iter().filter(|pod| pod.spec().captured) {
                    let spec = pod.spec();
                    let known = workloads
                        .iter()
                        .find(|workload| workload["name"] == spec.name.as_str());
                    let known = known
                        .with_context(|| format!("node {node} does not know {}", spec.name))?;
                    ensure!(
                        known["protocol"] == "HBONE",
                        "{} is not captured: {known}",
                        spec.name
                    );
                    ensure!(
                        known["serviceAccount"] == spec.service_account.as_str(),
                        "{known}"
                    );
                }
            }
            let identities: Vec<String> = cluster
                .lab
                .pods()
                .iter()
                .filter(|pod| pod.spec().captured)
                .map(Pod::identity)
                .collect();
            Ok(identities.join("\n"))
        },
    )
}

fn serve(cluster: &mut Cluster) -> Result<()> {
    step("Bookinfo");
    cluster.start_bookinfo()?;
    check(
        "a page is fetched through the mesh, by name, from the other node",
        || {
            // Manifests and DNS are there since the agents are ready, so this is no matter of trying twice.
            let page = cluster.fetch("curl", PAGE)?;
            ensure!(
                page.contains("<h1>The Comedy of Errors</h1>"),
                "this is not the page:\n{page}"
            );
            ensure!(
                page.contains("Quarto House"),
                "the page lacks the book's details:\n{page}"
            );
            ensure!(
                page.contains("Reviewer1"),
                "the page lacks reviews:\n{page}"
            );
            Ok(page
                .lines()
                .filter(|line| line.contains("<h1>") || line.contains("stars"))
                .collect::<Vec<_>>()
                .join("\n"))
        },
    )
}

fn encrypted(cluster: &Cluster) -> Result<()> {
    step("the link between the nodes, as a packet capture sees it");
    let sniffer = cluster.lab.sniff()?;
    let mut stars = BTreeMap::from([("no stars", 0), ("black stars", 0), ("red stars", 0)]);
    check("all three versions of reviews are seen", || {
        for _ in 0..PAGES {
            let page = cluster.fetch("curl", PAGE)?;
            let kind = match (page.contains("color:black"), page.contains("color:red")) {
                (false, false) => "no stars",
                (true, _) => "black stars",
                (_, true) => "red stars",
            };
            *stars.entry(kind).or_insert(0) += 1;
            if stars.values().all(|count| *count > 0) {
                return Ok(format!("{stars:?}"));
            }
        }
        bail!("after {PAGES} pages: {stars:?}")
    })?;
    let traffic = sniffer.stop()?;
    check(
        "the link carried TLS records to port 15008 and none of the pages' text",
        || {
            for secret in SECRETS {
                ensure!(
                    !traffic.contains(secret.as_bytes()),
                    "`{secret}` crossed the link in the clear"
                );
            }
            let records = traffic.tls_records_to(15008);
            ensure!(records > 0, "no TLS record went to port 15008");
            let bytes: usize = traffic.flows().map(|(_, bytes)| bytes.len()).sum();
            let packets = traffic.packets();
            Ok(format!(
                "{packets} packets, {bytes} bytes, {records} TLS records to 15008; searched for {SECRETS:?}"
            ))
        },
    )?;
    check("no TCP but HBONE went between the nodes", || {
        let others: Vec<String> = traffic
            .flows()
            .filter(|(flow, bytes)| {
                flow.protocol == 6
                    && !bytes.is_empty()
                    && flow.source.1 != 15008
                    && flow.destination.1 != 15008
            })
            .map(|(flow, _)| format!("{flow:?}"))
            .collect();
        ensure!(others.is_empty(), "{}", others.join("\n"));
        Ok(String::new())
    })
}

fn identities(cluster: &Cluster) -> Result<()> {
    step("who spoke with whom, by certificate");
    let client = cluster.pod("curl")?.identity();
    let server = cluster.pod("productpage-v1")?.identity();
    for (node, end, direction) in [("b", "client", "outbound"), ("a", "server", "inbound")] {
        check(
            &format!("the {end}'s node saw both identities proven"),
            || {
                eventually("the access log", Duration::from_secs(5), || {
                    let log = cluster.lab.agent(node)?.log()?;
                    let line = log.lines().rev().find(|line| {
                        [client.as_str(), &server, direction, "connection complete"]
                            .iter()
                            .all(|word| line.contains(word))
                    });
                    Ok(line.context("no such line in the access log")?.to_owned())
                })
            },
        )?;
    }
    Ok(())
}

fn policy(cluster: &mut Cluster) -> Result<()> {
    step("an L4 AuthorizationPolicy, applied live");
    check("before it, anybody in the mesh may see the page", || {
        cluster.fetch("visitor", PAGE)?;
        Ok(String::new())
    })?;
    show_and_apply(cluster, "authorization-policy.yaml")?;
    check("within a second of it, the visitor is refused", || {
        eventually("visitor is refused", SOON, || {
            match cluster.fetch("visitor", PAGE) {
                Ok(_) => bail!("the visitor still sees the page"),
                Err(error) => Ok(format!("visitor: {error:#}")),
            }
        })
    })?;
    check("and curl still sees the page", || {
        cluster.fetch("curl", PAGE)?;
        Ok(String::new())
    })?;
    check(
        "the refusal names its policy in the access log of the server's node",
        || {
            eventually("the access log", Duration::from_secs(5), || {
                let log = cluster.lab.agent("a")?.log()?;
                let line = log
                    .lines()
                    .rev()
                    .find(|line| line.contains("error=") && line.contains("polic"));
                Ok(line.context("no such line in the access log")?.to_owned())
            })
        },
    )?;
    kubectl(
        cluster,
        "delete -n bookinfo AuthorizationPolicy productpage-viewer",
    )
}

/// Shows a file of `deploy/demo` and applies it.
pub(crate) fn show_and_apply(cluster: &mut Cluster, file: &str) -> Result<()> {
    let text = cluster.manifest(file)?;
    note(&format!("kubectl apply -f deploy/demo/{file}"));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        note(&format!("  {line}"));
    }
    cluster.apply(&text)
}

/// Shows a command and does what it says.
pub(crate) fn kubectl(cluster: &mut Cluster, words: &str) -> Result<()> {
    note(&format!("kubectl {words}"));
    cluster.kubectl(words)
}

/// Stops the agents and shows that they leave nothing behind.
pub(crate) fn clean_up(mut cluster: Cluster) -> Result<()> {
    layer7::clean_up(&mut cluster)?;
    step("the agents go");
    check(
        "`culvert stop --unenrol` takes every pod out of the mesh and leaves no rule of ours",
        || {
            for node in ["a", "b"] {
                let agent = cluster.lab.take_agent(node)?;
                let stopped = agent.command(&["stop", "--unenrol"])?;
                ensure!(
                    stopped.status.success(),
                    "{}",
                    String::from_utf8_lossy(&stopped.stderr)
                );
                agent.ended()?;
            }
            for pod in cluster.lab.pods() {
                for family in ["-4", "-6"] {
                    let rules = pod.netns().ip(&[family, "rule", "show"])?;
                    ensure!(
                        !rules.contains("fwmark"),
                        "{} still has\n{rules}",
                        pod.spec().name
                    );
                }
            }
            Ok(String::new())
        },
    )?;
    drop(cluster);
    step("every step was checked");
    Ok(())
}
