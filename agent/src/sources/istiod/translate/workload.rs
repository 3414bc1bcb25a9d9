//! `istio.workload.Workload` → workloads, with the services that they serve.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{
    ApplicationTunnel, Health, Locality, NamespacedHostname, NetworkMode, Peer, TrustDomain,
    TunnelProtocol, Workload, WorkloadLabels, WorkloadUid,
};

use super::{Defaults, Refused, hostname, ip, or, policy_key, port, required, waypoint};
use crate::mesh::{AnnouncedWorkload, Announcement};
use crate::sources::istiod::messages as wire;

/// Service port → port of the workload.
type Ports = SmallVec<[(u16, u16); 2]>;

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_ACCOUNT: &str = "default";

pub(super) fn translate(one: wire::Workload, defaults: &Defaults) -> Result<Announcement, Refused> {
    let uid = WorkloadUid::new(required(one.uid, "uid")?);
    let ports = ports(&one.services)?;
    let addresses = one.addresses.iter().map(|address| ip(address));
    let policies = one.authorization_policies.iter();
    let protocol = protocol(one.tunnel_protocol)?;
    let locality = one.locality.unwrap_or_default();
    let workload = Workload {
        uid: uid.clone(),
        name: one.name.into(),
        namespace: one.namespace.into(),
        service_account: or(&one.service_account, DEFAULT_ACCOUNT),
        trust_domain: trust_domain(&one.trust_domain)?,
        addresses: addresses.collect::<Result<_, _>>()?,
        hostname: one.hostname.to_ascii_lowercase().into(),
        node: one.node.into(),
        network: one.network.into(),
        network_mode: network_mode(one.network_mode)?,
        cluster: or(&one.cluster_id, &defaults.cluster),
        protocol,
        // Nobody says here who it is; what an agent's own objects know of it comes before this.
        peer: match protocol {
            TunnelProtocol::Hbone => Peer::Ztunnel,
            TunnelProtocol::Tcp => Peer::Culvert,
        },
        canonical_name: one.canonical_name.into(),
        canonical_revision: or(&one.canonical_revision, "latest"),
        workload_name: one.owner_name.into(),
        workload_type: owner_type(one.owner_type).into(),
        labels: WorkloadLabels::default(),
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        },
        health: match one.status {
            0 => Health::Healthy,
            // Whatever else there may be, it is not healthy.
            _ => Health::Unhealthy,
        },
        capacity: one.capacity.map_or(1, |capacity| capacity.value),
        services: ports.keys().cloned().collect(),
        authorization_policies: policies
            .map(|key| policy_key(key))
            .collect::<Result<_, _>>()?,
        waypoint: waypoint(one.waypoint)?,
        application_tunnel: one.application_tunnel.map(tunnel).transpose()?,
    };
    let workload = Arc::new(workload);
    let announced = AnnouncedWorkload { workload, ports };
    Ok(Announcement::Workload(uid, Some(announced)))
}

fn protocol(number: i32) -> Result<TunnelProtocol, Refused> {
    match number {
        // LEGACY_ISTIO_MTLS is a sidecar's, which takes plain text besides.
        0 | 2 => Ok(TunnelProtocol::Tcp),
        1 => Ok(TunnelProtocol::Hbone),
        other => Err(Refused::new(format!(
            "is reached by tunnel protocol {other}, which is unknown"
        ))),
    }
}

fn tunnel(one: wire::ApplicationTunnel) -> Result<ApplicationTunnel, Refused> {
    let has_header = match one.protocol {
        0 => false,
        1 => true,
        other => {
            return Err(Refused::new(format!(
                "has an application tunnel of protocol {other}, which is unknown"
            )));
        }
    };
    Ok(ApplicationTunnel {
        has_header,
        // 0 stands for the port that was called.
        port: NonZeroU16::new(port(one.port)?),
    })
}

fn network_mode(number: i32) -> Result<NetworkMode, Refused> {
    match number {
        0 => Ok(NetworkMode::Standard),
        1 => Ok(NetworkMode::HostNetwork),
        other => Err(Refused::new(format!(
            "has network mode {other}, which is unknown"
        ))),
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, Refused> {
    let name = or(text, DEFAULT_TRUST_DOMAIN);
    TrustDomain::new(&name)
        .map_err(|invalid| Refused::new(format!("has trust domain {name}: {invalid}")))
}

fn owner_type(number: i32) -> &'static str {
    match number {
        0 => "deployment",
        1 => "cronjob",
        3 => "job",
        // A kind that nobody knows yet is only a label of metrics.
        _ => "pod",
    }
}

/// Services with the ports by which they are served.
fn ports(
    services: &BTreeMap<String, wire::PortList>,
) -> Result<BTreeMap<NamespacedHostname, Ports>, Refused> {
    let of_service = |(name, list): (&String, &wire::PortList)| {
        let pairs = list.ports.iter();
        let pairs = pairs.map(|one| Ok((port(one.service)?, port(one.target)?)));
        Ok((hostname(name)?, pairs.collect::<Result<Ports, Refused>>()?))
    };
    services.iter().map(of_service).collect()
}
