//! The seed from top to bottom: its manifests unchanged, its commands, and what it says that they do.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::{Cluster, PAGE, repository};
use e2e::kubernetes::Definitions;
use e2e::lab::eventually;
use e2e::seed::{self, Step};

/// How soon a changed manifest has to be in force.
const SOON: Duration = Duration::from_secs(3);
/// Services of the seed's table, with their endpoints.
const SERVICES: [(&str, &str, &str); 10] = [
    ("details", "172.30.16.130", "1/1"),
    ("details-v1", "172.30.27.112", "1/1"),
    ("productpage", "172.30.131.128", "1/1"),
    ("productpage-v1", "172.30.22.77", "1/1"),
    ("ratings", "172.30.52.59", "1/1"),
    ("ratings-v1", "172.30.196.247", "1/1"),
    ("reviews", "172.30.48.169", "3/3"),
    ("reviews-v1", "172.30.153.9", "1/1"),
    ("reviews-v2", "172.30.11.38", "1/1"),
    ("reviews-v3", "172.30.166.227", "1/1"),
];

/// The seed's own steps where its text is there, else the same ones from `deploy/demo`.
fn steps(cluster: &Cluster) -> Result<Vec<Step>> {
    if let Some(text) = seed::text(&repository()?)? {
        return Ok(seed::steps(&text));
    }
    let apply = |file: &str| Ok(Step::Apply(cluster.manifest(file)?));
    let kubectl = |words: &str| {
        let words = words.split_whitespace().map(str::to_owned);
        Ok(Step::Kubectl(words.collect()))
    };
    [
        apply("waypoint.yaml"),
        kubectl("label ns bookinfo istio.io/use-waypoint=waypoint"),
        apply("waypoint-foo.yaml"),
        kubectl("label ns bookinfo istio.io/use-waypoint-namespace=foo"),
        kubectl("label ns bookinfo istio.io/use-waypoint=waypoint-foo"),
        apply("http-route.yaml"),
        apply("authorization-policy-waypoint.yaml"),
        kubectl("delete -n bookinfo AuthorizationPolicy productpage-waypoint"),
        kubectl("delete -n bookinfo HTTPRoute reviews"),
        kubectl("delete -n bookinfo Gateway waypoint"),
        kubectl("label namespace bookinfo istio.io/dataplane-mode-"),
    ]
    .into_iter()
    .collect()
}

/// What the seed's reader sees after a step: the part of the step that tells which one it is, and the check.
type Claim = (&'static str, fn(&mut Cluster) -> Result<()>);

/// In the order of the seed.
const CLAIMS: [Claim; 7] = [
    ("istio.io/use-waypoint=waypoint", |cluster| {
        bound(cluster, "waypoint")
    }),
    ("istio.io/use-waypoint=waypoint-foo", |cluster| {
        bound(cluster, "waypoint-foo")?;
        cluster.fetch("curl", PAGE)?;
        // The seed shows this as an alternative and goes on without it.
        cluster.kubectl("label ns bookinfo istio.io/use-waypoint-namespace-")?;
        cluster.kubectl("label ns bookinfo istio.io/use-waypoint=waypoint")?;
        bound(cluster, "waypoint")
    }),
    ("kind: HTTPRoute", |cluster| splits(cluster)),
    ("kind: AuthorizationPolicy", |cluster| authorizes(cluster)),
    ("AuthorizationPolicy productpage-waypoint", |cluster| {
        eventually("the visitor sees the page again", SOON, || {
            cluster.fetch("visitor", PAGE).map(drop)
        })
    }),
    ("HTTPRoute reviews", |cluster| {
        eventually("all three versions take part again", SOON, || {
            let tally = cluster.count("curl", PAGE, 30)?;
            ensure!(tally.failed == 0 && tally.red > 0, "{tally}");
            Ok(())
        })
    }),
    ("istio.io/dataplane-mode-", |cluster| {
        eventually("pages outside the mesh", SOON, || {
            cluster.fetch("curl", PAGE).map(drop)
        })
    }),
];

#[test]
fn the_seed_works_from_top_to_bottom() -> Result<()> {
    works(Cluster::build()?)
}

/// With the real `kubectl`, a real API server, and agents that have their own account there.
#[test]
fn the_seed_works_from_top_to_bottom_in_a_real_cluster() -> Result<()> {
    let mut cluster = Cluster::build()?;
    cluster.register(&Definitions::ALL)?;
    works(cluster)
}

fn works(mut cluster: Cluster) -> Result<()> {
    cluster.lab.start()?;
    cluster.start_bookinfo()?;
    let mut claims = CLAIMS.iter().peekable();
    for step in steps(&cluster)? {
        let text = match &step {
            Step::Apply(text) => {
                cluster.apply(text)?;
                text.clone()
            }
            Step::Kubectl(words) => {
                let words = words.join(" ");
                cluster.kubectl(&words)?;
                words
            }
        };
        let names = |text: &str, mark: &str| text.lines().any(|line| line.ends_with(mark));
        if let Some((mark, claim)) = claims.next_if(|(mark, _)| names(&text, mark)) {
            claim(&mut cluster).with_context(|| format!("after `{mark}`"))?;
        }
    }
    let left: Vec<&str> = claims.map(|(mark, _)| *mark).collect();
    ensure!(left.is_empty(), "the seed never came to {left:?}");
    Ok(())
}

/// The table shows every service with its address, this waypoint and its endpoints.
fn bound(cluster: &Cluster, waypoint: &str) -> Result<()> {
    eventually(&format!("bound to {waypoint}"), SOON, || {
        let table = cluster.culvert("a", &["get", "services"])?;
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let head = rows.first().context("an empty table")?.join(" ");
        ensure!(
            head == "NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS",
            "{head}"
        );
        for (service, address, endpoints) in SERVICES {
            let row = ["bookinfo", service, address, waypoint, endpoints];
            ensure!(
                rows.iter().any(|found| **found == row),
                "no {row:?} in\n{table}"
            );
        }
        Ok(())
    })
}

/// "Send 90% of requests to reviews v1 and 10% to reviews v2 … v1 don't have any stars, … v2 have black stars".
fn splits(cluster: &Cluster) -> Result<()> {
    eventually("no red stars", SOON, || {
        let tally = cluster.count("curl", PAGE, 20)?;
        ensure!(tally.red == 0 && tally.failed == 0, "{tally}");
        Ok(())
    })?;
    let tally = cluster.count("curl", PAGE, 1000)?;
    ensure!(tally.failed == 0 && tally.red == 0, "{tally}");
    // Five standard deviations of 1,000 draws: 5 · √(1000 · 0.1 · 0.9) = 47.
    ensure!((53..=147).contains(&tally.black), "{tally}");
    Ok(())
}

/// "Allow a curl service to send GET requests to the productpage service, but perform no other operations".
fn authorizes(cluster: &Cluster) -> Result<()> {
    let refused = |answer: Result<String>| {
        let error = answer.err().context("it is answered")?;
        let text = format!("{error:#}");
        ensure!(
            text.contains("403") && text.contains("RBAC: access denied"),
            "{text}"
        );
        Ok(())
    };
    eventually("another identity is refused", SOON, || {
        refused(cluster.fetch("visitor", PAGE))
    })?;
    refused(cluster.post("curl", PAGE)).context("curl's POST")?;
    cluster.fetch("curl", PAGE).context("curl's GET")?;
    Ok(())
}
