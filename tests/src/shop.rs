//! A namespace `shop` in a real API server, and what is said of its objects there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::kubernetes::{ApiServer, Definitions};
use crate::lab::{Lab, eventually};

/// Within this a change is told, even if one controller has to become another's successor first: its lease, the longest
/// wait of a candidate, and time to write.
pub const SUCCEEDED: Duration = Duration::from_secs(20);
/// A lease that does not make tests wait for long. Half a dozen seconds are enough for a busy machine to renew it.
pub const LEASE: [&str; 2] = ["--lease", "6"];
/// Whether a service has its waypoint.
pub const BOUND: &str = "istio.io/WaypointBound";

/// An API server with every kind and what is deployed, and nothing else.
///
/// # Errors
/// If the server does not come up or refuses something.
pub fn server() -> Result<(ApiServer, PathBuf, Lab)> {
    let lab = Lab::two_nodes()?;
    let api = ApiServer::on_node(&lab, "a")?;
    for group in Definitions::ALL {
        api.install(group)?;
    }
    api.deploy()?;
    let account = api.account_kubeconfig("culvert-system", "culvert-controller")?;
    Ok((api, account, lab))
}

/// A namespace with a waypoint and services that are bound to it.
///
/// # Errors
/// If it is refused.
pub fn shop(api: &ApiServer, services: &[&str]) -> Result<()> {
    let mut text = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: shop}\n\
         spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n",
    );
    for name in services {
        text.push_str(&service(name, "{}"));
    }
    api.apply(&text)
}

/// A Service of it.
#[must_use]
pub fn service(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {labels}}}\n\
         spec: {{ports: [{{name: http, port: 80}}]}}\n"
    )
}

/// An HTTPRoute of it that is attached to services.
#[must_use]
pub fn route(parents: &[&str]) -> String {
    let parent = |name: &&str| format!("{{group: '', kind: Service, name: {name}}}");
    let parents: Vec<_> = parents.iter().map(parent).collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{}], rules: [{{backendRefs: [{{name: one, port: 80}}]}}]}}\n",
        parents.join(", ")
    )
}

/// What `kubectl get` shows of an object.
///
/// # Errors
/// If there is none.
pub fn get(api: &ApiServer, words: &str) -> Result<Value> {
    let mut all = vec!["get", "-o", "json"];
    all.extend(words.split_whitespace());
    serde_json::from_str(&api.kubectl(&all)?).context("kubectl does not print JSON")
}

/// A condition of a list, as `status reason`.
///
/// # Errors
/// If it is not among them.
pub fn condition<'a>(list: &'a Value, kind: &str) -> Result<(String, &'a Value)> {
    let all = list.as_array().context("no conditions")?;
    let found = all.iter().find(|one| one["type"] == kind);
    let found = found.with_context(|| format!("no {kind} in {list}"))?;
    let word = |field: &str| found[field].as_str().unwrap_or_default();
    Ok((format!("{} {}", word("status"), word("reason")), found))
}

/// Waits until the condition of an object is this.
///
/// # Errors
/// If it is not in time; says what it is.
pub fn told(api: &ApiServer, object: &str, kind: &str, expected: &str) -> Result<Value> {
    eventually(
        &format!("{object}: {kind} is {expected}"),
        SUCCEEDED,
        || {
            let object = get(api, object)?;
            let (found, _) = condition(&object["status"]["conditions"], kind)?;
            ensure!(found == expected, "{found}: {}", object["status"]);
            Ok(object)
        },
    )
}
