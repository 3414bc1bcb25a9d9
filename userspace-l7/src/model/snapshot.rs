//! The whole mesh at one moment. Persistent maps: a copy costs a pointer, a change a few nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::HashSet;
use imbl::shared_ptr::DefaultSharedPtr;
use smallvec::SmallVec;

use super::http_policy::PathNormalization;
use super::identity::TrustDomain;
use super::layer7::{ServicesLayer7, WorkloadLayer7};
use super::policy::{AuthorizationPolicy, PolicyKey, Scope};
use super::service::{Endpoint, NamespacedHostname, Service};
use super::traffic::ServiceTraffic;
use super::workload::{Network, Workload, WorkloadUid};

/// What holds for the mesh as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// Own trust domain.
    pub trust_domain: TrustDomain,
    /// DNS suffix of Kubernetes names, `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Name of this cluster, `Kubernetes`.
    pub cluster: Arc<str>,
    /// Own L3 network.
    pub network: Network,
}

/// A persistent map. Its hash is quick, since a connection looks a dozen things up, and seeded anew in each process,
/// so that names cannot be chosen to collide.
pub type Map<K, V> = imbl::GenericHashMap<K, V, foldhash::fast::RandomState, DefaultSharedPtr>;

/// Everything that a decision may depend on. Built by one writer, read by every worker.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows by one with each published change.
    pub generation: u64,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshSettings>,
    /// All workloads.
    pub workloads: Map<WorkloadUid, Arc<Workload>>,
    /// Workloads by address; those on a node's own network are left out.
    pub workloads_by_address: Map<IpAddr, Arc<Workload>>,
    /// All services.
    pub services: Map<NamespacedHostname, Arc<Service>>,
    /// Services by virtual address; more than one only if objects conflict.
    pub services_by_vip: Map<IpAddr, SmallVec<[NamespacedHostname; 1]>>,
    /// Services by hostname.
    pub services_by_hostname: Map<Arc<str>, SmallVec<[NamespacedHostname; 1]>>,
    /// Services with a range among their addresses: few, searched in turn.
    pub services_with_ranges: Vec<Arc<Service>>,
    /// Endpoints by service.
    pub endpoints: Map<NamespacedHostname, Arc<[Endpoint]>>,
    /// Addresses of workloads that are known by hostname, as far as they have been looked up.
    pub looked_up: Arc<BTreeMap<Arc<str>, Arc<[IpAddr]>>>,
    /// All policies.
    pub policies: Map<PolicyKey, Arc<AuthorizationPolicy>>,
    /// Policies of scope Namespace, by namespace.
    pub namespace_policies: Map<Arc<str>, Arc<[Arc<AuthorizationPolicy>]>>,
    /// Policies of scope Global.
    pub global_policies: Arc<[Arc<AuthorizationPolicy>]>,
    /// Layer 7 of services that are bound to a waypoint.
    pub services_layer7: ServicesLayer7,
    /// Layer 7 of workloads that are bound to a waypoint for workloads.
    pub workloads_layer7: Map<WorkloadUid, Arc<WorkloadLayer7>>,
    /// Spreading and limits of services that a DestinationRule speaks about.
    pub traffic: Map<NamespacedHostname, Arc<ServiceTraffic>>,
    /// How the paths of all requests are brought to one spelling.
    pub path_normalization: PathNormalization,
    /// Namespaces in which nobody gets around the waypoint of a service (`culvert.dev/strict-waypoint`).
    pub strict_namespaces: HashSet<Arc<str>>,
}

impl Snapshot {
    /// A mesh in which nothing runs.
    pub fn empty(mesh: MeshSettings) -> Self {
        Self {
            generation: 0,
            mesh: Arc::new(mesh),
            workloads: Map::default(),
            workloads_by_address: Map::default(),
            services: Map::default(),
            services_by_vip: Map::default(),
            services_by_hostname: Map::default(),
            services_with_ranges: Vec::new(),
            endpoints: Map::default(),
            looked_up: Arc::default(),
            policies: Map::default(),
            namespace_policies: Map::default(),
            global_policies: Arc::new([]),
            services_layer7: Map::default(),
            workloads_layer7: Map::default(),
            traffic: Map::default(),
            path_normalization: PathNormalization::default(),
            strict_namespaces: HashSet::new(),
        }
    }

