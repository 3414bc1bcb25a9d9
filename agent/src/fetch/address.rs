//! Where a host is, as the mesh knows it. Pure.

use std::net::{IpAddr, SocketAddr};

use userspace_l7::model::{Health, HealthPolicy, NamespacedHostname, Service, Snapshot};

use super::Misplaced;
use crate::dns;

/// Where a request may be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address.
    Address(SocketAddr),
    /// A name that the system's resolver has to know.
    Name(String, u16),
}

/// The places of a host of a URL: endpoints of the service that it names or whose address it is, else the
/// host itself. Of ServiceEntries only those of `namespace` count, where the agent itself is configured.
pub(super) fn of_host(
    mesh: &Snapshot,
    (host, port): (&str, u16),
    namespace: &str,
) -> Result<Vec<Place>, Misplaced> {
    // Any namespace may have a ServiceEntry for whatever host or address, and whoever stands there answers with keys that
    // tokens are judged by.
    let is_trusted = |service: &Service| service.canonical || *service.key.namespace == *namespace;
    let service = match host.parse::<IpAddr>() {
        Ok(address) => match mesh.service_at(address, namespace) {
            Some(service) if is_trusted(service) => service,
            Some(_) | None => return Ok(vec![Place::Address(SocketAddr::new(address, port))]),
        },
        Err(_name) => match dns::service_called(mesh, host, namespace, &is_trusted) {
            Some(service) => service,
            None => return Ok(vec![Place::Name(host.to_owned(), port)]),
        },
    };
    of_service(mesh, service, (host, port))
}

/// The places of a port of a service.
pub(super) fn of_key(
    mesh: &Snapshot,
    key: &NamespacedHostname,
    port: u16,
) -> Result<Vec<Place>, Misplaced> {
    let service = mesh.services.get(key);
    let service = service.ok_or_else(|| Misplaced::NoService(key.to_string()))?;
    of_service(mesh, service, (&key.hostname, port))
}

fn of_service(
    mesh: &Snapshot,
    service: &Service,
    (host, port): (&str, u16),
) -> Result<Vec<Place>, Misplaced> {
    if let Some(alias) = &service.alias {
        return Ok(vec![Place::Name(alias.to_string(), port)]);
    }
    let endpoints = mesh.endpoints_of(&service.key);
    if endpoints.is_empty() && !service.canonical {
        // A ServiceEntry may only describe a host that others resolve.
        return Ok(vec![Place::Name(host.to_owned(), port)]);
    }
    let all = service.load_balancer.health == HealthPolicy::AllowAll;
    let ready = || {
        let endpoints = endpoints.iter();
        endpoints.filter(|endpoint| all || endpoint.health == Health::Healthy)
    };
    if ready().next().is_none() {
        return Err(Misplaced::NoEndpoint);
    }
    let mut places = Vec::new();
    for endpoint in ready() {
        let workload = mesh.workloads.get(&endpoint.workload);
        let (Some(workload), Some(port)) = (workload, endpoint.target_port(service, port)) else {
            continue;
        };
        match workload.addresses.first() {
            Some(address) => places.push(Place::Address(SocketAddr::new(*address, port))),
            None => places.push(Place::Name(workload.hostname.to_string(), port)),
        }
    }
    if places.is_empty() {
        Err(Misplaced::NoPort(port))
    } else {
        Ok(places)
    }
}
