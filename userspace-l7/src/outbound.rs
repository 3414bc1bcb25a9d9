//! L6: the journey of a connection that a local pod's application opened: judge where it goes, reach it
//! through a tunnel or as plain TCP, carry it.

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use tokio::time::Instant;
use tracing::debug;

use crate::connections::{Carriage, Direction, LiveConnection, Tracked};
use crate::dial::{self, Beginning, DialError};
use crate::doubt::Doubts;
use crate::endpoints::{self, Endpoints};
use crate::error::Retry;
use crate::hbone::{Baggage, Cause, ConnectRequest, FirstBytes, ServiceClaim};
use crate::hub::{Hub, UnknownWorkload};
use crate::model::{AppProtocol, Balance, HashKey, LoadBalancerMode, Peer, Side, Workload};
use crate::names::Unresolved;
use crate::pod::Pod;
use crate::policy::http::HttpDenial;
use crate::policy::{BytesClaim, CalledPort, Denial};
use crate::relay::{self, Application, Ending, Far, Local, Pass};
use crate::ring::{RecvBuf, Tcp};
use crate::route::breaker::Permit;
use crate::route::named::Name;
use crate::route::outlier::Outcome;
use crate::route::{self, Meaning, Plan, Refusal, Target, Transport, spread};
use crate::telemetry::{Flow, Reporter, ResponseFlags, Security};
use crate::tls::{self, Hello};
use crate::traffic::{Attended, Wish};
use crate::waypoint::{self, Welcome};

/// DNS over TCP (RFC 1035 §4.2.2).
pub(crate) const DNS_PORT: u16 = 53;

/// Time that a client has to say whom it wants, where only that tells where it is to go.
const HELLO_TIME: Duration = Duration::from_secs(5);

/// Why no endpoint took a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    UnknownSource(#[from] UnknownWorkload),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the policy's time to connect is over")]
    Late,
    #[error("as many connections as the policy allows are in use")]
    Overflow,
    #[error("the mesh has learnt meanwhile whose address it is")]
    Outdated,
    #[error(transparent)]
    Demanded(#[from] Demanded),
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
}

/// The service that was called does not let this client in, and nobody but this node would say so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Demanded(HttpDenial);

impl OutboundError {
    /// What the access log says of it.
    pub(crate) fn flags(&self) -> ResponseFlags {
        match self {
            Self::Refused(_) | Self::UnknownSource(_) | Self::Overflow | Self::Outdated => {
                ResponseFlags::None
            }
            Self::Demanded(_) => ResponseFlags::Deny,
            Self::Late | Self::Unresolved(_) => ResponseFlags::Connect,
            Self::Dial(error) => error.flags(),
        }
    }

    /// Why nobody answered, where it is the network that says so.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            // The mesh's own limits are no silence of the network: whoever meets them is refused at once.
            Self::Refused(_)
            | Self::UnknownSource(_)
            | Self::Overflow
            | Self::Late
            | Self::Outdated
            | Self::Demanded(_)
            | Self::Unresolved(_) => None,
            Self::Dial(error) => error.cause(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Refused(_)
            | Self::UnknownSource(_)
            | Self::Overflow
            | Self::Outdated
            | Self::Demanded(_)
            | Self::Unresolved(_) => Retry::Never,
            Self::Late => Retry::Safe,
            Self::Dial(error) => error.retry(),
        }
    }
}

/// What is left to do for a connection that has reached its far side, on the heap: most of a connection's life needs less
/// room than its opening.
pub(crate) type Carrying = Pin<Box<dyn Future<Output = ()>>>;

