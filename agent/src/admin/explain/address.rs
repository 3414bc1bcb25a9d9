//! Who asks and whither, from what people write.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use userspace_l7::model::{NetworkMode, Service, Snapshot, TunnelProtocol, Workload};

use super::{ClientStep, Unanswerable};
use crate::admin::{PodState, PodStatus};

/// A pod of that name, else the first one of that service account: all of one account are judged alike.
pub(super) fn client<'a>(
    snapshot: &'a Snapshot,
    from: &str,
) -> Result<&'a Arc<Workload>, Unanswerable> {
    let (namespace, name) = from
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .ok_or_else(|| Unanswerable::From(from.to_owned()))?;
    let mut here: Vec<&Arc<Workload>> = snapshot
        .workloads
        .values()
        .filter(|found| &*found.namespace == namespace && !found.addresses.is_empty())
        .collect();
    here.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    let pod = here.iter().find(|found| &*found.name == name);
    let account = || here.iter().find(|found| &*found.service_account == name);
    pod.or_else(account)
        .copied()
        .ok_or_else(|| Unanswerable::NoClient {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
}

pub(super) fn client_step(client: &Workload, pods: &[PodStatus]) -> ClientStep {
    let own = pods.iter().find(|pod| pod.uid == client.uid.as_str());
    let capture = match own {
        Some(pod) if pod.state == PodState::Up => "captured by this node's agent".to_owned(),
        Some(pod) if pod.state == PodState::Draining => {
            "not captured any more: it has left the mesh, and only what it had begun goes on"
                .to_owned()
        }
        Some(pod) => format!(
            "not captured yet: {}",
            pod.reason.as_deref().unwrap_or("the agent is at it")
        ),
        None if client.network_mode == NetworkMode::HostNetwork => {
            "not captured: it shares its node's network".to_owned()
        }
        None if client.protocol == TunnelProtocol::Tcp => {
            "not captured: it is not in the mesh, so its connections go out as they are".to_owned()
        }
        None => format!(
            "captured by the agent of node {}, if it is armed there",
            client.node
        ),
    };
    ClientStep {
        namespace: client.namespace.to_string(),
        pod: client.name.to_string(),
        node: client.node.to_string(),
        identity: client.identity().to_string(),
        address: client
            .addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
        capture,
    }
}

/// What a client dials for `to`, and what that is, in a sentence.
pub(super) fn resolve(
    snapshot: &Snapshot,
    client: &Workload,
    to: &str,
) -> Result<(SocketAddr, String), Unanswerable> {
    let unreadable = || Unanswerable::To(to.to_owned());
    let (host, port) = to.rsplit_once(':').ok_or_else(unreadable)?;
    let port: u16 = port.parse().map_err(|_no_number| unreadable())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || port == 0 {
        return Err(unreadable());
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        let dialled = SocketAddr::new(ip.to_canonical(), port);
        return Ok((dialled, meaning(snapshot, client, dialled)));
    }
    let service =
        named(snapshot, client, host).ok_or_else(|| Unanswerable::NoService(host.to_owned()))?;
    let ip = service
        .vips
        .first()
        .copied()
        .or_else(|| first_endpoint(snapshot, service))
        .ok_or_else(|| Unanswerable::NoAddress(service.key.to_string()))?;
    let dialled = SocketAddr::new(ip, port);
    Ok((dialled, meaning(snapshot, client, dialled)))
}

/// By its whole name, or by a shorter one as a pod's resolver would complete it.
fn named<'a>(snapshot: &'a Snapshot, client: &Workload, host: &str) -> Option<&'a Arc<Service>> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let domain = &snapshot.mesh.cluster_domain;
    let completed = [
        format!("{host}.{}.svc.{domain}", client.namespace),
        format!("{host}.svc.{domain}"),
        format!("{host}.{domain}"),
        host,
    ];
    let by_name = |name: &str| snapshot.service_named(name, &client.namespace);
    let whole = completed.iter().find_map(|name| by_name(name));
    // The nearest wildcard that stands for it.
    let wildcards = completed[3]
        .match_indices('.')
        .map(|(dot, _)| &completed[3][dot..]);
    whole.or_else(|| {
        let mut wildcards = wildcards;
        wildcards.find_map(|rest| by_name(&format!("*{rest}")))
    })
}

/// What the name of a headless service resolves to.
fn first_endpoint(snapshot: &Snapshot, service: &Service) -> Option<IpAddr> {
    let endpoints = snapshot.endpoints_of(&service.key).iter();
    let mut workloads = endpoints.filter_map(|found| snapshot.workloads.get(&found.workload));
    workloads.find_map(|found| found.addresses.first().copied())
}

fn meaning(snapshot: &Snapshot, client: &Workload, dialled: SocketAddr) -> String {
    if let Some(workload) = snapshot.workload_at(dialled.ip()) {
        return format!("pod {}/{}", workload.namespace, workload.name);
    }
    match snapshot.service_at(dialled.ip(), &client.namespace) {
        Some(service) => format!("service {}", service.key),
        None => "unknown to the mesh: passed through as it is".to_owned(),
    }
}
