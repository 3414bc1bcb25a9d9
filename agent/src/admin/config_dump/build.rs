//! Snapshot → dump. Items are built and written one by one, sorted, so that equal meshes give equal text
//! and a large one costs no more than its text.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use data_encoding::BASE64;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;
use userspace_l7::model::{
    Action, ApplicationTunnel, AuthorizationPolicy, Clause, Endpoint, Health, HealthPolicy,
    IpFamilies, LoadBalancer, LoadBalancerMode, Match, Network, NetworkMode, RoutingScope, Rule,
    Scope, Service, ServiceAccountMatch, Snapshot, StringMatch, TunnelProtocol, WaypointReference,
    Workload,
};
use userspace_l7::telemetry::Reporter;

use super::{
    AddressedWaypoint, ApplicationTunnelDump, CertificateDump, CertificateEntryDump,
    ConnectionDump, ConnectionsDump, EndpointDump, LoadBalancerDump, LocalityDump, MatchDump,
    PodInfoDump, PolicyDump, ServiceAccountDump, ServiceDump, StringMatchDump, VersionDump,
    WorkloadDump, WorkloadStateDump,
};
use crate::admin::{
    Carriage, CertificateEntry, CertificateState, CertificateStatus, LiveConnection, PodState,
    PodStatus,
};

/// All that a dump shows.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) certificates: Vec<CertificateStatus>,
    pub(crate) connections: Vec<LiveConnection>,
    pub(crate) pods: Vec<PodStatus>,
    pub(crate) config: serde_json::Value,
}

/// The dump as indented JSON.
pub(crate) fn write(sources: &Sources) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(sources)
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let snapshot = &*self.snapshot;
        let mut workloads: Vec<_> = snapshot.workloads.values().collect();
        workloads.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        let mut services: Vec<_> = snapshot.services.values().collect();
        services.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let mut policies: Vec<_> = snapshot.policies.values().collect();
        policies.sort_unstable_by(|a, b| a.key.cmp(&b.key));

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(
            "workloads",
            &Each(&workloads, |found: &&Arc<Workload>| workload(found)),
        )?;
        map.serialize_entry(
            "services",
            &Each(&services, |found: &&Arc<Service>| service(snapshot, found)),
        )?;
        map.serialize_entry(
            "policies",
            &Each(&policies, |found: &&Arc<AuthorizationPolicy>| policy(found)),
        )?;
        // Two sections that only a client of istiod's own protocol can fill: istioctl expects the keys.
        map.serialize_entry("stagedServices", &json!({}))?;
        map.serialize_entry(
            "staticConfig",
            &json!({"workloads": [], "policies": [], "services": []}),
        )?;
        map.serialize_entry("version", &VersionDump::current())?;
        map.serialize_entry("config", &self.config)?;
        map.serialize_entry("certificates", &Each(&self.certificates, certificate))?;
        map.serialize_entry("workloadState", &self.workload_state())?;
        map.end()
    }
}

/// Serializes a slice as a sequence of what `1` makes of each item.
struct Each<'a, T, F>(&'a [T], F);

impl<T, R: Serialize, F: Fn(&T) -> R> Serialize for Each<'_, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

impl Sources {
    fn workload_state(&self) -> BTreeMap<&str, WorkloadStateDump> {
        let trust_domain = self.snapshot.mesh.trust_domain.as_str();
        let mut states: BTreeMap<&str, WorkloadStateDump> = BTreeMap::new();
        for pod in &self.pods {
            states.insert(&pod.uid, pod_state(pod, trust_domain));
        }
        for connection in &self.connections {
            let state = states.entry(&connection.workload_uid).or_default();
            let list = match connection.reporter {
                Reporter::Source => &mut state.connections.outbound,
                Reporter::Destination => &mut state.connections.inbound,
            };
            list.push(live_connection(connection));
        }
        for ConnectionsDump { inbound, outbound } in states.values_mut().map(|s| &mut s.connections)
        {
            inbound.sort_unstable_by(|a, b| a.src.cmp(&b.src));
            outbound.sort_unstable_by(|a, b| a.src.cmp(&b.src));
        }
        states
    }
}

fn pod_state(pod: &PodStatus, trust_domain: &str) -> WorkloadStateDump {
    let state = match pod.state {
        PodState::Up => "Up",
        PodState::Pending => "Pending",
        PodState::Draining => "Draining",
    };
    WorkloadStateDump {
        state: state.to_owned(),
        info: PodInfoDump {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            trust_domain: trust_domain.to_owned(),
            service_account: pod.service_account.clone(),
        },
        connections: ConnectionsDump::default(),
    }
}

