//! Takes one change into the store and marks what depends on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use indexmap::IndexSet;
use userspace_l7::model::{NamespacedHostname, PolicyKey, WorkloadUid};

use super::entries::hosts_without_address;
use super::routes::Route;
use super::store::{Member, Owner};
use super::targets::Target;
use super::waypoint::{instance_of, wish};
use super::{Compiler, vips};
use crate::mesh::authorization::AuthorizationPolicy;
use crate::mesh::endpoint_slice::EndpointSlice;
use crate::mesh::external::{ServiceEntry, WorkloadEntry};
use crate::mesh::gateway::Gateway;
use crate::mesh::meta::{Meta, ObjectName};
use crate::mesh::object::{Change, Kind, Object, ObjectKey};
use crate::mesh::peer_authentication::PeerAuthentication;
use crate::mesh::pod::Pod;
use crate::mesh::service::Service;

/// An object as the kind that it is; none if there is none.
macro_rules! of {
    ($object:expr, $kind:ident) => {
        match $object {
            Some(Object::$kind(found)) => Some(found),
            _ => None,
        }
    };
}

/// What has to be computed anew.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) pods: BTreeSet<ObjectName>,
    pub(super) entries: BTreeSet<ObjectName>,
    pub(super) owners: BTreeSet<Owner>,
    pub(super) authorizations: BTreeSet<ObjectName>,
    pub(super) peers: BTreeSet<ObjectName>,
    /// In the order in which they came, in which they lie in memory.
    pub(super) routes: IndexSet<ObjectKey, DefaultHashBuilder>,
    /// Services whose layer 7 is to be put together anew.
    pub(super) layer7: BTreeSet<NamespacedHostname>,
    /// Workloads whose layer 7 is.
    pub(super) layer7_workloads: BTreeSet<WorkloadUid>,
    /// Whatever these stand for.
    pub(super) layer7_targets: BTreeSet<Target>,
    /// Services whose spreading and limits are to be computed anew.
    pub(super) traffic: BTreeSet<NamespacedHostname>,
    /// Namespaces that may have become strict about their waypoints, or no longer be.
    pub(super) strict: BTreeSet<Arc<str>>,
    /// Telemetry objects whose providers may have come or gone.
    pub(super) telemetries: BTreeSet<ObjectName>,
    /// The settings that hold for all requests.
    pub(super) settings: bool,
    /// Policies that were announced anew.
    pub(super) announced_policies: BTreeSet<PolicyKey>,
    /// Workloads that were, and that no object of ours speaks of.
    pub(super) announced_workloads: BTreeSet<WorkloadUid>,
    /// Services that were, or whose endpoints were.
    pub(super) announced_services: BTreeSet<NamespacedHostname>,
    /// Every workload of these.
    namespaces: BTreeSet<Arc<str>>,
    /// Policies with targets in these: a target came or went.
    targets: BTreeSet<Arc<str>>,
    every_workload: bool,
    automatic_addresses: bool,
}

impl Marks {
    /// Marks all workloads of a namespace.
    pub(super) fn namespace(&mut self, namespace: &Arc<str>) {
        self.namespaces.insert(Arc::clone(namespace));
    }

    /// Marks all workloads.
    pub(super) fn everything(&mut self) {
        self.every_workload = true;
    }

    fn member(&mut self, namespace: &Arc<str>, member: Member) {
        let namespace = Arc::clone(namespace);
        match member {
            Member::Pod(name) => self.pods.insert(ObjectName { namespace, name }),
            Member::Entry(name) => self.entries.insert(ObjectName { namespace, name }),
        };
    }
}

