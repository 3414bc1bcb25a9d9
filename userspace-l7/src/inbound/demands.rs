//! What is demanded of a connection besides the workload's own policies: by the service that was called, or by
//! the workload's own waypoint where its address was called.

use std::net::SocketAddr;

use super::Caller;
use super::claim::Believed;
use crate::model::{
    AppProtocol, Demands, NamespacedHostname, Snapshot, SpiffeId, Workload, WorkloadUid,
};
use crate::policy::{self, BytesClaim, CalledPort, Way};

/// Where a connection's demands are from.
pub(super) struct Demanded {
    pub(super) called: Option<Believed>,
    workload: WorkloadUid,
    waypoint: Option<SpiffeId>,
    /// Whether the workload's waypoint has judged it, whose own connection this is.
    is_judged: bool,
    /// What the port is declared to speak.
    spoken: AppProtocol,
    protocol: Protocol,
}

/// How a connection is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// As bytes.
    Bytes,
    /// As requests, if the client turns out to speak HTTP.
    Requests(AppProtocol),
}

impl Demanded {
    /// What is demanded of a connection to `to` that called `called`.
    pub(super) fn of(
        snapshot: &Snapshot,
        workload: &Workload,
        to: SocketAddr,
        (client, called): (&Caller, Option<Believed>),
    ) -> Self {
        let own = snapshot.workloads_layer7.get(&workload.uid);
        let waypoint = match &called {
            Some(called) => called.waypoint().cloned(),
            None => own.map(|own| own.waypoint_identity.clone()),
        };
        let is_judged = called.is_none()
            && workload.waypoint.as_ref().is_some_and(|waypoint| {
                let client = (client.address.ip(), client.identity.as_ref());
                policy::is_waypoint(snapshot, waypoint, client)
            });
        let demands = demands(snapshot, called.as_ref(), &workload.uid).filter(|_| !is_judged);
        // Also where nothing is demanded now: the client's node keeps the tunnel for later requests, and a policy
        // that comes meanwhile has to see them.
        let is_http = demands.is_some();
        let spoken = called.as_ref().map_or_else(
            || spoken(snapshot, workload, to.port()),
            |called| called.protocol,
        );
        let protocol = match spoken {
            AppProtocol::Tcp | AppProtocol::Tls => Protocol::Bytes,
            _ if !is_http => Protocol::Bytes,
            spoken => Protocol::Requests(spoken),
        };
        Self {
            called,
            workload: workload.uid.clone(),
            waypoint,
            is_judged,
            spoken,
            protocol,
        }
    }

    /// The same for a client that has proven nothing: what is allowed to the waypoint is not allowed to it.
    pub(super) fn of_outsider(
        snapshot: &Snapshot,
        workload: &Workload,
        to: SocketAddr,
        (client, called): (&Caller, Believed),
    ) -> Self {
        Self {
            waypoint: None,
            ..Self::of(snapshot, workload, to, (client, Some(called)))
        }
    }

    /// The same for a connection that is to be carried as bytes, whatever it speaks.
    pub(super) fn of_bytes(self) -> Self {
        Self {
            protocol: Protocol::Bytes,
            ..self
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Who the waypoint would be that the connection went through: only one that called a service did.
    pub(super) fn waypoint(&self) -> Option<&SpiffeId> {
        self.waypoint.as_ref()
    }

    /// The service that was called, and whose waypoint was gone through.
    pub(super) fn service(&self) -> Option<&NamespacedHostname> {
        let called = self.called.as_ref();
        let through = called.filter(|called| called.way == Way::Producer);
        through.map(|called| &called.service)
    }

    /// What the connection of a client to `to` has to meet if it is carried as bytes; nothing if its waypoint, whose
    /// connection it is, has judged it.
    pub(super) fn bytes(&self, caller: &Caller, to: SocketAddr) -> Option<BytesClaim> {
        let claimed = self.called.as_ref();
        (!self.is_judged).then(|| BytesClaim {
            called: claimed.map(|one| CalledPort {
                service: one.service.clone(),
                side: one.side,
                port: one.port,
            }),
            besides: claimed.map_or_else(Vec::new, |one| one.besides().to_vec()),
            workload: self.workload.clone(),
            identity: caller.identity.clone(),
            source: caller.address.ip(),
            destination: to,
            is_declared: matches!(self.spoken, AppProtocol::Tcp | AppProtocol::Tls),
        })
    }
}

fn demands<'s>(
    snapshot: &'s Snapshot,
    called: Option<&Believed>,
    workload: &WorkloadUid,
) -> Option<&'s Demands> {
    Some(match called {
        Some(called) => {
            let layer7 = snapshot.services_layer7.get(&called.service)?;
            &layer7.at(called.side).demands
        }
        None => &snapshot.workloads_layer7.get(workload)?.demands,
    })
}

/// What a port of a workload speaks, as the services say that select it.
fn spoken(snapshot: &Snapshot, workload: &Workload, port: u16) -> AppProtocol {
    let services = workload
        .services
        .iter()
        .filter_map(|key| snapshot.services.get(key));
    let declared = services.filter_map(|service| {
        let mut endpoints = snapshot.endpoints_of(&service.key).iter();
        let endpoint = endpoints.find(|endpoint| endpoint.workload == workload.uid)?;
        let mut ports = service.ports.iter();
        let (number, declared) =
            ports.find(|(number, _)| endpoint.target_port(service, **number) == Some(port))?;
        Some(AppProtocol::of_port(
            *number,
            &declared.name,
            &declared.app_protocol,
        ))
    });
    let mut known = declared.filter(|protocol| *protocol != AppProtocol::Detect);
    known.next().unwrap_or_default()
}