fn live_connection(connection: &LiveConnection) -> ConnectionDump {
    let original_dst = match connection.reporter {
        Reporter::Source => Some(connection.original_destination.to_string()),
        Reporter::Destination => connection.service.clone(),
    };
    ConnectionDump {
        src: connection.source.to_string(),
        original_dst,
        actual_dst: connection.actual_destination.to_string(),
        protocol: match connection.carriage {
            Carriage::Hbone => "HBONE",
            Carriage::Tcp => "TCP",
            Carriage::Direct => "DIRECT",
        }
        .to_owned(),
    }
}

fn workload(workload: &Workload) -> WorkloadDump {
    WorkloadDump {
        uid: workload.uid.to_string(),
        workload_ips: workload.addresses.iter().map(ToString::to_string).collect(),
        waypoint: workload.waypoint.as_ref().map(waypoint),
        protocol: protocol(workload.protocol).to_owned(),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => "Standard",
            NetworkMode::HostNetwork => "HostNetwork",
        }
        .to_owned(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        trust_domain: workload.trust_domain.to_string(),
        service_account: workload.service_account.to_string(),
        network: workload.network.to_string(),
        workload_name: workload.workload_name.to_string(),
        workload_type: workload.workload_type.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        hostname: workload.hostname.to_string(),
        node: workload.node.to_string(),
        // True only of workloads that terminate HBONE themselves; on captured pods the agent does.
        native_tunnel: false,
        application_tunnel: workload.application_tunnel.map(application_tunnel),
        authorization_policies: workload
            .authorization_policies
            .iter()
            .map(ToString::to_string)
            .collect(),
        status: health(workload.health).to_owned(),
        cluster_id: workload.cluster.to_string(),
        locality: LocalityDump {
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
            subzone: workload.locality.subzone.to_string(),
        },
        services: workload.services.iter().map(ToString::to_string).collect(),
        capacity: workload.capacity,
    }
}

fn application_tunnel(tunnel: ApplicationTunnel) -> ApplicationTunnelDump {
    let protocol = if tunnel.has_header { "PROXY" } else { "NONE" };
    ApplicationTunnelDump {
        protocol: protocol.to_owned(),
        port: tunnel.port.map(NonZeroU16::get),
    }
}

fn protocol(protocol: TunnelProtocol) -> &'static str {
    match protocol {
        TunnelProtocol::Hbone => "HBONE",
        TunnelProtocol::Tcp => "TCP",
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn waypoint(reference: &WaypointReference) -> AddressedWaypoint {
    AddressedWaypoint {
        destination: reference.destination.to_string(),
        hbone_mtls_port: reference.hbone_port,
    }
}

fn service(snapshot: &Snapshot, service: &Service) -> ServiceDump {
    let network = &snapshot.mesh.network;
    let endpoints = snapshot.endpoints_of(&service.key).iter();
    ServiceDump {
        name: service.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: service.key.hostname.to_string(),
        vips: service
            .vips
            .iter()
            .map(|vip| on_network(network, *vip))
            .collect(),
        cidr_vips: service
            .cidr_vips
            .iter()
            .map(|net| format!("{network}/{net}"))
            .collect(),
        ports: service
            .ports
            .iter()
            .map(|(port, means)| (*port, means.target_port))
            .collect(),
        endpoints: endpoints
            .map(|found| (found.workload.to_string(), endpoint(service, found)))
            .collect(),
        subject_alt_names: service
            .subject_alt_names
            .iter()
            .map(ToString::to_string)
            .collect(),
        waypoint: service.waypoint.as_ref().map(waypoint),
        load_balancer: Some(&service.load_balancer)
            .filter(|found| **found != LoadBalancer::default())
            .map(load_balancer),
        ip_families: ip_families(service.ip_families).map(str::to_owned),
        canonical: service.canonical,
        visibility: if service.namespace_private {
            "Namespace"
        } else {
            "Public"
        }
        .to_owned(),
    }
}

fn on_network(network: &Network, address: IpAddr) -> String {
    format!("{network}/{address}")
}

fn endpoint(service: &Service, endpoint: &Endpoint) -> EndpointDump {
    let port = |port: &u16| Some((*port, endpoint.target_port(service, *port)?));
    EndpointDump {
        workload_uid: endpoint.workload.to_string(),
        port: service.ports.keys().filter_map(port).collect(),
        status: health(endpoint.health).to_owned(),
    }
}

fn load_balancer(balancer: &LoadBalancer) -> LoadBalancerDump {
    LoadBalancerDump {
        mode: match balancer.mode {
            LoadBalancerMode::Any => "Standard",
            LoadBalancerMode::Strict => "Strict",
            LoadBalancerMode::Failover => "Failover",
            LoadBalancerMode::Passthrough => "Passthrough",
            // None of ztunnel's own: Istio leaves such an entry to its waypoint.
            LoadBalancerMode::ByName => "DynamicDns",
        }
        .to_owned(),
        routing_preferences: balancer
            .scopes
            .iter()
            .map(|scope| routing_scope(*scope).to_owned())
            .collect(),
        health_policy: match balancer.health {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        }
        .to_owned(),
    }
}

fn routing_scope(scope: RoutingScope) -> &'static str {
    match scope {
        RoutingScope::Network => "Network",
        RoutingScope::Region => "Region",
        RoutingScope::Zone => "Zone",
        RoutingScope::Subzone => "Subzone",
        RoutingScope::Node => "Node",
        RoutingScope::Cluster => "Cluster",
    }
}