impl Compiler {
    pub(super) fn ingest(&mut self, change: &Change, marks: &mut Marks) {
        let (key, object) = match change {
            Change::Upsert(object) => (object.key(), Some(object)),
            Change::Remove(key) => (key.clone(), None),
        };
        let name = &key.name;
        match key.kind {
            Kind::Namespace => self.set_namespace(name, of!(object, Namespace), marks),
            Kind::Node => self.set_node(name, of!(object, Node), marks),
            Kind::Pod => self.set_pod(name, of!(object, Pod), marks),
            Kind::Service => self.set_service(name, of!(object, Service), marks),
            Kind::EndpointSlice => self.set_slice(name, of!(object, EndpointSlice), marks),
            Kind::ServiceEntry => self.set_service_entry(name, of!(object, ServiceEntry), marks),
            Kind::WorkloadEntry => {
                self.set_workload_entry(name, of!(object, WorkloadEntry), marks);
            }
            Kind::AuthorizationPolicy => {
                self.set_authorization(name, of!(object, AuthorizationPolicy), marks);
            }
            Kind::PeerAuthentication => {
                self.set_peer(name, of!(object, PeerAuthentication), marks);
            }
            Kind::GatewayClass => self.set_class(name, of!(object, GatewayClass), marks),
            Kind::Gateway => self.set_gateway(name, of!(object, Gateway), marks),
            Kind::HttpRoute => {
                let route = of!(object, HttpRoute).cloned().map(Route::Http);
                self.set_route(&key, route.as_ref(), marks);
            }
            Kind::GrpcRoute => {
                let route = of!(object, GrpcRoute).cloned().map(Route::Grpc);
                self.set_route(&key, route.as_ref(), marks);
            }
            Kind::TlsRoute => {
                let route = of!(object, TlsRoute).cloned().map(Route::Stream);
                self.set_route(&key, route.as_ref(), marks);
            }
            Kind::TcpRoute => {
                let route = of!(object, TcpRoute).cloned().map(Route::Stream);
                self.set_route(&key, route.as_ref(), marks);
            }
            Kind::RequestAuthentication => {
                self.set_authentication(&key, of!(object, RequestAuthentication), marks);
            }
            Kind::VirtualService => {
                let route = of!(object, VirtualService).cloned().map(Route::Virtual);
                self.set_route(&key, route.as_ref(), marks);
            }
            Kind::RateLimitPolicy => {
                self.set_rate_limits(&key, of!(object, RateLimitPolicy), marks);
            }
            Kind::Telemetry => self.set_telemetry(&key, of!(object, Telemetry), marks),
            Kind::DestinationRule => {
                self.set_destination_rule(name, of!(object, DestinationRule), marks);
            }
            Kind::BackendTlsPolicy => {
                self.set_backend_tls(&key, of!(object, BackendTlsPolicy), marks);
            }
            Kind::Secret => self.set_credentials(&key, of!(object, Secret), marks),
            Kind::Authorities => self.set_credentials(&key, of!(object, Authorities), marks),
            Kind::MeshConfig => self.set_mesh_config(name, of!(object, MeshConfig), marks),
            Kind::Other(..) => {}
        }
    }

    fn set_namespace(&mut self, name: &ObjectName, meta: Option<&Arc<Meta>>, marks: &mut Marks) {
        let old = match meta {
            Some(meta) => self
                .store
                .namespaces
                .insert(Arc::clone(&name.name), Arc::clone(meta)),
            None => self.store.namespaces.remove(&name.name),
        };
        if old.as_ref() == meta {
            return;
        }
        marks.namespace(&name.name);
        marks.strict.insert(Arc::clone(&name.name));
        for service in self.store.services.in_namespace(&name.name) {
            marks
                .owners
                .insert(Owner::Service(service.meta.name.clone()));
        }
        for entry in self.store.service_entries.in_namespace(&name.name) {
            marks.owners.insert(Owner::Entry(entry.meta.name.clone()));
        }
    }

    fn set_node(&mut self, name: &ObjectName, meta: Option<&Arc<Meta>>, marks: &mut Marks) {
        let old = match meta {
            Some(meta) => self
                .store
                .nodes
                .insert(Arc::clone(&name.name), Arc::clone(meta)),
            None => self.store.nodes.remove(&name.name),
        };
        if old.as_ref() != meta {
            let there = self.store.pods.iter().filter(|pod| pod.node == name.name);
            marks.pods.extend(there.map(|pod| pod.meta.name.clone()));
        }
    }

    fn set_pod(&mut self, name: &ObjectName, pod: Option<&Arc<Pod>>, marks: &mut Marks) {
        let old = self.store.pods.set(name, pod.cloned());
        if old.as_ref() == pod {
            return;
        }
        marks.pods.insert(name.clone());
        let labels = (
            old.as_ref().map(|pod| &pod.meta.labels),
            pod.map(|pod| &pod.meta.labels),
        );
        let member = Member::Pod(Arc::clone(&name.name));
        marks
            .owners
            .extend(self.store.relabel(&name.namespace, &member, labels));
        // Labels say which subset of a service it is in.
        let addresses = [old.as_ref(), pod].into_iter().flatten();
        for address in addresses.flat_map(|pod| &pod.addresses) {
            for slice in self.store.slices_of_address.get(address).iter() {
                marks.owners.extend(self.store.service_of_slice(slice));
            }
        }
        for slice in self.store.slices_of_pod.get(name).iter() {
            let slice = ObjectName {
                namespace: Arc::clone(&name.namespace),
                name: Arc::clone(slice),
            };
            marks.owners.extend(self.store.service_of_slice(&slice));
        }
    }

