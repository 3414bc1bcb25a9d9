//! Layer 7 of each bound service and workload, put together from routes and policies that are compiled by
//! themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use userspace_l7::model::{
    AppProtocol, CanaryLayer7, Demands, HttpRouteTable, NamespacedHostname, PortLayer7, PortRoutes,
    Service, ServiceLayer7, SpiffeId, WaypointKey, WorkloadLayer7, WorkloadUid,
};

use super::Compiler;
use super::mark::Marks;
use super::precedence::Precedence;
use super::routes::{CompiledRoute, RouteBody, RouteKind, route_kind};
use super::store::Owner;
use super::targets::Target;
use crate::mesh::gateway::Gateway;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};

/// Renames the service account of a waypoint (Istio).
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";

/// Asks a waypoint to tell applications who calls (Istio).
const NAMES_CLIENTS: &str = "ambient.istio.io/xfcc-include-client-identity";

/// Tables that were put together for one service, so that ports with the same routes share one.
type Tables<'a> = BTreeMap<Vec<&'a ObjectKey>, PortRoutes>;

/// A route and what it comes to.
type Attached<'a> = (&'a ObjectKey, &'a CompiledRoute);

impl Compiler {
    /// Compiles marked routes, then puts together what is marked or follows from them.
    pub(super) fn update_layer7(&mut self, marks: &mut Marks) -> bool {
        let mut parents = BTreeSet::new();
        let delegating: Vec<_> = marks
            .routes
            .iter()
            .flat_map(|route| self.store.routes_of_delegate.get(route).iter().cloned())
            .collect();
        marks.routes.extend(delegating);
        for key in std::mem::take(&mut marks.routes) {
            let compiled = self.compile_route(&key).map(Arc::new);
            let old = match &compiled {
                Some(compiled) => self.routes.insert(key, Arc::clone(compiled)),
                None => self.routes.remove(&key),
            };
            if old == compiled {
                continue;
            }
            let attachments = [old.as_deref(), compiled.as_deref()].into_iter().flatten();
            for route in attachments {
                for attachment in &route.attachments {
                    if !parents.contains(&attachment.parent) {
                        parents.insert(attachment.parent.clone());
                    }
                }
                if let RouteBody::Tables(tables) = &route.body {
                    marks
                        .layer7
                        .extend(tables.keys().map(|(service, _)| service.clone()));
                }
            }
        }
        for parent in &parents {
            marks.layer7.extend(self.owner_keys(parent));
        }
        self.spread_targets(marks);
        let mut changed = false;
        for key in std::mem::take(&mut marks.layer7) {
            changed |= self.publish_layer7(&key);
        }
        for uid in std::mem::take(&mut marks.layer7_workloads) {
            changed |= self.publish_workload_layer7(&uid);
        }
        changed
    }

    /// The services that an owner declares, as far as its declaration is the one that counts.
    pub(super) fn owner_keys(&self, owner: &Owner) -> Vec<NamespacedHostname> {
        let output = self.outputs.get(owner);
        let services = output.into_iter().flat_map(|output| &output.services);
        let keys = services.map(|(service, _)| service.key.clone());
        keys.filter(|key| self.declarer(key) == Some(owner))
            .collect()
    }

    /// Whose declaration of a service counts.
    pub(super) fn declarer(&self, key: &NamespacedHostname) -> Option<&Owner> {
        self.declared.get(key)?.first()
    }

    fn publish_layer7(&mut self, key: &NamespacedHostname) -> bool {
        let old = self.current.services_layer7.get(key).cloned();
        let new = self.service_layer7(key, old.as_deref());
        if old.as_deref() == new.as_ref() {
            return false;
        }
        let table = &mut self.current.services_layer7;
        match new {
            Some(new) => table.insert(key.clone(), Arc::new(new)),
            None => table.remove(key),
        };
        true
    }

    /// Layer 7 of a service; none if it is not bound to a waypoint of ours.
    fn service_layer7(
        &self,
        key: &NamespacedHostname,
        old: Option<&ServiceLayer7>,
    ) -> Option<ServiceLayer7> {
        let owner = self.declarer(key)?;
        let service = self.current.services.get(key)?;
        let bound = self.outputs.get(owner)?.waypoint.as_ref()?;
        if service.alias.is_some() || service.ports.is_empty() {
            return None;
        }
        let mut tables = Tables::new();
        let mut through = |gateway: &ObjectName, old: Option<&ServiceLayer7>| {
            let gateway = self.store.gateways.get(gateway)?;
            let about = (owner, &**service, bound.ingress);
            let is_ours = self.is_ours(gateway);
            is_ours.then(|| self.layer7_through(gateway, about, &mut tables, old))?
        };
        let mut layer7 = through(&bound.gateway, old)?;
        if let Some(canary) = &bound.canary {
            let known = old.and_then(|old| old.canary.as_ref());
            let second = through(&canary.gateway, known.map(|known| &*known.layer7));
            layer7.canary = second.map(|second| CanaryLayer7 {
                weight: canary.weight,
                layer7: kept(known.map(|known| &known.layer7), second),
            });
        }
        Some(layer7)
    }

