//! What a binding comes to for the services of an object.

use userspace_l7::model::WaypointReference;

use super::{Binding, Canary, Refusal};
use crate::mesh::compile::Notices;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::Kind;

/// The waypoints that services are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh::compile) struct Bound {
    pub(in crate::mesh::compile) gateway: ObjectName,
    /// Whether clients outside the mesh are its business, too.
    pub(in crate::mesh::compile) ingress: bool,
    /// Only one that gets connections.
    pub(in crate::mesh::compile) canary: Option<Canary>,
}

impl Bound {
    /// What a binding comes to; says what somebody should act on.
    pub(in crate::mesh::compile) fn of(
        found: Result<Option<Binding>, Refusal>,
        ingress: Option<bool>,
        (kind, name): (Kind, &ObjectName),
        notices: &mut Notices,
    ) -> (Option<Self>, Option<WaypointReference>) {
        let binding = found.unwrap_or_else(|why| {
            notices.warn(kind.clone(), name, why.notice);
            None
        });
        let Some(binding) = binding else {
            return (None, None);
        };
        let canary = binding.canary.unwrap_or_else(|why| {
            notices.warn(kind, name, why.notice);
            None
        });
        let bound = Self {
            gateway: binding.gateway,
            ingress: ingress == Some(true),
            canary: canary.filter(|canary| canary.weight > 0),
        };
        (Some(bound), Some(binding.reference))
    }

    /// Each of them.
    pub(in crate::mesh::compile) fn gateways(&self) -> impl Iterator<Item = &ObjectName> {
        let canary = self.canary.iter().map(|canary| &canary.gateway);
        std::iter::once(&self.gateway).chain(canary)
    }
}
