//! Who asks: one connection of a local pod, with what every request on it shares.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ::http::request;

use crate::asking::Asker;
use crate::http::{Refusal, Version};
use crate::hub::Hub;
use crate::model::{
    LoadBalancerMode, PortLayer7, PortRoutes, RequestHead, Service, ServiceLayer7, Side, Snapshot,
    SpiffeId, Workload,
};
use crate::pod::Pod;
use crate::route::named::Name;
use crate::route::{Target, Towards};
use crate::telemetry::RequestClient;
use crate::upstream::{self, Legs, Origin};

/// A connection to a service with layer 7.
pub(super) struct Client {
    pub(super) hub: Rc<Hub>,
    pub(super) pod: Pod,
    /// The pod's, in whose name endpoints are reached.
    pub(super) workload: Arc<Workload>,
    pub(super) requester: Requester,
    /// The service that was dialled.
    pub(super) service: Arc<Service>,
    /// Through which of its waypoints the connection goes.
    pub(super) side: Side,
    pub(super) source: SocketAddr,
    pub(super) dialled: SocketAddr,
    /// The same, as it is recorded.
    pub(super) recorded: Arc<RequestClient>,
}

/// Whose requests these are.
pub(super) enum Requester {
    /// The pod's own.
    Pod,
    /// Another's, who proved to be this and was told that the pod is the waypoint.
    Another(SpiffeId),
    /// Another's, who has proven nothing, and whose connection came to the pod's own application.
    Outsider(Legs),
}

impl Client {
    /// Who asks, as it is proven.
    pub(super) fn identity(&self) -> Option<SpiffeId> {
        match &self.requester {
            Requester::Pod => Some(self.workload.identity()),
            Requester::Another(identity) => Some(identity.clone()),
            Requester::Outsider(_) => None,
        }
    }

    /// The Kubernetes namespace that names are looked up for: that of who asks, if it has one.
    pub(super) fn namespace(&self) -> &str {
        match &self.requester {
            Requester::Pod | Requester::Outsider(_) => &self.workload.namespace,
            Requester::Another(identity) => identity.namespace(),
        }
    }

    /// The routes of a port that hold for who asks. Of no namespace are those that hold for everybody.
    pub(super) fn routes<'s>(&self, port: &'s PortLayer7) -> &'s PortRoutes {
        match &self.requester {
            Requester::Pod | Requester::Another(_) => port.routes_for(self.namespace()),
            Requester::Outsider(_) => &port.routes,
        }
    }

    /// Whether endpoints see another identity than that of who asks, so that only this node can judge it.
    pub(super) fn is_unknown_beyond(&self) -> bool {
        match self.requester {
            Requester::Pod => false,
            Requester::Another(_) | Requester::Outsider(_) => true,
        }
    }

    /// The pod's own application, to which a client outside the mesh has come.
    pub(super) fn legs(&self) -> Option<&Legs> {
        match &self.requester {
            Requester::Pod | Requester::Another(_) => None,
            Requester::Outsider(legs) => Some(legs),
        }
    }

    /// Whether a target's node judges what this client asks.
    pub(super) fn is_judged_at(&self, target: &Target) -> bool {
        !self.is_unknown_beyond() && target.is_judged_there()
    }

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

    /// Who its requests are from.
    pub(super) fn origin(&self) -> Origin<'_> {
        Origin {
            hub: &self.hub,
            pod: &self.pod,
            workload: &self.workload,
            source: Some(self.source),
            service: &self.service,
            claimed: (!self.is_unknown_beyond()).then(|| (self.dialled.port(), self.side)),
            legs: self.legs(),
        }
    }

    /// Who asks others about them.
    pub(super) fn asker(&self) -> Asker<'_> {
        Asker {
            hub: &self.hub,
            pod: &self.pod,
            workload: &self.workload,
        }
    }

    /// The dialled port's part of it.
    pub(super) fn port<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Arc<PortLayer7>> {
        self.layer7(snapshot)?.ports.get(&self.dialled.port())
    }
}

/// The name that a request asks a wildcard for; nothing where its service is none.
///
/// # Errors
/// [`Refusal::NoRoute`]: the wildcard does not stand for it.
pub(super) fn name_asked_for(
    service: &Service,
    parts: &request::Parts,
) -> Result<Option<Name>, Refusal> {
    if service.load_balancer.mode != LoadBalancerMode::ByName {
        return Ok(None);
    }
    let authority = RequestHead::of(parts).authority;
    let name = Name::asked_for(&service.key.hostname, authority);
    name.map(Some).ok_or(Refusal::NoRoute)
}

/// What is spoken to a service: what its port declares, else what the client speaks.
pub(super) fn version_towards(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: Version,
) -> Version {
    upstream::declared_version(snapshot, service, port).unwrap_or(client)
}
