//! What Istio's policies and entries have in common: how they name the objects they are about.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::field::{Faults, FieldPath, at};
use super::syntax::check_label;

/// `selector`: labels that a workload must have.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// All of them.
    #[serde(default, alias = "labels")]
    pub match_labels: BTreeMap<String, String>,
}

impl WorkloadSelector {
    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        for (key, value) in &self.match_labels {
            if value.contains('*') || key.contains('*') {
                let rule = "selectors take no wildcards, write the exact label";
                faults.add(
                    place.join(key.as_str()),
                    format!("`{key}: {value}`: {rule}"),
                );
            } else {
                check_label(key, value, place, faults);
            }
        }
    }
}

/// `targetRef`: one object by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReference {
    /// API group; empty for core.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Must be absent or the policy's own namespace.
    #[serde(default)]
    pub namespace: String,
}

/// Istio's limit on `targetRefs`.
const MAX_TARGETS: usize = 16;

/// Checks what a policy says it is about.
pub(crate) fn check_targets(
    namespace: &str,
    selector: Option<&WorkloadSelector>,
    (old, targets): (Option<&TargetReference>, &[TargetReference]),
    faults: &mut Faults,
) {
    if let Some(selector) = selector {
        selector.check(&at!["spec", "selector", "matchLabels"], faults);
        if old.is_some() || !targets.is_empty() {
            let rule = "a policy has a selector or targets, not both: remove one of them";
            faults.add(at!["spec", "targetRefs"], rule);
        }
    }
    if old.is_some() && !targets.is_empty() {
        faults.add(
            at!["spec", "targetRef"],
            "move it into targetRefs: only one of the two may be set",
        );
    }
    if targets.len() > MAX_TARGETS {
        faults.add(
            at!["spec", "targetRefs"],
            format!("at most {MAX_TARGETS} targets are allowed"),
        );
    }
    if let Some(target) = old {
        target.check(namespace, &at!["spec", "targetRef"], faults);
    }
    for (index, target) in targets.iter().enumerate() {
        target.check(namespace, &at!["spec", "targetRefs", index], faults);
    }
}

/// The kinds that a policy may target.
const TARGETS: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

impl TargetReference {
    pub(crate) fn check(&self, own_namespace: &str, place: &FieldPath, faults: &mut Faults) {
        self.check_among(&TARGETS, own_namespace, place, faults);
    }

    /// As `check`, for a policy that may target these kinds.
    pub(crate) fn check_among(
        &self,
        targets: &[(&str, &str)],
        own_namespace: &str,
        place: &FieldPath,
        faults: &mut Faults,
    ) {
        let group = if self.group == "core" {
            ""
        } else {
            self.group.as_str()
        };
        if !targets.contains(&(group, self.kind.as_str())) {
            let known = targets
                .iter()
                .map(|(group, kind)| format!("{kind} (group \"{group}\")"));
            let known: Vec<_> = known.collect();
            let known = format!("use {}", known.join(", "));
            let problem = format!(
                "a policy cannot target {}.{}: {known}",
                self.kind, self.group
            );
            faults.add(place.join("kind"), problem);
        }
        if self.name.is_empty() {
            faults.add(place.join("name"), "is missing: name the target");
        }
        if !self.namespace.is_empty() && self.namespace != own_namespace {
            let rule = "a policy only reaches its own namespace, leave the field out";
            faults.add(
                place.join("namespace"),
                format!("`{}`: {rule}", self.namespace),
            );
        }
    }
}
