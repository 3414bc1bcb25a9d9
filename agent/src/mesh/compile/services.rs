//! Services → services and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};
use userspace_l7::model::{
    Endpoint, Health, HealthPolicy, LoadBalancer, LoadBalancerMode, NamespacedHostname,
    RoutingScope, Service, ServicePort, Workload, WorkloadUid,
};

use super::store::{Member, Owner};
use super::waypoint::Bound;
use super::{Compiler, Notices};
use crate::mesh::endpoint_slice::{EndpointSlice, SliceEndpoint};
use crate::mesh::external::{WorkloadEntry, WorkloadEntrySpec};
use crate::mesh::meta::{Labels, ObjectName};
use crate::mesh::object::Kind;
use crate::mesh::pod::Pod;
use crate::mesh::service::{self as kubernetes, DISTRIBUTION, Distribution, TargetPort};

/// What one Service or ServiceEntry comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Output {
    /// Services with their endpoints.
    pub(super) services: Vec<(Arc<Service>, Arc<[Endpoint]>)>,
    /// Workloads that exist only as endpoints of these.
    pub(super) workloads: Vec<Arc<Workload>>,
    /// The waypoint that they are bound to.
    pub(super) waypoint: Option<Bound>,
}

impl Compiler {
    pub(super) fn service_key(&self, name: &ObjectName) -> NamespacedHostname {
        let domain = &self.options.mesh.cluster_domain;
        let hostname = format!("{}.{}.svc.{domain}", name.name, name.namespace);
        NamespacedHostname {
            namespace: Arc::clone(&name.namespace),
            hostname: hostname.into(),
        }
    }

    pub(super) fn compile_service(&self, name: &ObjectName, notices: &mut Notices) -> Output {
        let Some(service) = self.store.services.get(name) else {
            for slice in self.store.slices_for(name) {
                let text = format!(
                    "belongs to Service {name}, which is not there: apply it or correct the label kubernetes.io/service-name"
                );
                notices.warn(Kind::EndpointSlice, &slice.meta.name, text);
            }
            return Output::default();
        };
        if service.session_affinity {
            let text = "asks for session affinity, which connections in the mesh do not keep";
            notices.inform(Kind::Service, name, text.to_owned());
        }
        let (waypoint, reference) = Bound::of(
            self.service_waypoint(service),
            self.ingress(&service.meta),
            (Kind::Service, name),
            notices,
        );
        let compiled = Service {
            name: Arc::clone(&name.name),
            key: self.service_key(name),
            vips: service.addresses.clone(),
            cidr_vips: Vec::new(),
            ports: service.ports.iter().map(model_port).collect(),
            load_balancer: self.load_balancer(service),
            ip_families: service.families,
            subject_alt_names: Vec::new(),
            waypoint: reference,
            canonical: true,
            namespace_private: false,
            alias: service.external_name.clone(),
        };
        let (endpoints, workloads) = if service.external_name.is_some() {
            (Vec::new(), Vec::new())
        } else if self.store.slices_of.get(name).is_empty() {
            (self.selected_endpoints(service), Vec::new())
        } else {
            self.slice_endpoints(service)
        };
        Output {
            services: vec![(Arc::new(compiled), endpoints.into())],
            workloads,
            waypoint,
        }
    }

    /// Scopes of preference (istiod's mapping).
    fn load_balancer(&self, service: &kubernetes::Service) -> LoadBalancer {
        let health = if service.publish_unready {
            HealthPolicy::AllowAll
        } else {
            HealthPolicy::OnlyHealthy
        };
        let namespace = self.store.namespaces.get(&service.meta.name.namespace);
        let annotated = |meta: &crate::mesh::meta::Meta| {
            meta.annotations
                .get(DISTRIBUTION)
                .and_then(Distribution::parse)
        };
        let distribution = service
            .distribution
            .or_else(|| annotated(&service.meta))
            .or_else(|| namespace.and_then(|meta| annotated(meta)));
        let (mode, scopes) = if service.local_only {
            (LoadBalancerMode::Strict, smallvec![RoutingScope::Node])
        } else {
            scopes(distribution.unwrap_or(Distribution::Any))
        };
        LoadBalancer {
            mode,
            scopes,
            health,
            is_raced: false,
        }
    }

