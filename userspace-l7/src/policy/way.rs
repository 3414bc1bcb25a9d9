//! By whose word a service that was called leads to a workload. Pure.
//!
//! Whoever offers a service may have its calls answered by whom it likes (producer routes), and what is demanded of them
//! is its business. A client's own namespace may send its calls elsewhere, too (GEP-1324: consumer routes), but nobody
//! else's: that way leads around no demand of those who answer.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{
    BackendTarget, HttpAction, HttpRouteTable, NamespacedHostname, PortLayer7, PortRoutes,
    Snapshot, Workload,
};

/// A service and its port.
pub type ServedPort = (NamespacedHostname, u16);

/// How a service that was called leads to a port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It selects the workload, or routes of its own namespace lead there.
    Producer,
    /// Only routes of the client's namespace lead there, by these services: their demands are to be met as well, and
    /// the waypoint's name is not lent.
    Consumer(Arc<[ServedPort]>),
}

/// How a service port leads to port `target` of a workload for clients of this namespace; `None`: not at all.
pub fn way(
    snapshot: &Snapshot,
    (workload, target): (&Workload, u16),
    (service, port): (&NamespacedHostname, u16),
    layer7: &PortLayer7,
    client_namespace: Option<&str>,
) -> Option<Way> {
    let serves = |(service, port): &ServedPort| selects(snapshot, workload, target, service, *port);
    let producer = || served(&layer7.routes, &serves);
    if selects(snapshot, workload, target, service, port) || producer().next().is_some() {
        return Some(Way::Producer);
    }
    let routes = layer7.consumer_routes.get(client_namespace?)?;
    let mut by: Vec<ServedPort> = served(routes, &serves).collect();
    by.sort_unstable();
    by.dedup();
    (!by.is_empty()).then(|| Way::Consumer(by.into()))
}

/// Whether a service port leads to a port of a workload by itself.
pub fn selects(
    snapshot: &Snapshot,
    workload: &Workload,
    target: u16,
    service: &NamespacedHostname,
    port: u16,
) -> bool {
    let Some(found) = snapshot.services.get(service) else {
        return false;
    };
    let mut endpoints = snapshot.endpoints_of(service).iter();
    endpoints.any(|endpoint| {
        endpoint.workload == workload.uid && endpoint.target_port(found, port) == Some(target)
    })
}

/// The service ports of routes that serve.
fn served<'r>(
    routes: &'r PortRoutes,
    serves: &'r impl Fn(&ServedPort) -> bool,
) -> Box<dyn Iterator<Item = ServedPort> + 'r> {
    let targets: Box<dyn Iterator<Item = &BackendTarget>> = match routes {
        PortRoutes::None => return Box::new(std::iter::empty()),
        PortRoutes::Http(table) => Box::new(by_table(table)),
        PortRoutes::Tcp(backends) => Box::new(backends.iter().map(|backend| &backend.target)),
    };
    let ports = targets.filter_map(|target| match target {
        BackendTarget::Service { service, port, .. } => Some((service.clone(), *port)),
        BackendTarget::Invalid { .. } => None,
    });
    Box::new(ports.filter(serves))
}

/// Backends and mirrors of all rules.
fn by_table(table: &HttpRouteTable) -> impl Iterator<Item = &BackendTarget> {
    let mut last = std::ptr::null();
    let rules = table.entries().iter().map(|entry| &entry.rule);
    // Entries of one rule stand near each other.
    let rules = rules.filter(move |rule| {
        let rule = Arc::as_ptr(rule);
        std::mem::replace(&mut last, rule) != rule
    });
    rules.flat_map(|rule| {
        let forwards = match &rule.action {
            HttpAction::Forward(backends) => backends.as_slice(),
            HttpAction::Redirect(_) | HttpAction::Respond { .. } => &[],
        };
        let backends = forwards.iter().map(|backend| &backend.target);
        backends.chain(rule.mirrors.iter().map(|mirror| &mirror.target))
    })
}

/// Whether a destination is a port of a service: at the service's own address, or at one of its endpoints.
pub fn is_for(
    snapshot: &Snapshot,
    destination: SocketAddr,
    (service, port): (&NamespacedHostname, u16),
) -> bool {
    let Some(service) = snapshot.services.get(service) else {
        return false;
    };
    let address = destination.ip().to_canonical();
    if service.vips.contains(&address) {
        return destination.port() == port;
    }
    let mut endpoints = snapshot.endpoints_of(&service.key).iter();
    endpoints.any(|endpoint| {
        let workload = snapshot.workloads.get(&endpoint.workload);
        endpoint.target_port(service, port) == Some(destination.port())
            && workload.is_some_and(|workload| workload.addresses.contains(&address))
    })
}

#[cfg(test)]
mod tests;
