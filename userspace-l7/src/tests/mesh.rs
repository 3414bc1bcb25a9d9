//! A mesh of loopback addresses: a client pod, server pods with an HBONE listener each, services whose virtual
//! addresses accept for the client as capture would.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use smallvec::SmallVec;
use socket2::{Domain, Socket, Type};
use tokio::task::{JoinHandle, spawn_local};

use super::application::{Talk, listen};
use crate::hub::Hub;
use crate::model::{
    AppProtocol, BackendTarget, Demands, Endpoint, HeaderModifier, Health, HttpAction, HttpMatch,
    HttpPolicy, HttpPolicyAction, HttpPolicyRule, HttpRouteEntry, HttpRouteTable, HttpRule,
    IpFamilies, LoadBalancer, Locality, MeshSettings, NamespacedHostname, NetworkMode, Peer,
    PolicyKey, PortLayer7, PortRoutes, RetryPolicy, Service, ServiceLayer7, ServicePort, Snapshot,
    SpiffeId, TrustDomain, TunnelProtocol, WaypointKey, WeightedBackend, Workload, WorkloadLabels,
    WorkloadUid,
};
use crate::names::Nameless;
use crate::pod::{Answer, Course, Family, Opening, Pod, PodSockets};
use crate::ring::Tcp;
use crate::telemetry::Metrics;
use crate::tls::Identities;
use crate::tls::fixture::Authority;
use crate::{inbound, outbound};

/// Port of every service.
pub(super) const PORT: u16 = 8000;
/// Port of every application.
pub(super) const TARGET: u16 = 8080;

/// Each mesh has a /24 of its own; test binaries of other processes have other ones, as far as it matters.
static MESHES: AtomicU8 = AtomicU8::new(0);

/// The mesh, and who listens in it.
pub(super) struct Mesh {
    network: [u8; 2],
    hosts: Cell<u8>,
    snapshot: RefCell<Snapshot>,
    authority: Authority,
    identities: Arc<Identities>,
    hub: Rc<Hub>,
    /// All pods'.
    course: Course,
    listening: RefCell<Vec<JoinHandle<()>>>,
}

struct Loopback;

impl PodSockets for Loopback {
    fn outbound(&self, family: Family) -> io::Result<OwnedFd> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        Ok(Socket::new(domain, Type::STREAM, None)?.into())
    }

    fn leg(&self, family: Family, _client: SocketAddr) -> io::Result<OwnedFd> {
        self.outbound(family)
    }

    fn consider(&self, _opening: &Opening) -> bool {
        false
    }

    fn served_straight(&self, _dialled: SocketAddr) -> SmallVec<[SocketAddr; 4]> {
        SmallVec::new()
    }

    fn answer(&self, _opening: &Opening, _answer: Answer) -> io::Result<()> {
        // Capture is what holds connections, and there is none here.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn hold_again(&self, _dialled: SocketAddr) -> io::Result<()> {
        Ok(())
    }
}

impl Mesh {
    /// A mesh with a pod `client` and nobody to call.
    pub(super) fn new() -> Self {
        let snapshot = Snapshot::empty(MeshSettings {
            trust_domain: TrustDomain::new("td").unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster: "k".into(),
            network: "".into(),
        });
        let identities = Arc::<Identities>::default();
        let hub = Rc::new(Hub::new(
            Arc::new(snapshot.clone()),
            Arc::clone(&identities),
            (Arc::default(), Arc::new(Nameless)),
            Arc::default(),
            Arc::new(Metrics::new()),
        ));
        let own = MESHES.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id().to_le_bytes()[0];
        let mesh = Self {
            network: [64 + process % 128, own],
            hosts: Cell::new(1),
            snapshot: RefCell::new(snapshot),
            authority: Authority::new("root"),
            identities,
            hub,
            course: Course::new(),
            listening: RefCell::default(),
        };
        mesh.workload("client");
        mesh
    }

    fn address(&self) -> IpAddr {
        let host = self.hosts.get();
        self.hosts.set(host + 1);
        let [a, b] = self.network;
        Ipv4Addr::new(127, a, b, host).into()
    }

