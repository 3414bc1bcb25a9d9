//! Who asks: one connection of a local pod, with what every request on it shares.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::http::Version;
use crate::hub::Hub;
use crate::model::{AppProtocol, PortLayer7, Service, ServiceLayer7, Side, Snapshot, Workload};
use crate::pod::Pod;
use crate::route::Towards;
use crate::telemetry::RequestClient;

/// A connection to a service with layer 7.
pub(super) struct Client {
    pub(super) hub: Rc<Hub>,
    pub(super) pod: Pod,
    pub(super) workload: Arc<Workload>,
    /// The service that was dialled.
    pub(super) service: Arc<Service>,
    /// Through which of its waypoints the connection goes.
    pub(super) side: Side,
    pub(super) source: SocketAddr,
    pub(super) dialled: SocketAddr,
    /// The same, as it is recorded.
    pub(super) recorded: Arc<RequestClient>,
}

impl Client {
    /// Layer 7 of the dialled service as the mesh is now; `None` once it is bound to no waypoint any more:
    /// requests of this connection then pass as they are.
    pub(super) fn layer7<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Arc<ServiceLayer7>> {
        let layer7 = snapshot.services_layer7.get(&self.service.key)?;
        Some(layer7.at(self.side))
    }

    /// Whose endpoints a request goes to.
    pub(super) fn towards<'s>(
        &self,
        service: &'s Service,
        port: u16,
        subset: Option<&'s Arc<str>>,
    ) -> Towards<'s> {
        Towards {
            service,
            subset,
            address: SocketAddr::new(self.dialled.ip(), port),
        }
    }

    /// The dialled port's part of it.
    pub(super) fn port<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Arc<PortLayer7>> {
        self.layer7(snapshot)?.ports.get(&self.dialled.port())
    }
}

/// What is spoken to a service: what its port declares, else what the client speaks.
pub(super) fn version_towards(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: Version,
) -> Version {
    let layer7 = snapshot.services_layer7.get(&service.key);
    let known = layer7.and_then(|layer7| layer7.ports.get(&port));
    let protocol = known.map(|port| port.protocol).or_else(|| {
        let declared = service.ports.get(&port)?;
        Some(AppProtocol::of_port(
            port,
            &declared.name,
            &declared.app_protocol,
        ))
    });
    match protocol {
        Some(AppProtocol::Http1) => Version::Http1,
        Some(AppProtocol::Http2) => Version::Http2,
        Some(AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls) | None => client,
    }
}
