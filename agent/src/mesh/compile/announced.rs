//! What a control plane has announced, in place of what the objects come to (docs/adr/0017): workloads, services and
//! policies of layer 4 are the announced ones, and only those. The objects add what is not announced: who is captured by
//! our agents, labels, names of ports, and which waypoints are ours.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{
    AuthorizationPolicy, Endpoint, LoadBalancerMode, NamespacedHostname, Peer, PolicyKey, Scope,
    Service, TunnelProtocol, Workload, WorkloadUid,
};

use super::Compiler;
use super::mark::Marks;
use crate::mesh::announcement::{AnnouncedWorkload, Announcement};
use crate::mesh::meta::ObjectName;

/// Ports of one endpoint, where they are its own.
type Ports = SmallVec<[(u16, u16); 2]>;

/// Everything that has been announced.
#[derive(Debug, Default)]
pub(super) struct Announced {
    workloads: HashMap<WorkloadUid, AnnouncedWorkload>,
    services: HashMap<NamespacedHostname, Arc<Service>>,
    /// Who serves a service, whether that is announced or not.
    serving: HashMap<NamespacedHostname, BTreeMap<WorkloadUid, Ports>>,
    policies: BTreeMap<PolicyKey, Arc<AuthorizationPolicy>>,
}

impl Announced {
    /// Replaces a workload; gives the one before it.
    fn set_workload(
        &mut self,
        uid: &WorkloadUid,
        workload: Option<AnnouncedWorkload>,
    ) -> Option<AnnouncedWorkload> {
        let new = workload.iter().flat_map(|one| &one.ports);
        for (service, ports) in new {
            let serving = self.serving.entry(service.clone()).or_default();
            serving.insert(uid.clone(), ports.clone());
        }
        let stays = |service: &NamespacedHostname| {
            let mut ports = workload.iter().map(|one| &one.ports);
            ports.any(|ports| ports.contains_key(service))
        };
        let known = self.workloads.get(uid);
        let left: Vec<_> = known
            .into_iter()
            .flat_map(|one| one.ports.keys())
            .filter(|service| !stays(service))
            .cloned()
            .collect();
        for service in left {
            if let Some(serving) = self.serving.get_mut(&service) {
                serving.remove(uid);
                if serving.is_empty() {
                    self.serving.remove(&service);
                }
            }
        }
        match workload {
            Some(workload) => self.workloads.insert(uid.clone(), workload),
            None => self.workloads.remove(uid),
        }
    }

    fn endpoints(&self, service: &Service) -> Arc<[Endpoint]> {
        let serving = self.serving.get(&service.key).into_iter().flatten();
        let endpoint = |(uid, ports): (&WorkloadUid, &Ports)| {
            let workload = &self.workloads.get(uid)?.workload;
            let differs = |(port, target): &&(u16, u16)| {
                let usual = service.ports.get(port).map(|port| port.target_port);
                usual != Some(*target)
            };
            Some(Endpoint {
                workload: uid.clone(),
                ports: ports.iter().filter(differs).copied().collect(),
                health: workload.health,
            })
        };
        serving.filter_map(endpoint).collect()
    }

    /// Policies of scope Global, or of scope Namespace in one namespace, sorted by name.
    pub(super) fn policies_in(&self, namespace: Option<&str>) -> Vec<Arc<AuthorizationPolicy>> {
        let is_wanted = |policy: &&Arc<AuthorizationPolicy>| match namespace {
            None => policy.scope == Scope::Global,
            Some(space) => policy.scope == Scope::Namespace && *policy.key.namespace == *space,
        };
        self.policies.values().filter(is_wanted).cloned().collect()
    }
}

impl Compiler {
    /// Takes one announcement in and marks what depends on it.
    pub(super) fn hear(&mut self, announcement: Announcement, marks: &mut Marks) {
        let Some(announced) = &mut self.announced else {
            return;
        };
        match announcement {
            Announcement::Policy(key, policy) => {
                match policy {
                    Some(policy) => announced.policies.insert(key.clone(), policy),
                    None => announced.policies.remove(&key),
                };
                marks.announced_policies.insert(key);
            }
            Announcement::Service(key, service) => {
                match service {
                    Some(service) => announced.services.insert(key.clone(), service),
                    None => announced.services.remove(&key),
                };
                marks.announced_services.insert(key);
            }
            Announcement::Workload(uid, workload) => {
                let new = workload.clone();
                let old = announced.set_workload(&uid, workload);
                if old == new {
                    return;
                }
                for one in [old, new].into_iter().flatten() {
                    self.mark_announced(&one, marks);
                }
            }
        }
    }

