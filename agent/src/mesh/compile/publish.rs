//! Computes what is marked, and puts what came out different into the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use userspace_l7::model::{
    Map, NamespacedHostname, NetworkMode, Service, TunnelProtocol, Workload, WorkloadUid,
};

use super::mark::Marks;
use super::services::Rank;
use super::store::Owner;
use super::waypoint::{Traffic, USE_WAYPOINT};
use super::{Compiler, Notices, Unit};
use crate::mesh::meta::{Meta, ObjectName};
use crate::mesh::object::Kind;

impl Compiler {
    pub(super) fn update_workloads(&mut self, marks: &mut Marks) -> bool {
        self.spread_namespaces(marks);
        let mut changed = false;
        for name in std::mem::take(&mut marks.pods) {
            let pod = self.store.pods.get(&name).map(Arc::clone);
            let workload = pod.as_ref().and_then(|pod| self.pod_workload(pod));
            let uid = self.pod_uid(&name);
            let local = pod.as_ref().zip(workload.as_ref());
            let local = local.and_then(|(pod, workload)| self.local_pod(pod, workload));
            let bystander = pod.as_ref().filter(|_| local.is_none());
            match bystander.and_then(|pod| self.bystander(pod)) {
                Some(bystander) => self.bystanders.insert(uid.clone(), bystander),
                None => self.bystanders.remove(&uid),
            };
            match local {
                Some(local) => self.local.insert(uid.clone(), Arc::new(local)),
                None => self.local.remove(&uid),
            };
            self.say_enrolment(pod.as_deref(), &name);
            let meta = pod.as_ref().map(|pod| &pod.meta);
            self.say_binding(Kind::Pod, meta, Unit::Pod(name.clone()));
            self.bind(&uid, meta.filter(|_| workload.is_some()), marks);
            changed |= self.publish_workload(&uid, workload.map(Arc::new), marks);
        }
        for name in std::mem::take(&mut marks.entries) {
            let entry = self.store.workload_entries.get(&name).map(Arc::clone);
            let workload = entry
                .as_ref()
                .map(|entry| Arc::new(self.entry_workload(entry)));
            let meta = entry.as_ref().map(|entry| &entry.meta);
            self.say_binding(Kind::WorkloadEntry, meta, Unit::Entry(name.clone()));
            let uid = self.entry_uid(&name);
            self.bind(&uid, meta, marks);
            changed |= self.publish_workload(&uid, workload, marks);
        }
        for uid in std::mem::take(&mut marks.announced_workloads) {
            changed |= self.publish_workload(&uid, None, marks);
        }
        changed
    }

    /// Notes which waypoint a workload is bound to.
    fn bind(&mut self, uid: &WorkloadUid, meta: Option<&Meta>, marks: &mut Marks) {
        let bound = meta.and_then(|meta| self.waypoint(meta, Traffic::Workload).ok()?);
        let gateway = bound.map(|one| one.gateway);
        if self.bindings.get(uid) == gateway.as_ref() {
            return;
        }
        match gateway {
            Some(gateway) => self.bindings.insert(uid.clone(), gateway),
            None => self.bindings.remove(uid),
        };
        marks.layer7_workloads.insert(uid.clone());
    }

    /// Says so if a workload asks for a waypoint by its own label that it cannot have.
    fn say_binding(&mut self, kind: Kind, meta: Option<&Meta>, unit: Unit) {
        let own = meta.filter(|meta| meta.labels.get(USE_WAYPOINT).is_some());
        let refused = own.and_then(|meta| {
            let refused = match self.waypoint(meta, Traffic::Workload) {
                Ok(bound) => bound.and_then(|bound| bound.canary.err()),
                Err(why) => Some(why),
            };
            Some((&meta.name, refused?))
        });
        let mut notices = Notices::default();
        if let Some((name, why)) = refused {
            notices.warn(kind, name, why.notice);
        }
        self.say(unit, notices.0);
    }

    /// Puts, replaces or removes a workload; marks services whose slices speak of its addresses.
    fn publish_workload(
        &mut self,
        uid: &WorkloadUid,
        compiled: Option<Arc<Workload>>,
        marks: &mut Marks,
    ) -> bool {
        let workload = self.layer4_workload(uid, compiled);
        let old = self.current.workloads.get(uid).cloned();
        if old == workload {
            return false;
        }
        let touched = self.replace_workload(uid, (old, workload));
        for address in touched {
            for slice in self.store.slices_of_address.get(&address).iter() {
                marks.owners.extend(self.store.service_of_slice(slice));
            }
        }
        true
    }

