//! Routes: what each of their parents makes of them, and whether their references resolve.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use userspace_l7::model::NamespacedHostname;

use super::{ROUTE_CONTROLLER, conditioned, object, observed};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::backends::Unresolved;
use crate::mesh::compile::routes::{CompiledRoute, Route, RouteBody, RouteKind, route_kind};
use crate::mesh::compile::store::Owner;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::route::{ParentKind, ParentReference};
use crate::mesh::status::{Condition, ObjectStatus, ParentStatus, Reference, Status, fails, holds};

/// By service port and the routes' namespace, which says whose clients they are for: the route that comes first, after
/// its rank.
type Firsts = HashMap<(Owner, u16, Arc<str>), (Rank, ObjectKey)>;

/// The smaller comes first; the age counts for streams only.
type Rank = (RouteKind, Option<(Option<Timestamp>, ObjectName)>);

impl Compiler {
    pub(super) fn route_statuses(&self, all: &mut Vec<ObjectStatus>) {
        let firsts = self.firsts();
        for (key, route) in &self.store.routes {
            let Some(compiled) = self.routes.get(key) else {
                continue;
            };
            if matches!(route, Route::Virtual(_)) {
                all.push(self.virtual_status(key, route, compiled));
                continue;
            }
            let parents = route.parents().iter();
            let parents =
                parents.filter_map(|parent| self.parent(key, route, compiled, (parent, &firsts)));
            let parents: Vec<_> = parents.collect();
            if !parents.is_empty() {
                let status = Status {
                    parents,
                    ..Status::default()
                };
                all.push(object(&key.kind, &key.name, status));
            }
        }
    }

    /// Nothing at a parent that is not ours to speak about: an ingress, or a kind that the mesh does not know.
    fn parent(
        &self,
        key: &ObjectKey,
        route: &Route,
        compiled: &CompiledRoute,
        (parent, firsts): (&ParentReference, &Firsts),
    ) -> Option<ParentStatus> {
        let name = parent_name(parent, &key.name.namespace);
        let owner = match parent.target()? {
            ParentKind::Service => Owner::Service(name),
            ParentKind::ServiceEntry => Owner::Entry(name),
            ParentKind::Gateway => {
                let gateway = self.store.gateways.get(&name);
                let _ours = gateway.filter(|one| self.is_ours(one))?;
                let message = "a waypoint takes no routes: attach the route to a Service";
                let accepted = fails("Accepted", "NotAllowedByListeners", message);
                return Some(status(parent, observed(vec![accepted], route.meta())));
            }
        };
        let conditions = vec![
            self.accepted(key, compiled, (&owner, parent), firsts),
            resolved(compiled.unresolved.as_ref()),
            self.resolved_waypoints(&owner),
        ];
        Some(status(parent, observed(conditions, route.meta())))
    }

    fn accepted(
        &self,
        key: &ObjectKey,
        compiled: &CompiledRoute,
        (owner, parent): (&Owner, &ParentReference),
        firsts: &Firsts,
    ) -> Condition {
        let refuse = |reason, message: String| fails("Accepted", reason, message);
        let (word, is_there) = match owner {
            Owner::Service(name) => ("service", self.store.services.get(name).is_some()),
            Owner::Entry(name) => (
                "service entry",
                self.store.service_entries.get(name).is_some(),
            ),
        };
        let name = parent.name.escape_debug();
        if !is_there {
            let message = format!("parent {word}: \"{name}\" not found");
            return refuse("NoMatchingParent", message);
        }
        if let Some(why) = &compiled.refused {
            return refuse(why.reason, why.message.clone());
        }
        let mut ports = self.ports_of(owner);
        if let Some(port) = parent.port() {
            ports.retain(|own| *own == port);
            if ports.is_empty() {
                let message = format!("parent {word}: \"{name}\" has no port {port}");
                return refuse("NoMatchingParent", message);
            }
        }
        let own = route_kind(&key.kind);
        let mut overruled = None;
        for port in &ports {
            let at = (owner.clone(), *port, Arc::clone(&key.name.namespace));
            match firsts.get(&at) {
                Some(((kind, _), first))
                    if first != key && (Some(*kind) != own || kind.is_stream()) =>
                {
                    overruled = Some((first, *port));
                }
                // Somewhere it applies.
                _ => return holds("Accepted", "Accepted", "Route was valid"),
            }
        }
        match overruled {
            Some((other, port)) => {
                let message = format!(
                    "{other} is attached to port {port} too and comes first: remove one of the two"
                );
                refuse("Conflicted", message)
            }
            None => holds("Accepted", "Accepted", "Route was valid"),
        }
    }