    /// Marks a workload where it is computed: as the object that it is of, if we have that.
    fn mark_announced(&self, one: &AnnouncedWorkload, marks: &mut Marks) {
        let workload = &one.workload;
        marks.announced_services.extend(one.ports.keys().cloned());
        for service in one.ports.keys() {
            if !self.store.rules_of_host.get(&service.hostname).is_empty() {
                // Its endpoints say who is in which subset.
                marks.traffic.insert(service.clone());
            }
        }
        let name = ObjectName {
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.name),
        };
        if self.store.pods.get(&name).is_some() && self.pod_uid(&name) == workload.uid {
            marks.pods.insert(name);
        } else if self.store.workload_entries.get(&name).is_some()
            && self.entry_uid(&name) == workload.uid
        {
            marks.entries.insert(name);
        } else {
            marks.announced_workloads.insert(workload.uid.clone());
        }
    }

    pub(super) fn update_announced_policies(&mut self, marks: &mut Marks) -> bool {
        let mut changed = false;
        for key in std::mem::take(&mut marks.announced_policies) {
            let announced = self.announced.as_ref();
            let policy = announced.and_then(|one| one.policies.get(&key).cloned());
            changed |= self.put_policy(&key, policy);
        }
        changed
    }

    /// The workload that counts, given what objects come to.
    pub(super) fn layer4_workload(
        &self,
        uid: &WorkloadUid,
        compiled: Option<Arc<Workload>>,
    ) -> Option<Arc<Workload>> {
        let Some(announced) = &self.announced else {
            return compiled;
        };
        let workload = &announced.workloads.get(uid)?.workload;
        Some(match compiled {
            Some(compiled) => Arc::new(with_object(workload, &compiled)),
            None => Arc::clone(workload),
        })
    }

    /// The service that counts and its endpoints, given what objects come to.
    pub(super) fn layer4_service(
        &self,
        key: &NamespacedHostname,
        compiled: Option<(Arc<Service>, Arc<[Endpoint]>)>,
    ) -> Option<(Arc<Service>, Arc<[Endpoint]>)> {
        let Some(announced) = &self.announced else {
            return compiled;
        };
        let Some(service) = announced.services.get(key) else {
            // Another name for a host outside is only for DNS, and not announced.
            return compiled.filter(|(service, _)| service.alias.is_some());
        };
        let endpoints = announced.endpoints(service);
        let service = match compiled {
            Some((compiled, _)) => Arc::new(with_declaration(service, &compiled)),
            None => Arc::clone(service),
        };
        Some((service, endpoints))
    }
}

/// An announced workload with what its object says besides.
fn with_object(announced: &Workload, compiled: &Workload) -> Workload {
    let by_ours = compiled.protocol == TunnelProtocol::Hbone;
    let (protocol, peer) = match announced.protocol {
        // Whoever captures it is who its labels say.
        _ if by_ours => (TunnelProtocol::Hbone, compiled.peer),
        // Somebody wrote on it that it is captured, though it does not ask for that: not one of us.
        TunnelProtocol::Hbone => (TunnelProtocol::Hbone, Peer::Ztunnel),
        TunnelProtocol::Tcp => (TunnelProtocol::Tcp, compiled.peer),
    };
    Workload {
        protocol,
        peer,
        labels: compiled.labels.clone(),
        waypoint: compiled.waypoint.clone(),
        ..announced.clone()
    }
}

/// An announced service with what its declaration says besides.
fn with_declaration(announced: &Service, compiled: &Service) -> Service {
    let mut service = Service {
        waypoint: compiled.waypoint.clone(),
        ..announced.clone()
    };
    // How a waypoint finds whom to connect to is its own business, and not announced.
    service.load_balancer.is_raced = compiled.load_balancer.is_raced;
    if compiled.load_balancer.mode == LoadBalancerMode::ByName {
        service.load_balancer.mode = LoadBalancerMode::ByName;
    }
    for (number, port) in &mut service.ports {
        if let Some(declared) = compiled.ports.get(number) {
            port.name = Arc::clone(&declared.name);
            port.app_protocol = Arc::clone(&declared.app_protocol);
        }
    }
    service
}
