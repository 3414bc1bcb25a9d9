//! DestinationRules → how connections to a service are spread and limited.

mod policy;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use userspace_l7::model::{
    LoadBalancerMode, NamespacedHostname, Service, ServiceTraffic, Subset, WorkloadUid,
};

use self::policy::Groups;
use super::Compiler;
use super::mark::Marks;
use crate::mesh::destination_rule::{self as istio, DestinationRule};
use crate::mesh::meta::{Interner, Labels, ObjectName};

impl Compiler {
    pub(super) fn set_destination_rule(
        &mut self,
        name: &ObjectName,
        rule: Option<&Arc<DestinationRule>>,
        marks: &mut Marks,
    ) {
        let old = self.store.destination_rules.set(name, rule.cloned());
        if old.as_ref() == rule {
            return;
        }
        if let Some(old) = &old {
            let host = self.host_of(name, &old.spec.host);
            self.mark_host(&host, marks);
            self.store.rules_of_host.remove(host, name);
        }
        if let Some(new) = rule {
            let host = self.host_of(name, &new.spec.host);
            self.mark_host(&host, marks);
            self.store.rules_of_host.insert(host, name.clone());
        }
    }

    /// The host that an object of this name means: one without dots is a Service of its namespace (Istio).
    pub(super) fn host_of(&self, name: &ObjectName, host: &str) -> Arc<str> {
        let host = host.to_ascii_lowercase();
        if host.contains('.') {
            return host.into();
        }
        let service = ObjectName {
            namespace: Arc::clone(&name.namespace),
            name: host.into(),
        };
        self.service_key(&service).hostname
    }

    fn mark_host(&self, host: &str, marks: &mut Marks) {
        let keys = self.current.services_by_hostname.get(host);
        marks.traffic.extend(keys.into_iter().flatten().cloned());
    }

    /// Computes what is marked.
    pub(super) fn update_traffic(&mut self, marks: &mut Marks) -> bool {
        let mut changed = false;
        for key in std::mem::take(&mut marks.traffic) {
            let old = self.current.traffic.get(&key).cloned();
            let new = self.service_traffic(&key);
            if old.as_deref() == new.as_ref() {
                continue;
            }
            changed = true;
            match new {
                Some(new) => self.current.traffic.insert(key, Arc::new(new)),
                None => self.current.traffic.remove(&key),
            };
        }
        changed
    }

    /// Rules about a service: those of its own namespace, else those of the mesh's root; the oldest first.
    fn rules_about(&self, key: &NamespacedHostname) -> Vec<&Arc<DestinationRule>> {
        let names = self.store.rules_of_host.get(&key.hostname);
        let spaces = [&key.namespace, &self.options.root_namespace];
        let in_space = |space: &Arc<str>| -> Vec<_> {
            let own = names.iter().filter(|name| name.namespace == *space);
            let mut rules: Vec<_> = own
                .filter_map(|name| self.store.destination_rules.get(name))
                .collect();
            rules.sort_unstable_by_key(|rule| rule.meta.age_order());
            rules
        };
        let mut found = spaces.into_iter().map(in_space);
        found.find(|rules| !rules.is_empty()).unwrap_or_default()
    }

    /// Of several rules the oldest with a policy counts; subsets are taken from all, the oldest's first.
    fn service_traffic(&self, key: &NamespacedHostname) -> Option<ServiceTraffic> {
        let localities = self.mesh_localities(self.current.services.get(key)?);
        let rules = self.rules_about(key);
        let has_shares = localities.is_some_and(|setting| !setting.distribute.is_empty());
        if rules.is_empty() && !has_shares {
            return None;
        }
        let policy = rules
            .iter()
            .find_map(|rule| rule.spec.traffic_policy.as_ref());
        let whole = policy.map(Groups::of).unwrap_or_default();
        let ports: BTreeMap<u16, Groups<'_>> = policy.into_iter().flat_map(policy::ports).collect();
        let mut subsets: BTreeMap<Arc<str>, Subset> = BTreeMap::new();
        for subset in rules.iter().flat_map(|rule| &rule.spec.subsets) {
            subsets
                .entry(subset.name.as_str().into())
                .or_insert_with(|| self.subset((key, localities), subset, (whole, &ports)));
        }
        let compiled = ports.iter();
        Some(ServiceTraffic {
            policy: Arc::new(whole.compile(localities)),
            ports: compiled
                .map(|(port, groups)| (*port, Arc::new(groups.compile(localities))))
                .collect(),
            subsets,
        })
    }

    /// What the mesh's configuration says of localities for a service: nothing if it says itself what is near (Istio).
    fn mesh_localities(&self, service: &Service) -> Option<&istio::LocalityLbSetting> {
        let has_own = service.load_balancer.mode == LoadBalancerMode::Failover;
        let setting = self.mesh_config()?.locality_lb_setting.as_ref();
        setting.filter(|_| !has_own)
    }

    fn subset(
        &self,
        (key, localities): (&NamespacedHostname, Option<&istio::LocalityLbSetting>),
        subset: &istio::Subset,
        (whole, ports): (Groups<'_>, &BTreeMap<u16, Groups<'_>>),
    ) -> Subset {
        let labels = Labels::new(Some(subset.labels.clone()), &mut Interner::default());
        let endpoints = self.current.endpoints_of(key).iter();
        let members = endpoints
            .map(|endpoint| &endpoint.workload)
            .filter(|uid| self.labels_match(uid, &labels));
        let members: HashSet<WorkloadUid> = members.cloned().collect();
        let Some(own) = &subset.traffic_policy else {
            return Subset {
                members: Arc::new(members),
                ..Subset::default()
            };
        };
        let own_whole = Groups::of(own);
        // Over the rule's port goes what the subset says for all, and over that its own port.
        let mut own_ports: BTreeMap<u16, Groups<'_>> = ports
            .iter()
            .map(|(port, groups)| (*port, groups.overlaid(own_whole)))
            .collect();
        own_ports.extend(policy::ports(own));
        let own_ports = own_ports.iter();
        Subset {
            members: Arc::new(members),
            policy: Some(Arc::new(whole.overlaid(own_whole).compile(localities))),
            ports: own_ports
                .map(|(port, groups)| (*port, Arc::new(groups.compile(localities))))
                .collect(),
        }
    }

    /// Whether a workload has all of these labels, wherever its own are written.
    fn labels_match(&self, uid: &WorkloadUid, wanted: &Labels) -> bool {
        let Some(workload) = self.current.workloads.get(uid) else {
            return wanted.is_empty();
        };
        let name = ObjectName {
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.name),
        };
        if let Some(pod) = self.store.pods.get(&name)
            && self.pod_uid(&name) == *uid
        {
            return wanted.select(&pod.meta.labels);
        }
        if let Some(entry) = self.store.workload_entries.get(&name)
            && self.entry_uid(&name) == *uid
        {
            return wanted.select(&entry.labels);
        }
        // Written down in a ServiceEntry, whose name the workload has.
        let entry = self.store.service_entries.get(&name);
        let endpoints = entry.into_iter().flat_map(|entry| &entry.spec.endpoints);
        let mut own =
            endpoints.filter(|one| self.host_uid(&name, &one.address.to_ascii_lowercase()) == *uid);
        let labels = own.next().map(|one| &one.labels);
        let has = |(key, value): (&Arc<str>, &Arc<str>)| {
            labels
                .and_then(|labels| labels.get(&**key))
                .map(String::as_str)
                == Some(&**value)
        };
        wanted.iter().all(has)
    }
}