/// Reaches the far side of a connection of `pod`, from `source` to the address that it dialled, which was not asked before
/// the connection was accepted; `None` if it was served at layer 7, or refused.
///
/// # Cancel safety
/// Dropping the future closes the connection as a reset.
pub(crate) async fn open(
    hub: &Rc<Hub>,
    pod: &Pod,
    (source, dialled): (SocketAddr, SocketAddr),
    mut app: Tcp,
) -> Option<Carrying> {
    if dialled.port() == DNS_PORT
        && let Some(take) = &pod.dns
    {
        // The DNS proxy lives on the control plane's runtime: it gets a descriptor of its own.
        match app.as_fd().try_clone_to_owned() {
            Ok(connection) => take(connection, dialled),
            Err(error) => debug!(workload = %pod.uid, %error, "cannot hand a DNS connection over"),
        }
        return None;
    }
    loop {
        let (opaque, early) = match waypoint::welcome(hub, pod, (source, dialled), app).await {
            Welcome::Served => return None,
            Welcome::Opaque(app, early) => (app, early),
        };
        let mut spoken = Spoken(early);
        spoken.hear_name(hub, pod, dialled, &opaque).await;
        match reach(hub, pod, (source, dialled), Some((&opaque, &mut spoken))).await {
            Ok(reached) => return Some(carry(hub, pod, (opaque, spoken.0), reached)),
            // What is known may have layer 7, and is to be welcomed as that.
            Err(OutboundError::Outdated) if spoken.0.is_empty() => app = opaque,
            Err(error) => {
                hub.metrics
                    .refused(Reporter::Source, source, dialled, error.flags(), &error);
                opaque.abort();
                if let Err(error) = pod.sockets.hold_again(dialled) {
                    debug!(workload = %pod.uid, %dialled, %error, "still relied on to answer");
                }
                return None;
            }
        }
    }
}

/// What an application has said before its far side was asked.
pub(crate) struct Spoken(RecvBuf);

impl Spoken {
    /// Waits for the name that the application says in TLS, where nothing else tells which host it means. A client that
    /// says none in time names nobody.
    async fn hear_name(&mut self, hub: &Hub, pod: &Pod, dialled: SocketAddr, app: &Tcp) {
        let workload = hub.workload(&pod.uid).await;
        if workload.is_ok_and(|workload| waypoint::is_named_in_tls(hub, &workload, dialled)) {
            // On the heap, for most connections name nobody and their tasks have no room to give.
            Box::pin(self.hear_hello(app)).await;
        }
    }

    async fn hear_hello(&mut self, app: &Tcp) {
        let until = Instant::now() + HELLO_TIME;
        while tls::hello(&self.0) == Hello::Undecided {
            let Ok(Ok(more)) = tokio::time::timeout_at(until, app.recv()).await else {
                return;
            };
            if more.is_empty() {
                return;
            }
            self.0 = RecvBuf::from([&self.0[..], &more[..]].concat());
        }
    }

    /// The server that the application names in TLS.
    fn name(&self) -> Option<String> {
        match tls::hello(&self.0) {
            Hello::Named(name) => Some(name),
            Hello::Nameless | Hello::Undecided => None,
        }
    }

    /// What may leave along with the request to a target: the application has often spoken by the time that its
    /// connection is accepted. Only our own agents are known to make nothing of bytes of a tunnel that they refuse.
    fn to(&mut self, app: &Tcp, target: &Target) -> &[u8] {
        let is_ours = matches!(target.transport, Transport::Hbone { .. })
            && (target.workload.as_ref()).is_some_and(|server| server.peer == Peer::Culvert);
        if !is_ours {
            return &[];
        }
        if self.0.is_empty() {
            self.0 = app.received();
        }
        &self.0
    }
}

/// An upstream that has answered.
pub(crate) struct Reached {
    /// The application's address, and the one that it dialled.
    ends: (SocketAddr, SocketAddr),
    workload: Arc<Workload>,
    plan: Plan,
    target: Target,
    far: Far,
    /// Whether what the application had said is there already.
    has_heard: bool,
    /// What the connection takes up of its destination's limits.
    held: Option<(Permit, Attended)>,
    /// What it has to meet here, as nobody judges it where it goes.
    bytes: Option<BytesClaim>,
}

/// Reaches where the connection goes, for `app` if there is one yet. Where nodes do not agree on whether an endpoint is in
/// the mesh, once they do.
///
/// # Errors
/// As [`reach_now`].
///
/// # Cancel safety
/// Dropping the future gives up what it has reached.
pub(crate) async fn reach(
    hub: &Rc<Hub>,
    pod: &Pod,
    (source, dialled): (SocketAddr, SocketAddr),
    mut app: Option<(&Tcp, &mut Spoken)>,
) -> Result<Reached, OutboundError> {
    let mut doubts = Doubts::default();
    loop {
        let app = app.as_mut().map(|(app, spoken)| (*app, &mut **spoken));
        let reached = reach_now(hub, pod, (source, dialled), app, &mut doubts).await;
        let is_over = match &reached {
            Ok(_) => true,
            Err(error) => error.retry() == Retry::Never || !doubts.settle(hub).await,
        };
        if is_over {
            return reached;
        }
    }
}

