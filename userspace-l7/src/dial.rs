//! L6: reaching one target from a local pod: from the pod's own namespace and address, so that the network's
//! policies see the pod and the server's node sees its client.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Retry;
use crate::hbone::{self, Cause, ConnectRequest, FirstBytes, Stream};
use crate::hub::Hub;
use crate::model::{SpiffeId, Workload};
use crate::pod::{Family, Pod};
use crate::relay::Far;
use crate::ring::Tcp;
use crate::route::{Target, Transport};
use crate::telemetry::ResponseFlags;
use crate::tls::{self, Identity};

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
}

impl DialError {
    pub(crate) fn flags(&self) -> ResponseFlags {
        match self {
            Self::NoIdentity(_) => ResponseFlags::IdentityError,
            Self::Connect { .. } => ResponseFlags::Connect,
            Self::Tunnel { source, .. } => source.flags(),
        }
    }

    /// Why nobody answered, where it is the network that says so.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            Self::NoIdentity(_) => None,
            Self::Connect { source, .. } => Cause::of(source),
            Self::Tunnel { source, .. } => source.cause(),
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::NoIdentity(_) => Retry::Never,
            Self::Connect { .. } => Retry::Safe,
            Self::Tunnel { source, .. } => source.retry(),
        }
    }
}

/// Reaches a target, which has so much time to answer: `request` is what a tunnel is asked for.
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
    request: impl FnOnce() -> ConnectRequest,
) -> Result<Far, DialError> {
    let mut none = FirstBytes::new(&[]);
    reach_with(hub, pod, workload, target, (request, &mut none)).await
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
    (request, first): (impl FnOnce() -> ConnectRequest, &mut FirstBytes<'_>),
) -> Result<Far, DialError> {
    match &target.transport {
        Transport::Plain => connect(pod, target.destination, patience)
            .await
            .map(Far::Plain),
        Transport::Hbone { tunnel, expected } => {
            let to = (*tunnel, &expected[..], patience);
            open_tunnel(hub, pod, workload, to, (&request(), first))
                .await
                .map(Far::Tunnel)
        }
    }
}

async fn connect(pod: &Pod, to: SocketAddr, patience: Duration) -> Result<Tcp, DialError> {
    let failed = |source| DialError::Connect {
        to,
        source: Rc::new(source),
    };
    let socket = pod.sockets.outbound(Family::of(to)).map_err(failed)?;
    Tcp::connect(socket, to, patience).await.map_err(failed)
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
