//! Kubernetes Services.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use smallvec::SmallVec;
use userspace_l7::model::IpFamilies;

use super::field::{Faults, at};
use super::meta::{Interner, Labels, Meta};
use super::syntax::{check_label, is_dns_name, read_address, read_port};

/// Where a service's traffic goes on its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This port.
    Number(u16),
    /// The container port of this name.
    Name(Arc<str>),
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; empty if it has none.
    pub name: Arc<str>,
    /// The number that clients use.
    pub port: u16,
    /// Where it goes.
    pub target: TargetPort,
    /// `appProtocol`, lower case.
    pub app_protocol: Arc<str>,
}

/// Whom a service's clients prefer (`trafficDistribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Everyone alike.
    Any,
    /// Endpoints of the client's zone.
    SameZone,
    /// Endpoints of the client's node, else of its zone.
    SameNode,
}

impl Distribution {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "Any" | "" => Some(Self::Any),
            "PreferClose" | "PreferSameZone" => Some(Self::SameZone),
            "PreferSameNode" => Some(Self::SameNode),
            _ => None,
        }
    }
}

/// A Service, reduced to what the mesh depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Cluster addresses; none for headless and ExternalName services.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// `type: ExternalName`: the name it stands for.
    pub external_name: Option<Arc<str>>,
    /// TCP ports.
    pub ports: Vec<Port>,
    /// Pods that serve it; empty if someone else writes its EndpointSlices.
    pub selector: Labels,
    /// `ipFamilies`.
    pub families: IpFamilies,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// `publishNotReadyAddresses`.
    pub publish_unready: bool,
    /// `trafficDistribution`.
    pub distribution: Option<Distribution>,
    /// `sessionAffinity: ClientIP`, which a mesh connection does not honour.
    pub session_affinity: bool,
}

/// The annotation by which Istio spells `trafficDistribution`.
pub(crate) const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

impl Service {
    pub(crate) fn read(service: v1::Service, texts: &mut Interner, faults: &mut Faults) -> Self {
        let meta = Meta::read(service.metadata, texts, faults);
        let spec = faults.require(service.spec, at!["spec"], "say at least which ports it has");
        let spec = spec.unwrap_or_default();
        check_distribution(&meta, spec.traffic_distribution.as_deref(), faults);
        let external_name = read_external_name(&spec, faults);
        let addresses = if external_name.is_some() {
            SmallVec::new()
        } else {
            read_addresses(&spec, faults)
        };
        let selector = at!["spec", "selector"];
        for (key, value) in spec.selector.iter().flatten() {
            check_label(key, value, &selector, faults);
        }
        Self {
            addresses,
            external_name: external_name.map(|name| texts.intern(&name)),
            ports: read_ports(&spec, texts, faults),
            families: read_families(&spec, faults),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            publish_unready: spec.publish_not_ready_addresses == Some(true),
            distribution: spec
                .traffic_distribution
                .as_deref()
                .and_then(Distribution::parse),
            session_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            selector: Labels::new(spec.selector, texts),
            meta,
        }
    }
}

fn check_distribution(meta: &Meta, field: Option<&str>, faults: &mut Faults) {
    let rule = "use PreferSameZone, PreferSameNode, PreferClose or Any";
    let annotated = meta.annotations.get(DISTRIBUTION);
    let wrong = |text: &&str| Distribution::parse(text).is_none();
    if let Some(text) = field.filter(wrong) {
        faults.add(
            at!["spec", "trafficDistribution"],
            format!("`{text}` is not known: {rule}"),
        );
    }
    if let Some(text) = annotated.filter(wrong) {
        let place = at!["metadata", "annotations", DISTRIBUTION];
        faults.add(place, format!("`{text}` is not known: {rule}"));
    }
}

fn read_external_name(spec: &v1::ServiceSpec, faults: &mut Faults) -> Option<String> {
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        let known = "use ClusterIP, NodePort, LoadBalancer or ExternalName";
        faults.add(
            at!["spec", "type"],
            format!("`{kind}` is not a service type: {known}"),
        );
    }
    if kind != "ExternalName" {
        return None;
    }
    let place = at!["spec", "externalName"];
    let what = "an ExternalName service stands for that DNS name";
    let name = faults.require(spec.external_name.clone(), place.clone(), what)?;
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if !is_dns_name(&name) {
        faults.add(
            place,
            format!("`{name}` is not a DNS name: write one like db.example.com"),
        );
    }
    Some(name)
}

fn read_addresses(spec: &v1::ServiceSpec, faults: &mut Faults) -> SmallVec<[IpAddr; 2]> {
    let mut addresses = SmallVec::new();
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut read = |text: &str, place| {
        if !(text.is_empty() || text == "None") {
            addresses.extend(read_address(text, place, faults));
        }
    };
    for (index, text) in several.iter().enumerate() {
        read(text, at!["spec", "clusterIPs", index]);
    }
    if several.is_empty() {
        read(
            spec.cluster_ip.as_deref().unwrap_or_default(),
            at!["spec", "clusterIP"],
        );
    }
    addresses
}

fn read_families(spec: &v1::ServiceSpec, faults: &mut Faults) -> IpFamilies {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    for (index, family) in families.iter().enumerate() {
        if family != "IPv4" && family != "IPv6" {
            let problem = format!("`{family}` is not an address family: use IPv4 or IPv6");
            faults.add(at!["spec", "ipFamilies", index], problem);
        }
    }
    let has = |name: &str| families.iter().any(|family| family == name);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn read_ports(spec: &v1::ServiceSpec, texts: &mut Interner, faults: &mut Faults) -> Vec<Port> {
    let all = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<Port> = Vec::new();
    for (index, port) in all.iter().enumerate() {
        let place = at!["spec", "ports", index];
        if port.port == 0 {
            faults.add(place.join("port"), "is missing: say which port clients use");
            continue;
        }
        if all.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            let rule = "a service with several ports must name each";
            faults.add(place.join("name"), format!("is missing: {rule}"));
        }
        let Some(number) = read_port(port.port.into(), place.join("port"), faults) else {
            continue;
        };
        let target = match &port.target_port {
            None => Some(TargetPort::Number(number)),
            Some(IntOrString::Int(target)) => {
                read_port((*target).into(), place.join("targetPort"), faults)
                    .map(TargetPort::Number)
            }
            Some(IntOrString::String(name)) => Some(TargetPort::Name(texts.intern(name))),
        };
        // UDP and SCTP are never captured.
        if !matches!(port.protocol.as_deref(), None | Some("TCP")) {
            continue;
        }
        if ports.iter().any(|other| other.port == number) {
            faults.add(
                place.join("port"),
                format!("{number} is declared twice: remove one"),
            );
        }
        ports.extend(target.map(|target| {
            Port {
                name: texts.intern(port.name.as_deref().unwrap_or_default()),
                port: number,
                target,
                app_protocol: texts.intern(
                    &port
                        .app_protocol
                        .as_deref()
                        .unwrap_or_default()
                        .to_ascii_lowercase(),
                ),
            }
        }));
    }
    ports
}