    fn set_service(
        &mut self,
        name: &ObjectName,
        service: Option<&Arc<Service>>,
        marks: &mut Marks,
    ) {
        let old = self.store.services.set(name, service.cloned());
        if old.as_ref() == service {
            return;
        }
        let owner = Owner::Service(name.clone());
        let selectors = (
            old.as_ref().map(|one| &one.selector),
            service.map(|one| &one.selector),
        );
        for member in self.store.reselect(&owner, selectors) {
            marks.member(&name.namespace, member);
        }
        if old.is_some() != service.is_some() {
            marks.targets.insert(Arc::clone(&name.namespace));
            for slice in self.store.slices_for(name) {
                self.mark_behind(slice, marks);
            }
        }
        marks.owners.insert(owner);
    }

    fn set_slice(
        &mut self,
        name: &ObjectName,
        slice: Option<&Arc<EndpointSlice>>,
        marks: &mut Marks,
    ) {
        let old = self.store.slices.set(name, slice.cloned());
        if old.as_ref() == slice {
            return;
        }
        let services: Vec<_> = [old.as_ref(), slice]
            .into_iter()
            .flatten()
            .filter_map(|one| one.service.clone())
            .collect();
        let had_slices: Vec<_> = services
            .iter()
            .map(|one| !self.store.slices_of.get(one).is_empty())
            .collect();
        self.store
            .index_slice(old.as_deref(), slice.map(|slice| &**slice));
        for (service, had) in services.into_iter().zip(had_slices) {
            let has = !self.store.slices_of.get(&service).is_empty();
            let owner = Owner::Service(service);
            if had != has {
                // The selector starts or ceases to count.
                let members: Vec<_> = self.store.members(&owner).cloned().collect();
                for member in members {
                    marks.member(&name.namespace, member);
                }
            }
            marks.owners.insert(owner);
        }
        for slice in [old.as_ref(), slice].into_iter().flatten() {
            self.mark_behind(slice, marks);
        }
    }

    /// Marks the pods that a slice speaks of.
    fn mark_behind(&self, slice: &EndpointSlice, marks: &mut Marks) {
        for endpoint in &slice.endpoints {
            marks.pods.extend(endpoint.pod.clone());
            marks.pods.extend(self.pods_at(endpoint.address));
        }
    }

    fn set_service_entry(
        &mut self,
        name: &ObjectName,
        entry: Option<&Arc<ServiceEntry>>,
        marks: &mut Marks,
    ) {
        let old = self.store.service_entries.set(name, entry.cloned());
        if old.as_ref() == entry {
            return;
        }
        let owner = Owner::Entry(name.clone());
        let selectors = (
            old.as_ref().map(|one| &one.selector),
            entry.map(|one| &one.selector),
        );
        for member in self.store.reselect(&owner, selectors) {
            marks.member(&name.namespace, member);
        }
        // Its hosts are what its members' services are called.
        let members: Vec<_> = self.store.members(&owner).cloned().collect();
        for member in members {
            marks.member(&name.namespace, member);
        }
        if old.is_some() != entry.is_some() {
            marks.targets.insert(Arc::clone(&name.namespace));
        }
        marks.automatic_addresses = true;
        self.mark_askers(marks);
        marks.owners.insert(owner);
    }

    fn set_workload_entry(
        &mut self,
        name: &ObjectName,
        entry: Option<&Arc<WorkloadEntry>>,
        marks: &mut Marks,
    ) {
        let old = self.store.workload_entries.set(name, entry.cloned());
        if old.as_ref() == entry {
            return;
        }
        marks.entries.insert(name.clone());
        let addresses = [old.as_ref(), entry].into_iter().flatten();
        for address in addresses.filter_map(|one| one.spec.address.parse().ok()) {
            for slice in self.store.slices_of_address.get::<IpAddr>(&address).iter() {
                marks.owners.extend(self.store.service_of_slice(slice));
            }
        }
        let labels = (
            old.as_ref().map(|one| &one.labels),
            entry.map(|one| &one.labels),
        );
        let member = Member::Entry(Arc::clone(&name.name));
        marks
            .owners
            .extend(self.store.relabel(&name.namespace, &member, labels));
    }

    fn set_authorization(
        &mut self,
        name: &ObjectName,
        policy: Option<&Arc<AuthorizationPolicy>>,
        marks: &mut Marks,
    ) {
        let old = self.store.authorizations.set(name, policy.cloned());
        if old.as_ref() != policy {
            let targets = |policy: &AuthorizationPolicy| {
                self.targets(&policy.meta.name, policy.spec.targets())
            };
            let targets = (
                old.as_deref().map(targets).unwrap_or_default(),
                policy.map(|policy| targets(policy)).unwrap_or_default(),
            );
            let key = ObjectKey {
                kind: Kind::AuthorizationPolicy,
                name: name.clone(),
            };
            self.index_targets(&key, targets, marks);
            marks.authorizations.insert(name.clone());
        }
    }