/// Tries the plan's targets in turn until one answers. What `app`, if there is one yet, has said so far may leave along
/// with a request. As long as none of it can have arrived, a failure of one costs nothing but time.
///
/// An address that the mesh does not know may be silent only because its service is about to be declared, and
/// the kernel's own retransmissions would go on asking the silence. So the attempt ends as soon as somebody
/// has the address.
///
/// # Errors
/// [`OutboundError::Outdated`] if that happened: decide again. Else why the last target failed.
///
/// # Cancel safety
/// Dropping the future gives up what it has reached.
async fn reach_now(
    hub: &Rc<Hub>,
    pod: &Pod,
    (source, dialled): (SocketAddr, SocketAddr),
    mut app: Option<(&Tcp, &mut Spoken)>,
    doubts: &mut Doubts,
) -> Result<Reached, OutboundError> {
    let workload = hub.workload(&pod.uid).await?;
    let said = || app.as_ref().and_then(|(_, spoken)| spoken.name());
    let ((plan, side), endpoints) = choose(hub, pod, &workload, (source, dialled), said).await?;
    let admitted = endpoints.as_ref().map(admit).transpose()?;
    let mut last = OutboundError::Refused(Refusal::NoHealthyUpstream);
    for target in &plan.targets {
        let ends = (source, dialled.port());
        let request = || request(hub, &workload, (&plan, side), target, ends);
        let bytes = claim(hub, &workload, (&plan, side), target, (source, dialled))?;
        let is_strange = plan.service.is_none() && target.workload.is_none();
        let said = app.as_mut().map(|(app, spoken)| spoken.to(app, target));
        let mut first = FirstBytes::new(said.unwrap_or_default());
        let answered = {
            let limit = endpoints
                .as_ref()
                .and_then(|one| one.policy.connect_timeout);
            let target = (target, dial::patience(limit));
            let beginning = endpoints.as_ref().map(|one| bytes_of(one, source));
            let request = ((request, &mut first), beginning);
            let reached = dial::reach_with(hub, pod, &workload, target, request);
            let reached = pin!(reached);
            tokio::select! {
                biased;
                answered = in_time(endpoints.as_ref(), reached) => answered,
                () = becomes_known(hub, &workload, dialled.ip()), if is_strange => {
                    return Err(OutboundError::Outdated);
                }
            }
        };
        if let (Some(endpoints), Some(outcome)) = (&endpoints, outcome(&answered)) {
            endpoints.ended(target.destination, outcome);
        }
        match answered {
            Ok((far, at)) => {
                let target = target.at(at);
                let attended = endpoints.map(|found| found.group.attend(at));
                let bytes = bytes.map(|bytes| bytes.towards(at));
                return Ok(Reached {
                    ends: (source, dialled),
                    workload,
                    plan,
                    target,
                    far,
                    has_heard: first.have_left(),
                    held: admitted.zip(attended),
                    bytes,
                });
            }
            Err(error) => {
                debug!(workload = %pod.uid, destination = %target.destination, %error, "endpoint failed");
                if is_final(&error, &first) {
                    doubts.dismiss();
                    return Err(error);
                }
                if let OutboundError::Dial(error) = &error {
                    doubts.note(target, error);
                }
                last = error;
            }
        }
    }
    Err(last)
}

/// Where a connection goes, through which of the service's waypoints, and whose choice that is. A name is looked up only
/// for a client that what it calls lets in.
async fn choose(
    hub: &Hub,
    pod: &Pod,
    workload: &Workload,
    ends: (SocketAddr, SocketAddr),
    said: impl FnOnce() -> Option<String>,
) -> Result<((Plan, Side), Option<Endpoints>), OutboundError> {
    let (mut plan, mut endpoints) = plan(hub, pod, workload, ends, said)?;
    let called = plan.service.as_ref();
    let side = called.map(|service| hub.side(&service.key));
    let side = side.unwrap_or_default();
    if let Some(found) = endpoints.as_mut().filter(|one| one.is_asked_for()) {
        for target in &plan.targets {
            let _met = claim(hub, workload, (&plan, side), target, ends)?;
        }
        Box::pin(found.look_up(hub, &workload.namespace)).await?;
        plan.targets = found.targets.clone();
    }
    Ok(((plan, side), endpoints))
}

