//! ServiceEntries → services, endpoints, and workloads for endpoints that are written down in them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;
use userspace_l7::model::{
    AppProtocol, Endpoint, Health, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode,
    NamespacedHostname, Service, ServicePort, Workload, WorkloadUid,
};

use super::services::{Output, scopes};
use super::store::{Member, Owner};
use super::waypoint::Bound;
use super::{Compiler, Notices};
use crate::mesh::external::{
    CONNECT_STRATEGY, ConnectStrategy, Resolution, ServiceEntry, WorkloadEntrySpec,
};
use crate::mesh::meta::{Interner, Labels, ObjectName};
use crate::mesh::object::Kind;
use crate::mesh::service::{DISTRIBUTION, Distribution};

/// Hosts of a ServiceEntry, as services are named by them.
pub(super) fn host_keys(entry: &ServiceEntry) -> impl Iterator<Item = NamespacedHostname> {
    let namespace = &entry.meta.name.namespace;
    entry.spec.hosts.iter().map(|host| NamespacedHostname {
        namespace: Arc::clone(namespace),
        hostname: host.to_ascii_lowercase().into(),
    })
}

/// Hosts of a ServiceEntry that an address has to be found for. A wildcard's stands for every name that it covers, if these
/// are looked up behind it.
pub(super) fn hosts_without_address(entry: &ServiceEntry) -> impl Iterator<Item = Arc<str>> {
    let resolution = entry.spec.resolution;
    let automatic = entry.spec.addresses.is_empty() && resolution != Resolution::None;
    let is_named = move |host: &str| resolution == Resolution::DynamicDns || !host.contains('*');
    let hosts = entry.spec.hosts.iter().filter(move |_| automatic);
    let hosts = hosts.map(|host| host.to_ascii_lowercase());
    hosts
        .filter(move |host| is_named(host) && !entry.given.iter().any(|(own, _)| own == host))
        .map(Arc::from)
}

impl Compiler {
    pub(super) fn compile_entry(&self, name: &ObjectName, notices: &mut Notices) -> Output {
        let Some(entry) = self.store.service_entries.get(name) else {
            return Output::default();
        };
        let (waypoint, reference) = Bound::of(
            self.entry_waypoint(entry),
            self.ingress(&entry.meta),
            (Kind::ServiceEntry, name),
            notices,
        );
        let is_raced = is_raced(entry, reference.is_some(), notices);
        if !may_be_dialled(entry, reference.is_some(), notices) {
            return Output::default();
        }
        let keys: Vec<_> = host_keys(entry).collect();
        let workloads = self.inline_workloads(entry, &keys);
        let selected = self.selected_by_entry(entry);
        let mut services = Vec::new();
        for key in &keys {
            let mut endpoints = selected.clone();
            let own = workloads
                .iter()
                .filter(|(workload, _)| workload.services.contains(key));
            endpoints.extend(own.map(|(_, endpoint)| endpoint.clone()));
            let (vips, cidr_vips) = self.entry_addresses(entry, key);
            let service = Service {
                name: Arc::clone(&name.name),
                key: key.clone(),
                vips,
                cidr_vips,
                ports: entry_ports(entry),
                load_balancer: LoadBalancer {
                    is_raced,
                    ..self.entry_balancer(entry)
                },
                ip_families: IpFamilies::Automatic,
                subject_alt_names: entry
                    .spec
                    .subject_alt_names
                    .iter()
                    .map(|san| san.as_str().into())
                    .collect(),
                waypoint: reference.clone(),
                canonical: false,
                namespace_private: entry.is_private(),
                alias: None,
            };
            services.push((Arc::new(service), endpoints.into()));
        }
        Output {
            services,
            workloads: workloads
                .into_iter()
                .map(|(workload, _)| workload)
                .collect(),
            waypoint,
        }
    }