    /// Ports of the services that an owner declares.
    fn ports_of(&self, owner: &Owner) -> Vec<u16> {
        let keys = self.owner_keys(owner);
        let services = keys.iter().filter_map(|key| self.current.services.get(key));
        let mut ports: Vec<_> = services
            .flat_map(|service| service.ports.keys().copied())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Which route comes first at each service port: of the kind that comes first (GEP-1294), and for streams, which
    /// have nothing to match, the oldest.
    fn firsts(&self) -> Firsts {
        let mut firsts = Firsts::new();
        for (key, route) in &self.store.routes {
            let Some(kind) = route_kind(&key.kind) else {
                continue;
            };
            let rank = (kind, kind.is_stream().then(|| route.meta().age_order()));
            for attachment in route.attachments() {
                let ports = match attachment.port {
                    Some(port) => vec![port],
                    None => self.ports_of(&attachment.parent),
                };
                for port in ports {
                    let at = (
                        attachment.parent.clone(),
                        port,
                        Arc::clone(&key.name.namespace),
                    );
                    let first = firsts
                        .entry(at)
                        .or_insert_with(|| (rank.clone(), key.clone()));
                    if (&rank, key) < (&first.0, &first.1) {
                        *first = (rank.clone(), key.clone());
                    }
                }
            }
        }
        firsts
    }

    /// Always True, as in Istio; the message says whether the route has any effect.
    fn resolved_waypoints(&self, owner: &Owner) -> Condition {
        let message = match self.waypoint_of(owner) {
            Ok(Some(_)) => "All waypoints resolved".to_owned(),
            Ok(None) => format!(
                "istio.io/use-waypoint label missing from parent {} and its namespace: the route has no effect",
                owner.name()
            ),
            Err(why) => why,
        };
        holds("ResolvedWaypoints", "ResolvedWaypoints", message)
    }

    /// A VirtualService has no parents: it is about hosts. Istio writes it no such conditions; here they say what
    /// an object that routes has to say.
    fn virtual_status(
        &self,
        key: &ObjectKey,
        route: &Route,
        compiled: &CompiledRoute,
    ) -> ObjectStatus {
        let accepted = match &compiled.refused {
            Some(why) => fails("Accepted", why.reason, why.message.clone()),
            None if route.is_delegate() => holds(
                "Accepted",
                "Accepted",
                "Route is there for others to delegate to",
            ),
            None => self.virtual_accepted(key, compiled),
        };
        let conditions = vec![accepted, resolved(compiled.unresolved.as_ref())];
        conditioned(&key.kind, route.meta(), conditions)
    }

    fn virtual_accepted(&self, key: &ObjectKey, compiled: &CompiledRoute) -> Condition {
        let RouteBody::Tables(tables) = &compiled.body else {
            return holds("Accepted", "Accepted", "Route was valid");
        };
        let mut overruled = None;
        for (service, port) in tables.keys() {
            match self.overruling_virtual(key, service, *port) {
                Some(other) => overruled = Some((other, &service.hostname, *port)),
                None => return holds("Accepted", "Accepted", "Route was valid"),
            }
        }
        if let Some((other, host, port)) = overruled {
            let message = format!(
                "{other} is about {host}:{port} too and comes first: remove one of the two"
            );
            return fails("Accepted", "Conflicted", message);
        }
        let message =
            "no service of its namespace has one of its hosts and a port that it is about";
        fails("Accepted", "NoMatchingParent", message)
    }

    /// What applies to a service port in place of a VirtualService: routes of Gateway API, or an older one.
    fn overruling_virtual(
        &self,
        key: &ObjectKey,
        service: &NamespacedHostname,
        port: u16,
    ) -> Option<ObjectKey> {
        let owner = self.declarer(service)?;
        let attached = self.store.routes_of_parent.get(owner).iter();
        let mut producers = attached.filter(|route| {
            route.name.namespace == service.namespace && self.is_attached(route, owner, port)
        });
        if let Some(route) = producers.next() {
            return Some(route.clone());
        }
        let named = self.store.routes_of_backend.get(&service.hostname).iter();
        let at = (service.clone(), port);
        let about = named.filter(|route| {
            let compiled = self.routes.get(*route).map(|compiled| &compiled.body);
            route.kind == Kind::VirtualService
                && matches!(compiled, Some(RouteBody::Tables(tables)) if tables.contains_key(&at))
        });
        let age = |route: &&ObjectKey| Some(self.store.routes.get(*route)?.meta().age_order());
        let oldest = about.min_by_key(age)?;
        (oldest != key).then(|| oldest.clone())
    }

    /// The waypoint of what declares services, or why it has none.
    pub(super) fn waypoint_of(&self, owner: &Owner) -> Result<Option<ObjectName>, String> {
        let bound = match owner {
            Owner::Service(name) => {
                let service = self.store.services.get(name);
                service.map_or(Ok(None), |service| self.service_waypoint(service))
            }
            Owner::Entry(name) => {
                let entry = self.store.service_entries.get(name);
                entry.map_or(Ok(None), |entry| self.entry_waypoint(entry))
            }
        };
        let bound = bound.map_err(|why| why.message)?;
        Ok(bound.map(|binding| binding.gateway))
    }
}

fn resolved(unresolved: Option<&Unresolved>) -> Condition {
    match unresolved {
        None => holds("ResolvedRefs", "ResolvedRefs", "All references resolved"),
        Some(why) => fails("ResolvedRefs", why.reason, why.message.clone()),
    }
}

fn parent_name(parent: &ParentReference, own: &Arc<str>) -> ObjectName {
    let namespace = parent.namespace.as_deref().map(Arc::from);
    ObjectName {
        namespace: namespace.unwrap_or_else(|| Arc::clone(own)),
        name: parent.name.as_str().into(),
    }
}

fn status(parent: &ParentReference, conditions: Vec<Condition>) -> ParentStatus {
    let group = parent.group.as_deref();
    let kind = parent.kind.as_deref();
    ParentStatus {
        parent_ref: Reference {
            group: group.unwrap_or("gateway.networking.k8s.io").to_owned(),
            kind: kind.unwrap_or("Gateway").to_owned(),
            namespace: parent.namespace.clone(),
            name: parent.name.clone(),
            section_name: parent.section_name.clone(),
            port: parent.port,
        },
        controller_name: ROUTE_CONTROLLER.to_owned(),
        conditions,
    }
}
