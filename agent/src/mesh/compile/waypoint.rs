//! Which waypoint an object is bound to: its own label, else its namespace's (Istio: two separate lookups,
//! by service for traffic to a virtual address, by workload for traffic to a pod's address).

mod bound;
mod wish;

use std::sync::Arc;

use userspace_l7::model::{ApplicationTunnel, NamespacedHostname, WaypointReference};

pub(super) use self::bound::Bound;
use self::wish::CanaryWish;
pub(super) use self::wish::{USE_WAYPOINT, Wish, wish};
use super::Compiler;
use crate::mesh::external::ServiceEntry;
use crate::mesh::gateway::{Gateway, GatewayClass};
use crate::mesh::meta::{Meta, ObjectName};
use crate::mesh::service::Service;

const INGRESS: &str = "istio.io/ingress-use-waypoint";
/// On the pods of a Gateway, with its name.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Labels of what was generated for a Gateway: never bound to one itself.
const GENERATED: [&str; 2] = ["gateway.istio.io/managed", GATEWAY_NAME];
/// A waypoint's port is not read from its listener (Istio: always this).
const HBONE_PORT: u16 = 15008;

/// What kind of traffic a binding is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    Service,
    Workload,
}

impl Traffic {
    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
        }
    }
}

/// The waypoint that an object is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) gateway: ObjectName,
    /// Where the waypoint would be as a service of its own.
    pub(super) reference: WaypointReference,
    /// The second waypoint, or why there is none though it is asked for: the first then takes everything.
    pub(super) canary: Result<Option<Canary>, Refusal>,
}

