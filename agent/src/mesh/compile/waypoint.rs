//! Which waypoint an object is bound to: its own label, else its namespace's (Istio: two separate lookups,
//! by service for traffic to a virtual address, by workload for traffic to a pod's address).

use std::sync::Arc;

use userspace_l7::model::{NamespacedHostname, WaypointReference};

use super::Compiler;
use crate::mesh::gateway::Gateway;
use crate::mesh::meta::{Labels, ObjectName};

pub(super) const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Labels of what was generated for a Gateway: never bound to one itself.
const GENERATED: [&str; 2] = [
    "gateway.istio.io/managed",
    "gateway.networking.k8s.io/gateway-name",
];
/// A waypoint's port is not read from its listener (Istio: always this).
const HBONE_PORT: u16 = 15008;

/// What kind of traffic a binding is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    Service,
    Workload,
}

/// What an object's label, or else its namespace's, asks for.
pub(super) struct Wish {
    /// The waypoint's name.
    pub(super) gateway: ObjectName,
    /// Whether the object itself said so.
    own: bool,
}

/// What the label of an object or of its namespace asks for.
pub(super) fn wish(own: &Labels, namespace: &Arc<str>, inherited: Option<&Labels>) -> Option<Wish> {
    let named = own.shared(USE_WAYPOINT).map(|name| (name, own, true));
    let (name, labels, own) = named.or_else(|| {
        let labels = inherited?;
        Some((labels.shared(USE_WAYPOINT)?, labels, false))
    })?;
    if &**name == "none" || name.is_empty() {
        return None;
    }
    let namespace = labels.shared(USE_WAYPOINT_NAMESPACE).unwrap_or(namespace);
    let gateway = ObjectName {
        namespace: Arc::clone(namespace),
        name: Arc::clone(name),
    };
    Some(Wish { gateway, own })
}

/// The waypoint that an object is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) gateway: ObjectName,
    /// Where the waypoint would be as a service of its own.
    pub(super) reference: WaypointReference,
}

/// Why an object has not the waypoint that it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Istio's word for it.
    pub(super) reason: &'static str,
    /// Istio's sentence, for the object's status.
    pub(super) message: String,
    /// What to do, in the form of a notice.
    pub(super) notice: String,
}

impl Compiler {
    /// The waypoint of an object, or why it has not the one that it asks for. A waypoint that is not there
    /// or refuses means none at all: there is no second choice.
    pub(super) fn waypoint(
        &self,
        name: &ObjectName,
        labels: &Labels,
        traffic: Traffic,
    ) -> Result<Option<Binding>, Refusal> {
        if GENERATED.iter().any(|label| labels.get(label).is_some()) {
            return Ok(None);
        }
        let namespace = self.store.namespaces.get(&name.namespace);
        let inherited = namespace.map(|meta| &meta.labels);
        let Some(wish) = wish(labels, &name.namespace, inherited) else {
            return Ok(None);
        };
        if traffic == Traffic::Service && wish.gateway == *name {
            return Ok(None);
        }
        let gateway = &wish.gateway;
        let found = self.store.gateways.get(gateway);
        let Some(found) = found.filter(|one| one.is_ready()) else {
            return Err(not_ready(gateway, found.is_some()));
        };
        let class = self
            .store
            .classes
            .get(found.spec.gateway_class_name.as_str());
        let served = found.traffic(class.map(|class| &**class));
        let kind = if traffic == Traffic::Service {
            "service"
        } else {
            "workload"
        };
        if served != "all" && served != kind {
            // The usual case for the pods of a namespace that is bound to a service waypoint.
            if traffic == Traffic::Workload && !wish.own {
                return Ok(None);
            }
            return Err(Refusal {
                reason: "UnsupportedTrafficType",
                message: format!(
                    "attempting to bind to traffic type \"{kind}\" which the waypoint \"{gateway}\" does not support"
                ),
                notice: format!(
                    "asks for waypoint {gateway}, which does not take {kind} traffic: label that Gateway istio.io/waypoint-for={kind}"
                ),
            });
        }
        if !found.accepts(&name.namespace, namespace.map(|meta| &**meta)) {
            return Err(Refusal {
                reason: "AttachmentDenied",
                message: format!(
                    "we are not permitted to attach to waypoint \"{gateway}\" (missing allowedRoutes?)"
                ),
                notice: format!(
                    "asks for waypoint {gateway}, whose allowedRoutes do not admit namespace {}: admit it there",
                    name.namespace
                ),
            });
        }
        Ok(Some(Binding {
            gateway: gateway.clone(),
            reference: self.reference(found),
        }))
    }

    /// Where a waypoint is reached: by the name in its status, else by that of the Service of its own name.
    fn reference(&self, gateway: &Gateway) -> WaypointReference {
        let ObjectName { namespace, name } = &gateway.meta.name;
        let domain = &self.options.mesh.cluster_domain;
        let own = format!("{name}.{namespace}.svc.{domain}");
        let given = gateway.hostname().filter(|_| !gateway.is_ours());
        let hostname = given.unwrap_or(&own);
        let service = hostname.strip_suffix(&format!(".svc.{domain}"));
        let declared_in = service.and_then(|service| Some(service.split_once('.')?.1));
        WaypointReference {
            destination: NamespacedHostname {
                namespace: declared_in.map_or_else(|| Arc::clone(namespace), Arc::from),
                hostname: hostname.into(),
            },
            hbone_port: HBONE_PORT,
            is_foreign: !gateway.is_ours(),
        }
    }
}

/// What only one namespace may know is not for a waypoint that serves several.
pub(super) fn forbidden(gateway: &ObjectName) -> Refusal {
    Refusal {
        reason: "CrossNamespaceWaypointForbidden",
        message: format!(
            "a service of its namespace only is not permitted to attach to waypoint \"{gateway}\" of another"
        ),
        notice: format!(
            "asks for waypoint {gateway} of another namespace, and is exported to its own only: use a waypoint there, or export it"
        ),
    }
}

fn not_ready(gateway: &ObjectName, is_there: bool) -> Refusal {
    let notice = if is_there {
        format!(
            "asks for waypoint {gateway}, which has no address yet: its controller has to give it one"
        )
    } else {
        format!(
            "asks for waypoint {gateway}, which is not there: apply that Gateway or remove the label {USE_WAYPOINT}"
        )
    };
    Refusal {
        reason: "WaypointIsNotReady",
        message: format!("waypoint \"{gateway}\" is not ready"),
        notice,
    }
}
