//! Why a connection did not reach its application, and what its client's node and the access log are told of that.

use std::io;
use std::net::SocketAddr;

use super::destination::Misdirected;
use crate::connections::WorkloadGone;
use crate::dial::DialError;
use crate::hbone::{Cause, ConnectResponse};
use crate::hub::UnknownWorkload;
use crate::model::SpiffeId;
use crate::origination::OriginationError;
use crate::policy::Denial;
use crate::policy::http::HttpDenial;
use crate::telemetry::ResponseFlags;
use crate::{route, tls, waypoint};

/// Why a connection did not reach the application.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboundError {
    #[error(transparent)]
    UnknownWorkload(#[from] UnknownWorkload),
    #[error(transparent)]
    WorkloadGone(#[from] WorkloadGone),
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error(transparent)]
    Unserved(#[from] waypoint::Unserved),
    #[error("nothing behind the waypoint takes the connection: {0}")]
    Beyond(#[from] route::Refusal),
    #[error("nothing behind the waypoint takes the connection: {0}")]
    Dial(DialError),
    #[error("connection closed due to policy rejection: {0}")]
    Denied(Denial),
    #[error("connection closed due to policy rejection: {0}")]
    Demanded(HttpDenial),
    #[error("the application does not answer at {to}: {source}")]
    Application { to: SocketAddr, source: io::Error },
    #[error("the connection to {to} cannot begin: {source}")]
    Begin {
        to: SocketAddr,
        source: OriginationError,
    },
    #[error("no certificate for {0} has been issued yet")]
    NoIdentity(SpiffeId),
    #[error("TLS handshake failed: {0}")]
    Tls(#[from] tls::TlsError),
}

impl InboundError {
    pub(super) fn flags(&self) -> ResponseFlags {
        match self {
            Self::UnknownWorkload(_)
            | Self::WorkloadGone(_)
            | Self::Misdirected(_)
            | Self::Beyond(_)
            | Self::Unserved(_) => ResponseFlags::None,
            Self::Dial(error) => error.flags(),
            Self::Denied(_) | Self::Demanded(_) => ResponseFlags::Deny,
            Self::Application { .. } => ResponseFlags::Connect,
            Self::NoIdentity(_) => ResponseFlags::IdentityError,
            Self::Tls(_) | Self::Begin { .. } => ResponseFlags::TlsFailure,
        }
    }

    /// The status that tells the client's node (spec: ztunnel's table).
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Misdirected(misdirected) => misdirected.status(),
            Self::Denied(_) | Self::Demanded(_) => 401,
            Self::UnknownWorkload(_)
            | Self::WorkloadGone(_)
            | Self::Unserved(_)
            | Self::Beyond(_)
            | Self::Dial(_)
            | Self::Application { .. }
            | Self::Begin { .. }
            | Self::NoIdentity(_)
            | Self::Tls(_) => 503,
        }
    }
}

impl InboundError {
    /// What the client's `connect` would have said.
    fn cause(&self) -> Option<Cause> {
        match self {
            Self::Application { source, .. } => Cause::of(source),
            _ => None,
        }
    }

    /// What the client's node is answered.
    pub(super) fn answer(&self) -> ConnectResponse {
        let refused = ConnectResponse::refused(self.status(), self.cause());
        match self {
            Self::Begin { source, .. } => refused.because(&source.to_string()),
            _ => refused,
        }
    }
}