fn ip_families(families: IpFamilies) -> Option<&'static str> {
    match families {
        IpFamilies::Automatic => None,
        IpFamilies::Ipv4Only => Some("IPv4"),
        IpFamilies::Ipv6Only => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    }
}

fn policy(policy: &AuthorizationPolicy) -> PolicyDump {
    let matches = |clause: &Clause| clause.matches.iter().map(policy_match).collect();
    let clauses = |rule: &Rule| rule.clauses.iter().map(matches).collect();
    PolicyDump {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: match policy.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        }
        .to_owned(),
        action: match policy.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        }
        .to_owned(),
        dry_run: policy.dry_run,
        rules: policy.rules.iter().map(clauses).collect(),
    }
}

fn policy_match(found: &Match) -> MatchDump {
    let strings = |list: &[StringMatch]| list.iter().map(string_match).collect();
    let accounts = |list: &[ServiceAccountMatch]| list.iter().map(service_account).collect();
    let nets = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect();
    MatchDump {
        namespaces: strings(&found.namespaces),
        not_namespaces: strings(&found.not_namespaces),
        principals: strings(&found.principals),
        not_principals: strings(&found.not_principals),
        service_accounts: accounts(&found.service_accounts),
        not_service_accounts: accounts(&found.not_service_accounts),
        source_ips: nets(&found.source_ips),
        not_source_ips: nets(&found.not_source_ips),
        destination_ips: nets(&found.destination_ips),
        not_destination_ips: nets(&found.not_destination_ips),
        destination_ports: found.destination_ports.clone(),
        not_destination_ports: found.not_destination_ports.clone(),
    }
}

fn string_match(found: &StringMatch) -> StringMatchDump {
    match found {
        StringMatch::Exact(text) => StringMatchDump::Exact(text.to_string()),
        StringMatch::Prefix(text) => StringMatchDump::Prefix(text.to_string()),
        StringMatch::Suffix(text) => StringMatchDump::Suffix(text.to_string()),
        StringMatch::Presence => StringMatchDump::Presence([]),
    }
}

fn service_account(found: &ServiceAccountMatch) -> ServiceAccountDump {
    ServiceAccountDump {
        namespace: found.namespace.to_string(),
        service_account: found.service_account.to_string(),
    }
}

fn certificate(status: &CertificateStatus) -> CertificateDump {
    CertificateDump {
        identity: status.identity.clone(),
        state: match &status.state {
            CertificateState::Available => "Available".to_owned(),
            CertificateState::Initializing => "Initializing".to_owned(),
            CertificateState::Unavailable(why) => format!("Unavailable: {why}"),
        },
        cert_chain: status.chain.iter().map(certificate_entry).collect(),
        root_certs: status.roots.iter().map(certificate_entry).collect(),
    }
}

fn certificate_entry(entry: &CertificateEntry) -> CertificateEntryDump {
    CertificateEntryDump {
        pem: BASE64.encode(entry.pem.as_bytes()),
        serial_number: entry.serial.clone(),
        valid_from: entry.not_before.to_string(),
        expiration_time: entry.not_after.to_string(),
    }
}

impl VersionDump {
    /// This program. What the build did not record is `unknown`.
    pub(crate) fn current() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_revision: option_env!("CULVERT_GIT_REVISION")
                .unwrap_or("unknown")
                .to_owned(),
            rust_version: option_env!("CULVERT_RUST_VERSION")
                .unwrap_or("unknown")
                .to_owned(),
            build_profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            }
            .to_owned(),
            build_status: option_env!("CULVERT_BUILD_STATUS")
                .unwrap_or("unknown")
                .to_owned(),
            istio_version: "unknown".to_owned(),
            crypto_provider: "aws-lc".to_owned(),
        }
    }
}
