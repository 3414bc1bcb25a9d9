//! `istio.io/WaypointBound`: whether an object has the waypoint that it asks for.

use super::conditioned;
use crate::mesh::compile::Compiler;
use crate::mesh::compile::waypoint::{Binding, Refusal, Traffic};
use crate::mesh::meta::Meta;
use crate::mesh::object::Kind;
use crate::mesh::status::{Condition, ObjectStatus, fails, holds};

const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

impl Compiler {
    /// Pods have no such condition in Istio; Namespaces have none there either, but a wrong name on one that holds no
    /// service yet would be nobody's.
    pub(super) fn binding_statuses(&self, all: &mut Vec<ObjectStatus>) {
        for service in self.store.services.iter() {
            let bound = self.service_waypoint(service);
            let bound = bound_condition(bound, self.ingress(&service.meta));
            say(&Kind::Service, &service.meta, bound, all);
        }
        for entry in self.store.service_entries.iter() {
            let bound = bound_condition(self.entry_waypoint(entry), self.ingress(&entry.meta));
            say(&Kind::ServiceEntry, &entry.meta, bound, all);
        }
        for entry in self.store.workload_entries.iter() {
            let bound = self.waypoint(&entry.meta, Traffic::Workload);
            say(
                &Kind::WorkloadEntry,
                &entry.meta,
                bound_condition(bound, None),
                all,
            );
        }
        for meta in self.store.namespaces.values() {
            let bound = match self.namespace_waypoint(meta) {
                Ok(None) => None,
                Ok(Some(gateway)) => Some(accepted(format!(
                    "Successfully attached to waypoint {gateway}"
                ))),
                Err(why) => Some(refused(why)),
            };
            say(&Kind::Namespace, meta, bound, all);
        }
    }
}

fn say(kind: &Kind, meta: &Meta, bound: Option<Condition>, all: &mut Vec<ObjectStatus>) {
    all.extend(bound.map(|bound| conditioned(kind, meta, vec![bound])));
}

/// Nothing where nothing is asked for. `ingress`: what `istio.io/ingress-use-waypoint` says.
fn bound_condition(
    found: Result<Option<Binding>, Refusal>,
    ingress: Option<bool>,
) -> Option<Condition> {
    let binding = match found {
        Ok(binding) => binding?,
        Err(why) => return Some(refused(why)),
    };
    let mut message = format!("Successfully attached to waypoint {}", binding.gateway);
    message.push_str(match ingress {
        Some(true) => ". Ingress traffic will traverse the waypoint",
        Some(false) => {
            ". Ingress traffic is not using the waypoint, set the istio.io/ingress-use-waypoint label to true if desired."
        }
        None => "",
    });
    if let Err(why) = binding.canary {
        message.push_str(". Canary waypoint not attached: ");
        message.push_str(&why.message);
    }
    Some(accepted(message))
}

fn accepted(message: String) -> Condition {
    holds(WAYPOINT_BOUND, "WaypointAccepted", message)
}

fn refused(why: Refusal) -> Condition {
    fails(WAYPOINT_BOUND, why.reason, why.message)
}
