//! L6: the journey of a connection to a local pod: prove who comes, judge it, hand it to the application.

mod carriage;
mod claim;
mod demands;
mod destination;
mod error;
mod front;
mod ingress;
mod redirected;
mod requests;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use crate::connections::{Carriage, Direction, LiveConnection, Tracked, Via};
use crate::dial;
use crate::hbone::{self, Baggage, ConnectResponse, Incoming, OpeningClaim};
use crate::hub::Hub;
use crate::model::{AppProtocol, Opening, ProxyProtocol, SpiffeId, Workload};
use crate::origination::{Ends, OriginationError};
use crate::pod::{Family, Pod};
use crate::policy::{Allowed, DryRun};
use crate::relay::Far;
use crate::ring::{RecvBuf, Tcp};
use crate::telemetry::{Metrics, Reporter, WatchedAction};
use crate::tls;

pub(crate) use carriage::Fulfilment;
use carriage::{carry, fulfil};
use demands::{Demanded, Protocol};
use destination::{Called, Destination};
use error::InboundError;
use ingress::Ingress;
use redirected::Arrival;

/// Time that the application has to accept. It is on this node, so no answer means a full backlog.
const APPLICATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a peer has to finish a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a policy that the client's node goes by may be unknown to ours: both hear of it at about the same time.
const POLICY_WAIT: Duration = Duration::from_secs(2);

/// What is said when it stays unknown.
const UNKNOWN_OPENING: &str = "the server's node knows no policy by which the connection would begin with TLS or a PROXY header";

/// A caller, as far as it has proven itself.
struct Caller {
    /// Its address, as the application will see it.
    address: SocketAddr,
    identity: Option<SpiffeId>,
    carriage: Carriage,
    /// The address that its connection arrived on.
    arrived_at: SocketAddr,
    /// The service that it says it called: shown, never trusted.
    service: Option<String>,
}

/// Where a caller wants to go.
struct Asked<'a> {
    to: SocketAddr,
    demands: Option<&'a Demanded>,
    /// As what the application's connection has to begin, and what it speaks then.
    opening: (Opening, AppProtocol),
    /// What was called, for an application that is told.
    called: Option<Called>,
}

impl Asked<'_> {
    /// To the application as it is.
    fn plain(to: SocketAddr) -> Self {
        Self {
            to,
            demands: None,
            opening: (Opening::default(), AppProtocol::Tcp),
            called: None,
        }
    }
}

/// A connection that may be carried.
struct Judged {
    workload: Arc<Workload>,
    pass: Allowed,
    tracked: Tracked,
}

/// What is made of plaintext.
enum Arrived {
    /// Its requests are routed.
    AtWaypoint(Judged, Ingress),
    /// It goes to the application.
    AtApplication(Admitted),
}

/// A connection that may be carried, and its application's end.
struct Admitted {
    workload: Arc<Workload>,
    pass: Allowed,
    tracked: Tracked,
    /// Never a tunnel.
    app: Far,
    to: SocketAddr,
    /// As what further connections to the application have to begin.
    opening: Opening,
}

/// Serves plaintext that arrived for `pod`: judges it and reaches its application. What is left to do for it then; `None` if
/// it was refused.
///
/// # Cancel safety
/// Dropping the future, or what it leaves, resets the connection.
pub(crate) async fn serve_plain(hub: &Rc<Hub>, pod: &Pod, client: Tcp) -> Option<Fulfilment> {
    let (Ok(address), Ok(arrival)) = (client.peer_addr(), Arrival::of(&client)) else {
        return None;
    };
    let arrived_at = arrival.dialled;
    let caller = Caller {
        address,
        identity: None,
        carriage: Carriage::Tcp,
        arrived_at,
        service: None,
    };
    let arrived = async {
        let workload = hub.workload(&pod.uid).await?;
        arrival.check(&workload.addresses)?;
        let to = destination::of_plaintext(&workload, address, arrived_at)?;
        let snapshot = hub.snapshot();
        let service = claim::from_outside(&snapshot, &workload, to, |bound| hub.choose(bound));
        let demands =
            service.map(|one| Demanded::of_outsider(&snapshot, &workload, to, (&caller, one)));
        let judged = judge(hub, workload, &caller, (to, demands.as_ref()))?;
        let ingress = demands.and_then(|demands| Ingress::of(&snapshot, to, demands));
        if let Some(ingress) = ingress {
            // Where its requests go is not known before they are read.
            return Ok(Arrived::AtWaypoint(judged, ingress));
        }
        let admitted = reach(hub, pod, &caller, judged, Asked::plain(to)).await?;
        Ok::<_, InboundError>(Arrived::AtApplication(admitted))
    };
    match arrived.await {
        Ok(Arrived::AtWaypoint(judged, ingress)) => {
            Some(ingress.serve(hub, pod, (caller, judged), client))
        }
        Ok(Arrived::AtApplication(admitted)) => {
            let far = (Far::Plain(client), RecvBuf::default());
            Some(carry(hub, &caller, admitted, far))
        }
        Err(error) => {
            refuse(hub, &caller, &error);
            client.abort();
            None
        }
    }
}

