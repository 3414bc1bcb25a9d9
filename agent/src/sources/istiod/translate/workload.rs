//! `istio.workload.Workload` → workloads, with the services that they serve.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{
    Health, Locality, NetworkMode, Peer, TrustDomain, TunnelProtocol, Workload, WorkloadLabels,
    WorkloadUid,
};

use super::{Defaults, Refused, hostname, ip, or, policy_key, port, required, waypoint};
use crate::mesh::{AnnouncedWorkload, Announcement};
use crate::sources::istiod::messages as wire;

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_ACCOUNT: &str = "default";

pub(super) fn translate(one: wire::Workload, defaults: &Defaults) -> Result<Announcement, Refused> {
    let uid = WorkloadUid::new(required(one.uid, "uid")?);
    let mut addresses = SmallVec::new();
    for address in &one.addresses {
        addresses.push(ip(address)?);
    }
    let protocol = match one.tunnel_protocol {
        // LEGACY_ISTIO_MTLS is a sidecar's, which takes plain text besides.
        0 | 2 => TunnelProtocol::Tcp,
        1 => TunnelProtocol::Hbone,
        other => {
            let why = format!("is reached by tunnel protocol {other}, which is unknown");
            return Err(Refused::new(why));
        }
    };
    let network_mode = match one.network_mode {
        0 => NetworkMode::Standard,
        1 => NetworkMode::HostNetwork,
        other => {
            return Err(Refused::new(format!(
                "has network mode {other}, which is unknown"
            )));
        }
    };
    let trust_domain = or(&one.trust_domain, DEFAULT_TRUST_DOMAIN);
    let trust_domain = TrustDomain::new(&trust_domain)
        .map_err(|invalid| Refused::new(format!("has trust domain {trust_domain}: {invalid}")))?;
    let mut ports = BTreeMap::new();
    for (service, list) in &one.services {
        let mut own = SmallVec::new();
        for one in &list.ports {
            own.push((port(one.service_port)?, port(one.target_port)?));
        }
        ports.insert(hostname(service)?, own);
    }
    let policies = one.authorization_policies.iter();
    let authorization_policies = policies
        .map(|key| policy_key(key))
        .collect::<Result<_, _>>()?;
    let locality = one.locality.unwrap_or_default();
    let workload = Workload {
        uid: uid.clone(),
        name: one.name.into(),
        namespace: one.namespace.into(),
        service_account: or(&one.service_account, DEFAULT_ACCOUNT),
        trust_domain,
        addresses,
        hostname: one.hostname.to_ascii_lowercase().into(),
        node: one.node.into(),
        network: one.network.into(),
        network_mode,
        cluster: or(&one.cluster_id, &defaults.cluster),
        protocol,
        // Nobody says here who it is; what an agent's own objects know of it comes before this.
        peer: match protocol {
            TunnelProtocol::Hbone => Peer::Ztunnel,
            TunnelProtocol::Tcp => Peer::Culvert,
        },
        canonical_name: one.canonical_name.into(),
        canonical_revision: or(&one.canonical_revision, "latest"),
        workload_name: one.workload_name.into(),
        workload_type: match one.workload_type {
            0 => "deployment",
            1 => "cronjob",
            3 => "job",
            // A kind that nobody knows yet is only a label of metrics.
            _ => "pod",
        }
        .into(),
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
        authorization_policies,
        waypoint: waypoint(one.waypoint)?,
    };
    let workload = Arc::new(workload);
    let announced = AnnouncedWorkload { workload, ports };
    Ok(Announcement::Workload(uid, Some(announced)))
}
