//! The seed's layer 7, from its first waypoint to its clean-up, which comes last.

use anyhow::{Context as _, Result, bail, ensure};
use e2e::bookinfo::cluster::{Cluster, PAGE};
use e2e::bookinfo::load::Tally;
use e2e::lab::eventually;

use super::{SOON, kubectl, show_and_apply};
use crate::screen::{check, note, step};

/// Services of the story, and how many endpoints each has.
const SERVICES: [(&str, &str); 10] = [
    ("details", "1/1"),
    ("details-v1", "1/1"),
    ("productpage", "1/1"),
    ("productpage-v1", "1/1"),
    ("ratings", "1/1"),
    ("ratings-v1", "1/1"),
    ("reviews", "3/3"),
    ("reviews-v1", "1/1"),
    ("reviews-v2", "1/1"),
    ("reviews-v3", "1/1"),
];

/// Pages that are counted, and how many of them a tenth is, give or take five standard deviations of such a draw:
/// 5 · √(1000 · 0.1 · 0.9) = 47.
const PAGES: usize = 1000;
const A_TENTH: std::ops::RangeInclusive<usize> = 53..=147;

pub(super) fn tell(cluster: &mut Cluster) -> Result<()> {
    waypoint(cluster)?;
    borrowed_waypoint(cluster)?;
    route(cluster)?;
    authorization(cluster)?;
    troubleshooting(cluster)
}

fn waypoint(cluster: &mut Cluster) -> Result<()> {
    step("a waypoint, for which no pod is started");
    show_and_apply(cluster, "waypoint.yaml")?;
    kubectl(cluster, "label ns bookinfo istio.io/use-waypoint=waypoint")?;
    check(
        "within a second every service of the namespace is bound to it",
        || eventually("bound", SOON, || bound(cluster, "waypoint")),
    )?;
    check(
        "a page's requests are seen one by one, whoever sent them",
        || {
            eventually("a metric of requests", SOON, || {
                cluster.fetch("curl", PAGE)?;
                let node = cluster.lab.agent("b")?;
                let labels = [
                    "reporter=\"waypoint\"",
                    "source_principal=\"spiffe://cluster.local/ns/default/sa/curl\"",
                    "destination_service_name=\"productpage\"",
                    "response_code=\"200\"",
                ];
                let count = node.metric("istio_requests_total", &labels)?;
                ensure!(count > 0.0, "no such request is counted");
                Ok(format!(
                    "istio_requests_total{{{}}} {count}",
                    labels.join(",")
                ))
            })
        },
    )
}

fn borrowed_waypoint(cluster: &mut Cluster) -> Result<()> {
    step("a waypoint that another namespace lends");
    show_and_apply(cluster, "waypoint-foo.yaml")?;
    for label in [
        "istio.io/use-waypoint-namespace=foo",
        "istio.io/use-waypoint=waypoint-foo",
    ] {
        kubectl(cluster, &format!("label ns bookinfo {label}"))?;
    }
    check("every service is bound to it, and pages are served", || {
        eventually("bound", SOON, || bound(cluster, "waypoint-foo"))?;
        cluster.fetch("curl", PAGE)?;
        Ok(String::new())
    })?;
    for label in [
        "istio.io/use-waypoint-namespace-",
        "istio.io/use-waypoint=waypoint",
    ] {
        kubectl(cluster, &format!("label ns bookinfo {label}"))?;
    }
    check("and back to its own", || {
        eventually("bound", SOON, || bound(cluster, "waypoint"))?;
        Ok(String::new())
    })
}

/// The table of services, if each is bound to this waypoint and has its endpoints.
fn bound(cluster: &Cluster, waypoint: &str) -> Result<String> {
    let table = cluster.culvert("a", &["get", "services"])?;
    for (service, endpoints) in SERVICES {
        let row = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|row| row.first() == Some(&"bookinfo") && row.get(1) == Some(&service));
        let row = row.with_context(|| format!("no {service} in\n{table}"))?;
        ensure!(row.get(3..) == Some(&[waypoint, endpoints]), "{row:?}");
    }
    Ok(table)
}

fn route(cluster: &mut Cluster) -> Result<()> {
    step("nine of ten requests to reviews go to version 1");
    show_and_apply(cluster, "http-route.yaml")?;
    check("within a second nobody sees red stars any more", || {
        eventually("no red stars", SOON, || {
            let tally = cluster.count("curl", PAGE, 20)?;
            ensure!(tally.red == 0 && tally.failed == 0, "{tally}");
            Ok(String::new())
        })
    })?;
    check(
        &format!("of {PAGES} pages, a tenth has black stars and none is missing"),
        || {
            let tally = cluster.count("curl", PAGE, PAGES)?;
            ensure!(tally.failed == 0 && tally.red == 0, "{tally}");
            ensure!(A_TENTH.contains(&tally.black), "{tally}");
            let Tally {
                no_stars, black, ..
            } = tally;
            Ok(format!(
                "{no_stars} without stars, {black} with black stars"
            ))
        },
    )
}