    /// The workload at an address of its own.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(&address.to_canonical())
    }

    /// The service that an address stands for, as `client_namespace` sees it: an exact address before a
    /// range, then what is visible, then the client's own namespace, then a Kubernetes Service before a
    /// ServiceEntry (spec: ztunnel's order for conflicting objects).
    pub fn service_at(&self, address: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        let exact = self
            .services_by_vip
            .get(&address)
            .map(SmallVec::as_slice)
            .unwrap_or_default();
        let found = best(
            exact.iter().filter_map(|key| self.services.get(key)),
            client_namespace,
        );
        found.or_else(|| {
            let ranges = |service: &&Arc<Service>| {
                service.cidr_vips.iter().any(|net| net.contains(&address))
            };
            let longest = |service: &Arc<Service>| {
                let lengths = service
                    .cidr_vips
                    .iter()
                    .filter(|net| net.contains(&address));
                lengths.map(ipnet::IpNet::prefix_len).max()
            };
            let matching = self.services_with_ranges.iter().filter(ranges);
            let most_specific = matching.clone().filter_map(longest).max();
            best(
                matching.filter(|service| longest(service) == most_specific),
                client_namespace,
            )
        })
    }

    /// The service called `hostname` (lower case, no trailing dot), as `client_namespace` sees it.
    pub fn service_named(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let keys = self.services_by_hostname.get(hostname)?;
        best(
            keys.iter().filter_map(|key| self.services.get(key)),
            client_namespace,
        )
    }

    /// Endpoints of a service; empty if it has none.
    pub fn endpoints_of(&self, service: &NamespacedHostname) -> &[Endpoint] {
        self.endpoints
            .get(service)
            .map(|found| &**found)
            .unwrap_or_default()
    }

    /// Where a workload is: its own addresses, else those that its hostname has been found to have.
    pub fn addresses_of<'a>(&'a self, workload: &'a Workload) -> &'a [IpAddr] {
        if !workload.addresses.is_empty() {
            return &workload.addresses;
        }
        let found = self.looked_up.get(&workload.hostname);
        found.map(|found| &**found).unwrap_or_default()
    }

    /// Whether any port of a service leads to this port of a workload.
    pub fn leads_to(&self, service: &Service, workload: &WorkloadUid, target: u16) -> bool {
        let mut endpoints = self.endpoints_of(&service.key).iter();
        let endpoint = endpoints.find(|endpoint| endpoint.workload == *workload);
        endpoint.is_some_and(|endpoint| {
            let mut ports = service.ports.keys();
            ports.any(|port| endpoint.target_port(service, *port) == Some(target))
        })
    }

    /// Every policy that speaks about a workload: the mesh's, its namespace's, and those it names.
    pub fn policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let namespace = self.namespace_policies.get(&workload.namespace);
        let selected = workload
            .authorization_policies
            .iter()
            .filter_map(|key| self.policies.get(key));
        self.global_policies
            .iter()
            .chain(namespace.into_iter().flat_map(|found| found.iter()))
            .chain(selected.filter(|policy| policy.scope == Scope::WorkloadSelector))
    }
}

fn best<'a>(
    services: impl Iterator<Item = &'a Arc<Service>>,
    client_namespace: &str,
) -> Option<&'a Arc<Service>> {
    services
        .filter(|service| !service.namespace_private || &*service.key.namespace == client_namespace)
        .max_by_key(|service| {
            // The name decides between equals, so that the answer never depends on the map's order.
            let own = &*service.key.namespace == client_namespace;
            (
                own,
                service.canonical,
                std::cmp::Reverse(service.key.clone()),
            )
        })
}
