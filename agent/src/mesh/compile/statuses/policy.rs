//! Policies: whether what they are about is there, and bound to a waypoint that holds to them.

use std::sync::Arc;

use super::{POLICY_CONTROLLER, conditioned, object, observed};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::store::Owner;
use crate::mesh::compile::targets::Target;
use crate::mesh::gateway::OUR_CLASSES;
use crate::mesh::meta::{Meta, ObjectName};
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::rate_limit_policy::RateLimitPolicy;
use crate::mesh::selector::TargetReference;
use crate::mesh::status::{
    AncestorStatus, Condition, ObjectStatus, Reference, Status, fails, holds,
};

/// Why a policy does not hold for a target.
pub(super) struct Unbound {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Compiler {
    pub(super) fn policy_statuses_of_objects(&self, all: &mut Vec<ObjectStatus>) {
        for policy in self.store.authorizations.iter() {
            let targets: Vec<_> = policy.spec.targets().collect();
            let kind = Kind::AuthorizationPolicy;
            if targets.is_empty() {
                self.layer4(kind, &policy.meta, all);
            } else {
                let condition = self.waypoint_accepted(&policy.meta, &targets);
                all.push(conditioned(&kind, &policy.meta, vec![condition]));
            }
        }
        for policy in self.store.peers.iter() {
            self.layer4(Kind::PeerAuthentication, &policy.meta, all);
        }
        for policy in self.store.authentications.iter() {
            let targets = policy.spec.targets().collect();
            let kind = Kind::RequestAuthentication;
            self.layer7(&kind, (&policy.meta, targets), all);
        }
        for telemetry in self.store.telemetries.iter() {
            let targets = telemetry.spec.targets().collect();
            self.layer7(&Kind::Telemetry, (&telemetry.meta, targets), all);
        }
        let limits = self.store.rate_limits.iter();
        all.extend(limits.map(|policy| self.attached(policy)));
    }

    /// What layer 4 makes of a policy.
    fn layer4(&self, kind: Kind, meta: &Meta, all: &mut Vec<ObjectStatus>) {
        let name = meta.name.clone();
        let key = ObjectKey { kind, name };
        let Some(found) = self.statuses.get(&key) else {
            return;
        };
        let say = if found.accepted { holds } else { fails };
        let condition = say(found.condition, found.reason, found.message.clone());
        all.push(conditioned(&key.kind, meta, vec![condition]));
    }

    /// A policy without targets holds for its namespace or the mesh: about that there is nothing to say.
    fn layer7(
        &self,
        kind: &Kind,
        (meta, targets): (&Meta, Vec<&TargetReference>),
        all: &mut Vec<ObjectStatus>,
    ) {
        if !targets.is_empty() {
            let condition = self.waypoint_accepted(meta, &targets);
            all.push(conditioned(kind, meta, vec![condition]));
        }
    }

    /// One condition for all targets (Istio): True if it holds for any.
    fn waypoint_accepted(&self, meta: &Meta, targets: &[&TargetReference]) -> Condition {
        let mut bound: Vec<String> = Vec::new();
        let mut invalid: Vec<String> = Vec::new();
        let mut first = None;
        for target in targets {
            match self.bound_to(target, &meta.name.namespace) {
                Ok(waypoint) => bound.push(waypoint),
                Err(why) => {
                    invalid.push(format!("{} {}", target.kind, target.name));
                    first.get_or_insert(why);
                }
            }
        }
        let condition = "WaypointAccepted";
        bound.sort_unstable();
        bound.dedup();
        match first {
            None => {
                let message = format!("bound to {}", bound.join(", "));
                holds(condition, "Accepted", message)
            }
            Some(why) if bound.is_empty() => fails(condition, why.reason, why.message),
            Some(_) => {
                let message = format!("Invalid targetRefs: {}", invalid.join(", "));
                holds(condition, "PartiallyInvalid", message)
            }
        }
    }

    /// Where a policy is held to for a target.
    pub(super) fn bound_to(
        &self,
        target: &TargetReference,
        namespace: &Arc<str>,
    ) -> Result<String, Unbound> {
        let root = &self.options.root_namespace;
        let Some(found) = Target::of(target, namespace, root) else {
            let message = format!(
                "{} may be targeted only from the root namespace {root}",
                target.kind
            );
            return Err(Unbound {
                reason: "Invalid",
                message,
            });
        };
        match found {
            Target::Owner(owner) => self.owner_bound_to(&owner),
            Target::Gateway(name) => match self.store.gateways.get(&name) {
                Some(_) => Ok(name.to_string()),
                None => Err(missing("Gateway", &name)),
            },
            Target::Class(class) if OUR_CLASSES.contains(&&*class) => Ok(class.to_string()),
            Target::Class(class) => Err(Unbound {
                reason: "Invalid",
                message: format!("GatewayClass {class} is not a class of waypoints"),
            }),
            Target::Route(route) => {
                let Some(compiled) = self.routes.get(&route) else {
                    return Err(missing("HTTPRoute", &route.name));
                };
                let parents = compiled.attachments.iter();
                let mut bound = parents.filter_map(|one| self.owner_bound_to(&one.parent).ok());
                bound.next().ok_or_else(|| Unbound {
                    reason: "AncestorNotBound",
                    message: format!("{route} has no parent that is bound to a waypoint"),
                })
            }
        }
    }

    fn owner_bound_to(&self, owner: &Owner) -> Result<String, Unbound> {
        let (kind, is_there) = match owner {
            Owner::Service(name) => ("Service", self.store.services.get(name).is_some()),
            Owner::Entry(name) => (
                "ServiceEntry",
                self.store.service_entries.get(name).is_some(),
            ),
        };
        let name = owner.name();
        if !is_there {
            return Err(missing(kind, name));
        }
        match self.waypoint_of(owner) {
            Ok(Some(waypoint)) => Ok(waypoint.to_string()),
            Ok(None) | Err(_) => Err(Unbound {
                reason: "AncestorNotBound",
                message: format!("{kind} {name} is not bound to a waypoint"),
            }),
        }
    }

    /// Our own kind says it for each target apart (GEP-713).
    fn attached(&self, policy: &RateLimitPolicy) -> ObjectStatus {
        let targets = policy.spec.target_refs.iter();
        let ancestors = targets.map(|target| {
            let accepted = match self.bound_to(target, &policy.meta.name.namespace) {
                Ok(waypoint) => holds("Accepted", "Accepted", format!("bound to {waypoint}")),
                Err(why) => fails("Accepted", why.reason, why.message),
            };
            AncestorStatus {
                ancestor_ref: Reference {
                    group: target.group.clone(),
                    kind: target.kind.clone(),
                    namespace: None,
                    name: target.name.clone(),
                    section_name: None,
                    port: None,
                },
                controller_name: POLICY_CONTROLLER.to_owned(),
                conditions: observed(vec![accepted], &policy.meta),
            }
        });
        let status = Status {
            ancestors: ancestors.collect(),
            ..Status::default()
        };
        object(&Kind::RateLimitPolicy, &policy.meta.name, status)
    }
}

fn missing(kind: &str, name: &ObjectName) -> Unbound {
    Unbound {
        reason: "TargetNotFound",
        message: format!("{kind} {name} was not found"),
    }
}
