//! L6: reaching one target from a local pod: from the pod's own namespace and address, so that the network's
//! policies see the pod and the server's node sees its client.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoints::Endpoints;
use crate::error::Retry;
use crate::hbone::{self, Cause, ConnectRequest, FirstBytes, OpeningClaim, Stream};
use crate::hub::Hub;
use crate::model::{AppProtocol, Encryption, Opening, SpiffeId, Workload};
use crate::origination::{self, Ends, Opened, OriginationError, Raw};
use crate::pod::{Family, Pod};
use crate::relay::Far;
use crate::ring::Tcp;
use crate::route::{Target, Transport};
use crate::telemetry::ResponseFlags;
use crate::tls::{self, Identity};
use crate::traffic::GroupKey;

/// Time that one endpoint has to answer if no policy says otherwise (ztunnel's constant).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// By how much an attempt may outlast its policy's time, so that the policy's end is the one that is told.
const MARGIN: Duration = Duration::from_secs(1);

/// Time that one endpoint has to answer under a policy that ends the attempt after `limit`.
pub(crate) fn patience(limit: Option<Duration>) -> Duration {
    limit.map_or(CONNECT_TIMEOUT, |limit| {
        CONNECT_TIMEOUT.max(limit.saturating_add(MARGIN))
    })
}

/// Why a target could not be reached. No byte of the application has arrived there, unless the tunnel's error says that
/// it is unsure.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no certificate for {0} has been issued yet")]
    NoIdentity(SpiffeId),
    #[error("cannot connect to {to}: {source}")]
    Connect {
        to: SocketAddr,
        source: Rc<io::Error>,
    },
    #[error("cannot open a tunnel to {to}: {source}")]
    Tunnel {
        to: SocketAddr,
        source: hbone::OpenError,
    },
    #[error("cannot begin the connection to {to}: {source}")]
    Begin {
        to: SocketAddr,
        source: OriginationError,
    },
}

impl DialError {
    pub(crate) fn flags(&self) -> ResponseFlags {
        match self {
            Self::NoIdentity(_) => ResponseFlags::IdentityError,
            Self::Connect { .. } => ResponseFlags::Connect,
            Self::Tunnel { source, .. } => source.flags(),
            Self::Begin { .. } => ResponseFlags::TlsFailure,
        }
    }

    /// Why nobody answered, where it is the network that says so.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            Self::NoIdentity(_) | Self::Begin { .. } => None,
            Self::Connect { source, .. } => Cause::of(source),
            Self::Tunnel { source, .. } => source.cause(),
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::NoIdentity(_) => Retry::Never,
            Self::Connect { .. } | Self::Begin { .. } => Retry::Safe,
            Self::Tunnel { source, .. } => source.retry(),
        }
    }

    /// Whether the target's node takes no tunnel for it, as far as it can be told.
    pub(crate) fn is_untaken(&self) -> bool {
        matches!(self, Self::Tunnel { source, .. } if source.is_untaken())
    }

    /// Why what the application wants first could not be done, where it is that.
    pub(crate) fn reason(&self) -> Option<Rc<str>> {
        match self {
            Self::NoIdentity(_) | Self::Connect { .. } => None,
            Self::Tunnel { source, .. } => source.reason().map(Rc::clone),
            Self::Begin { source, .. } => Some(source.to_string().into()),
        }
    }
}

/// As what a connection to an endpoint has to begin.
#[derive(Clone, Copy)]
pub(crate) struct Beginning<'a> {
    opening: &'a Opening,
    /// The policy that says so.
    policy: &'a GroupKey,
    /// What is spoken then.
    speaks: AppProtocol,
    /// Whose connection it is; nobody's where the agent itself asks.
    client: Option<SocketAddr>,
}

impl<'a> Beginning<'a> {
    pub(crate) fn of(
        endpoints: &'a Endpoints,
        speaks: AppProtocol,
        client: Option<SocketAddr>,
    ) -> Self {
        Self {
            opening: &endpoints.policy.opening,
            policy: &endpoints.key,
            speaks,
            client,
        }
    }

    /// Whether anything has to come first on the way to a target; `is_open`: others can listen there.
    ///
    /// # Errors
    /// Nothing may be sent to it at all.
    fn needs(&self, is_open: bool) -> Result<bool, OriginationError> {
        match &self.opening.encryption {
            Encryption::Unusable(why) => Err(OriginationError::Unusable(Arc::clone(why))),
            Encryption::Mesh if is_open => Err(OriginationError::OutsideTheMesh),
            Encryption::Tls(_) => Ok(true),
            Encryption::None | Encryption::Mesh => Ok(self.opening.proxy_protocol.is_some()),
        }
    }

    fn claim(&self) -> Result<OpeningClaim, OriginationError> {
        let GroupKey {
            service,
            port,
            subset,
        } = self.policy;
        let claim = OpeningClaim::of((service, *port), subset.as_deref(), self.speaks);
        claim.ok_or_else(|| {
            let text = "the name of the subset cannot be told to another node";
            OriginationError::Unusable(text.into())
        })
    }
}

