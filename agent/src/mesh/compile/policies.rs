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
    /// One sentence.
    pub message: String,
}

/// A policy's status, before it is known whose it is.
pub(super) struct Verdict {
    pub(super) condition: &'static str,
    pub(super) accepted: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Verdict {
    fn l4(accepted: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            condition: "ZtunnelAccepted",
            accepted,
            reason,
            message: message.into(),
        }
    }

    pub(super) fn of(self, policy: ObjectKey) -> PolicyStatus {
        let Self {
            condition,
            accepted,
            reason,
            message,
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
                let text = "layer 4 enforces ALLOW and DENY only: this policy has no effect without a waypoint and a targetRef";
                return (None, Verdict::l4(false, "UnsupportedValue", text));
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
            };
        }
        let message = format!(
            "{} was not found: apply it or correct targetRefs",
            missing.join(", ")
        );
        Verdict {
            condition,
            accepted: false,
            reason: "TargetNotFound",
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

fn verdict(action: Action, mut unsupported: Vec<String>, nothing_left: bool) -> Verdict {
    if unsupported.is_empty() {
        return Verdict::l4(true, "Accepted", "enforced at layer 4");
    }
    unsupported.sort_unstable();
    unsupported.dedup();
    let done = match (action, nothing_left) {
        (Action::Allow, _) => {
            "the rules with them are left out, so that more is refused than the policy asks for"
        }
        (Action::Deny, false) => {
            "it is enforced without them, so that more is refused than the policy asks for"
        }
        (Action::Deny, true) => {
            "nothing enforceable is left, so that it has no effect: deploy a waypoint and use a targetRef"
        }
    };
    let message = format!(
        "layer 4 does not know these attributes: {}; {done}",
        unsupported.join(", ")
    );
    Verdict::l4(false, "UnsupportedValue", message)
}