/// What a connection of bytes has to meet at this node, and meets now: what the service demands that was called, where no
/// endpoint's node will ask for it (outside the mesh, or where another data plane answers).
fn claim(
    hub: &Hub,
    workload: &Workload,
    (plan, side): (&Plan, Side),
    target: &Target,
    (source, dialled): (SocketAddr, SocketAddr),
) -> Result<Option<BytesClaim>, Demanded> {
    let snapshot = hub.snapshot();
    let service = plan.service.as_ref().filter(|_| !target.is_judged_there());
    let bound = service.and_then(|service| {
        let layer7 = snapshot.services_layer7.get(&service.key)?;
        Some((service, layer7))
    });
    let Some((service, layer7)) = bound else {
        return Ok(None);
    };
    let port = dialled.port();
    let spoken = layer7.at(side).ports.get(&port).map(|port| port.protocol);
    let server = target.workload.as_ref();
    let claim = BytesClaim {
        called: Some(CalledPort {
            service: service.key.clone(),
            side,
            port,
        }),
        besides: Vec::new(),
        // Whose own policies are asked where it runs, if it is anybody.
        workload: server.map_or_else(|| workload.uid.clone(), |server| server.uid.clone()),
        identity: Some(workload.identity()),
        source: source.ip(),
        destination: target.destination,
        is_declared: matches!(spoken, Some(AppProtocol::Tcp | AppProtocol::Tls)),
    };
    claim.judge(&snapshot).map_err(Demanded)?;
    Ok(Some(claim))
}

/// Has a connection meet its claim from now on; why it does not already.
fn meet(hub: &Hub, tracked: &Tracked, claim: BytesClaim) -> Option<Box<Denial>> {
    // Again, now that every later change is noticed.
    let denial = claim.judge(&hub.snapshot()).err();
    tracked.meet(claim);
    Some(Box::new(Denial::Demanded(denial?)))
}

/// As what a connection of bytes has to begin.
fn bytes_of(endpoints: &Endpoints, source: SocketAddr) -> Beginning<'_> {
    Beginning::of(endpoints, AppProtocol::Tcp, Some(source))
}

/// Room for one more connection within the policy's limits.
fn admit(endpoints: &Endpoints) -> Result<Permit, OutboundError> {
    let connections = &endpoints.group.in_use.connections;
    let permit = connections.admit(endpoints.policy.limits.connections);
    permit.ok_or(OutboundError::Overflow)
}

/// Whether no other target may be tried: by what the failure is, or because first bytes may have arrived at a target
/// that was not waited for.
fn is_final(error: &OutboundError, first: &FirstBytes<'_>) -> bool {
    let is_unsure = matches!(error, OutboundError::Late) && first.have_left();
    is_unsure || error.retry() == Retry::Never
}

/// Resolves once the mesh knows whose address it is.
async fn becomes_known(hub: &Hub, client: &Workload, address: IpAddr) {
    let address = address.to_canonical();
    hub.until(|snapshot| {
        snapshot.workload_at(address).is_some()
            || snapshot.service_at(address, &client.namespace).is_some()
    })
    .await;
}

/// Where the connection goes. Endpoints of services that are bound to a waypoint are chosen by their traffic
/// policy, as the waypoint would; those of a wildcard by the name that the client has `said`.
fn plan(
    hub: &Hub,
    pod: &Pod,
    workload: &Workload,
    (source, dialled): (SocketAddr, SocketAddr),
    said: impl FnOnce() -> Option<String>,
) -> Result<(Plan, Option<Endpoints>), OutboundError> {
    let snapshot = hub.snapshot();
    let mut choose = |bound| hub.choose(bound);
    let (service, towards) = match route::meaning(&snapshot, workload, dialled, &mut choose)? {
        Meaning::Target(plan) => return Ok((plan, None)),
        Meaning::Service(service, towards) => (service, towards),
    };
    let service = Some(Arc::clone(service));
    let is_bound = service
        .as_ref()
        .is_some_and(|service| snapshot.services_layer7.contains_key(&service.key));
    if !is_bound {
        let served = pod.sockets.served_straight(dialled);
        let targets = route::targets(&snapshot, workload, &towards, &served, &mut choose)?;
        return Ok((Plan { service, targets }, None));
    }
    let policy = endpoints::policy(&snapshot, &towards);
    if towards.service.load_balancer.mode == LoadBalancerMode::ByName {
        let wildcard = &towards.service.key.hostname;
        let name = said().and_then(|said| Name::asked_for(wildcard, &said));
        let name = name.ok_or_else(|| Unresolved::Unnamed(Arc::clone(wildcard)))?;
        let endpoints = endpoints::by_name(hub, &towards, policy, name)?;
        let targets = endpoints.targets.clone();
        return Ok((Plan { service, targets }, Some(endpoints)));
    }
    let hash = match &policy.balance {
        // All that a connection without requests could be told apart by.
        Balance::ConsistentHash {
            key: HashKey::SourceIp,
            ..
        } => Some(spread::address_hash(source.ip())),
        _ => None,
    };
    let wish = Wish {
        session: None,
        hash,
    };
    let endpoints = endpoints::choose(hub, &snapshot, workload, &towards, (policy, wish))?;
    let targets = endpoints.targets.clone();
    Ok((Plan { service, targets }, Some(endpoints)))
}

