//! What each object's owner is told about it, as Istio and Gateway API write it into `status`. Computed anew from the
//! objects and from what became of them: nothing is kept, so nothing can be out of date.

mod backend_tls;
mod binding;
mod gateway;
mod policy;
mod route;
mod silent;

use super::Compiler;
use crate::mesh::kinds::api_version;
use crate::mesh::meta::{Meta, ObjectName};
use crate::mesh::object::Kind;
use crate::mesh::status::{self, Condition, ObjectStatus, Status, StatusName};

/// Who speaks about routes: Istio's own name, for what looks for it there.
const ROUTE_CONTROLLER: &str = "istio.io/gateway-controller";
/// Who speaks about our own policies.
const POLICY_CONTROLLER: &str = "culvert.dev/policy-controller";

impl Compiler {
    /// What there is to say about each object that has a status of ours, sorted by kind and name. Objects that ask
    /// for nothing, and those of other controllers, are left out.
    pub fn object_statuses(&self) -> Vec<ObjectStatus> {
        let mut all = Vec::new();
        self.gateway_statuses(&mut all);
        self.binding_statuses(&mut all);
        self.route_statuses(&mut all);
        self.policy_statuses_of_objects(&mut all);
        self.backend_tls_statuses(&mut all);
        status::sort(&mut all);
        all
    }
}

/// The status of an object, as a list entry.
fn object(kind: &Kind, name: &ObjectName, status: Status) -> ObjectStatus {
    let namespace = &name.namespace;
    ObjectStatus {
        api_version: api_version(kind),
        kind: kind.to_string(),
        metadata: StatusName {
            namespace: (!namespace.is_empty()).then(|| namespace.to_string()),
            name: name.name.to_string(),
        },
        status,
    }
}

/// An object about which there are only conditions.
fn conditioned(kind: &Kind, meta: &Meta, conditions: Vec<Condition>) -> ObjectStatus {
    let conditions = observed(conditions, meta);
    object(
        kind,
        &meta.name,
        Status {
            conditions,
            ..Status::default()
        },
    )
}

fn observed(conditions: Vec<Condition>, meta: &Meta) -> Vec<Condition> {
    let conditions = conditions.into_iter();
    conditions
        .map(|condition| condition.observed(meta.generation))
        .collect()
}
