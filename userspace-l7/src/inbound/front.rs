//! L6: streams whose client takes the pod for its waypoint: for them, the pod's agent does what a waypoint does. It
//! judges by what the client proved to be, and reaches what was asked for in the pod's own name.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tracing::debug;

use super::carriage::receive;
use super::claim::Believed;
use super::demands::{Demanded, Protocol};
use super::{Caller, InboundError, client_address, refuse, requests};
use crate::connections::{Carriage, Direction, LiveConnection};
use crate::dial::{self, Beginning};
use crate::endpoints::{self, Endpoints};
use crate::error::Retry;
use crate::hbone::{Baggage, ConnectRequest, ConnectResponse, ErrorCode, Incoming, Stream};
use crate::http::{self, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, Opening, Service, Snapshot, Workload};
use crate::pod::Pod;
use crate::policy::{BytesClaim, Way};
use crate::relay::{self, Ending, Far, Pass};
use crate::ring::RecvBuf;
use crate::route::{self, Meaning, Refusal, Target, Transport};
use crate::telemetry::{Flow, Reporter, Security};
use crate::traffic::Wish;
use crate::waypoint::{self, Another, Behind, Fronted};

/// Serves a stream whose client takes the pod for its waypoint; gives back any other.
///
/// # Cancel safety
/// Dropping the future resets the stream.
pub(super) async fn serve(
    hub: &Rc<Hub>,
    pod: &Pod,
    (peer, arrived_at): (SocketAddr, SocketAddr),
    incoming: Incoming,
) -> Option<Incoming> {
    let request = incoming.request();
    let snapshot = hub.snapshot();
    let Some(own) = snapshot.workloads.get(&pod.uid) else {
        return Some(incoming);
    };
    let found = waypoint::fronted(&snapshot, own, &request.authority, arrived_at.ip());
    if matches!(found, Ok(None)) {
        return Some(incoming);
    }
    let caller = Caller {
        address: client_address(peer, request.forwarded.client),
        identity: Some(incoming.peer().id().clone()),
        carriage: Carriage::Hbone,
        arrived_at,
        service: None,
    };
    match found {
        Ok(None) => {}
        Ok(Some(fronted)) => {
            let own = Arc::clone(own);
            // As a waypoint of Istio's does, before anything behind it has answered.
            let accepted = ConnectResponse::accepted(Some(&Baggage::of(&own)));
            let stream = incoming.accept(&accepted);
            let front = Front {
                hub,
                pod,
                own,
                caller,
                dialled: fronted.dialled,
            };
            Box::pin(front.serve(&snapshot, fronted, stream)).await;
        }
        Err(unserved) => {
            let error = InboundError::Unserved(unserved);
            refuse(hub, &caller, &error);
            incoming.reject(&ConnectResponse::refused(error.status(), None));
        }
    }
    None
}

/// One stream.
struct Front<'a> {
    hub: &'a Rc<Hub>,
    pod: &'a Pod,
    /// The pod's, in whose name all is done.
    own: Arc<Workload>,
    caller: Caller,
    dialled: SocketAddr,
}