    fn set_peer(
        &mut self,
        name: &ObjectName,
        policy: Option<&Arc<PeerAuthentication>>,
        marks: &mut Marks,
    ) {
        if self.store.peers.set(name, policy.cloned()).as_ref() != policy {
            marks.peers.insert(name.clone());
        }
    }

    fn set_gateway(
        &mut self,
        name: &ObjectName,
        gateway: Option<&Arc<Gateway>>,
        marks: &mut Marks,
    ) {
        let old = self.store.gateways.set(name, gateway.cloned());
        if old.as_ref() == gateway {
            return;
        }
        marks.targets.insert(Arc::clone(&name.namespace));
        self.mark_gateway(name, marks);
    }

    /// Marks everything that asks for a waypoint, and its pods.
    pub(super) fn mark_gateway(&self, name: &ObjectName, marks: &mut Marks) {
        marks.layer7_targets.insert(Target::Gateway(name.clone()));
        let asks = |meta: &Meta| {
            let namespace = self.store.namespaces.get(&meta.name.namespace);
            let wish = wish(meta, namespace.map(|meta| &**meta));
            wish.is_some_and(|wish| wish.gateways().any(|one| one == name))
        };
        let services = self.store.services.iter().filter(|one| asks(&one.meta));
        marks
            .owners
            .extend(services.map(|one| Owner::Service(one.meta.name.clone())));
        let entries = self
            .store
            .service_entries
            .iter()
            .filter(|one| asks(&one.meta));
        marks
            .owners
            .extend(entries.map(|one| Owner::Entry(one.meta.name.clone())));
        let is_of_it = |meta: &Meta| instance_of(meta).as_ref() == Some(name);
        let pods = self.store.pods.iter();
        let pods = pods.filter(|one| asks(&one.meta) || is_of_it(&one.meta));
        marks.pods.extend(pods.map(|one| one.meta.name.clone()));
        let entries = self
            .store
            .workload_entries
            .iter()
            .filter(|one| asks(&one.meta));
        marks
            .entries
            .extend(entries.map(|one| one.meta.name.clone()));
    }

    /// Marks what follows from the other marks but for workloads, which wait for the policies.
    pub(super) fn spread(&mut self, marks: &mut Marks) {
        for namespace in std::mem::take(&mut marks.targets) {
            let policies = self.store.authorizations.in_namespace(&namespace);
            let targeting = policies.filter(|policy| policy.spec.targets().next().is_some());
            marks
                .authorizations
                .extend(targeting.map(|policy| policy.meta.name.clone()));
        }
        if marks.automatic_addresses {
            let wanting = self.store.service_entries.iter().flat_map(|entry| {
                hosts_without_address(entry).map(|host| (entry.meta.name.clone(), host))
            });
            let automatic = vips::allocate(&wanting.collect());
            let moved = automatic
                .iter()
                .filter(|(wish, given)| self.automatic.get(*wish) != Some(*given));
            marks
                .owners
                .extend(moved.map(|((entry, _), _)| Owner::Entry(entry.clone())));
            let gone = self
                .automatic
                .keys()
                .filter(|wish| !automatic.contains_key(*wish));
            marks
                .owners
                .extend(gone.map(|(entry, _)| Owner::Entry(entry.clone())));
            self.automatic = automatic;
        }
    }

    /// Turns marks of whole namespaces into marks of their workloads. Inline endpoints of ServiceEntries
    /// are workloads too.
    pub(super) fn spread_namespaces(&self, marks: &mut Marks) {
        let mut every: BTreeSet<_> = std::mem::take(&mut marks.namespaces);
        if marks.every_workload {
            every.extend(self.store.pods.namespaces());
            every.extend(self.store.workload_entries.namespaces());
            every.extend(self.store.service_entries.namespaces());
        }
        for namespace in &every {
            let pods = self.store.pods.in_namespace(namespace);
            marks.pods.extend(pods.map(|pod| pod.meta.name.clone()));
            let entries = self.store.workload_entries.in_namespace(namespace);
            marks
                .entries
                .extend(entries.map(|entry| entry.meta.name.clone()));
            let entries = self.store.service_entries.in_namespace(namespace);
            marks
                .owners
                .extend(entries.map(|entry| Owner::Entry(entry.meta.name.clone())));
        }
    }
}
