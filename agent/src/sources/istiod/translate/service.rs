//! `istio.workload.Service` → services. Their endpoints are the workloads that name them.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{
    HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, NamespacedHostname, RoutingScope,
    Service, ServicePort,
};

use super::{Refused, ip, network, port, required, waypoint};
use crate::mesh::Announcement;
use crate::sources::istiod::messages as wire;

pub(super) fn translate(one: wire::Service) -> Result<Announcement, Refused> {
    let key = NamespacedHostname {
        namespace: one.namespace.into(),
        hostname: required(one.hostname.to_ascii_lowercase(), "hostname")?,
    };
    let (mut vips, mut cidr_vips) = (SmallVec::new(), Vec::new());
    for address in &one.addresses {
        match address.length {
            Some(length) => cidr_vips.push(network(&address.address, length)?),
            None => vips.push(ip(&address.address)?),
        }
    }
    let mut ports = BTreeMap::new();
    for one in &one.ports {
        let meaning = ServicePort {
            // What the API's object calls it is not announced.
            name: "".into(),
            target_port: port(one.target)?,
            app_protocol: app_protocol(one.app_protocol).into(),
        };
        ports.insert(port(one.service)?, meaning);
    }
    let service = Service {
        name: one.name.into(),
        key: key.clone(),
        vips,
        cidr_vips,
        ports,
        load_balancer: match &one.load_balancing {
            Some(spreading) => load_balancer(spreading)?,
            None => LoadBalancer::default(),
        },
        ip_families: match one.ip_families {
            1 => IpFamilies::Ipv4Only,
            2 => IpFamilies::Ipv6Only,
            3 => IpFamilies::Dual,
            _ => IpFamilies::Automatic,
        },
        subject_alt_names: one.subject_alt_names.into_iter().map(Arc::from).collect(),
        waypoint: waypoint(one.waypoint)?,
        canonical: one.canonical,
        // Visibilities that nobody knows yet are public, as ztunnel has it.
        namespace_private: one.visibility == 1,
        alias: None,
    };
    Ok(Announcement::Service(key, Some(Arc::new(service))))
}

/// As `appProtocol` says it. What is unknown is undeclared.
fn app_protocol(number: i32) -> &'static str {
    match number {
        1 => "http",
        2 => "http2",
        3 => "grpc",
        4 => "tcp",
        5 => "tls",
        _ => "",
    }
}

fn load_balancer(one: &wire::LoadBalancing) -> Result<LoadBalancer, Refused> {
    let mode = match one.mode {
        0 => LoadBalancerMode::Any,
        1 => LoadBalancerMode::Strict,
        2 => LoadBalancerMode::Failover,
        3 => LoadBalancerMode::Passthrough,
        other => {
            return Err(Refused::new(format!(
                "has load balancing mode {other}, which is unknown"
            )));
        }
    };
    let mut scopes = SmallVec::new();
    for scope in &one.routing_preference {
        scopes.push(match scope {
            1 => RoutingScope::Region,
            2 => RoutingScope::Zone,
            3 => RoutingScope::Subzone,
            4 => RoutingScope::Node,
            5 => RoutingScope::Cluster,
            6 => RoutingScope::Network,
            other => {
                let why = format!("has routing preference {other}, which is unknown");
                return Err(Refused::new(why));
            }
        });
    }
    let health = match one.health_policy {
        1 => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    Ok(LoadBalancer {
        mode,
        scopes,
        health,
        // Nothing is said of it there: it is a waypoint's business.
        is_raced: false,
    })
}
