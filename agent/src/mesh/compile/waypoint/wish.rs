//! What the labels of an object or of its namespace ask for.

use std::sync::Arc;

use crate::mesh::meta::{Meta, ObjectName};

pub(in crate::mesh::compile) const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const CANARY: &str = "istio.io/use-waypoint-canary";
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// An annotation, unlike the others.
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";

/// What an object's label, or else its namespace's, asks for.
pub(in crate::mesh::compile) struct Wish {
    /// The waypoint's name.
    pub(in crate::mesh::compile) gateway: ObjectName,
    /// Whether the object itself said so.
    pub(super) own: bool,
    pub(super) canary: Option<CanaryWish>,
}

/// The second waypoint that an object asks for.
pub(super) struct CanaryWish {
    pub(super) gateway: ObjectName,
    /// As it is written; nothing stands for 0.
    pub(super) weight: Option<Arc<str>>,
}

impl Wish {
    /// Every waypoint that is asked for.
    pub(in crate::mesh::compile) fn gateways(&self) -> impl Iterator<Item = &ObjectName> {
        let canary = self.canary.iter().map(|canary| &canary.gateway);
        std::iter::once(&self.gateway).chain(canary)
    }
}

/// What the labels of an object or of its namespace ask for. The canary is read where the waypoint is.
pub(in crate::mesh::compile) fn wish(own: &Meta, inherited: Option<&Meta>) -> Option<Wish> {
    let named = |meta: &Meta| meta.labels.get(USE_WAYPOINT).is_some();
    let (meta, is_own) = match inherited {
        _ if named(own) => (own, true),
        Some(namespace) if named(namespace) => (namespace, false),
        _ => return None,
    };
    let read = |name: &str, namespace: &str| {
        let name = meta.labels.shared(name)?;
        let asked = &**name != "none" && !name.is_empty();
        let namespace = meta.labels.shared(namespace);
        asked.then(|| ObjectName {
            namespace: Arc::clone(namespace.unwrap_or(&own.name.namespace)),
            name: Arc::clone(name),
        })
    };
    let canary = read(CANARY, CANARY_NAMESPACE).map(|gateway| CanaryWish {
        gateway,
        weight: meta.annotations.shared(CANARY_WEIGHT).map(Arc::clone),
    });
    Some(Wish {
        gateway: read(USE_WAYPOINT, USE_WAYPOINT_NAMESPACE)?,
        own: is_own,
        canary,
    })
}
