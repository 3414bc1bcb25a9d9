//! AuthorizationPolicies → the normal form of layer 4.
//!
//! What layer 4 cannot judge it must not pretend to: in an ALLOW policy a rule with such a field never
//! matches (more is refused), in a DENY policy the field is left out (more is refused again). Only a DENY
//! rule of which nothing is left has no effect: it would refuse everything.

pub(super) mod reading;

use std::sync::Arc;

use userspace_l7::model::{Action, AuthorizationPolicy, PolicyKey, Scope};

use self::reading::Reading;
use super::Compiler;
use crate::mesh::authorization::{self as istio, PolicyAction};
use crate::mesh::meta::{Labels, ObjectName};
use crate::mesh::object::ObjectKey;

/// Marks a policy that is evaluated but not enforced.
pub(super) const DRY_RUN: &str = "istio.io/dry-run";

/// What became of a policy, in the manner of a Kubernetes condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStatus {
    /// The object.
    pub policy: ObjectKey,
    /// `ZtunnelAccepted` for layer 4 (Istio's name), `WaypointAccepted` for policies with targets.
    pub condition: &'static str,
    /// Whether it holds.
    pub accepted: bool,
    /// One word.
    pub reason: &'static str,
    /// Istio's sentences.
    pub message: String,
}

/// A policy's status, before it is known whose it is.
pub(super) struct Verdict {
    pub(super) condition: &'static str,
    pub(super) accepted: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// What to do, in the form of a notice, if it is not accepted.
    pub(super) notice: String,
}

impl Verdict {
    pub(super) fn accepted_by_l4() -> Self {
        Self {
            condition: "ZtunnelAccepted",
            accepted: true,
            reason: "Accepted",
            message: "attached to ztunnel".to_owned(),
            notice: String::new(),
        }
    }

    pub(super) fn unsupported_by_l4(message: String, notice: impl Into<String>) -> Self {
        Self {
            condition: "ZtunnelAccepted",
            accepted: false,
            reason: "UnsupportedValue",
            message,
            notice: notice.into(),
        }
    }

    pub(super) fn of(self, policy: ObjectKey) -> PolicyStatus {
        let Self {
            condition,
            accepted,
            reason,
            message,
            notice: _,
        } = self;
        PolicyStatus {
            policy,
            condition,
            accepted,
            reason,
            message,
        }
    }
}

impl Compiler {
    /// The layer 4 part of a policy, and what to tell about it.
    pub(super) fn compile_authorization(
        &self,
        policy: &istio::AuthorizationPolicy,
    ) -> (Option<AuthorizationPolicy>, Verdict) {
        let name = &policy.meta.name;
        if policy.spec.targets().next().is_some() {
            return (None, self.target_verdict(policy));
        }
        let action = match policy.spec.action {
            PolicyAction::Allow => Action::Allow,
            PolicyAction::Deny => Action::Deny,
            PolicyAction::Audit | PolicyAction::Custom => {
                let notice = "layer 4 enforces ALLOW and DENY only: this policy has no effect without a waypoint and a targetRef";
                let action = format!("{:?}", policy.spec.action).to_uppercase();
                let message =
                    format!("ztunnel does not support the {action} action. {WAYPOINT_NEEDED}");
                return (None, Verdict::unsupported_by_l4(message, notice));
            }
        };
        let mut reading = Reading {
            namespace: &name.namespace,
            trust_domain: self.options.mesh.trust_domain.as_str(),
            action,
            unsupported: Vec::new(),
        };
        let read = policy.spec.rules.iter().flat_map(|rule| reading.rule(rule));
        let rules: Vec<_> = read.collect();
        let scope = match &policy.spec.selector {
            Some(selector) if !selector.match_labels.is_empty() => Scope::WorkloadSelector,
            _ if name.namespace == self.options.root_namespace => Scope::Global,
            _ => Scope::Namespace,
        };
        let nothing_left = rules.is_empty() && !policy.spec.rules.is_empty();
        let verdict = verdict(action, reading.unsupported, nothing_left);
        let compiled = AuthorizationPolicy {
            key: policy_key(name),
            scope,
            action,
            dry_run: policy.meta.annotations.get(DRY_RUN) == Some("true"),
            rules,
        };
        (Some(compiled), verdict)
    }

