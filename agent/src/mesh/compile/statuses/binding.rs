//! `istio.io/WaypointBound`: whether an object has the waypoint that it asks for. `istio.io/WaypointMissing`: whether it
//! needs one.

use super::conditioned;
use crate::mesh::compile::Compiler;
use crate::mesh::compile::waypoint::{Binding, Refusal, Traffic};
use crate::mesh::external::{ConnectStrategy, Resolution, ServiceEntry};
use crate::mesh::meta::Meta;
use crate::mesh::object::Kind;
use crate::mesh::status::{Condition, ObjectStatus, fails, holds};

const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
const WAYPOINT_MISSING: &str = "istio.io/WaypointMissing";

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
            let found = self.entry_waypoint(entry);
            let missing = missing_condition(entry, matches!(found, Ok(Some(_))));
            let bound = bound_condition(found, self.ingress(&entry.meta));
            say(
                &Kind::ServiceEntry,
                &entry.meta,
                bound.into_iter().chain(missing),
                all,
            );
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

fn say(
    kind: &Kind,
    meta: &Meta,
    conditions: impl IntoIterator<Item = Condition>,
    all: &mut Vec<ObjectStatus>,
) {
    let conditions: Vec<_> = conditions.into_iter().collect();
    if !conditions.is_empty() {
        all.push(conditioned(kind, meta, conditions));
    }
}

/// What an entry asks for that only a waypoint does, while it has none.
fn missing_condition(entry: &ServiceEntry, is_bound: bool) -> Option<Condition> {
    let (reason, message) = match entry.connect_strategy() {
        _ if is_bound => return None,
        _ if entry.spec.resolution == Resolution::DynamicDns => (
            "NoWaypointForWildcardService",
            "ServiceEntry will not apply until it is bound to a valid waypoint.",
        ),
        Ok(ConnectStrategy::Race) => (
            "NoWaypointForRacingConnectStrategy",
            "The connect strategy will not apply until the ServiceEntry is bound to a valid waypoint.",
        ),
        _ => return None,
    };
    Some(holds(WAYPOINT_MISSING, reason, message))
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