/// Serves an HBONE connection that arrived for `pod`: any number of tunnelled connections.
///
/// # Cancel safety
/// Dropping the future ends the tunnel and every connection in it.
pub(crate) async fn serve_hbone(hub: &Rc<Hub>, pod: &Pod, tcp: Tcp) {
    let (Ok(address), Ok(arrived_at)) = (tcp.peer_addr(), tcp.local_addr()) else {
        return;
    };
    let session = async {
        let workload = hub.workload(&pod.uid).await?;
        let identity = hub.identity(&workload);
        let identity = identity.ok_or_else(|| InboundError::NoIdentity(workload.identity()))?;
        Ok::<_, InboundError>(
            tls::accept(tcp, &identity, Instant::now() + HANDSHAKE_TIMEOUT).await?,
        )
    };
    let session = match session.await {
        Ok(session) => session,
        Err(error) => {
            let flags = error.flags();
            hub.metrics
                .refused(Reporter::Destination, address, arrived_at, flags, &error);
            return;
        }
    };
    let over = hbone::serve(session, pod.outlook.parting(), |incoming| {
        serve_stream(Rc::clone(hub), pod.clone(), (address, arrived_at), incoming)
    });
    // Not inside the macro, which evaluates nothing while its level is off.
    let reason = over.await;
    debug!(workload = %pod.uid, peer = %address, %reason, "tunnel served");
}

/// Serves one stream. All of it on the heap: a task's own room is rounded up generously.
fn serve_stream(
    hub: Rc<Hub>,
    pod: Pod,
    ends: (SocketAddr, SocketAddr),
    incoming: Incoming,
) -> Fulfilment {
    let opened = Box::pin(async move { open_stream(&hub, &pod, ends, incoming).await });
    Box::pin(async move {
        if let Some(fulfilled) = opened.await {
            fulfilled.await;
        }
    })
}

/// Judges a stream and reaches its application; `None` if it was refused, or served in a waypoint's stead.
async fn open_stream(
    hub: &Rc<Hub>,
    pod: &Pod,
    (peer, arrived_at): (SocketAddr, SocketAddr),
    incoming: Incoming,
) -> Option<Fulfilment> {
    let incoming = front::serve(hub, pod, (peer, arrived_at), incoming).await?;
    let request = incoming.request();
    let caller = Caller {
        address: client_address(peer, request.forwarded.client),
        identity: Some(incoming.peer().id().clone()),
        carriage: Carriage::Hbone,
        arrived_at,
        service: request.forwarded.host.clone(),
    };
    let admitted = async {
        let workload = hub.workload(&pod.uid).await?;
        let snapshot = hub.snapshot();
        let authority = &request.authority;
        let found = destination::of_request(&snapshot, &workload, arrived_at, authority)?;
        let Destination { to, called } = found;
        let claim = request
            .service
            .as_ref()
            .map(|claim| (claim, incoming.peer().id()));
        let believed = claim.and_then(|claim| claim::believe(&snapshot, &workload, to, claim));
        let mut demands = Demanded::of(&snapshot, &workload, to, (&caller, believed));
        let mut opening = opening(hub, &workload, to, request.opening.as_ref()).await?;
        if called.is_some() {
            // A header is of one connection with all that it carries.
            demands = demands.of_bytes();
            opening.0.proxy_protocol = Some(ProxyProtocol::V2);
        }
        let asked = Asked {
            to,
            demands: Some(&demands),
            opening,
            called,
        };
        let admitted = admit(hub, pod, workload, &caller, asked).await?;
        Ok::<_, InboundError>((admitted, demands))
    };
    match admitted.await {
        Ok((admitted, demands)) => {
            let baggage = Baggage::of(&admitted.workload);
            let stream = incoming.accept(&ConnectResponse::accepted(Some(&baggage)));
            let far = Far::Tunnel(stream);
            Some(fulfil(hub, pod, caller, (admitted, demands), far))
        }
        Err(error) => {
            refuse(hub, &caller, &error);
            incoming.reject(&error.answer());
            None
        }
    }
}

/// Judges the caller and reaches the application.
async fn admit(
    hub: &Rc<Hub>,
    pod: &Pod,
    workload: Arc<Workload>,
    caller: &Caller,
    asked: Asked<'_>,
) -> Result<Admitted, InboundError> {
    let judged = judge(hub, workload, caller, (asked.to, asked.demands))?;
    reach(hub, pod, caller, judged, asked).await
}