    fn entry_balancer(&self, entry: &ServiceEntry) -> LoadBalancer {
        if entry.spec.resolution == Resolution::None {
            return LoadBalancer {
                mode: LoadBalancerMode::Passthrough,
                health: HealthPolicy::AllowAll,
                ..LoadBalancer::default()
            };
        }
        if entry.spec.resolution == Resolution::DynamicDns {
            return LoadBalancer {
                mode: LoadBalancerMode::ByName,
                ..LoadBalancer::default()
            };
        }
        let namespace = self.store.namespaces.get(&entry.meta.name.namespace);
        let own = entry.meta.annotations.get(DISTRIBUTION);
        let text = own.or_else(|| namespace.and_then(|meta| meta.annotations.get(DISTRIBUTION)));
        let (mode, scopes) = scopes(
            text.and_then(Distribution::parse)
                .unwrap_or(Distribution::Any),
        );
        LoadBalancer {
            mode,
            scopes,
            ..LoadBalancer::default()
        }
    }

    fn entry_addresses(
        &self,
        entry: &ServiceEntry,
        key: &NamespacedHostname,
    ) -> (SmallVec<[IpAddr; 2]>, Vec<IpNet>) {
        let mut vips = SmallVec::new();
        let mut ranges = Vec::new();
        for text in &entry.spec.addresses {
            // Checked when the object was read.
            let range = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match range {
                Ok(range) if range.prefix_len() == range.max_prefix_len() => {
                    vips.push(range.addr().to_canonical());
                }
                Ok(range) => ranges.push(range.trunc()),
                Err(_) => {}
            }
        }
        if entry.spec.addresses.is_empty() {
            let given = entry
                .given
                .iter()
                .filter(|(host, _)| **host == *key.hostname);
            vips.extend(given.map(|(_, address)| address.to_canonical()));
            let wish = (entry.meta.name.clone(), Arc::clone(&key.hostname));
            vips.extend(self.automatic.get(&wish).into_iter().flatten().copied());
        }
        (vips, ranges)
    }

    pub(super) fn host_uid(&self, name: &ObjectName, text: &str) -> WorkloadUid {
        let cluster = &self.options.mesh.cluster;
        let group = "networking.istio.io/ServiceEntry";
        WorkloadUid::new(format!(
            "{cluster}/{group}/{}/{}/{text}",
            name.namespace, name.name
        ))
    }

    /// One workload per endpoint that is written down; with DNS and no endpoints, one per host.
    fn inline_workloads(
        &self,
        entry: &ServiceEntry,
        keys: &[NamespacedHostname],
    ) -> Vec<(Arc<Workload>, Endpoint)> {
        let spec = &entry.spec;
        let by_name = !matches!(spec.resolution, Resolution::None | Resolution::Static);
        if spec.endpoints.is_empty() && by_name && spec.workload_selector.is_none() {
            let host = |key: &NamespacedHostname| {
                let spec = WorkloadEntrySpec {
                    address: key.hostname.to_string(),
                    ..WorkloadEntrySpec::default()
                };
                self.inline_workload(entry, std::slice::from_ref(key), &spec)
            };
            // A wildcard is no name that could be looked up.
            return keys
                .iter()
                .filter(|key| !key.hostname.contains('*'))
                .map(host)
                .collect();
        }
        let mut seen = std::collections::BTreeSet::new();
        let distinct = spec
            .endpoints
            .iter()
            .filter(|one| seen.insert(one.address.clone()));
        distinct
            .map(|one| self.inline_workload(entry, keys, one))
            .collect()
    }

    fn inline_workload(
        &self,
        entry: &ServiceEntry,
        keys: &[NamespacedHostname],
        spec: &WorkloadEntrySpec,
    ) -> (Arc<Workload>, Endpoint) {
        let name = &entry.meta.name;
        let uid = self.host_uid(name, &spec.address.to_ascii_lowercase());
        let labels = Labels::new(Some(spec.labels.clone()), &mut Interner::default());
        let workload = Workload {
            services: keys.to_vec(),
            authorization_policies: self.policies_selecting(&name.namespace, &labels),
            ..self.outside_workload(uid.clone(), name, spec, &labels)
        };
        let ports = own_ports(entry, &spec.ports);
        (
            Arc::new(workload),
            Endpoint {
                workload: uid,
                ports,
                health: Health::Healthy,
            },
        )
    }

