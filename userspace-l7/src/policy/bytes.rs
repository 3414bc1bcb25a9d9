//! Who may open a connection whose requests cannot be seen, as far as the waypoint's policies speak about that: those
//! of the service that was called, or of the workload's own waypoint. Pure. The workload's own policies are
//! [`judge`](super::judge)'s.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};

use super::http::{HttpDecision, HttpDenial, HttpRequest, judge_http};
use super::{ServedPort, without_requests};
use crate::model::{
    Demands, NamespacedHostname, PathNormalization, RequestHead, Side, Snapshot, SpiffeId,
    WorkloadUid,
};

/// The service that a connection called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalledPort {
    /// Which.
    pub service: NamespacedHostname,
    /// Through which of its waypoints.
    pub side: Side,
    /// Its service port.
    pub port: u16,
}

/// What a connection of bytes is judged by each time: all of it was proven when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BytesClaim {
    /// Whose demands are to be met; `None`: those of the workload's own waypoint.
    pub called: Option<CalledPort>,
    /// Services whose demands are to be met as well.
    pub besides: Vec<ServedPort>,
    /// The destination.
    pub workload: WorkloadUid,
    /// The client's verified identity.
    pub identity: Option<SpiffeId>,
    /// The client's own address.
    pub source: IpAddr,
    /// The workload's own address and port.
    pub destination: SocketAddr,
    /// Whether the port is declared to carry bytes. On one that is not, these may be requests that nobody could see.
    pub is_declared: bool,
}

impl BytesClaim {
    /// The same for another address of its destination.
    pub(crate) fn towards(self, destination: SocketAddr) -> Self {
        Self {
            destination,
            ..self
        }
    }

    /// Judges the claim as the mesh is now.
    ///
    /// # Errors
    /// A policy refuses it.
    pub fn judge(&self, snapshot: &Snapshot) -> Result<(), HttpDenial> {
        self.view().judge(snapshot)
    }

    /// The claim without its room.
    pub(crate) fn view(&self) -> BytesView<'_> {
        BytesView {
            called: self.called.as_ref(),
            besides: &self.besides,
            workload: &self.workload,
            identity: self.identity.as_ref(),
            source: self.source,
            destination: self.destination,
            is_declared: self.is_declared,
        }
    }
}

/// A [`BytesClaim`] whose parts lie elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BytesView<'a> {
    pub(crate) called: Option<&'a CalledPort>,
    pub(crate) besides: &'a [ServedPort],
    pub(crate) workload: &'a WorkloadUid,
    pub(crate) identity: Option<&'a SpiffeId>,
    pub(crate) source: IpAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) is_declared: bool,
}

impl<'a> BytesView<'a> {
    /// As [`BytesClaim::judge`].
    pub(crate) fn judge(self, snapshot: &Snapshot) -> Result<(), HttpDenial> {
        for (demands, port) in self.demands(snapshot) {
            self.meet(demands, port)?;
        }
        Ok(())
    }

    fn meet(self, demands: &Demands, port: u16) -> Result<(), HttpDenial> {
        if demands.is_empty() {
            return Ok(());
        }
        if !self.is_declared && !demands.authentication.is_empty() {
            return Err(HttpDenial::Unseen);
        }
        let headers = HeaderMap::new();
        let verdict = judge_http(
            &without_requests(demands, self.is_declared),
            &HttpRequest {
                head: RequestHead {
                    method: &Method::CONNECT,
                    scheme: "",
                    authority: "",
                    path: "",
                    query: None,
                    headers: &headers,
                },
                normalization: PathNormalization::None,
                identity: self.identity,
                source: self.source,
                destination: self.destination,
                service_port: port,
                token: None,
            },
        );
        match verdict.decision {
            // Nobody is asked about bytes.
            HttpDecision::Allowed(_) | HttpDecision::Ask(_) => Ok(()),
            HttpDecision::Denied(denial) => Err(denial),
        }
    }

    /// By whose port each is meant. None of a binding that is gone: nothing is demanded any more.
    fn demands<'s>(
        self,
        snapshot: &'s Snapshot,
    ) -> impl Iterator<Item = (&'s Demands, u16)> + use<'a, 's> {
        let of_service =
            |service, side| Some(&*snapshot.services_layer7.get(service)?.at(side).demands);
        let own = if let Some(called) = self.called {
            of_service(&called.service, called.side).map(|found| (found, called.port))
        } else {
            let layer7 = snapshot.workloads_layer7.get(self.workload);
            layer7.map(|layer7| (&*layer7.demands, self.destination.port()))
        };
        let besides = self.besides.iter();
        let besides = besides
            .filter_map(move |(service, port)| Some((of_service(service, Side::Primary)?, *port)));
        own.into_iter().chain(besides)
    }
}

#[cfg(test)]
mod tests;
