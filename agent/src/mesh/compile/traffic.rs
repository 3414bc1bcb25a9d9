//! DestinationRules → how connections to a service are spread and limited.

mod policy;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use userspace_l7::model::{
    Encryption, LoadBalancerMode, NamespacedHostname, Service, ServiceTraffic, Subset,
    TrafficPolicy, WorkloadUid,
};

use self::policy::Groups;
use super::mark::Marks;
use super::opening::Rules;
use super::{Compiler, Notices, Unit};
use crate::mesh::destination_rule::{self as istio, DestinationRule};
use crate::mesh::meta::{Interner, Labels, ObjectName};

/// What all policies about one service are compiled with.
struct Settings<'a> {
    localities: Option<&'a istio::LocalityLbSetting>,
    openings: &'a Rules<'a>,
    /// What BackendTLSPolicies say of ports.
    of_backends: &'a BTreeMap<u16, Encryption>,
}

impl Settings<'_> {
    /// A policy for one port, or for those that have none of their own.
    fn compile(&self, groups: Groups<'_>, port: Option<u16>) -> TrafficPolicy {
        let mut opening = self.openings.opening(groups.tls, groups.proxy);
        if groups.tls.is_none()
            && let Some(own) = port.and_then(|port| self.of_backends.get(&port))
        {
            opening.encryption = own.clone();
        }
        groups.compile(self.localities, opening)
    }

    /// Policies for the ports that have their own, by a rule or by a BackendTLSPolicy.
    fn ports(
        &self,
        whole: Groups<'_>,
        ports: &BTreeMap<u16, Groups<'_>>,
    ) -> BTreeMap<u16, Arc<TrafficPolicy>> {
        let numbers: BTreeSet<u16> = ports
            .keys()
            .chain(self.of_backends.keys())
            .copied()
            .collect();
        let compiled = numbers.into_iter().map(|port| {
            let groups = ports.get(&port).copied().unwrap_or(whole);
            (port, Arc::new(self.compile(groups, Some(port))))
        });
        compiled.collect()
    }
}

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

    pub(super) fn mark_host(&self, host: &str, marks: &mut Marks) {
        let keys = self.current.services_by_hostname.get(host);
        marks.traffic.extend(keys.into_iter().flatten().cloned());
    }

    /// Computes what is marked.
    pub(super) fn update_traffic(&mut self, marks: &mut Marks) -> bool {
        let mut changed = false;
        for key in std::mem::take(&mut marks.traffic) {
            let old = self.current.traffic.get(&key).cloned();
            let (new, notices) = self.service_traffic(&key);
            self.say(Unit::Traffic(key.clone()), notices.0);
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

    /// Of several rules the oldest with a policy counts; subsets are taken from all, the oldest's first. What they say
    /// of TLS goes before what a BackendTLSPolicy says, which only knows ports.
    fn service_traffic(&self, key: &NamespacedHostname) -> (Option<ServiceTraffic>, Notices) {
        let Some(service) = self.current.services.get(key) else {
            return (None, Notices::default());
        };
        let localities = self.mesh_localities(service);
        let rules = self.rules_about(key);
        let has_shares = localities.is_some_and(|setting| !setting.distribute.is_empty());
        let openings = Rules {
            compiler: self,
            service,
            notices: RefCell::default(),
        };
        let of_backends: BTreeMap<u16, Encryption> = self
            .declarer(key)
            .into_iter()
            .flat_map(|owner| service.ports.keys().map(move |port| (owner, *port)))
            .filter_map(|(owner, port)| {
                let found = self.backend_tls(owner, service, port, &openings.notices);
                Some((port, found?))
            })
            .collect();
        if rules.is_empty() && !has_shares && of_backends.is_empty() {
            return (None, Notices::default());
        }
        let policy = rules.iter().find_map(|rule| {
            let policy = rule.spec.traffic_policy.as_ref();
            Some((&rule.meta.name, policy?))
        });
        let whole = policy.map(Groups::of).unwrap_or_default();
        let ports: BTreeMap<u16, Groups<'_>> = policy.into_iter().flat_map(policy::ports).collect();
        let settings = Settings {
            localities,
            openings: &openings,
            of_backends: &of_backends,
        };
        let mut subsets: BTreeMap<Arc<str>, Subset> = BTreeMap::new();
        for (rule, subset) in rules
            .iter()
            .flat_map(|rule| rule.spec.subsets.iter().map(|one| (&rule.meta.name, one)))
        {
            subsets
                .entry(subset.name.as_str().into())
                .or_insert_with(|| self.subset(key, (rule, subset), (whole, &ports), &settings));
        }
        let traffic = ServiceTraffic {
            policy: Arc::new(settings.compile(whole, None)),
            ports: settings.ports(whole, &ports),
            subsets,
        };
        (Some(traffic), openings.notices.into_inner())
    }

    /// What the mesh's configuration says of localities for a service: nothing if it says itself what is near (Istio).
    fn mesh_localities(&self, service: &Service) -> Option<&istio::LocalityLbSetting> {
        let has_own = service.load_balancer.mode == LoadBalancerMode::Failover;
        let setting = self.mesh_config()?.locality_lb_setting.as_ref();
        setting.filter(|_| !has_own)
    }

    fn subset(
        &self,
        key: &NamespacedHostname,
        (rule, subset): (&ObjectName, &istio::Subset),
        (whole, ports): (Groups<'_>, &BTreeMap<u16, Groups<'_>>),
        settings: &Settings<'_>,
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
        let own_whole = Groups::of((rule, own));
        // Over the rule's port goes what the subset says for all, and over that its own port.
        let mut own_ports: BTreeMap<u16, Groups<'_>> = ports
            .iter()
            .map(|(port, groups)| (*port, groups.overlaid(own_whole)))
            .collect();
        own_ports.extend(policy::ports((rule, own)));
        let own_whole = whole.overlaid(own_whole);
        Subset {
            members: Arc::new(members),
            policy: Some(Arc::new(settings.compile(own_whole, None))),
            ports: settings.ports(own_whole, &own_ports),
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