    /// A policy with targets speaks about requests to them: nothing that layer 4 enforces.
    fn target_verdict(&self, policy: &istio::AuthorizationPolicy) -> Verdict {
        let namespace = &policy.meta.name.namespace;
        let mut missing = Vec::new();
        for target in policy.spec.targets() {
            let name = ObjectName {
                namespace: Arc::clone(namespace),
                name: target.name.as_str().into(),
            };
            let found = match target.kind.as_str() {
                "Service" => self.store.services.get(&name).is_some(),
                "ServiceEntry" => self.store.service_entries.get(&name).is_some(),
                "Gateway" => self.store.gateways.get(&name).is_some(),
                // Classes are no objects of this mesh.
                _ => true,
            };
            if !found {
                missing.push(format!("{} {name}", target.kind));
            }
        }
        let condition = "WaypointAccepted";
        if missing.is_empty() {
            let message = "speaks about requests: layer 7 enforces it, layer 4 does not".to_owned();
            return Verdict {
                condition,
                accepted: true,
                reason: "Accepted",
                message,
                notice: String::new(),
            };
        }
        let message = format!("{} was not found", missing.join(", "));
        Verdict {
            condition,
            accepted: false,
            reason: "TargetNotFound",
            notice: format!("{message}: apply it or correct targetRefs"),
            message,
        }
    }

    /// Policies that select a workload by its labels: those of its own namespace and of the root's.
    pub(super) fn policies_selecting(&self, namespace: &str, labels: &Labels) -> Vec<PolicyKey> {
        let root = &*self.options.root_namespace;
        let spaces = [
            Some(namespace),
            Some(root).filter(|root| *root != namespace),
        ];
        let mut keys = Vec::new();
        for space in spaces.into_iter().flatten() {
            let selecting = self.selecting_policies.get(space).into_iter().flatten();
            keys.extend(
                selecting
                    .filter(|(selector, _)| selector.select(labels))
                    .map(|(_, key)| key.clone()),
            );
        }
        keys.extend(self.peer_policy(namespace, labels));
        keys
    }
}

pub(super) fn policy_key(name: &ObjectName) -> PolicyKey {
    PolicyKey {
        namespace: Arc::clone(&name.namespace),
        name: Arc::clone(&name.name),
    }
}

/// The end of Istio's sentences about what layer 4 cannot do.
const WAYPOINT_NEEDED: &str =
    "In ambient mode you must use a waypoint proxy to enforce HTTP rules.";

fn verdict(action: Action, mut unsupported: Vec<String>, nothing_left: bool) -> Verdict {
    if unsupported.is_empty() {
        return Verdict::accepted_by_l4();
    }
    unsupported.sort_unstable();
    unsupported.dedup();
    let found = unsupported.join(", ");
    // What Istio says was done, and what we say.
    let (done, ours) = match (action, nothing_left) {
        (Action::Allow, _) => (
            "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested.",
            "the rules with them are left out, so that more is refused than the policy asks for",
        ),
        (Action::Deny, false) => (
            "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than requested.",
            "it is enforced without them, so that more is refused than the policy asks for",
        ),
        (Action::Deny, true) => (
            "After omitting unsupported HTTP attributes, this DENY policy has no enforceable rules at ztunnel and will have no effect. Deploy a waypoint proxy and use a targetRef to enforce this policy.",
            "nothing enforceable is left, so that it has no effect: deploy a waypoint and use a targetRef",
        ),
    };
    Verdict::unsupported_by_l4(
        format!(
            "ztunnel does not support HTTP attributes (found: {found}). {WAYPOINT_NEEDED} {done}"
        ),
        format!("layer 4 does not know these attributes: {found}; {ours}"),
    )
}
