//! The requests of one tunnelled connection: each is judged by the demands of the service that was called, as
//! they are at that moment, and handed to the application.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ::http::{Request, Response, request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use smallvec::SmallVec;
use tracing::debug;

use super::claim::Believed;
use crate::asking::Asker;
use crate::dial::{self, DialError};
use crate::hbone::{Baggage, ConnectRequest};
use crate::http::{
    self, Body, Failure, Handover, Inflow, Keeping, Lease, Malformed, Peer, PoolKey, Refusal,
    Relayed, Version, Wire,
};
use crate::hub::Hub;
use crate::judgement::{self, Call, Demanded, Judged};
use crate::model::{BackendTarget, Opening, PortRoutes, Side, Snapshot, SpiffeId, Workload};
use crate::origination::{Ends, OriginationError};
use crate::pod::{Family, Pod};
use crate::policy::{ext_authz, selects};
use crate::relay::{Far, Pass};
use crate::ring::Tcp;
use crate::route::Target;
use crate::route::http::{Filters, Original};
use crate::telemetry::OpenFlow;
use crate::upstream;

use super::APPLICATION_TIMEOUT;

/// Who calls, what they called, and who answers.
pub(super) struct Exchange {
    pub(super) hub: Rc<Hub>,
    pub(super) pod: Pod,
    /// The pod's, in whose name others are asked and reached.
    pub(super) own: Arc<Workload>,
    /// The application's.
    pub(super) workload: Arc<Workload>,
    pub(super) client: SocketAddr,
    pub(super) identity: Option<SpiffeId>,
    /// The application.
    pub(super) to: SocketAddr,
    /// The service that was called; else the workload itself.
    pub(super) called: Option<Believed>,
    /// As what connections to it have to begin.
    pub(super) opening: Opening,
    /// How the application is reached where it is not the pod's.
    pub(super) beyond: Option<Target>,
    /// The connection itself may be carried.
    pub(super) _pass: Pass,
}

/// Serves a connection until it ends. `app` is its first connection to the application, if there is one already.
pub(super) async fn serve(
    exchange: Exchange,
    wire: Wire,
    version: Version,
    app: Option<Wire>,
    flow: Rc<OpenFlow>,
) -> Result<(), hyper::Error> {
    let key = Rc::new(exchange.key());
    let parting = exchange.pod.outlook.parting();
    let pool = exchange.hub.requests.clone();
    let _closed_with_it = CloseIdle(pool.clone(), Rc::clone(&key));
    if let Some(app) = app {
        let mut first = http::connect(app, version).await?;
        // Or the first request would find it not yet waiting, and make another one.
        let _is_open = first.ready().await;
        pool.adopt(&key, first, Keeping::default()).give_back();
    }
    let wire = wire.accounted(flow, Peer::Client);
    let handover = Rc::<Handover>::default();
    let exchange = Rc::new(exchange);
    let service = {
        let handover = Rc::clone(&handover);
        service_fn(move |request| {
            let (exchange, key) = (Rc::clone(&exchange), Rc::clone(&key));
            let handover = Rc::clone(&handover);
            async move { Ok::<_, Infallible>(exchange.answer(&key, &handover, request).await) }
        })
    };
    http::serve(wire, version, service, handover, parting).await
}

/// The client's connection has ended, and with it those that the application had for it.
struct CloseIdle(http::Pool, Rc<PoolKey>);

impl Drop for CloseIdle {
    fn drop(&mut self) {
        self.0.close(&self.1);
    }
}

impl Exchange {
    fn key(&self) -> PoolKey {
        PoolKey {
            pod: self.pod.uid.clone(),
            destination: self.to,
            workload: None,
            is_tunnelled: self.beyond.is_some(),
            service: None,
            group: None,
            client: Some(self.client),
            opening: self.opening.clone(),
        }
    }

    async fn answer(
        &self,
        key: &Rc<PoolKey>,
        handover: &Handover,
        request: Request<Incoming>,
    ) -> Response<Relayed<()>> {
        let is_grpc = http::is_grpc(request.headers());
        match self.run(key, handover, request).await {
            Ok(response) => response,
            Err(refusal) => {
                debug!(
                    workload = %self.workload.uid, source = %self.client,
                    details = %refusal.details(), "request refused"
                );
                let mut response = refusal.answer(is_grpc).map(Relayed::own);
                // Only an agent that sees requests calls in a service's name; a client that has proven nothing is none.
                if self.called.is_some() && self.identity.is_some() {
                    http::tell(&refusal, response.headers_mut());
                }
                response
            }
        }
    }