fn authorization(cluster: &mut Cluster) -> Result<()> {
    step("an L7 AuthorizationPolicy: curl may GET, nobody may do anything else");
    show_and_apply(cluster, "authorization-policy-waypoint.yaml")?;
    check(
        "within a second the visitor's GET is refused with 403",
        || {
            eventually("visitor is refused", SOON, || {
                refused(cluster.fetch("visitor", PAGE))
            })
        },
    )?;
    check("curl's POST is refused with 403", || {
        refused(cluster.post("curl", PAGE))
    })?;
    check("curl's GET shows the page", || {
        cluster.fetch("curl", PAGE)?;
        Ok(String::new())
    })
}

fn refused(answer: Result<String>) -> Result<String> {
    match answer {
        Ok(_) => bail!("it is answered"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(
                text.contains("403") && text.contains("RBAC: access denied"),
                "{text}"
            );
            Ok(text)
        }
    }
}

fn troubleshooting(cluster: &Cluster) -> Result<()> {
    step("which waypoint does what: culvert get services");
    check("the table has the columns that istioctl's has", || {
        let table = bound(cluster, "waypoint")?;
        let columns = [
            "NAMESPACE",
            "SERVICE",
            "NAME",
            "SERVICE",
            "VIP",
            "WAYPOINT",
            "ENDPOINTS",
        ];
        let head: Vec<&str> = table
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(head == columns, "its columns are {head:?}");
        Ok(table)
    })?;
    step("whether a node has what was applied: culvert status, in proxy-status' place");
    check("node a has taken everything over", || {
        let status = cluster.culvert("a", &["status"])?;
        ensure!(status.contains("state     ready"), "{status}");
        Ok(status)
    })?;
    step("what the waypoint does: culvert get, in proxy-config's place");
    for (table, expected) in [
        ("listeners", "productpage.bookinfo.svc.cluster.local"),
        ("routes", "HTTPRoute bookinfo/reviews"),
        ("backends", "bookinfo/reviews-v1.bookinfo.svc.cluster.local"),
    ] {
        check(&format!("{table} are listed as they are in force"), || {
            let rows = cluster.culvert("a", &["get", table, "-n", "bookinfo"])?;
            ensure!(rows.contains(expected), "no {expected} in\n{rows}");
            Ok(rows)
        })?;
    }
    Ok(())
}

pub(super) fn clean_up(cluster: &mut Cluster) -> Result<()> {
    step("clean-up while pages are being loaded");
    cluster.start_kube_proxy()?;
    let load = cluster.load("curl", PAGE)?;
    for command in [
        "delete -n bookinfo AuthorizationPolicy productpage-waypoint",
        "delete -n bookinfo HTTPRoute reviews",
        "delete -n bookinfo Gateway waypoint",
    ] {
        kubectl(cluster, command)?;
    }
    check(
        "the visitor sees the page again, and all three versions of reviews take part",
        || {
            eventually("as before", SOON, || {
                let tally = cluster.count("visitor", PAGE, 20)?;
                ensure!(tally.failed == 0 && tally.red > 0, "{tally}");
                Ok(tally.to_string())
            })
        },
    )?;
    // Outside of the mesh nobody speaks TLS, and to other pods than these it would not matter.
    kubectl(cluster, "delete -n bookinfo PeerAuthentication strict")?;
    kubectl(cluster, "label namespace bookinfo istio.io/use-waypoint-")?;
    kubectl(cluster, "label namespace bookinfo istio.io/dataplane-mode-")?;
    check("the namespace's pods leave the mesh", || {
        eventually("pods leave", SOON, || {
            for node in ["a", "b"] {
                let dump = cluster.lab.agent(node)?.config_dump()?;
                let workloads = dump["workloads"].as_array().context("no workloads")?;
                let inside = workloads.iter().filter(|workload| {
                    workload["namespace"] == "bookinfo" && workload["protocol"] == "HBONE"
                });
                ensure!(
                    inside.count() == 0,
                    "some are still in it, says node {node}"
                );
            }
            Ok(String::new())
        })
    })?;
    check(
        "they go on without it, as the cluster's own DNS and kube-proxy lead them",
        || {
            let tally = cluster.count("visitor", PAGE, 20)?;
            ensure!(tally.failed == 0 && tally.red > 0, "{tally}");
            Ok(tally.to_string())
        },
    )?;
    check("not one page was missed in all this", || {
        let tally = load.end()?;
        ensure!(tally.failed == 0, "{tally}");
        ensure!(tally.total() > 0, "none was loaded");
        Ok(format!("{} pages were loaded", tally.total()))
    })?;
    note("what the seed deletes after that is Kubernetes' own");
    Ok(())
}
