//! L5: what a connection to an application begins with, by its [`Opening`]: a PROXY header, TLS of the application's own.
//!
//! ```text
//!  Raw (socket, or stream in a tunnel) ─► announce (PROXY header) ─► secure (TLS handshake) ─► Secured
//! ```
//!
//! Whoever judges the requests begins it: within the mesh the server's node, which has to see them in the clear; else the
//! client's node.

mod proxy_header;
mod secured;
mod settings;
#[cfg(test)]
mod tests;
mod verify;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout_at};

pub(crate) use secured::{Raw, Secured};
pub(crate) use settings::Settings;
pub use settings::{UnusableTls, check};

use self::verify::WrongName;
use crate::hbone::Stream;
use crate::model::{AppProtocol, Encryption, Opening, ProxyProtocol, SpiffeId, UpstreamTls};
use crate::ring::Tcp;

/// Who a connection is from and to, as the application is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    /// The client; nobody where the agent itself asks.
    pub(crate) client: Option<SocketAddr>,
    /// The application, or what was called in its stead.
    pub(crate) server: SocketAddr,
    /// Who the client has proven to be, where the application is told.
    pub(crate) identity: Option<&'a SpiffeId>,
    /// The name of what was called, where the application is told.
    pub(crate) hostname: Option<&'a str>,
}

impl Ends<'_> {
    /// Two addresses, and nothing else.
    pub(crate) fn of(client: Option<SocketAddr>, server: SocketAddr) -> Self {
        Self {
            client,
            server,
            identity: None,
            hostname: None,
        }
    }
}

/// Why a connection could not begin as it has to. No byte of the client has been sent.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum OriginationError {
    /// TLS was asked for in a way that cannot be followed.
    #[error("{0}")]
    Unusable(Arc<str>),
    /// Only the mesh's own encryption is allowed, and the application is reached without it.
    #[error("only mutual TLS of the mesh is allowed, and the endpoint is outside of the mesh")]
    OutsideTheMesh,
    /// The server's certificate or messages do not pass, or it refuses ours.
    #[error("TLS_error: {0}")]
    Handshake(rustls::Error),
    /// The server's certificate is sound and names somebody else.
    #[error("TLS_error: {0}")]
    WrongName(WrongName),
    /// The server left before the end of the handshake.
    #[error("TLS_error: the server closed the connection during the handshake")]
    ClosedEarly,
    /// The server did not come to an end in time.
    #[error("TLS_error: the handshake took too long")]
    Late,
    /// The connection failed meanwhile.
    #[error("the connection failed before TLS began: {0}")]
    Io(Rc<io::Error>),
    /// The server's node says so, which begins it.
    #[error("{0}")]
    Elsewhere(Rc<str>),
}

impl OriginationError {
    /// Sorts what rustls reports: our verifier's own verdict comes back in the type that it went in.
    fn of_handshake(error: rustls::Error) -> Self {
        if let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = &error
            && let Some(wrong) = other.0.downcast_ref::<WrongName>()
        {
            return Self::WrongName(wrong.clone());
        }
        Self::Handshake(error)
    }
}

impl From<UnusableTls> for OriginationError {
    fn from(error: UnusableTls) -> Self {
        Self::Unusable(error.to_string().into())
    }
}

/// What a connection has become: what it was, or inside of TLS.
pub(crate) enum Opened {
    /// A socket.
    Tcp(Tcp),
    /// A stream in a tunnel.
    Tunnel(Stream),
    /// One of the two, inside of TLS.
    Secured(Secured),
}

/// Begins a connection.
///
/// # Errors
/// [`OriginationError`]; the server has been told why where that is possible.
///
/// # Cancel safety
/// Dropping the future resets the connection.
pub(crate) async fn begin(
    settings: &Settings,
    mut raw: Raw,
    (opening, speaks): (&Opening, AppProtocol),
    ends: Ends<'_>,
    deadline: Instant,
) -> Result<Opened, OriginationError> {
    if let Some(version) = opening.proxy_protocol {
        let announced = timeout_at(deadline, announce(&mut raw, version, ends)).await;
        announced.unwrap_or(Err(OriginationError::Late))?;
    }
    match &opening.encryption {
        Encryption::None | Encryption::Mesh => Ok(match raw {
            Raw::Tcp(tcp) => Opened::Tcp(tcp),
            Raw::Tunnel(stream) => Opened::Tunnel(stream),
        }),
        Encryption::Unusable(why) => Err(OriginationError::Unusable(Arc::clone(why))),
        Encryption::Tls(tls) => {
            let secured = secure(settings, raw, (tls, speaks));
            let secured = timeout_at(deadline, secured).await;
            Ok(Opened::Secured(
                secured.unwrap_or(Err(OriginationError::Late))?,
            ))
        }
    }
}

async fn announce(
    raw: &mut Raw,
    version: ProxyProtocol,
    ends: Ends<'_>,
) -> Result<(), OriginationError> {
    let header = proxy_header::write(version, ends);
    let sent = raw.send(&header).await;
    sent.map_err(|error| OriginationError::Io(Rc::new(error)))
}

async fn secure(
    settings: &Settings,
    raw: Raw,
    (tls, speaks): (&Arc<UpstreamTls>, AppProtocol),
) -> Result<Secured, OriginationError> {
    let config = settings.config(tls, speaks)?;
    let name = settings::server_name(&tls.server_name)?;
    Secured::connect(raw, config, name).await
}

/// A server's name, owned.
type Name = ServerName<'static>;
