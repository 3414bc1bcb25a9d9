//! Who may open a connection whose requests cannot be seen, as far as the waypoint's policies speak about that: those
//! of the service that was called, or of the workload's own waypoint. Pure. The workload's own policies are
//! [`judge`](super::judge)'s.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};

use super::http::{HttpDecision, HttpDenial, HttpRequest, judge_http};
use super::without_requests;
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
    /// The destination.
    pub workload: WorkloadUid,
    /// Who the waypoint would be that the connection goes through.
    pub waypoint: Option<SpiffeId>,
    /// The client's verified identity.
    pub identity: Option<SpiffeId>,
    /// The client's own address.
    pub source: IpAddr,
    /// The workload's own address and port.
    pub destination: SocketAddr,
}

impl BytesClaim {
    /// Judges the claim as the mesh is now.
    ///
    /// # Errors
    /// A policy refuses it.
    pub fn judge(&self, snapshot: &Snapshot) -> Result<(), HttpDenial> {
        let Some(demands) = self.demands(snapshot).filter(|one| !one.is_empty()) else {
            return Ok(());
        };
        let headers = HeaderMap::new();
        let port = self.called.as_ref().map(|called| called.port);
        let verdict = judge_http(
            &without_requests(demands),
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
                identity: self.identity.as_ref(),
                source: self.source,
                remote: self.source,
                destination: self.destination,
                service_port: port.unwrap_or_else(|| self.destination.port()),
                token: None,
                waypoint_identity: self.waypoint.as_ref(),
            },
        );
        match verdict.decision {
            // Nobody is asked about bytes.
            HttpDecision::Allowed(_) | HttpDecision::Ask(_) => Ok(()),
            HttpDecision::Denied(denial) => Err(denial),
        }
    }

    /// None once the binding is gone: nothing is demanded any more.
    fn demands<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Demands> {
        let Some(called) = &self.called else {
            return Some(&snapshot.workloads_layer7.get(&self.workload)?.demands);
        };
        let layer7 = snapshot.services_layer7.get(&called.service)?;
        Some(&layer7.at(called.side).demands)
    }
}

#[cfg(test)]
mod tests;