/// What a connection's making says of the endpoint; `None`: nothing, as we could not even ask.
fn outcome<A>(answered: &Result<A, OutboundError>) -> Option<Outcome> {
    match answered {
        Ok(_) => Some(Outcome::Status(StatusCode::OK)),
        Err(OutboundError::Dial(DialError::NoIdentity(_))) => None,
        Err(_) => Some(Outcome::LocalFailure),
    }
}

/// A target that answers within the policy's time.
async fn in_time(
    endpoints: Option<&Endpoints>,
    reached: Pin<&mut impl Future<Output = Result<(Far, SocketAddr), DialError>>>,
) -> Result<(Far, SocketAddr), OutboundError> {
    match endpoints.and_then(|endpoints| endpoints.policy.connect_timeout) {
        None => Ok(reached.await?),
        Some(limit) => {
            let answered = tokio::time::timeout(limit, reached).await;
            Ok(answered.map_err(|_elapsed| OutboundError::Late)??)
        }
    }
}

fn request(
    hub: &Hub,
    workload: &Workload,
    (plan, side): (&Plan, Side),
    target: &Target,
    (source, port): (SocketAddr, u16),
) -> ConnectRequest {
    let service = plan.service.as_deref().map(|service| &service.key);
    let request = ConnectRequest::to_address(target.destination)
        .from_workload(&Baggage::of(workload))
        .forwarded(Some(source), service.map(|key| &*key.hostname));
    match service.filter(|key| hub.snapshot().services_layer7.contains_key(*key)) {
        // Whatever the port speaks: the service's demands hold for bytes, too.
        Some(key) => request.for_service(ServiceClaim::of(key, port, side)),
        None => request,
    }
}

/// Carries a connection to its end; `early` has been received from the application already.
///
/// # Cancel safety
/// Dropping the future closes the connection as a reset.
pub(crate) fn carry(
    hub: &Rc<Hub>,
    pod: &Pod,
    (app, early): (Tcp, RecvBuf),
    reached: Reached,
) -> Carrying {
    let Reached {
        ends: (source, dialled),
        workload,
        plan,
        target,
        far,
        has_heard,
        held,
        bytes,
    } = reached;
    let heard = if has_heard { early.len() as u64 } else { 0 };
    let early = if has_heard { RecvBuf::default() } else { early };
    let server = target.workload.as_ref().map(|workload| workload.identity());
    let (carriage, next_hop, authenticated) = match &target.transport {
        Transport::Plain => (Carriage::Tcp, target.destination, false),
        Transport::Hbone { tunnel, .. } => (Carriage::Hbone, *tunnel, true),
    };
    let tracked = hub.connections.track(LiveConnection {
        workload: pod.uid.clone(),
        direction: Direction::Outbound,
        source,
        original_destination: dialled,
        service: plan
            .service
            .as_ref()
            .map(|service| service.key.hostname.to_string()),
        destination: target.destination,
        peer: server.clone().filter(|_| authenticated),
        carriage,
    });
    let refused = bytes.and_then(|bytes| meet(hub, &tracked, bytes));
    let flow = hub.metrics.open(Flow {
        reporter: Reporter::Source,
        source_identity: authenticated.then(|| workload.identity()),
        source: Some(workload),
        destination_identity: server.filter(|_| authenticated),
        destination: target.workload,
        service: plan.service,
        source_address: source,
        destination_address: next_hop,
        hbone_target: authenticated.then(|| target.destination.to_string()),
        security: if authenticated {
            Security::MutualTls
        } else {
            Security::Unknown
        },
    });
    flow.to_server(heard);
    if let Some(denial) = refused {
        app.abort();
        Ending::Refused(*denial).settle(flow);
        return Box::pin(ready(()));
    }
    let local = Local {
        application: Application::Client,
        tcp: app,
        early,
    };
    Box::pin(relay::run(
        Pass::JudgedElsewhere,
        local,
        far,
        (flow, tracked),
        held,
    ))
}
