//! What the accounts of agents and controllers may do in a cluster, as a real API server says.

use anyhow::{Context as _, Result, ensure};
use e2e::kubernetes::ApiServer;
use e2e::shop::server;
use serde_json::{Value, json};

/// `verb group/resource[/subresource] namespace [name]`, where a hyphen stands for all namespaces, and whether it is granted.
type Right = (&'static str, bool);

const CONTROLLERS: &[Right] = &[
    ("patch /services/status shop", true),
    (
        "patch gateway.networking.k8s.io/httproutes/status shop",
        true,
    ),
    (
        "patch gateway.networking.k8s.io/backendtlspolicies/status shop",
        true,
    ),
    ("create events.k8s.io/events shop", true),
    ("list /pods -", true),
    ("watch networking.istio.io/envoyfilters -", true),
    (
        "update coordination.k8s.io/leases culvert-system culvert-controller",
        true,
    ),
    (
        "update coordination.k8s.io/leases culvert-system other",
        false,
    ),
    (
        "update coordination.k8s.io/leases kube-system culvert-controller",
        false,
    ),
    ("patch /services shop", false),
    ("update /services/status shop", false),
    ("patch gateway.networking.k8s.io/httproutes shop", false),
    ("delete gateway.networking.k8s.io/gatewayclasses -", false),
    // The authority, and nothing else that is secret.
    ("create authentication.k8s.io/tokenreviews -", true),
    ("get /secrets culvert-system culvert-ca", true),
    ("update /secrets culvert-system culvert-ca", true),
    ("delete /secrets culvert-system culvert-ca", false),
    ("get /secrets culvert-system other", false),
    ("get /secrets shop culvert-ca", false),
    ("create /secrets shop", false),
    (
        "update /configmaps culvert-system culvert-ca-root-cert",
        true,
    ),
    ("update /configmaps culvert-system other", false),
    ("list /secrets -", false),
    ("list /secrets culvert-system", false),
    // For their taints.
    ("patch /nodes -", true),
    ("update /nodes -", false),
    ("patch /nodes/status -", false),
    ("delete /nodes -", false),
    ("watch /secrets shop", false),
    ("get /configmaps shop other", false),
    ("create /pods shop", false),
    ("create /pods/exec shop", false),
    ("create /serviceaccounts/token culvert-system", false),
    ("escalate rbac.authorization.k8s.io/clusterroles -", false),
];

const AGENTS: &[Right] = &[
    ("list /pods -", true),
    ("watch gateway.networking.k8s.io/httproutes -", true),
    ("watch /configmaps istio-system istio", true),
    ("watch networking.istio.io/envoyfilters -", false),
    ("get /pods shop", false),
    ("patch /services/status shop", false),
    ("patch /pods/status shop", false),
    ("patch /nodes -", false),
    ("get /secrets culvert-system culvert-ca", false),
    ("list /secrets -", false),
    ("get /configmaps culvert-system culvert-ca-root-cert", false),
    (
        "update /configmaps culvert-system culvert-ca-root-cert",
        false,
    ),
    ("create authentication.k8s.io/tokenreviews -", false),
    ("create /serviceaccounts/token culvert-system", false),
    ("get /nodes -", false),
    ("create events.k8s.io/events shop", false),
    (
        "update coordination.k8s.io/leases culvert-system culvert-controller",
        false,
    ),
    ("create /serviceaccounts/token shop", false),
];

/// The server's own answer about an account.
fn may(api: &ApiServer, account: &str, right: &str) -> Result<bool> {
    let words: Vec<&str> = right.split_whitespace().collect();
    let (verb, namespace) = (words[0], words[2]);
    let mut resource = words[1].split('/');
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:culvert-system:{account}"),
            "groups": ["system:serviceaccounts", "system:serviceaccounts:culvert-system", "system:authenticated"],
            "resourceAttributes": {
                "verb": verb,
                "group": resource.next(),
                "resource": resource.next(),
                "subresource": resource.next().unwrap_or_default(),
                "namespace": namespace.trim_matches('-'),
                "name": words.get(3).copied().unwrap_or_default(),
            },
        },
    });
    let answer = api.kubectl_fed(&["create", "-f", "-", "-o", "json"], &review.to_string())?;
    let answer: Value = serde_json::from_str(&answer)?;
    answer["status"]["allowed"].as_bool().context("no answer")
}

/// The accounts may do what the scenarios need that run as them, and no more.
#[test]
fn the_controllers_account_may_do_little() -> Result<()> {
    let (api, _account, _lab) = server()?;
    for (account, rights) in [
        ("culvert-controller", CONTROLLERS),
        ("culvert-agent", AGENTS),
    ] {
        for (right, expected) in rights {
            let granted = may(&api, account, right)?;
            ensure!(granted == *expected, "{account}: {right}: {granted}");
        }
    }
    Ok(())
}