impl Front<'_> {
    async fn serve(self, snapshot: &Arc<Snapshot>, fronted: Fronted, stream: Stream) {
        match fronted.what {
            Behind::Service(service, protocol) => {
                self.serve_service(snapshot, (service, protocol), stream)
                    .await;
            }
            Behind::Workload(workload) => self.serve_workload(snapshot, workload, stream).await,
        }
    }

    async fn serve_service(
        self,
        snapshot: &Arc<Snapshot>,
        (service, protocol): (Arc<Service>, AppProtocol),
        stream: Stream,
    ) {
        let side = self.hub.side(&service.key);
        let mut far = Far::Tunnel(stream);
        let (version, early) = http::listen(async || receive(&mut far).await, protocol).await;
        let Far::Tunnel(stream) = far else { return };
        if let (Some(version), Some(identity)) = (version, self.caller.identity.clone()) {
            let another = Another {
                source: self.caller.address,
                identity,
                service,
                dialled: self.dialled,
                side,
            };
            let wire = (version, Wire::tunnel(stream, early));
            return waypoint::serve_another(self.hub, self.pod, self.own, another, wire).await;
        }
        let layer7 = snapshot.services_layer7.get(&service.key);
        let called = layer7.map(|layer7| Believed {
            service: service.key.clone(),
            port: self.dialled.port(),
            protocol,
            side,
            layer7: Arc::clone(layer7.at(side)),
            way: Way::Producer,
        });
        let demands = Demanded::of(snapshot, &self.own, self.dialled, (&self.caller, called));
        self.carry((demands, Some(service)), (stream, early)).await;
    }

    async fn serve_workload(
        self,
        snapshot: &Arc<Snapshot>,
        workload: Arc<Workload>,
        stream: Stream,
    ) {
        let demands = Demanded::of(snapshot, &workload, self.dialled, (&self.caller, None));
        let spoken = match demands.protocol() {
            Protocol::Bytes => AppProtocol::Tcp,
            Protocol::Requests(spoken) => spoken,
        };
        let mut far = Far::Tunnel(stream);
        let (version, early) = http::listen(async || receive(&mut far).await, spoken).await;
        let Far::Tunnel(stream) = far else { return };
        let Some(version) = version else {
            return self.carry((demands, None), (stream, early)).await;
        };
        let Some(target) = self
            .targets(snapshot)
            .ok()
            .and_then(|(all, _)| all.into_iter().next())
        else {
            return stream.reset(ErrorCode::CONNECT_ERROR);
        };
        let tracked = self.track(&target, None);
        let flow = Rc::new(self.hub.metrics.open(self.flow(&target, None)));
        let exchange = requests::Exchange {
            hub: Rc::clone(self.hub),
            pod: self.pod.clone(),
            own: self.own,
            workload,
            client: self.caller.address,
            identity: self.caller.identity,
            to: self.dialled,
            called: None,
            beyond: Some(target),
            opening: Opening::default(),
            _pass: Pass::JudgedElsewhere,
        };
        let wire = Wire::tunnel(stream, early);
        if let Err(error) = requests::serve(exchange, wire, version, None, Rc::clone(&flow)).await {
            debug!(%error, "requests ended");
        }
        drop(tracked);
        Ending::Complete.settle_shared(flow);
    }

    /// Carries a stream as bytes to one of the endpoints.
    async fn carry(
        self,
        (demands, service): (Demanded, Option<Arc<Service>>),
        (stream, early): (Stream, RecvBuf),
    ) {
        let reached = async {
            let snapshot = self.hub.snapshot();
            let (targets, endpoints) = self.targets(&snapshot)?;
            let to = targets
                .first()
                .map_or(self.dialled, |target| target.destination);
            let bytes = demands.bytes(&self.caller, to);
            judge(bytes.as_ref(), &snapshot)?;
            let to = (&targets[..], endpoints.as_ref());
            let (target, far) = self.reach(to, service.as_deref()).await?;
            let tracked = self.track(&target, service.as_deref());
            let bytes = demands.bytes(&self.caller, target.destination);
            // Again, now that it is known for which endpoint, and that every later change is noticed.
            judge(bytes.as_ref(), &self.hub.snapshot())?;
            if let Some(bytes) = bytes {
                tracked.meet(bytes);
            }
            Ok::<_, InboundError>((target, far, tracked))
        };
        let (target, far, tracked) = match reached.await {
            Ok(reached) => reached,
            Err(error) => {
                refuse(self.hub, &self.caller, &error);
                return stream.reset(ErrorCode::CONNECT_ERROR);
            }
        };
        let flow = self.hub.metrics.open(self.flow(&target, service));
        let near = (stream, early);
        let carried = relay::pass_on(Pass::JudgedElsewhere, near, far, &flow, tracked.refused());
        carried.await.settle(flow);
    }

    /// Where bytes may go, in the order to try, never empty; and what watches over them, if a service was called.
    fn targets(
        &self,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(Vec<Target>, Option<Endpoints>), Refusal> {
        let mut choose = |bound| self.hub.choose(bound);
        match route::meaning(snapshot, &self.own, self.dialled, &mut choose)? {
            Meaning::Target(plan) => Ok((plan.targets.into_vec(), None)),
            Meaning::Service(_, towards) => {
                let regard = (endpoints::policy(snapshot, &towards), Wish::default());
                let chosen = endpoints::choose(self.hub, snapshot, &self.own, &towards, regard)?;
                Ok((chosen.targets.to_vec(), Some(chosen)))
            }
        }
    }

    async fn reach(
        &self,
        (targets, endpoints): (&[Target], Option<&Endpoints>),
        service: Option<&Service>,
    ) -> Result<(Target, Far), InboundError> {
        let mut last = InboundError::Beyond(Refusal::NoHealthyUpstream);
        for target in targets {
            let patience = dial::patience(None);
            let request = || {
                let host = service.map(|service| &*service.key.hostname);
                ConnectRequest::to_address(target.destination)
                    .from_workload(&Baggage::of(&self.own))
                    .forwarded(Some(self.caller.address), host)
            };
            let beginning = endpoints
                .map(|one| Beginning::of(one, AppProtocol::Tcp, Some(self.caller.address)));
            let request = (request, beginning);
            match dial::reach(self.hub, self.pod, &self.own, (target, patience), request).await {
                Ok((far, at)) => return Ok((target.at(at), far)),
                Err(error) => {
                    let is_final = error.retry() == Retry::Never;
                    last = InboundError::Dial(error);
                    if is_final {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    fn track(&self, target: &Target, service: Option<&Service>) -> crate::connections::Tracked {
        let shown = LiveConnection {
            workload: self.pod.uid.clone(),
            direction: Direction::Outbound,
            source: self.caller.address,
            original_destination: self.dialled,
            service: service.map(|service| service.key.hostname.to_string()),
            destination: target.destination,
            peer: None,
            carriage: Carriage::Hbone,
        };
        // The workload's own policies are asked where it runs.
        self.hub.connections.track(shown)
    }

    fn flow(&self, target: &Target, service: Option<Arc<Service>>) -> Flow {
        let (next_hop, authenticated) = match &target.transport {
            Transport::Plain => (target.destination, false),
            Transport::Hbone { tunnel, .. } => (*tunnel, true),
        };
        let server = target.workload.as_ref().map(|workload| workload.identity());
        let client = self.hub.snapshot();
        let client = client.workload_at(self.caller.address.ip());
        Flow {
            reporter: Reporter::Source,
            source: client.map(Arc::clone),
            source_identity: self.caller.identity.clone(),
            destination: target.workload.clone(),
            destination_identity: server.filter(|_| authenticated),
            service,
            source_address: self.caller.address,
            destination_address: next_hop,
            hbone_target: authenticated.then(|| target.destination.to_string()),
            security: if authenticated {
                Security::MutualTls
            } else {
                Security::Unknown
            },
        }
    }
}

fn judge(bytes: Option<&BytesClaim>, snapshot: &Snapshot) -> Result<(), InboundError> {
    let judged = bytes.map_or(Ok(()), |bytes| bytes.judge(snapshot));
    judged.map_err(InboundError::Demanded)
}