    /// Changes the mesh for everybody.
    pub(super) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.borrow_mut();
        change(&mut snapshot);
        snapshot.generation += 1;
        let _refused = self.hub.publish(Arc::new(snapshot.clone()));
    }

    fn workload(&self, name: &str) -> Workload {
        let workload = Workload {
            uid: uid(name),
            name: name.into(),
            namespace: "app".into(),
            service_account: name.into(),
            trust_domain: TrustDomain::new("td").unwrap(),
            addresses: [self.address()].into_iter().collect(),
            hostname: "".into(),
            node: "here".into(),
            network: "".into(),
            network_mode: NetworkMode::Standard,
            cluster: "k".into(),
            protocol: TunnelProtocol::Hbone,
            peer: Peer::Culvert,
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_name: name.into(),
            workload_type: "pod".into(),
            locality: Locality::default(),
            health: Health::Healthy,
            capacity: 1,
            services: vec![],
            labels: WorkloadLabels::default(),
            authorization_policies: vec![],
            application_tunnel: None,
            waypoint: None,
        };
        let identity = self.authority.identity(&workload.identity().to_string());
        self.identities.publish(&Arc::new(identity));
        self.change(|snapshot| insert(snapshot, workload.clone()));
        workload
    }

    /// Adds a server pod; returns where its application has to listen.
    pub(super) fn server(&self, name: &str) -> SocketAddr {
        let at = self.announced(name);
        self.capture(at.ip(), name);
        at
    }

    /// Adds a server pod that is not captured; returns where its application has to listen.
    pub(super) fn outsider(&self, name: &str) -> SocketAddr {
        let at = self.announced(name);
        self.release(name);
        at
    }

    /// Adds a server pod that is captured by what the mesh says, and by nobody; returns where its application has to
    /// listen.
    pub(super) fn announced(&self, name: &str) -> SocketAddr {
        SocketAddr::new(self.workload(name).addresses[0], TARGET)
    }

    /// Takes tunnels for a pod, whatever the mesh says.
    pub(super) fn capture(&self, address: IpAddr, name: &str) {
        let hbone = SocketAddr::new(address, crate::route::HBONE_PORT);
        self.accept(hbone, name, |hub, pod, tcp| async move {
            inbound::serve_hbone(&hub, &pod, tcp).await;
        });
    }

    /// Takes tunnels for a pod that was released, and has the mesh say so.
    pub(super) fn recapture(&self, address: IpAddr, name: &str) {
        self.capture(address, name);
        self.announce(name, TunnelProtocol::Hbone);
    }

    /// Has the mesh say that a pod is not captured.
    pub(super) fn release(&self, name: &str) {
        self.announce(name, TunnelProtocol::Tcp);
    }

    fn announce(&self, name: &str, protocol: TunnelProtocol) {
        self.change(|snapshot| {
            let mut workload = Workload::clone(snapshot.workloads.get(&uid(name)).unwrap());
            workload.protocol = protocol;
            insert(snapshot, workload);
        });
    }

    /// Adds a service in front of pods, without layer 7; returns its virtual address.
    pub(super) fn service(&self, name: &str, pods: &[&str]) -> SocketAddr {
        let vip = SocketAddr::new(self.address(), PORT);
        let port = ServicePort {
            name: "".into(),
            target_port: TARGET,
            app_protocol: "".into(),
        };
        let service = Arc::new(Service {
            name: name.into(),
            key: key(name),
            vips: [vip.ip()].into_iter().collect(),
            cidr_vips: vec![],
            ports: BTreeMap::from([(PORT, port)]),
            load_balancer: LoadBalancer::default(),
            ip_families: IpFamilies::default(),
            subject_alt_names: vec![],
            waypoint: None,
            canonical: true,
            namespace_private: false,
            alias: None,
        });
        let endpoint = |pod: &&str| Endpoint {
            workload: uid(pod),
            ports: [].into_iter().collect(),
            health: Health::Healthy,
        };
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        self.change(|snapshot| {
            drop(snapshot.endpoints.insert(key(name), endpoints.into()));
            drop(
                snapshot
                    .services_by_vip
                    .insert(vip.ip(), [key(name)].into_iter().collect()),
            );
            drop(snapshot.services.insert(key(name), service));
        });
        self.accept(vip, "client", |hub, pod, tcp| async move {
            let ends = (tcp.peer_addr().unwrap(), tcp.local_addr().unwrap());
            if let Some(carrying) = outbound::open(&hub, &pod, ends, tcp).await {
                carrying.await;
            }
        });
        vip
    }

    /// Binds a service to a waypoint.
    pub(super) fn bind(&self, name: &str, protocol: AppProtocol, routes: PortRoutes) {
        self.demand(name, protocol, routes, Demands::default());
    }

    /// Binds a service to a waypoint that demands something.
    pub(super) fn demand(
        &self,
        name: &str,
        protocol: AppProtocol,
        routes: PortRoutes,
        demands: Demands,
    ) {
        let port = PortLayer7 {
            protocol,
            routes,
            consumer_routes: BTreeMap::new(),
            rate_limits: [].into(),
        };
        let layer7 = ServiceLayer7 {
            waypoint: WaypointKey {
                namespace: "app".into(),
                name: "waypoint".into(),
            },
            waypoint_identity: SpiffeId::new(TrustDomain::new("td").unwrap(), "app", "waypoint"),
            ports: BTreeMap::from([(PORT, Arc::new(port))]),
            demands: Arc::new(demands),
            telemetry: Arc::default(),
            ingress: false,
            canary: None,
        };
        self.change(|snapshot| {
            drop(snapshot.services_layer7.insert(key(name), Arc::new(layer7)));
        });
    }

    /// A connection of the client's application.
    pub(super) async fn dial(&self, to: SocketAddr) -> Talk {
        Talk::connect(to).await
    }

    fn accept<J, F>(&self, at: SocketAddr, pod: &str, journey: J)
    where
        J: Fn(Rc<Hub>, Pod, Tcp) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let listener = listen(at);
        let hub = Rc::clone(&self.hub);
        let pod = Pod {
            uid: uid(pod),
            netns: 0,
            sockets: Arc::new(Loopback),
            dns: None,
            outlook: self.course.outlook(),
        };
        let task = spawn_local(async move {
            let mut journeys = tokio::task::JoinSet::new();
            loop {
                let tcp = listener.accept().await.unwrap();
                drop(journeys.spawn_local(journey(Rc::clone(&hub), pod.clone(), tcp)));
            }
        });
        self.listening.borrow_mut().push(task);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.listening.borrow().iter().for_each(JoinHandle::abort);
    }
}

