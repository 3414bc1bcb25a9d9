//! Why a session did not come about.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::record::{SealError, TrafficKeyError};
use super::verify::PeerRefused;
use crate::error::{Fault, Retry};

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We connected.
    Client,
    /// We accepted.
    Server,
}

/// A handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate is sound but names somebody else.
    #[error("the peer is refused")]
    Peer(#[from] PeerRefused),
    /// The peer gave up with this alert.
    #[error("the peer sent the alert {0:?}")]
    PeerAlert(AlertDescription),
    /// The peer's certificate or messages do not pass.
    #[error("the handshake failed")]
    Handshake(#[source] Error),
    /// The peer offers no HTTP/2.
    #[error("the peer does not agree on the protocol h2")]
    NotHttp2,
    /// The peer left before the end of the handshake.
    #[error("the peer closed the connection during the handshake")]
    ClosedEarly,
    /// The peer sent data before the end of the handshake.
    #[error("the peer sent data before the end of the handshake")]
    DataEarly,
    /// The peer did not come to an end in time.
    #[error("the handshake took too long")]
    Timeout,
    /// The connection failed while a handshake message was read.
    #[error("a handshake message could not be received")]
    Receive(#[source] io::Error),
    /// The connection failed while a handshake message was written.
    #[error("a handshake message could not be sent")]
    Send(#[source] io::Error),
    /// The session's keys cannot be used.
    #[error("the session's keys could not be taken over")]
    TakeKeys(#[source] TrafficKeyError),
    /// A handshake message could not be written out.
    #[error("a handshake message could not be encoded")]
    Encode(#[source] rustls::unbuffered::EncodeError),
    /// The refusal could not be written out.
    #[error("the refusal could not be sealed")]
    Refuse(#[source] SealError),
}

impl TlsError {
    /// Sorts what rustls reports: a verifier's own verdict comes back in the type that it went in.
    pub(super) fn from_handshake(error: Error) -> Self {
        match &error {
            Error::AlertReceived(alert) => Self::PeerAlert(*alert),
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<PeerRefused>() {
                    Some(refused) => Self::Peer(refused.clone()),
                    None => Self::Handshake(error),
                }
            }
            _ => Self::Handshake(error),
        }
    }

    /// Whether the peer was sent an alert about it.
    pub(super) fn is_told(&self) -> bool {
        matches!(self, Self::Peer(_) | Self::Handshake(_) | Self::NotHttp2)
    }

    /// Whose fault it is, for the side that we are.
    pub fn fault(&self, role: Role) -> Fault {
        match self {
            Self::TakeKeys(_) | Self::Encode(_) | Self::Refuse(_) => Fault::Local,
            _ => match role {
                Role::Client => Fault::Upstream,
                Role::Server => Fault::Downstream,
            },
        }
    }

    /// Whether another endpoint may be tried. A client has not sent a byte of the application yet; a server
    /// has nothing to try.
    pub fn retry(&self, role: Role) -> Retry {
        match (role, self) {
            (Role::Client, Self::TakeKeys(_) | Self::Encode(_) | Self::Refuse(_))
            | (Role::Server, _) => Retry::Never,
            (Role::Client, _) => Retry::Safe,
        }
    }
}
