//! The objects as they are now, with the indexes that say what depends on what.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use super::routes::Route;
use super::targets::Target;
use crate::mesh::authorization::AuthorizationPolicy;
use crate::mesh::backend_tls_policy::BackendTlsPolicy;
use crate::mesh::credential::CredentialSource;
use crate::mesh::destination_rule::DestinationRule;
use crate::mesh::endpoint_slice::EndpointSlice;
use crate::mesh::external::{ServiceEntry, WorkloadEntry};
use crate::mesh::gateway::{Gateway, GatewayClass};
use crate::mesh::mesh_config::MeshConfig;
use crate::mesh::meta::{Labels, Meta, ObjectName};
use crate::mesh::object::ObjectKey;
use crate::mesh::peer_authentication::PeerAuthentication;
use crate::mesh::pod::Pod;
use crate::mesh::rate_limit_policy::RateLimitPolicy;
use crate::mesh::request_authentication::RequestAuthentication;
use crate::mesh::service::Service;
use crate::mesh::telemetry::Telemetry;

/// What declares services: a Service, or a ServiceEntry. A Service comes first where both declare one host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Owner {
    Service(ObjectName),
    Entry(ObjectName),
}

impl Owner {
    pub(super) fn name(&self) -> &ObjectName {
        match self {
            Self::Service(name) | Self::Entry(name) => name,
        }
    }
}

/// What a selector can select: of the same namespace, so the name is enough.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Member {
    Pod(Arc<str>),
    Entry(Arc<str>),
}

/// Objects of one kind, by namespace and name.
#[derive(Debug)]
pub(super) struct Table<T>(HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Table<T> {
    pub(super) fn get(&self, name: &ObjectName) -> Option<&Arc<T>> {
        self.named(&name.namespace, &name.name)
    }

    pub(super) fn named(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.0.get(namespace)?.get(name)
    }

    /// Puts, replaces or removes; gives back what was there.
    pub(super) fn set(&mut self, name: &ObjectName, object: Option<Arc<T>>) -> Option<Arc<T>> {
        if let Some(object) = object {
            let space = self.0.entry(Arc::clone(&name.namespace)).or_default();
            return space.insert(Arc::clone(&name.name), object);
        }
        let space = self.0.get_mut(&name.namespace)?;
        let old = space.remove(&name.name);
        if space.is_empty() {
            self.0.remove(&name.namespace);
        }
        old
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.0.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = Arc<str>> {
        self.0.keys().map(Arc::clone)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.values().flat_map(BTreeMap::values)
    }
}

/// Names are hashed again and again, and no client chooses them: a cheaper hash than the standard one.
pub(super) type ByName<K, V> = hashbrown::HashMap<K, V>;

/// A set-valued index without empty sets. Most have one value.
#[derive(Debug)]
pub(super) struct Index<K, V>(ByName<K, Values<V>>);

/// Values under one key.
#[derive(Debug)]
enum Values<V> {
    /// Sorted: small, and each change moves those behind it.
    Few(SmallVec<[V; 1]>),
    Many(BTreeSet<V>),
}

/// More than these are [`Values::Many`], for good.
const FEW: usize = 64;

/// What an [`Index`] has under a key, sorted.
#[derive(Debug)]
pub(super) struct Found<'i, V> {
    few: &'i [V],
    many: Option<&'i BTreeSet<V>>,
}

impl<'i, V> Found<'i, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_none_or(BTreeSet::is_empty)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'i V> + use<'i, V> {
        self.few
            .iter()
            .chain(self.many.into_iter().flat_map(BTreeSet::iter))
    }
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self(ByName::new())
    }
}

impl<K: std::hash::Hash + Eq, V: Ord> Index<K, V> {
    /// Values under a key.
    pub(super) fn get<Q>(&self, key: &Q) -> Found<'_, V>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        let (few, many): (&[V], _) = match self.0.get(key) {
            None => (&[], None),
            Some(Values::Few(few)) => (few, None),
            Some(Values::Many(many)) => (&[], Some(many)),
        };
        Found { few, many }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        let values = self.0.entry(key);
        let values = values.or_insert_with(|| Values::Few(SmallVec::new()));
        match values {
            Values::Few(few) => {
                let Err(place) = few.binary_search(&value) else {
                    return;
                };
                few.insert(place, value);
                if few.len() > FEW {
                    *values = Values::Many(few.drain(..).collect());
                }
            }
            Values::Many(many) => {
                many.insert(value);
            }
        }
    }

    pub(super) fn remove(&mut self, key: K, value: &V) {
        let Entry::Occupied(mut found) = self.0.entry(key) else {
            return;
        };
        let is_empty = match found.get_mut() {
            Values::Few(few) => {
                if let Ok(place) = few.binary_search(value) {
                    few.remove(place);
                }
                few.is_empty()
            }
            Values::Many(many) => {
                many.remove(value);
                many.is_empty()
            }
        };
        if is_empty {
            found.remove();
        }
    }
}