/// Begins a connection that has been made.
///
/// # Errors
/// As [`origination::begin`].
///
/// # Cancel safety
/// As [`origination::begin`].
pub(crate) async fn begin(
    hub: &Hub,
    far: Far,
    (opening, speaks): (&Opening, AppProtocol),
    ends: Ends<'_>,
    patience: Duration,
) -> Result<Far, OriginationError> {
    let raw = match far {
        Far::Plain(tcp) => Raw::tcp(tcp),
        Far::Tunnel(stream) => Raw::tunnel(stream),
        begun @ Far::Secured(_) => return Ok(begun),
    };
    let deadline = Instant::now() + patience;
    let opened = origination::begin(&hub.originations, raw, (opening, speaks), ends, deadline);
    Ok(match opened.await? {
        Opened::Tcp(tcp) => Far::Plain(tcp),
        Opened::Tunnel(stream) => Far::Tunnel(stream),
        Opened::Secured(secured) => Far::Secured(secured),
    })
}

/// Reaches a target, which has so much time to answer: `request` is what a tunnel is asked for. Tells which of the target's
/// addresses it is that answers.
///
/// # Errors
/// [`DialError`].
///
/// # Cancel safety
/// Dropping the future gives the attempt up.
pub(crate) async fn reach(
    hub: &Hub,
    pod: &Pod,
    workload: &Workload,
    target: (&Target, Duration),
    (request, beginning): (impl FnOnce() -> ConnectRequest, Option<Beginning<'_>>),
) -> Result<(Far, SocketAddr), DialError> {
    let mut none = FirstBytes::new(&[]);
    let request = (request, &mut none);
    reach_with(hub, pod, workload, target, (request, beginning)).await
}

/// As [`reach`], for an application that has spoken already: `first` may leave along with the request for a tunnel.
///
/// # Errors
/// As [`reach`].
///
/// # Cancel safety
/// As [`reach`]; `first` says whether bytes have left.
pub(crate) async fn reach_with(
    hub: &Hub,
    pod: &Pod,
    workload: &Workload,
    (target, patience): (&Target, Duration),
    ((request, first), beginning): (
        (impl FnOnce() -> ConnectRequest, &mut FirstBytes<'_>),
        Option<Beginning<'_>>,
    ),
) -> Result<(Far, SocketAddr), DialError> {
    let to = target.destination;
    let unbegun = |source| DialError::Begin { to, source };
    let is_open = target.transport == Transport::Plain;
    let beginning = match beginning {
        Some(one) if one.needs(is_open).map_err(unbegun)? => Some(one),
        _ => None,
    };
    let Some(beginning) = beginning else {
        let request = (request, first);
        return reach_bare(hub, pod, workload, (target, patience), request).await;
    };
    if target.is_judged_there() {
        // Its node has to see the requests before they are sealed.
        let claim = beginning.claim().map_err(unbegun)?;
        let request = || request().opened_as(claim);
        let request = (request, first);
        return reach_bare(hub, pod, workload, (target, patience), request).await;
    }
    let begun = Box::pin(async move {
        let mut none = FirstBytes::new(&[]);
        let request = (request, &mut none);
        let (far, at) = reach_bare(hub, pod, workload, (target, patience), request).await?;
        let what = (beginning.opening, beginning.speaks);
        let ends = Ends::of(beginning.client, at);
        let begun = begin(hub, far, what, ends, patience).await;
        Ok((begun.map_err(unbegun)?, at))
    });
    begun.await
}

/// Reaches a port of the pod's own application, which sees `client` as its peer.
///
/// # Errors
/// As [`reach`].
///
/// # Cancel safety
/// As [`reach`].
pub(crate) async fn reach_own(
    hub: &Hub,
    pod: &Pod,
    (to, client): (SocketAddr, SocketAddr),
    (beginning, patience): (Beginning<'_>, Duration),
) -> Result<Far, DialError> {
    let failed = |source| DialError::Connect {
        to,
        source: Rc::new(source),
    };
    let unbegun = |source| DialError::Begin { to, source };
    // Nobody but the pod's own node is in between.
    let is_begun = !beginning.needs(false).map_err(unbegun)?;
    let socket = pod.sockets.leg(Family::of(to), client).map_err(failed)?;
    let connected = Tcp::connect_within(socket, to, patience).await;
    let far = Far::Plain(connected.map_err(failed)?);
    if is_begun {
        return Ok(far);
    }
    let what = (beginning.opening, beginning.speaks);
    let begun = begin(hub, far, what, Ends::of(Some(client), to), patience);
    Box::pin(begun).await.map_err(unbegun)
}

async fn reach_bare(
    hub: &Hub,
    pod: &Pod,
    workload: &Workload,
    (target, patience): (&Target, Duration),
    (request, first): (impl FnOnce() -> ConnectRequest, &mut FirstBytes<'_>),
) -> Result<(Far, SocketAddr), DialError> {
    match &target.transport {
        Transport::Plain => {
            let (tcp, at) = if target.rivals.is_empty() {
                connect(pod, target.destination, patience).await?
            } else {
                race(pod, target, patience).await?
            };
            Ok((Far::Plain(tcp), at))
        }
        Transport::Hbone { tunnel, expected } => {
            let to = (*tunnel, &expected[..], patience);
            let opened = open_tunnel(hub, pod, workload, to, (&request(), first)).await?;
            Ok((Far::Tunnel(opened), target.destination))
        }
    }
}

/// Dials all addresses of a target at once; the first connection that stands is the one, and the others are given up.
/// Unlike RFC 8305 §5 says, no attempt waits for another: that is what Istio's racing connect strategy means.
///
/// # Errors
/// How the last of them failed, if all have.
///
/// # Cancel safety
/// Dropping the future gives all attempts up.
async fn race(
    pod: &Pod,
    target: &Target,
    patience: Duration,
) -> Result<(Tcp, SocketAddr), DialError> {
    let attempts = target.addresses();
    let attempts = attempts.map(|to| Box::pin(connect(pod, to, patience)));
    first(attempts.collect()).await
}

/// What the first of several attempts comes to that succeeds; the last failure, if none does. There has to be one.
async fn first<T, E>(
    mut attempts: Vec<Pin<Box<impl Future<Output = Result<T, E>>>>>,
) -> Result<T, E> {
    poll_fn(move |cx| {
        let mut place = 0;
        while let Some(attempt) = attempts.get_mut(place) {
            match attempt.as_mut().poll(cx) {
                Poll::Pending => place += 1,
                Poll::Ready(Ok(won)) => return Poll::Ready(Ok(won)),
                Poll::Ready(Err(_lost)) if attempts.len() > 1 => {
                    drop(attempts.swap_remove(place));
                }
                Poll::Ready(Err(last)) => return Poll::Ready(Err(last)),
            }
        }
        Poll::Pending
    })
    .await
}

async fn connect(
    pod: &Pod,
    to: SocketAddr,
    patience: Duration,
) -> Result<(Tcp, SocketAddr), DialError> {
    let failed = |source| DialError::Connect {
        to,
        source: Rc::new(source),
    };
    let socket = pod.sockets.outbound(Family::of(to)).map_err(failed)?;
    let connected = Tcp::connect(socket, to, patience).await;
    Ok((connected.map_err(failed)?, to))
}

/// Opens a stream through a pooled tunnel.
async fn open_tunnel(
    hub: &Hub,
    pod: &Pod,
    workload: &Workload,
    (to, expected, patience): (SocketAddr, &[SpiffeId], Duration),
    (request, first): (&ConnectRequest, &mut FirstBytes<'_>),
) -> Result<Stream, DialError> {
    let Some(identity) = hub.identity(workload) else {
        return Err(DialError::NoIdentity(workload.identity()));
    };
    let key = hbone::PoolKey {
        pod: pod.uid.clone(),
        source: identity.id().clone(),
        expected: expected.into(),
        tunnel: to,
    };
    let dial = || {
        dial(
            pod.clone(),
            Arc::clone(&identity),
            (to, patience),
            expected.to_vec(),
        )
    };
    let opened = hub.tunnels.open(key, request, first, dial).await;
    opened.map_err(|source| DialError::Tunnel { to, source })
}

async fn dial(
    pod: Pod,
    identity: Arc<Identity>,
    (to, patience): (SocketAddr, Duration),
    expected: Vec<SpiffeId>,
) -> Result<tls::Session, hbone::DialError> {
    let socket = pod
        .sockets
        .outbound(Family::of(to))
        .map_err(hbone::DialError::Connect)?;
    let connected = Tcp::connect(socket, to, patience).await;
    let tcp = connected.map_err(hbone::DialError::Connect)?;
    let deadline = Instant::now() + patience;
    tls::connect(tcp, &identity, &expected, deadline)
        .await
        .map_err(hbone::DialError::Tls)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::first;

    /// An attempt that has ended, or never does.
    async fn attempt(ends: Option<Result<u8, &'static str>>) -> Result<u8, &'static str> {
        match ends {
            Some(ended) => ended,
            None => pending().await,
        }
    }

    #[track_caller]
    fn check(attempts: &[Option<Result<u8, &'static str>>], expected: Option<Result<u8, &str>>) {
        let all = attempts.iter().map(|ends| Box::pin(attempt(*ends)));
        let racing = pin!(first(all.collect()));
        let polled = racing.poll(&mut Context::from_waker(Waker::noop()));
        let ended = match polled {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        };
        assert_eq!(ended, expected, "{attempts:?}");
    }

    #[test]
    fn the_first_that_stands_wins_and_only_all_failures_are_one() {
        let (silent, refused, won) = (None, Some(Err("refused")), Some(Ok(1)));
        check(&[silent, won], won);
        check(&[refused, silent, won], won);
        check(&[won, Some(Ok(2))], won);
        check(&[refused, silent], None);
        check(&[silent, silent], None);
        check(&[refused, Some(Err("late"))], Some(Err("late")));
        check(&[refused], refused);
    }
}