    /// Gives the addresses whose claims changed.
    fn replace_workload(
        &mut self,
        uid: &WorkloadUid,
        (old, new): (Option<Arc<Workload>>, Option<Arc<Workload>>),
    ) -> BTreeSet<IpAddr> {
        match &new {
            Some(workload) => self
                .current
                .workloads
                .insert(uid.clone(), Arc::clone(workload)),
            None => self.current.workloads.remove(uid),
        };
        let mut touched = BTreeSet::new();
        for (workload, present) in [(&old, false), (&new, true)] {
            let Some(workload) = workload else { continue };
            self.count_hostname(workload, present);
            if workload.network_mode == NetworkMode::HostNetwork {
                continue;
            }
            for address in &workload.addresses {
                self.claims
                    .set(*address, (rank(workload), uid.clone()), present);
                touched.insert(*address);
            }
        }
        for address in &touched {
            let winner = self.claims.winner(*address);
            match winner.and_then(|uid| self.current.workloads.get(uid)) {
                Some(workload) => {
                    let workload = Arc::clone(workload);
                    self.current.workloads_by_address.insert(*address, workload);
                }
                None => {
                    self.current.workloads_by_address.remove(address);
                }
            }
        }
        touched
    }

    fn count_hostname(&mut self, workload: &Workload, present: bool) {
        if workload.hostname.is_empty() || !workload.addresses.is_empty() {
            return;
        }
        let known = self.hostnames.entry(Arc::clone(&workload.hostname));
        let count = known.or_default();
        *count = if present {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            self.hostnames.remove(&workload.hostname);
        }
    }

    /// Pods that claim an address.
    pub(super) fn pods_at(&self, address: IpAddr) -> Vec<ObjectName> {
        let uids = self.claims.all(address).into_iter();
        let workloads = uids.filter_map(|uid| self.current.workloads.get(uid));
        let names = workloads.map(|one| ObjectName {
            namespace: Arc::clone(&one.namespace),
            name: Arc::clone(&one.name),
        });
        names
            .filter(|name| self.store.pods.get(name).is_some())
            .collect()
    }

    pub(super) fn update_services(&mut self, marks: &mut Marks) -> bool {
        let mut different = Vec::new();
        let owners = std::mem::take(&mut marks.owners);
        for owner in &owners {
            let mut notices = Notices::default();
            let mut output = match owner {
                Owner::Service(name) => self.compile_service(name, &mut notices),
                Owner::Entry(name) => self.compile_entry(name, &mut notices),
            };
            if self.announced.is_some() {
                // Those are announced.
                output.workloads.clear();
            }
            self.say(Unit::Owner(owner.clone()), notices.0);
            let old = if output.services.is_empty() {
                self.outputs.remove(owner)
            } else {
                self.outputs.insert(owner.clone(), output.clone())
            };
            let old = old.unwrap_or_default();
            if old != output {
                different.push((owner, old, output));
            }
        }
        self.mark_subsets(&owners, marks);
        let mut keys = std::mem::take(&mut marks.announced_services);
        let is_announced = !keys.is_empty();
        // All that goes before all that comes: an endpoint may move from one service to another.
        for (owner, old, _) in &different {
            for (service, _) in &old.services {
                keys.insert(service.key.clone());
                self.declare(&service.key, owner, false);
            }
        }
        let gone = different.iter().flat_map(|(_, old, _)| &old.workloads);
        let mut gone: BTreeMap<_, _> = gone.map(|one| (one.uid.clone(), Arc::clone(one))).collect();
        for (owner, _, output) in &different {
            for (service, _) in &output.services {
                keys.insert(service.key.clone());
                self.declare(&service.key, owner, true);
            }
            for workload in &output.workloads {
                let before = gone.remove(&workload.uid);
                if before.as_ref() != Some(workload) {
                    let _touched =
                        self.replace_workload(&workload.uid, (before, Some(Arc::clone(workload))));
                }
            }
        }
        for (uid, workload) in gone {
            let _touched = self.replace_workload(&uid, (Some(workload), None));
        }
        for key in keys {
            self.publish_service(&key, marks);
        }
        for (_, old, new) in &different {
            if old.waypoint != new.waypoint {
                let services = old.services.iter().chain(&new.services);
                marks
                    .layer7
                    .extend(services.map(|(service, _)| service.key.clone()));
            }
        }
        is_announced || !different.is_empty()
    }

    /// Marks the services of these owners that have subsets: endpoints and their labels say who is in which.
    fn mark_subsets(&self, owners: &BTreeSet<Owner>, marks: &mut Marks) {
        let outputs = owners.iter().filter_map(|owner| self.outputs.get(owner));
        for (service, _) in outputs.flat_map(|output| &output.services) {
            let rules = self.store.rules_of_host.get(&service.key.hostname);
            if !rules.is_empty() {
                marks.traffic.insert(service.key.clone());
            }
        }
    }