/// Selectors of one namespace, each under the first of its pairs: what selects a workload is found by the
/// workload's own labels, not by trying every selector.
type Selectors = HashMap<(Arc<str>, Arc<str>), BTreeMap<Owner, Labels>>;

/// Everything that was told to the compiler.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) namespaces: HashMap<Arc<str>, Arc<Meta>>,
    pub(super) nodes: HashMap<Arc<str>, Arc<Meta>>,
    pub(super) pods: Table<Pod>,
    pub(super) services: Table<Service>,
    pub(super) slices: Table<EndpointSlice>,
    pub(super) service_entries: Table<ServiceEntry>,
    pub(super) workload_entries: Table<WorkloadEntry>,
    pub(super) authorizations: Table<AuthorizationPolicy>,
    pub(super) peers: Table<PeerAuthentication>,
    pub(super) gateways: Table<Gateway>,
    pub(super) classes: HashMap<Arc<str>, Arc<GatewayClass>>,
    pub(super) routes: ByName<ObjectKey, Route>,
    /// Routes that are attached to a Service or ServiceEntry.
    pub(super) routes_of_parent: Index<Owner, ObjectKey>,
    /// Routes that name a host as a backend.
    pub(super) routes_of_backend: Index<Arc<str>, ObjectKey>,
    /// Routes that delegate to a route.
    pub(super) routes_of_delegate: Index<ObjectKey, ObjectKey>,
    /// Policies that speak about a target.
    pub(super) policies_of_target: Index<Target, ObjectKey>,
    pub(super) destination_rules: Table<DestinationRule>,
    /// DestinationRules about a host.
    pub(super) rules_of_host: Index<Arc<str>, ObjectName>,
    pub(super) backend_tls: Table<BackendTlsPolicy>,
    pub(super) secrets: Table<CredentialSource>,
    /// ConfigMaps with certificates of authorities.
    pub(super) authorities: Table<CredentialSource>,
    pub(super) rate_limits: Table<RateLimitPolicy>,
    pub(super) telemetries: Table<Telemetry>,
    pub(super) authentications: Table<RequestAuthentication>,
    pub(super) mesh_config: Option<Arc<MeshConfig>>,
    /// Slices of a Service.
    pub(super) slices_of: Index<ObjectName, Arc<str>>,
    /// Slices that name a pod.
    pub(super) slices_of_pod: Index<ObjectName, Arc<str>>,
    /// Slices that have an address.
    pub(super) slices_of_address: Index<IpAddr, ObjectName>,
    selectors: HashMap<Arc<str>, Selectors>,
    members: HashMap<Owner, BTreeSet<Member>>,
}

impl Store {
    /// Who selects a workload with these labels.
    pub(super) fn selecting(&self, namespace: &str, labels: &Labels) -> BTreeSet<Owner> {
        let Some(selectors) = self.selectors.get(namespace) else {
            return BTreeSet::new();
        };
        let candidates = labels
            .iter()
            .filter_map(|(key, value)| selectors.get(&(Arc::clone(key), Arc::clone(value))));
        let selects = candidates
            .flatten()
            .filter(|(_, selector)| selector.select(labels));
        selects.map(|(owner, _)| owner.clone()).collect()
    }