    fn selected_endpoints(&self, service: &kubernetes::Service) -> Vec<Endpoint> {
        let name = &service.meta.name;
        let members = self.store.members(&Owner::Service(name.clone()));
        let endpoint = |member: &Member| {
            let (Member::Pod(own) | Member::Entry(own)) = member;
            let member_name = ObjectName {
                namespace: Arc::clone(&name.namespace),
                name: Arc::clone(own),
            };
            let (ports, health) = match member {
                Member::Pod(_) => {
                    let pod = self.store.pods.get(&member_name)?;
                    if pod.finished || pod.addresses.is_empty() {
                        return None;
                    }
                    (pod_ports(service, pod), health(pod.ready))
                }
                Member::Entry(_) => {
                    let entry = self.store.workload_entries.get(&member_name)?;
                    (entry_ports(service, entry), Health::Healthy)
                }
            };
            Some(Endpoint {
                workload: self.member_uid(&name.namespace, member),
                ports,
                health,
            })
        };
        members.filter_map(endpoint).collect()
    }

    fn slice_endpoints(
        &self,
        service: &kubernetes::Service,
    ) -> (Vec<Endpoint>, Vec<Arc<Workload>>) {
        let mut endpoints: BTreeMap<WorkloadUid, Endpoint> = BTreeMap::new();
        let mut workloads: BTreeMap<WorkloadUid, Arc<Workload>> = BTreeMap::new();
        for slice in self.store.slices_for(&service.meta.name) {
            let ports = slice_ports(service, slice);
            for one in &slice.endpoints {
                let (uid, bare) = self.behind(service, slice, one);
                let health = health(one.ready);
                let entry = endpoints.entry(uid.clone()).or_insert_with(|| Endpoint {
                    workload: uid.clone(),
                    ports: ports.clone(),
                    health,
                });
                // A dual-stack pod is in one slice per family; ready in either is ready.
                if health == Health::Healthy {
                    entry.health = Health::Healthy;
                }
                if let Some(workload) = bare {
                    workloads.insert(uid, Arc::new(workload));
                }
            }
        }
        (
            endpoints.into_values().collect(),
            workloads.into_values().collect(),
        )
    }

    /// The workload behind an endpoint of a slice: the pod that it names, or what has its address, or else
    /// one that is known by nothing but its address.
    fn behind(
        &self,
        service: &kubernetes::Service,
        slice: &EndpointSlice,
        endpoint: &SliceEndpoint,
    ) -> (WorkloadUid, Option<Workload>) {
        let named = endpoint
            .pod
            .as_ref()
            .and_then(|name| self.store.pods.get(name));
        if let Some(pod) = named.filter(|pod| !pod.finished) {
            return (self.pod_uid(&pod.meta.name), None);
        }
        if let Some(uid) = self.claims.owner(endpoint.address) {
            return (uid.clone(), None);
        }
        let cluster = &self.options.mesh.cluster;
        let owner = &slice.meta.name;
        let uid = WorkloadUid::new(format!(
            "{cluster}/discovery.k8s.io/EndpointSlice/{}/{}/{}",
            owner.namespace, owner.name, endpoint.address
        ));
        let spec = WorkloadEntrySpec {
            address: endpoint.address.to_string(),
            ..WorkloadEntrySpec::default()
        };
        let bare = Workload {
            node: Arc::clone(&endpoint.node),
            services: vec![self.service_key(&service.meta.name)],
            ..self.outside_workload(uid.clone(), owner, &spec, &Labels::default())
        };
        (uid, Some(bare))
    }
}

pub(super) fn scopes(
    distribution: Distribution,
) -> (LoadBalancerMode, SmallVec<[RoutingScope; 4]>) {
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    match distribution {
        Distribution::Any => (LoadBalancerMode::Any, SmallVec::new()),
        Distribution::SameZone => (LoadBalancerMode::Failover, smallvec![Network, Region, Zone]),
        Distribution::SameNode => (
            LoadBalancerMode::Failover,
            smallvec![Network, Region, Zone, Subzone, Node],
        ),
    }
}

