//! Nodes that begin with a taint, so that no pod is scheduled there before an agent can capture it: it is taken away when
//! the node's agent is ready.
//!
//! ```text
//!  mesh ─ nodes with a ready agent ─▶ new among them ─▶ node ─ untainted (pure) ─▶ patch, Event
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};
use tracing::{info, warn};
use userspace_l7::model::{Health, Snapshot, WorkloadUid};

use super::election::micro;
use super::lease::Term;
use super::metrics::{ControllerMetrics, Outcome};
use crate::sources::{ApiWriter, Refusal};

/// Ours, and the one of Istio's installations (its `pilot` takes it away when istio-cni is ready).
const TAINTS: [&str; 2] = ["culvert.dev/agent-not-ready", "cni.istio.io/not-ready"];
/// The agents' account.
const ACCOUNT: &str = "culvert-agent";
/// Between two looks at the mesh: many changes come at once.
const SETTLED: Duration = Duration::from_millis(500);
/// After a request that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Who says so, in Events.
const CONTROLLER: &str = "culvert.dev/controller";

/// Takes taints away.
pub(super) struct Untainter {
    pub(super) api: ApiWriter,
    pub(super) mesh: watch::Receiver<Arc<Snapshot>>,
    pub(super) term: watch::Receiver<Term>,
    /// Of the agents.
    pub(super) namespace: String,
    pub(super) instance: String,
    pub(super) metrics: ControllerMetrics,
}

/// Nodes with an agent that is ready, and which it is: a node that comes back has another one.
fn ready(mesh: &Snapshot, namespace: &str) -> BTreeSet<(Arc<str>, WorkloadUid)> {
    let agents = mesh.workloads.values().filter(|workload| {
        *workload.namespace == *namespace
            && *workload.service_account == *ACCOUNT
            && workload.health == Health::Healthy
            && !workload.node.is_empty()
    });
    agents
        .map(|agent| (Arc::clone(&agent.node), agent.uid.clone()))
        .collect()
}

/// What is to be merged into a node for our taints to be gone; nothing if there are none. It holds for this version of the
/// node only: the list is replaced as a whole.
fn untainted(node: &Value) -> Option<Value> {
    let taints = node["spec"]["taints"].as_array()?;
    let is_ours = |taint: &Value| TAINTS.iter().any(|key| taint["key"] == *key);
    if !taints.iter().any(is_ours) {
        return None;
    }
    let kept: Vec<&Value> = taints.iter().filter(|taint| !is_ours(taint)).collect();
    let kept = if kept.is_empty() {
        Value::Null
    } else {
        json!(kept)
    };
    Some(json!({
        "metadata": { "resourceVersion": node["metadata"]["resourceVersion"] },
        "spec": { "taints": kept },
    }))
}

/// Tells of it. Events about what has no namespace are in `default`.
fn event(node: &Value, instance: &str, now: Timestamp) -> Value {
    let (name, uid) = (&node["metadata"]["name"], &node["metadata"]["uid"]);
    let own = format!(
        "{}.{:x}",
        name.as_str().unwrap_or_default(),
        now.as_microsecond()
    );
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": own, "namespace": "default" },
        "eventTime": micro(now),
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "type": "Normal",
        "reason": "AgentReady",
        "action": "Untainted",
        "note": "The node's agent is ready: pods may be scheduled there.",
        "regarding": { "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid },
    })
}

impl Untainter {
    /// Takes taints away while the lease is ours, until nobody follows the mesh any more.
    pub(super) async fn run(mut self) {
        // Those that were looked at since their agent became ready, in this term.
        let mut done = BTreeSet::new();
        loop {
            self.term.mark_unchanged();
            let ready = ready(&self.mesh.borrow_and_update(), &self.namespace);
            let pause = if self.until().is_none() {
                done.clear();
                None
            } else {
                // One whose agent is not ready any more may come back with its taint.
                done.retain(|agent| ready.contains(agent));
                let mut failed = false;
                for agent in ready {
                    if !done.contains(&agent) {
                        match self.untaint(&agent.0).await {
                            Ok(true) => {
                                done.insert(agent);
                            }
                            Ok(false) | Err(_) => failed = true,
                        }
                    }
                }
                failed.then_some(AGAIN)
            };
            let again = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = again => {}
                changed = self.mesh.changed() => if changed.is_err() { return },
                changed = self.term.changed() => if changed.is_err() { return },
            }
            sleep(SETTLED).await;
        }
    }

    /// Until when we may write.
    fn until(&self) -> Option<Instant> {
        let until = *self.term.borrow();
        until.filter(|until| Instant::now() < *until)
    }

    /// Whether the node needs no further look.
    async fn untaint(&self, name: &str) -> Result<bool, Refusal> {
        let path = format!("/api/v1/nodes/{name}");
        let node = match self.api.get(&path).await {
            Ok(node) => node,
            Err(refusal) if refusal.status == Some(404) => return Ok(true),
            Err(refusal) => {
                warn!(
                    node = name,
                    "a node's taints cannot be read: the API server {refusal}"
                );
                return Err(refusal);
            }
        };
        let Some(fields) = untainted(&node) else {
            return Ok(true);
        };
        let Some(until) = self.until() else {
            return Ok(false);
        };
        let Ok(done) = timeout_at(until.into(), self.api.merge(&path, &fields)).await else {
            return Ok(false);
        };
        match done {
            Ok(node) => {
                self.metrics.count("taint", Outcome::Written);
                info!(
                    node = name,
                    "the agent is ready: the node's taint is taken away"
                );
                let event = event(&node, &self.instance, Timestamp::now());
                let events = "/apis/events.k8s.io/v1/namespaces/default/events";
                if let Err(refusal) = self.api.create(events, &event).await {
                    warn!(
                        node = name,
                        "an event cannot be written: the API server {refusal}"
                    );
                }
                Ok(true)
            }
            Err(refusal) => {
                let is_conflict = refusal.status == Some(409);
                let outcome = match (is_conflict, refusal.is_general()) {
                    (true, _) => Outcome::Conflict,
                    (_, true) => Outcome::Failed,
                    _ => Outcome::Refused,
                };
                self.metrics.count("taint", outcome);
                if !is_conflict {
                    warn!(
                        node = name,
                        "a node's taint cannot be taken away: the API server {refusal}"
                    );
                }
                Err(refusal)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_taints_go_and_others_stay() {
        let other = json!({ "key": "dedicated", "value": "db", "effect": "NoSchedule" });
        let ours = json!({ "key": "culvert.dev/agent-not-ready", "effect": "NoSchedule" });
        let istios = json!({ "key": "cni.istio.io/not-ready", "effect": "NoExecute" });
        for (taints, kept) in [
            (json!([ours]), Some(json!(null))),
            (json!([istios]), Some(json!(null))),
            (json!([other, ours, istios]), Some(json!([other]))),
            (json!([other]), None),
            (json!([]), None),
            (json!(null), None),
        ] {
            let node = json!({
                "metadata": { "name": "n", "resourceVersion": "7" },
                "spec": { "taints": taints },
            });
            let patch = untainted(&node);
            let expected = kept.map(|kept| {
                json!({ "metadata": { "resourceVersion": "7" }, "spec": { "taints": kept } })
            });
            assert_eq!(patch, expected, "{node}");
        }
    }
}