fn insert(snapshot: &mut Snapshot, workload: Workload) {
    let workload = Arc::new(workload);
    let address = workload.addresses[0];
    drop(
        snapshot
            .workloads_by_address
            .insert(address, Arc::clone(&workload)),
    );
    drop(snapshot.workloads.insert(workload.uid.clone(), workload));
}

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new(format!("k//Pod/app/{name}"))
}

pub(super) fn key(name: &str) -> NamespacedHostname {
    NamespacedHostname {
        namespace: "app".into(),
        hostname: format!("{name}.app.svc.cluster.local").into(),
    }
}

/// Routes with one rule for each of these matches.
pub(super) fn routes(rules: Vec<(HttpMatch, HttpRule)>) -> PortRoutes {
    let entries = rules.into_iter().map(|(matches, rule)| HttpRouteEntry {
        matches: matches.into(),
        rule: Arc::new(rule),
    });
    PortRoutes::Http(Arc::new(HttpRouteTable::new(entries.collect(), false)))
}

/// A rule that forwards to services, by weight.
pub(super) fn forward(backends: &[(&str, u32)]) -> HttpRule {
    let backend = |(name, weight): &(&str, u32)| WeightedBackend {
        weight: *weight,
        target: BackendTarget::Service {
            service: key(name),
            port: PORT,
            subset: None,
        },
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
    };
    rule(HttpAction::Forward(backends.iter().map(backend).collect()))
}

/// A rule that does nothing but this.
pub(super) fn rule(action: HttpAction) -> HttpRule {
    HttpRule {
        name: "rule".into(),
        origin: "HTTPRoute app/route".into(),
        action,
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
        rewrite: None,
        mirrors: vec![],
        cors: None,
        fault: None,
        timeout: None,
        retry: RetryPolicy::default(),
        session: None,
        is_usable: true,
    }
}

/// One policy with one rule.
pub(super) fn policy(action: HttpPolicyAction, rule: HttpPolicyRule) -> Demands {
    let policy = HttpPolicy {
        key: PolicyKey {
            namespace: "app".into(),
            name: "policy".into(),
        },
        action,
        dry_run: false,
        rules: vec![rule],
    };
    Demands {
        authorization: vec![Arc::new(policy)],
        ..Demands::default()
    }
}