    fn declare(&mut self, key: &NamespacedHostname, owner: &Owner, present: bool) {
        let owners = self.declared.entry(key.clone()).or_default();
        match (owners.binary_search(owner), present) {
            (Err(place), true) => owners.insert(place, owner.clone()),
            (Ok(place), false) => {
                owners.remove(place);
            }
            (Ok(_), true) | (Err(_), false) => {}
        }
        if owners.is_empty() {
            self.declared.remove(key);
        }
    }

    /// Puts the declaration that counts into the snapshot.
    fn publish_service(&mut self, key: &NamespacedHostname, marks: &mut Marks) {
        let owner = self.declared.get(key).and_then(|owners| owners.first());
        let output = owner.and_then(|owner| self.outputs.get(owner));
        let found =
            output.and_then(|output| output.services.iter().find(|(one, _)| one.key == *key));
        let found = found.map(|(service, endpoints)| (Arc::clone(service), Arc::clone(endpoints)));
        let found = self.layer4_service(key, found);
        let old = self.current.services.get(key).cloned();
        let (service, endpoints) = match found {
            Some((service, endpoints)) => (Some(service), Some(endpoints)),
            None => (None, None),
        };
        match endpoints.filter(|endpoints| !endpoints.is_empty()) {
            Some(endpoints) => self.current.endpoints.insert(key.clone(), endpoints),
            None => self.current.endpoints.remove(key),
        };
        if old == service {
            return;
        }
        marks.layer7.insert(key.clone());
        marks.traffic.insert(key.clone());
        let named = self.store.routes_of_backend.get(&key.hostname);
        marks.routes.extend(named.iter().cloned());
        self.index_service(key, old.as_deref(), service.as_deref());
        match service {
            Some(service) => self.current.services.insert(key.clone(), service),
            None => self.current.services.remove(key),
        };
        let has_range =
            |one: &Option<Arc<Service>>| one.as_ref().is_some_and(|one| !one.cidr_vips.is_empty());
        if has_range(&old) || has_range(&self.current.services.get(key).cloned()) {
            let all = self.current.services.values();
            let mut ranges: Vec<_> = all
                .filter(|one| !one.cidr_vips.is_empty())
                .cloned()
                .collect();
            ranges.sort_unstable_by(|one, other| one.key.cmp(&other.key));
            self.current.services_with_ranges = ranges;
        }
    }

    fn index_service(
        &mut self,
        key: &NamespacedHostname,
        old: Option<&Service>,
        new: Option<&Service>,
    ) {
        let by_vip = &mut self.current.services_by_vip;
        for vip in old.into_iter().flat_map(|service| &service.vips) {
            remove_key(by_vip, vip, key);
        }
        for vip in new.into_iter().flat_map(|service| &service.vips) {
            insert_key(by_vip, *vip, key);
        }
        let by_hostname = &mut self.current.services_by_hostname;
        if old.is_some() {
            remove_key(by_hostname, &key.hostname, key);
        }
        if new.is_some() {
            insert_key(by_hostname, Arc::clone(&key.hostname), key);
        }
    }
}

type Keys = smallvec::SmallVec<[NamespacedHostname; 1]>;

fn insert_key<K: Clone + std::hash::Hash + Eq>(
    index: &mut Map<K, Keys>,
    at: K,
    key: &NamespacedHostname,
) {
    let keys = index.entry(at).or_default();
    if let Err(place) = keys.binary_search(key) {
        keys.insert(place, key.clone());
    }
}

fn remove_key<K: Clone + std::hash::Hash + Eq>(
    index: &mut Map<K, Keys>,
    at: &K,
    key: &NamespacedHostname,
) {
    let Some(keys) = index.get_mut(at) else {
        return;
    };
    keys.retain(|other| other != key);
    if keys.is_empty() {
        index.remove(at);
    }
}

fn rank(workload: &Workload) -> Rank {
    let hbone = workload.protocol == TunnelProtocol::Hbone;
    let uid = workload.uid.as_str();
    if uid.contains("/discovery.k8s.io/EndpointSlice/") {
        return Rank::Bare;
    }
    let inline = uid.contains("/networking.istio.io/ServiceEntry/");
    match (uid.contains("//Pod/"), inline, hbone) {
        (true, _, true) => Rank::HbonePod,
        (true, _, false) => Rank::PlainPod,
        (false, false, true) => Rank::HboneEntry,
        (false, true, true) => Rank::HboneInline,
        (false, false, false) => Rank::PlainEntry,
        (false, true, false) => Rank::PlainInline,
    }
}
