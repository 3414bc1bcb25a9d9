//! Why a server gave no answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Whom to ask is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// The mesh has no such service.
    #[error("the mesh knows no service {0}")]
    NoService(String),
    /// A service without a ready endpoint.
    #[error("the service has no ready endpoint")]
    NoEndpoint,
    /// A service that does not serve the port.
    #[error("the service has no port {0}")]
    NoPort(u16),
}

/// Certificates of authorities that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is not there, or not for us.
    #[error("cannot read the authorities in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file has another content.
    #[error("{path} holds no certificates in PEM")]
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// A certificate that is none.
    #[error("a certificate of an authority cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody could be asked by this text.
    #[error("`{0}` is no address of the web: write one like https://example.com/keys")]
    Url(String),
    /// Whom to ask is not known.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// No resolver knows the name.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// An address that only the node itself may ask.
    #[error("{0} is an address of the node itself, which the agent does not ask for others")]
    Forbidden(IpAddr),
    /// Nobody accepts connections there.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The authorities are not to be had.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The server could not prove who it is, or speaks no TLS.
    #[error("{host} cannot be trusted")]
    Tls {
        /// Whom we meant.
        host: String,
        /// What rustls said.
        source: io::Error,
    },
    /// The request could not be sent, or the answer is no HTTP.
    #[error("no answer in HTTP")]
    Http(#[source] hyper::Error),
    /// The answer's body broke off.
    #[error("the answer broke off")]
    Broken,
    /// The answer is larger than anything that was asked for.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}