/// A second waypoint, for some of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Canary {
    pub(super) gateway: ObjectName,
    /// Of a hundred connections, how many; from 0.
    pub(super) weight: u8,
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
        meta: &Meta,
        traffic: Traffic,
    ) -> Result<Option<Binding>, Refusal> {
        if GENERATED
            .iter()
            .any(|label| meta.labels.get(label).is_some())
        {
            return Ok(None);
        }
        let namespace = self.store.namespaces.get(&meta.name.namespace);
        let Some(wish) = wish(meta, namespace.map(|meta| &**meta)) else {
            return Ok(None);
        };
        if traffic == Traffic::Service && wish.gateway == meta.name {
            return Ok(None);
        }
        let found = self.ready(&wish.gateway)?;
        // The usual case for the pods of a namespace that is bound to a service waypoint.
        if traffic == Traffic::Workload && !wish.own && !self.takes(found, traffic) {
            return Ok(None);
        }
        self.admits(found, meta, traffic)?;
        Ok(Some(Binding {
            gateway: wish.gateway.clone(),
            reference: self.reference(found),
            canary: self.canary(&wish, found, meta, traffic),
        }))
    }

    /// The waypoint of a Service. One that only gives another name to a host outside has none.
    pub(super) fn service_waypoint(&self, service: &Service) -> Result<Option<Binding>, Refusal> {
        if service.external_name.is_some() {
            return Ok(None);
        }
        self.waypoint(&service.meta, Traffic::Service)
    }

    /// The waypoint of a ServiceEntry. What only one namespace may know is not for a waypoint that serves several.
    pub(super) fn entry_waypoint(&self, entry: &ServiceEntry) -> Result<Option<Binding>, Refusal> {
        let mut bound = self.waypoint(&entry.meta, Traffic::Service)?;
        let is_forbidden = |gateway: &ObjectName| {
            entry.is_private() && gateway.namespace != entry.meta.name.namespace
        };
        if let Some(binding) = &mut bound {
            if is_forbidden(&binding.gateway) {
                return Err(forbidden(&binding.gateway));
            }
            if let Ok(Some(canary)) = &binding.canary
                && is_forbidden(&canary.gateway)
            {
                binding.canary = Err(forbidden(&canary.gateway));
            }
        }
        Ok(bound)
    }

    /// Whether a waypoint takes everything of a namespace that asks for it, for either kind of traffic.
    pub(super) fn namespace_waypoint(&self, meta: &Meta) -> Result<Option<ObjectName>, Refusal> {
        let of_namespace = Meta {
            name: ObjectName {
                namespace: Arc::clone(&meta.name.name),
                name: Arc::clone(&meta.name.name),
            },
            ..meta.clone()
        };
        let Some(wish) = wish(&of_namespace, None) else {
            return Ok(None);
        };
        let found = self.ready(&wish.gateway)?;
        let traffic = if self.takes(found, Traffic::Workload) {
            Traffic::Workload
        } else {
            Traffic::Service
        };
        self.admits(found, &of_namespace, traffic)?;
        Ok(Some(wish.gateway))
    }

    fn ready(&self, name: &ObjectName) -> Result<&Arc<Gateway>, Refusal> {
        let found = self.store.gateways.get(name);
        let ready = found.filter(|one| one.is_ready(&self.options.revisions));
        ready.ok_or_else(|| not_ready(name, found.map(|found| &**found)))
    }

    /// Whether the node agents are this waypoint.
    pub(super) fn is_ours(&self, gateway: &Gateway) -> bool {
        gateway.is_ours(&self.options.revisions)
    }

    fn class_of(&self, gateway: &Gateway) -> Option<&GatewayClass> {
        let class = gateway.spec.gateway_class_name.as_str();
        self.store.classes.get(class).map(|class| &**class)
    }

    fn takes(&self, gateway: &Gateway, traffic: Traffic) -> bool {
        let served = gateway.traffic(self.class_of(gateway));
        served == "all" || served == traffic.word()
    }

    /// How a pod takes connections for others: as the Gateway wants that it is an instance of.
    pub(super) fn application_tunnel(&self, meta: &Meta) -> Option<ApplicationTunnel> {
        let gateway = self.store.gateways.get(&instance_of(meta)?)?;
        gateway.inbound_binding(self.class_of(gateway), &self.options.revisions)
    }

    /// Whether a waypoint takes an object's traffic, and its namespace.
    fn admits(&self, gateway: &Gateway, meta: &Meta, traffic: Traffic) -> Result<(), Refusal> {
        let name = &gateway.meta.name;
        let kind = traffic.word();
        if !self.takes(gateway, traffic) {
            return Err(Refusal {
                reason: "UnsupportedTrafficType",
                message: format!(
                    "attempting to bind to traffic type \"{kind}\" which the waypoint \"{name}\" does not support"
                ),
                notice: format!(
                    "asks for waypoint {name}, which does not take {kind} traffic: label that Gateway istio.io/waypoint-for={kind}"
                ),
            });
        }
        let space = &meta.name.namespace;
        let namespace = self.store.namespaces.get(space);
        let asks = (&**space, namespace.map(|meta| &**meta));
        if !gateway.accepts(self.class_of(gateway), &self.options.revisions, asks) {
            return Err(Refusal {
                reason: "AttachmentDenied",
                message: format!(
                    "we are not permitted to attach to waypoint \"{name}\" (missing allowedRoutes?)"
                ),
                notice: format!(
                    "asks for waypoint {name}, whose allowedRoutes do not admit namespace {space}: admit it there"
                ),
            });
        }
        Ok(())
    }

    /// The second waypoint of an object whose first is `primary`.
    fn canary(
        &self,
        wish: &Wish,
        primary: &Gateway,
        meta: &Meta,
        traffic: Traffic,
    ) -> Result<Option<Canary>, Refusal> {
        let Some(CanaryWish { gateway, weight }) = &wish.canary else {
            return Ok(None);
        };
        let refuse = |reason, message: String| Refusal {
            reason,
            notice: format!("asks for a canary waypoint and has none, {message}"),
            message,
        };
        if traffic == Traffic::Workload {
            let message = "a workload's own address has one waypoint".to_owned();
            return Err(refuse("UnsupportedTrafficType", message));
        }
        if *gateway == wish.gateway {
            let message = format!("waypoint \"{gateway}\" is the primary waypoint already");
            return Err(refuse("CanarySameAsPrimary", message));
        }
        let weight = weight.as_deref().unwrap_or("0");
        let Ok(weight @ 0..=100) = weight.parse::<u8>() else {
            let weight = weight.escape_debug();
            let message = format!("weight \"{weight}\" is not a number from 0 to 100");
            return Err(refuse("CanaryInvalidWeight", message));
        };
        let found = self.ready(gateway)?;
        self.admits(found, meta, traffic)?;
        // Connections are spread by the client's node, which is the waypoint: it cannot be somebody else's too.
        if !self.is_ours(found) || !self.is_ours(primary) {
            let message = "both waypoints have to be of a class of the node agents".to_owned();
            return Err(refuse("UnsupportedTrafficType", message));
        }
        Ok(Some(Canary {
            gateway: gateway.clone(),
            weight,
        }))
    }

    /// What `istio.io/ingress-use-waypoint` says of an object: whether clients outside the mesh are its waypoint's
    /// business, too. The object's own label comes before its namespace's.
    pub(super) fn ingress(&self, meta: &Meta) -> Option<bool> {
        let namespace = self.store.namespaces.get(&meta.name.namespace);
        let inherited = namespace.and_then(|meta| meta.labels.get(INGRESS));
        let said = meta.labels.get(INGRESS).or(inherited)?;
        Some(said.eq_ignore_ascii_case("true"))
    }

    /// Where a waypoint is reached: by the name in its status, else by that of the Service of its own name.
    pub(super) fn reference(&self, gateway: &Gateway) -> WaypointReference {
        let ObjectName { namespace, name } = &gateway.meta.name;
        let domain = &self.options.mesh.cluster_domain;
        let own = format!("{name}.{namespace}.svc.{domain}");
        let given = gateway.hostname().filter(|_| !self.is_ours(gateway));
        let hostname = given.unwrap_or(&own);
        let service = hostname.strip_suffix(&format!(".svc.{domain}"));
        let declared_in = service.and_then(|service| Some(service.split_once('.')?.1));
        WaypointReference {
            destination: NamespacedHostname {
                namespace: declared_in.map_or_else(|| Arc::clone(namespace), Arc::from),
                hostname: hostname.into(),
            },
            hbone_port: HBONE_PORT,
            is_foreign: !self.is_ours(gateway),
        }
    }
}

/// The Gateway that a pod is an instance of.
pub(super) fn instance_of(meta: &Meta) -> Option<ObjectName> {
    Some(ObjectName {
        namespace: Arc::clone(&meta.name.namespace),
        name: Arc::clone(meta.labels.shared(GATEWAY_NAME)?),
    })
}

fn forbidden(gateway: &ObjectName) -> Refusal {
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

fn not_ready(gateway: &ObjectName, found: Option<&Gateway>) -> Refusal {
    let notice = match found {
        // It would be ours, but for that.
        Some(found) if found.is_of_our_class() => format!(
            "asks for waypoint {gateway}, which is of revision {} and has no address: its control plane has to give it one, or agents \
             and controllers have to be started with that --revision",
            found.revision()
        ),
        Some(_) => format!(
            "asks for waypoint {gateway}, which has no address yet: its controller has to give it one"
        ),
        None => format!(
            "asks for waypoint {gateway}, which is not there: apply that Gateway or remove the label {USE_WAYPOINT}"
        ),
    };
    Refusal {
        reason: "WaypointIsNotReady",
        message: format!("waypoint \"{gateway}\" is not ready"),
        notice,
    }
}