/// Judges the caller. The connection is registered before it is judged, so a policy that changes in between ends it.
fn judge(
    hub: &Hub,
    workload: Arc<Workload>,
    caller: &Caller,
    (to, demands): (SocketAddr, Option<&Demanded>),
) -> Result<Judged, InboundError> {
    let via = Via {
        waypoint: demands.and_then(Demanded::waypoint).cloned(),
        service: demands.and_then(Demanded::service).cloned(),
    };
    let tracked = hub.connections.track_judged(
        LiveConnection {
            workload: workload.uid.clone(),
            direction: Direction::Inbound,
            source: caller.address,
            original_destination: caller.arrived_at,
            service: caller.service.clone(),
            destination: to,
            peer: caller.identity.clone(),
            carriage: caller.carriage,
        },
        via,
    );
    let snapshot = hub.snapshot();
    let bytes = demands.filter(|demands| demands.protocol() == Protocol::Bytes);
    if let Some(bytes) = bytes.and_then(|demands| demands.bytes(caller, to)) {
        bytes.judge(&snapshot).map_err(InboundError::Demanded)?;
        tracked.meet(bytes);
    }
    let verdict = tracked.judge(&snapshot)?;
    for observed in &verdict.dry_run {
        count(&hub.metrics, observed);
        info!(workload = %workload.uid, source = %caller.address, policy = %observed, "dry run");
    }
    let pass = verdict.decision.map_err(InboundError::Denied)?;
    Ok(Judged {
        workload,
        pass,
        tracked,
    })
}

/// Reaches the application for a connection that has been judged.
async fn reach(
    hub: &Rc<Hub>,
    pod: &Pod,
    caller: &Caller,
    judged: Judged,
    asked: Asked<'_>,
) -> Result<Admitted, InboundError> {
    let Judged {
        workload,
        pass,
        tracked,
    } = judged;
    let Asked {
        to,
        opening: (opening, speaks),
        called,
        ..
    } = asked;
    let unreachable = |source| InboundError::Application { to, source };
    let socket = pod
        .sockets
        .leg(Family::of(to), caller.address)
        .map_err(unreachable)?;
    let app = Tcp::connect_within(socket, to, APPLICATION_TIMEOUT)
        .await
        .map_err(unreachable)?;
    let mut app = Far::Plain(app);
    if !opening.is_nothing() {
        let ends = ends(caller, to, called.as_ref());
        let begun = dial::begin(hub, app, (&opening, speaks), ends, APPLICATION_TIMEOUT);
        let begun = Box::pin(begun).await;
        app = begun.map_err(|source| InboundError::Begin { to, source })?;
    }
    Ok(Admitted {
        workload,
        pass,
        tracked,
        app,
        to,
        opening,
    })
}

/// What the application is told of a connection. Only one that is a waypoint learns who the client has proven to be: it
/// judges by that.
fn ends<'a>(client: &'a Caller, to: SocketAddr, called: Option<&'a Called>) -> Ends<'a> {
    let Some(called) = called else {
        return Ends::of(Some(client.address), to);
    };
    Ends {
        client: Some(client.address),
        server: called.address,
        identity: client.identity.as_ref(),
        hostname: called.hostname.as_deref(),
    }
}

fn count(metrics: &Metrics, observed: &DryRun) {
    let (policy, action, is_denied) = match observed {
        DryRun::WouldDeny(policy) => (Some(policy), WatchedAction::Deny, true),
        DryRun::WouldAllow(policy) => (Some(policy), WatchedAction::Allow, false),
        DryRun::WouldNotAllow => (None, WatchedAction::Allow, true),
    };
    metrics.watched(policy, action, is_denied);
}

/// As what the application's connection has to begin, as the client's node wants it: by a policy that this node knows,
/// too, if need be a moment later.
async fn opening(
    hub: &Hub,
    workload: &Workload,
    to: SocketAddr,
    claim: Option<&OpeningClaim>,
) -> Result<(Opening, AppProtocol), InboundError> {
    let Some(claim) = claim else {
        return Ok((Opening::default(), AppProtocol::Tcp));
    };
    let mut found = None;
    let known = hub.until(|snapshot| {
        found = claim::opening(snapshot, workload, to, claim);
        found.is_some()
    });
    // Without it nothing may be sent: the application wants something else than what the client says.
    drop(tokio::time::timeout(POLICY_WAIT, known).await);
    let found = found.ok_or_else(|| InboundError::Begin {
        to,
        source: OriginationError::Elsewhere(UNKNOWN_OPENING.into()),
    })?;
    Ok((found, claim.speaks))
}

fn refuse(hub: &Hub, caller: &Caller, error: &InboundError) {
    let (source, destination) = (caller.address, caller.arrived_at);
    hub.metrics.refused(
        Reporter::Destination,
        source,
        destination,
        error.flags(),
        error,
    );
}

/// The client's address for the application to see. Its host is the tunnel's peer, which the network
/// vouches for; its port is what the peer says, if it speaks of that same host.
fn client_address(peer: SocketAddr, claimed: Option<SocketAddr>) -> SocketAddr {
    match claimed {
        Some(claimed) if claimed.ip().to_canonical() == peer.ip() => {
            SocketAddr::new(peer.ip(), claimed.port())
        }
        _ => peer,
    }
}