fn health(ready: bool) -> Health {
    if ready {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

fn model_port(port: &kubernetes::Port) -> (u16, ServicePort) {
    let target_port = match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Name(_) => 0,
    };
    let model = ServicePort {
        name: Arc::clone(&port.name),
        target_port,
        app_protocol: Arc::clone(&port.app_protocol),
    };
    (port.port, model)
}

fn pod_ports(service: &kubernetes::Service, pod: &Pod) -> SmallVec<[(u16, u16); 2]> {
    let named = service.ports.iter().filter_map(|port| match &port.target {
        TargetPort::Number(_) => None,
        TargetPort::Name(name) => Some((port.port, pod.named_port(name)?)),
    });
    named.collect()
}

/// A WorkloadEntry may give a port of its own to a service port by its name.
fn entry_ports(service: &kubernetes::Service, entry: &WorkloadEntry) -> SmallVec<[(u16, u16); 2]> {
    let own = service.ports.iter().filter_map(|port| {
        let target = match &port.target {
            TargetPort::Name(name) => entry.spec.ports.get(&**name),
            TargetPort::Number(_) => None,
        };
        let found = target.or_else(|| entry.spec.ports.get(&*port.name))?;
        Some((port.port, u16::try_from(*found).ok()?))
    });
    own.collect()
}

/// A slice's ports are matched with the service's by name.
fn slice_ports(service: &kubernetes::Service, slice: &EndpointSlice) -> SmallVec<[(u16, u16); 2]> {
    let ports = service.ports.iter().filter_map(|port| {
        let (_, own) = slice.ports.iter().find(|(name, _)| *name == port.name)?;
        let differs = !matches!(port.target, TargetPort::Number(target) if target == *own);
        differs.then_some((port.port, *own))
    });
    ports.collect()
}

/// Who has which address. More than one only if objects conflict, or for a moment.
#[derive(Debug, Default)]
pub(super) struct Claims(std::collections::HashMap<IpAddr, SmallVec<[(Rank, WorkloadUid); 1]>>);

/// Which claim to an address counts; the smaller the better (ztunnel's order: pods, then HBONE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    HbonePod,
    PlainPod,
    HboneEntry,
    HboneInline,
    PlainEntry,
    /// Written down in a ServiceEntry.
    PlainInline,
    /// Derived from an EndpointSlice: known by nothing else.
    Bare,
}

impl Claims {
    /// Adds or removes a claim.
    pub(super) fn set(&mut self, address: IpAddr, claim: (Rank, WorkloadUid), present: bool) {
        let claims = self.0.entry(address).or_default();
        match (claims.binary_search(&claim), present) {
            (Err(place), true) => claims.insert(place, claim),
            (Ok(place), false) => {
                claims.remove(place);
            }
            (Ok(_), true) | (Err(_), false) => {}
        }
        if claims.is_empty() {
            self.0.remove(&address);
        }
    }

    /// Whose address it is.
    pub(super) fn winner(&self, address: IpAddr) -> Option<&WorkloadUid> {
        self.0.get(&address)?.first().map(|(_, uid)| uid)
    }

    /// Whose address it is among objects that are workloads themselves: what services bring along must
    /// not decide about other services.
    fn owner(&self, address: IpAddr) -> Option<&WorkloadUid> {
        let own = |(rank, _): &&(Rank, WorkloadUid)| {
            !matches!(rank, Rank::HboneInline | Rank::PlainInline | Rank::Bare)
        };
        self.0.get(&address)?.iter().find(own).map(|(_, uid)| uid)
    }

    /// All claims to an address.
    pub(super) fn all(&self, address: IpAddr) -> BTreeSet<&WorkloadUid> {
        self.0
            .get(&address)
            .into_iter()
            .flatten()
            .map(|(_, uid)| uid)
            .collect()
    }
}