    /// What one waypoint does for a service.
    fn layer7_through<'a>(
        &'a self,
        gateway: &Gateway,
        (owner, service, ingress): (&Owner, &Service, bool),
        tables: &mut Tables<'a>,
        old: Option<&ServiceLayer7>,
    ) -> Option<ServiceLayer7> {
        let key = &service.key;
        let attached = self.store.routes_of_parent.get(owner).iter();
        let compiled = |route| Some((route, &**self.routes.get(route)?));
        let attached: Vec<Attached<'_>> = attached.filter_map(compiled).collect();
        let mut ports = BTreeMap::new();
        for (number, port) in &service.ports {
            let of_port = attached.iter().copied();
            let of_port = of_port.filter(|(_, route)| route.is_attached(owner, *number));
            let mut own = Vec::new();
            let mut by_space: BTreeMap<Arc<str>, Vec<Attached<'_>>> = BTreeMap::new();
            for route in of_port.clone() {
                let space = &route.0.name.namespace;
                // Whoever lends a waypoint routes through it, too (Istio: of other namespaces only the waypoint's).
                if [&key.namespace, &gateway.meta.name.namespace].contains(&space) {
                    own.push(route);
                } else {
                    by_space.entry(Arc::clone(space)).or_default().push(route);
                }
            }
            let routes = match self.port_routes(&own, tables) {
                PortRoutes::None => self.virtual_routes_of(key, *number),
                found => found,
            };
            let compiled = PortLayer7 {
                protocol: AppProtocol::of_port(*number, &port.name, &port.app_protocol),
                routes,
                consumer_routes: by_space
                    .into_iter()
                    .map(|(space, routes)| (space, self.port_routes(&routes, tables)))
                    .collect(),
                rate_limits: self
                    .rate_limits(gateway, owner, of_port.map(|(route, _)| route))
                    .into(),
            };
            let before = old.and_then(|old| old.ports.get(number));
            ports.insert(*number, kept(before, compiled));
        }
        let demands = self.demands(gateway, Some(owner));
        Some(ServiceLayer7 {
            waypoint: waypoint_key(gateway),
            waypoint_identity: self.waypoint_identity(gateway)?,
            ports,
            demands: kept(old.map(|old| &old.demands), demands),
            telemetry: kept(
                old.map(|old| &old.telemetry),
                self.telemetry(gateway, owner),
            ),
            ingress,
            canary: None,
        })
    }

    /// What the oldest VirtualService of a service's namespace says about one of its ports. Where routes of
    /// Gateway API are attached, they count.
    fn virtual_routes_of(&self, key: &NamespacedHostname, port: u16) -> PortRoutes {
        let naming = self.store.routes_of_backend.get(&key.hostname).iter();
        let virtual_services = naming.filter(|route| route.kind == Kind::VirtualService);
        let at = (key.clone(), port);
        let about = virtual_services.filter_map(|route| {
            let RouteBody::Tables(tables) = &self.routes.get(route)?.body else {
                return None;
            };
            let age = self.store.routes.get(route)?.meta().age_order();
            Some((age, tables.get(&at)?))
        });
        let oldest = about.min_by(|(one, _), (other, _)| one.cmp(other));
        oldest.map_or(PortRoutes::None, |(_, routes)| routes.clone())
    }

    pub(super) fn is_attached(&self, route: &ObjectKey, owner: &Owner, port: u16) -> bool {
        let compiled = self.routes.get(route);
        compiled.is_some_and(|route| route.is_attached(owner, port))
    }

    /// The routes that apply among these, all of one service port and one side.
    fn port_routes<'a>(&'a self, routes: &[Attached<'a>], tables: &mut Tables<'a>) -> PortRoutes {
        let keys: Vec<_> = routes.iter().map(|(key, _)| *key).collect();
        if let Some(known) = tables.get(&keys) {
            return known.clone();
        }
        let kinds = keys.iter().filter_map(|key| route_kind(&key.kind));
        let kind = kinds.min();
        let routes = routes.iter().copied();
        let applying = routes.filter(|(key, _)| route_kind(&key.kind) == kind);
        let found = match kind {
            None => PortRoutes::None,
            Some(kind @ (RouteKind::Grpc | RouteKind::Http)) => {
                let bodies = applying.map(|(_, route)| &route.body);
                PortRoutes::Http(Arc::new(table(bodies, kind == RouteKind::Grpc)))
            }
            Some(RouteKind::Tls | RouteKind::Tcp) => {
                let age = |key| Some(self.store.routes.get(key)?.meta().age_order());
                let oldest = applying.min_by_key(|(key, _)| age(*key));
                match oldest.map(|(_, route)| &route.body) {
                    Some(RouteBody::Connections(backends)) => PortRoutes::Tcp(Arc::clone(backends)),
                    _ => PortRoutes::None,
                }
            }
        };
        tables.insert(keys, found.clone());
        found
    }

    fn publish_workload_layer7(&mut self, uid: &WorkloadUid) -> bool {
        let old = self.current.workloads_layer7.get(uid).cloned();
        let new = self.workload_layer7(uid, old.as_deref());
        if old.as_deref() == new.as_ref() {
            return false;
        }
        let table = &mut self.current.workloads_layer7;
        match new {
            Some(new) => table.insert(uid.clone(), Arc::new(new)),
            None => table.remove(uid),
        };
        true
    }

    fn workload_layer7(
        &self,
        uid: &WorkloadUid,
        old: Option<&WorkloadLayer7>,
    ) -> Option<WorkloadLayer7> {
        let gateway = self.store.gateways.get(self.bindings.get(uid)?)?;
        if !self.is_ours(gateway) {
            return None;
        }
        let demands = self.demands(gateway, None);
        Some(WorkloadLayer7 {
            waypoint: waypoint_key(gateway),
            waypoint_identity: self.waypoint_identity(gateway)?,
            demands: kept(old.map(|old| &old.demands), demands),
        })
    }

    /// What all policies demand that speak about an owner of services, its waypoint, or the waypoint's class.
    fn demands(&self, gateway: &Gateway, owner: Option<&Owner>) -> Demands {
        let class = gateway.spec.gateway_class_name.as_str().into();
        let own = owner.map(|owner| Target::Owner(owner.clone()));
        let targets = [
            own,
            Some(Target::Gateway(gateway.meta.name.clone())),
            Some(Target::Class(class)),
        ];
        let mut policies = BTreeSet::new();
        for target in targets.iter().flatten() {
            policies.extend(self.store.policies_of_target.get(target).iter());
        }
        let of_kind = |kind: Kind| {
            let keys = policies.iter().filter(move |key| key.kind == kind);
            keys.map(|key| &key.name)
        };
        let authorization = of_kind(Kind::AuthorizationPolicy);
        let authentication = of_kind(Kind::RequestAuthentication);
        Demands {
            authorization: authorization
                .filter_map(|name| self.http_policies.get(name))
                .cloned()
                .collect(),
            authentication: authentication
                .filter_map(|name| self.jwt_rules.get(name))
                .flatten()
                .cloned()
                .collect(),
            names_clients: gateway.meta.annotations.get(NAMES_CLIENTS) == Some("true"),
            forwarders: gateway.forwarders(),
        }
    }

    /// Who the waypoint would be as a pod of its own.
    fn waypoint_identity(&self, gateway: &Gateway) -> Option<SpiffeId> {
        let ObjectName { namespace, name } = &gateway.meta.name;
        let account = gateway.meta.annotations.get(SERVICE_ACCOUNT);
        let domain = &self.options.mesh.trust_domain;
        let account = account.unwrap_or(name);
        let identity = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
        identity.parse().ok()
    }
}

/// The matches of these routes in their order of precedence.
fn table<'a>(bodies: impl Iterator<Item = &'a RouteBody>, is_grpc: bool) -> HttpRouteTable {
    let mut sorted = Vec::new();
    for body in bodies {
        if let RouteBody::Requests { age, entries } = body {
            let entries = entries.iter();
            sorted.extend(entries.map(|(precedence, entry)| (*precedence, age, entry)));
        }
    }
    sorted.sort_unstable_by(|(one, age, _), (other, older, _)| {
        Precedence::order((one, age), (other, older))
    });
    let entries = sorted.into_iter().map(|(.., entry)| entry.clone());
    HttpRouteTable::new(entries.collect(), is_grpc)
}

/// The old value if the new one is equal, so that whoever knows it by its address keeps what it knows.
fn kept<T: PartialEq>(old: Option<&Arc<T>>, new: T) -> Arc<T> {
    match old {
        Some(old) if **old == new => Arc::clone(old),
        _ => Arc::new(new),
    }
}

fn waypoint_key(gateway: &Gateway) -> WaypointKey {
    WaypointKey {
        namespace: Arc::clone(&gateway.meta.name.namespace),
        name: Arc::clone(&gateway.meta.name.name),
    }
}