    /// Whom an owner's selector selects.
    pub(super) fn members(&self, owner: &Owner) -> impl Iterator<Item = &Member> + use<'_> {
        self.members.get(owner).into_iter().flatten()
    }

    /// Notes that a workload's labels changed; gives everyone who selected it or does now.
    pub(super) fn relabel(
        &mut self,
        namespace: &str,
        member: &Member,
        (old, new): (Option<&Labels>, Option<&Labels>),
    ) -> BTreeSet<Owner> {
        let find = |labels: Option<&Labels>| {
            labels
                .map(|labels| self.selecting(namespace, labels))
                .unwrap_or_default()
        };
        let (before, after) = (find(old), find(new));
        for owner in before.difference(&after) {
            if let Some(members) = self.members.get_mut(owner) {
                members.remove(member);
            }
        }
        for owner in after.difference(&before) {
            self.members
                .entry(owner.clone())
                .or_default()
                .insert(member.clone());
        }
        before.union(&after).cloned().collect()
    }

    /// Notes that an owner's selector changed; gives everyone whom it selected or does now.
    pub(super) fn reselect(
        &mut self,
        owner: &Owner,
        (old, new): (Option<&Labels>, Option<&Labels>),
    ) -> BTreeSet<Member> {
        let namespace = Arc::clone(&owner.name().namespace);
        let pair = |labels: Option<&Labels>| {
            let (key, value) = labels?.first()?;
            Some((Arc::clone(key), Arc::clone(value)))
        };
        if old == new {
            return BTreeSet::new();
        }
        let selectors = self.selectors.entry(Arc::clone(&namespace)).or_default();
        if let Some(pair) = pair(old) {
            if let Some(owners) = selectors.get_mut(&pair) {
                owners.remove(owner);
            }
            selectors.retain(|_, owners| !owners.is_empty());
        }
        if let (Some(pair), Some(labels)) = (pair(new), new) {
            selectors
                .entry(pair)
                .or_default()
                .insert(owner.clone(), labels.clone());
        }
        if selectors.is_empty() {
            self.selectors.remove(&namespace);
        }
        let after = self.scan(&namespace, new);
        let before = self.members.remove(owner).unwrap_or_default();
        let touched = before.union(&after).cloned().collect();
        if !after.is_empty() {
            self.members.insert(owner.clone(), after);
        }
        touched
    }

    fn scan(&self, namespace: &str, selector: Option<&Labels>) -> BTreeSet<Member> {
        let Some(selector) = selector.filter(|labels| !labels.is_empty()) else {
            return BTreeSet::new();
        };
        let pods = self.pods.in_namespace(namespace);
        let pods = pods.filter(|pod| selector.select(&pod.meta.labels));
        let entries = self.workload_entries.in_namespace(namespace);
        let entries = entries.filter(|entry| selector.select(&entry.labels));
        pods.map(|pod| Member::Pod(Arc::clone(&pod.meta.name.name)))
            .chain(entries.map(|entry| Member::Entry(Arc::clone(&entry.meta.name.name))))
            .collect()
    }

    /// Replaces a slice in the indexes.
    pub(super) fn index_slice(&mut self, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>) {
        if let Some(slice) = old {
            let name = &slice.meta.name;
            if let Some(service) = &slice.service {
                self.slices_of.remove(service.clone(), &name.name);
            }
            for endpoint in &slice.endpoints {
                self.slices_of_address.remove(endpoint.address, name);
                if let Some(pod) = &endpoint.pod {
                    self.slices_of_pod.remove(pod.clone(), &name.name);
                }
            }
        }
        if let Some(slice) = new {
            let name = &slice.meta.name;
            if let Some(service) = &slice.service {
                self.slices_of
                    .insert(service.clone(), Arc::clone(&name.name));
            }
            for endpoint in &slice.endpoints {
                self.slices_of_address
                    .insert(endpoint.address, name.clone());
                if let Some(pod) = &endpoint.pod {
                    self.slices_of_pod
                        .insert(pod.clone(), Arc::clone(&name.name));
                }
            }
        }
    }

    /// The Service that a slice belongs to.
    pub(super) fn service_of_slice(&self, slice: &ObjectName) -> Option<Owner> {
        self.slices.get(slice)?.service.clone().map(Owner::Service)
    }

    /// Slices of a Service, in the order of their names.
    pub(super) fn slices_for(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.slices_of.get(service).iter();
        names.filter_map(|name| {
            let namespace = Arc::clone(&service.namespace);
            self.slices.get(&ObjectName {
                namespace,
                name: Arc::clone(name),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{FEW, Index};

    #[test]
    fn an_index_is_sorted_and_whole_however_many_values_it_has() {
        let mut index = Index::default();
        let count = 3 * FEW;
        // Each twice, in an order of its own.
        for number in (0..count).map(|one| one * 7 % count).chain(0..count) {
            index.insert("key", number);
            index.insert("other", 1);
        }
        let found: Vec<_> = index.get("key").iter().copied().collect();
        assert_eq!(found, (0..count).collect::<Vec<_>>());
        assert_eq!(index.get("other").iter().count(), 1);
        for number in 0..count {
            assert!(!index.get("key").is_empty(), "{number} are gone");
            index.remove("key", &number);
        }
        assert!(index.get("key").is_empty());
        assert!(index.get("nothing").is_empty());
    }
}