    async fn run(
        &self,
        key: &Rc<PoolKey>,
        handover: &Handover,
        request: Request<Incoming>,
    ) -> Result<Response<Relayed<()>>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let version = Version::of(parts.version);
        let upgrade = http::wants_upgrade(&parts);
        http::receive(&mut parts).map_err(Refusal::Malformed)?;
        http::strip(&mut parts.headers, upgrade.as_ref());
        let snapshot = self.hub.snapshot();
        let mut body = Inflow::new(body);
        let told = Original::take(&mut parts.headers);
        let restored = told.and_then(|told| self.restore(&snapshot, &told, &parts));
        // What was asked for is judged, and what the rule makes of that is handed on.
        let filters = restored.map(|(original, filters)| {
            parts = original;
            filters
        });
        let judged = self.judge(&snapshot, (&mut parts, &mut body)).await?;
        if let Some(allowed) = &judged.allowed {
            http::respell(&mut parts, allowed.path()).map_err(Refusal::Malformed)?;
        }
        if let Some(filters) = filters {
            let changed = filters.apply(&mut parts);
            changed.map_err(|_why| Refusal::Unrewritable)?;
        }
        http::send(&mut parts, version, &self.to);
        let mut answered = self.forward(key, version, parts, body).await?;
        ext_authz::apply(&judged.response, answered.response.headers_mut());
        // The application has no say in it.
        let _forged = http::take_told(answered.response.headers_mut());
        if answered.switches() {
            let switched = Box::pin(http::switch(answered, upgrade.as_ref(), handover, ()));
            return switched.await.map_err(|(refusal, ())| refusal);
        }
        Ok(http::relay(answered, ()))
    }

    /// The request as it was before a rule of the service that was called changed it, if one leads from there to what has
    /// arrived. A rule of the client's own namespace never does: what that makes of a request is what the client asks for.
    fn restore<'s>(
        &self,
        snapshot: &'s Snapshot,
        told: &Original,
        arrived: &request::Parts,
    ) -> Option<(request::Parts, Filters<'s>)> {
        let (called, _proven) = (self.called.as_ref()?, self.identity.as_ref()?);
        let layer7 = snapshot.services_layer7.get(&called.service)?;
        let port = layer7.at(called.side).ports.get(&called.port)?;
        let PortRoutes::Http(table) = &port.routes else {
            return None;
        };
        let serves = |target: &BackendTarget| match target {
            BackendTarget::Service { service, port, .. } => {
                selects(snapshot, &self.workload, self.to.port(), service, *port)
            }
            BackendTarget::Invalid { .. } => false,
        };
        told.restore(arrived, table, &serves)
    }

    /// The demands that hold now, and the waypoint that the request went through. No demands once the binding is gone
    /// since the connection was opened.
    fn demanded<'s>(
        &'s self,
        snapshot: &'s Snapshot,
    ) -> (SmallVec<[Demanded<'s>; 1]>, Option<&'s SpiffeId>) {
        let Some(called) = &self.called else {
            let layer7 = snapshot.workloads_layer7.get(&self.workload.uid);
            let demanded = layer7.map(|layer7| Demanded {
                demands: &layer7.demands,
                port: self.to.port(),
            });
            let waypoint = layer7.map(|layer7| &layer7.waypoint_identity);
            return (demanded.into_iter().collect(), waypoint);
        };
        let of_service = |service, side, port| {
            let layer7 = snapshot.services_layer7.get(service)?.at(side);
            let demands = &layer7.demands;
            Some((Demanded { demands, port }, &layer7.waypoint_identity))
        };
        let own = of_service(&called.service, called.side, called.port);
        let waypoint = own.map(|(_, waypoint)| waypoint);
        let besides = called.besides().iter();
        let besides =
            besides.filter_map(|(service, port)| of_service(service, Side::Primary, *port));
        let demanded = own.into_iter().chain(besides).map(|(one, _)| one);
        (demanded.collect(), waypoint)
    }

    /// Judges a request by what is demanded at this moment.
    async fn judge(
        &self,
        snapshot: &Snapshot,
        request: (&mut request::Parts, &mut Inflow),
    ) -> Result<Judged, Refusal> {
        let (demanded, waypoint) = self.demanded(snapshot);
        let server = self.workload.identity();
        let call = Call {
            identity: self.identity.as_ref(),
            source: self.client,
            destination: self.to,
            server: Some(&server),
            // Who has proven nothing did not come through the waypoint, either.
            waypoint: waypoint.filter(|_| self.identity.is_some()),
        };
        let asker = Asker {
            hub: &self.hub,
            pod: &self.pod,
            workload: &self.own,
        };
        judgement::judge(asker, &demanded, &call, request).await
    }

    /// Hands a request to the application. One that found a connection closed which had waited is sent again,
    /// if it cannot have been seen or may be seen twice.
    async fn forward(
        &self,
        key: &Rc<PoolKey>,
        version: Version,
        parts: request::Parts,
        body: Inflow,
    ) -> Result<http::Answered, Refusal> {
        let may_repeat = parts.method.is_idempotent() && body.is_end_stream();
        let again = may_repeat.then(|| parts.clone());
        let request = Request::from_parts(parts, Body::from(body));
        let waiting = self.hub.requests.take(key, version, Keeping::default());
        let was_waiting = waiting.is_some();
        let lease = match waiting {
            Some(lease) => lease,
            None => Box::pin(self.connect(key, version)).await?,
        };
        let mut failed = match http::send_on(lease, request).await {
            Ok(answered) => return Ok(answered),
            Err(failed) => failed,
        };
        let next = match failed.request.take() {
            Some(unsent) => Some(*unsent),
            None => again
                .filter(|_| failed.failure == Failure::Reset)
                .map(|parts| Request::from_parts(parts, Body::Empty)),
        };
        let Some(next) = next.filter(|_| was_waiting) else {
            debug!(workload = %self.workload.uid, %failed, "the application gives no response");
            return Err(refusal(failed.failure));
        };
        let lease = Box::pin(self.connect(key, version)).await?;
        let sent = http::send_on(lease, next).await;
        sent.map_err(|failed| refusal(failed.failure))
    }

    async fn connect(&self, key: &Rc<PoolKey>, version: Version) -> Result<Lease, Refusal> {
        let mut unbegun = None;
        let connected = async {
            let far = if let Some(target) = &self.beyond {
                let reached = self.reach(target).await;
                reached.map_err(|error| io::Error::other(error.to_string()))?
            } else {
                let socket = self.pod.sockets.leg(Family::of(self.to), self.client)?;
                let app = Tcp::connect_within(socket, self.to, APPLICATION_TIMEOUT).await?;
                Far::Plain(app)
            };
            let far = if self.opening.is_nothing() {
                far
            } else {
                let begun = Box::pin(self.begin(far, version)).await;
                begun.map_err(|error| {
                    let why = error.to_string();
                    unbegun = Some(why.as_str().into());
                    io::Error::other(why)
                })?
            };
            let wire = upstream::wire(far);
            http::connect(wire, version).await.map_err(io::Error::other)
        };
        match connected.await {
            Ok(sender) => Ok(self.hub.requests.adopt(key, sender, Keeping::default())),
            Err(error) => {
                debug!(workload = %self.workload.uid, to = %self.to, %error, "the application does not answer");
                Err(unbegun.map_or(Refusal::ConnectFailure, Refusal::Unbegun))
            }
        }
    }
}

impl Exchange {
    /// A connection to an application that is not the pod's.
    async fn reach(&self, target: &Target) -> Result<Far, DialError> {
        let request = || {
            ConnectRequest::to_address(target.destination)
                .from_workload(&Baggage::of(&self.own))
                .forwarded(Some(self.client), None)
        };
        let target = (target, dial::patience(None));
        let request = (request, None);
        let reached = dial::reach(&self.hub, &self.pod, &self.own, target, request).await;
        reached.map(|(far, _at)| far)
    }

    /// Begins a connection to the application as its policy wants.
    async fn begin(&self, far: Far, version: Version) -> Result<Far, OriginationError> {
        let what = (&self.opening, version.into());
        let ends = Ends::of(Some(self.client), self.to);
        dial::begin(&self.hub, far, what, ends, APPLICATION_TIMEOUT).await
    }
}

/// What is told of a request that the application did not answer.
fn refusal(failure: Failure) -> Refusal {
    match failure {
        Failure::Unsent | Failure::Refused | Failure::Reset => Refusal::UpstreamReset,
        Failure::Nonsense => Refusal::UpstreamNonsense,
        Failure::Sender => Refusal::Malformed(Malformed::Body),
    }
}