    fn selected_by_entry(&self, entry: &ServiceEntry) -> Vec<Endpoint> {
        let name = &entry.meta.name;
        let members = self.store.members(&Owner::Entry(name.clone()));
        let endpoint = |member: &Member| {
            let (Member::Pod(own) | Member::Entry(own)) = member;
            let member_name = ObjectName {
                namespace: Arc::clone(&name.namespace),
                name: Arc::clone(own),
            };
            let (ports, ready) = match member {
                Member::Pod(_) => {
                    let pod = self.store.pods.get(&member_name)?;
                    if pod.finished || pod.addresses.is_empty() {
                        return None;
                    }
                    (SmallVec::new(), pod.ready)
                }
                Member::Entry(_) => {
                    let selected = self.store.workload_entries.get(&member_name)?;
                    (own_ports(entry, &selected.spec.ports), true)
                }
            };
            let health = if ready {
                Health::Healthy
            } else {
                Health::Unhealthy
            };
            Some(Endpoint {
                workload: self.member_uid(&name.namespace, member),
                ports,
                health,
            })
        };
        members.filter_map(endpoint).collect()
    }
}

/// Whether the addresses of a name are dialled at once, which is a waypoint's work.
fn is_raced(entry: &ServiceEntry, is_bound: bool, notices: &mut Notices) -> bool {
    let mut warn = |why: &str| {
        let message = format!("annotation {CONNECT_STRATEGY} has no effect: {why}");
        notices.warn(Kind::ServiceEntry, &entry.meta.name, message);
    };
    let has_names = !matches!(entry.spec.resolution, Resolution::None | Resolution::Static);
    match entry.connect_strategy() {
        Ok(ConnectStrategy::InTurn) => return false,
        Ok(ConnectStrategy::Race) if !has_names => {
            warn("it is about the addresses of a name, which resolution DNS looks up");
        }
        Ok(ConnectStrategy::Race) if !is_bound => {
            warn("it takes a waypoint to race connections: label it istio.io/use-waypoint");
        }
        Ok(ConnectStrategy::Race) => return true,
        Err(word) => warn(&format!(
            "`{}` is no strategy that is known here: write RACE_FIRST_TCP_CONNECT or remove it",
            word.escape_debug()
        )),
    }
    false
}

/// Whether an entry can have any effect. Names that clients say are heard, and looked up, by a waypoint only.
fn may_be_dialled(entry: &ServiceEntry, is_bound: bool, notices: &mut Notices) -> bool {
    if entry.spec.resolution != Resolution::DynamicDns {
        return true;
    }
    let name = &entry.meta.name;
    if !is_bound {
        let message = "has no effect: resolution DYNAMIC_DNS takes a waypoint, which looks names up: label it istio.io/use-waypoint";
        notices.warn(Kind::ServiceEntry, name, message.to_owned());
        return false;
    }
    for (number, port) in entry_ports(entry) {
        let protocol = AppProtocol::of_port(number, &port.name, &port.app_protocol);
        if protocol == AppProtocol::Tcp {
            let message = format!(
                "port {number} has no effect: only HTTP and TLS say which host of a wildcard is meant"
            );
            notices.warn(Kind::ServiceEntry, name, message);
        }
    }
    true
}

fn entry_ports(entry: &ServiceEntry) -> BTreeMap<u16, ServicePort> {
    let ports = entry.spec.ports.iter().filter_map(|port| {
        let number = u16::try_from(port.number).ok()?;
        let target_port = u16::try_from(port.target_port.unwrap_or(port.number)).ok()?;
        let model = ServicePort {
            name: port.name.as_str().into(),
            target_port,
            app_protocol: port.protocol.to_ascii_lowercase().into(),
        };
        Some((number, model))
    });
    ports.collect()
}

/// Ports that an endpoint sets itself, by the port's name.
fn own_ports(entry: &ServiceEntry, own: &BTreeMap<String, u32>) -> SmallVec<[(u16, u16); 2]> {
    let ports = entry.spec.ports.iter().filter_map(|port| {
        let own = own.get(&port.name)?;
        Some((u16::try_from(port.number).ok()?, u16::try_from(*own).ok()?))
    });
    ports.collect()
}
