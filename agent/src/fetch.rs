//! What the agent asks of servers in its own name: one request, one bounded answer, and no more than the time
//! that it was given.
//!
//! A host is looked for in the mesh first: the agent is on the node's network, where nobody translates the
//! virtual addresses of services, so it dials an endpoint itself. It has no identity of its own, so it
//! speaks plaintext to pods, and one that demands mTLS refuses it (istiod is refused as well).
//! Redirections are not followed.
//!
//! ```text
//!  URL ─▶ address (pure: mesh, else a name) ─▶ system resolver ─▶ not forbidden? ─▶ TCP ─▶ TLS? ─▶ exchange
//! ```

mod address;
mod error;
mod exchange;
#[cfg(test)]
mod tests;
mod trust;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use userspace_l7::model::{NamespacedHostname, Snapshot};

pub use address::Place;
pub use error::{FetchError, Misplaced, TrustError};
pub use exchange::{Answer, Ask, Version};
pub use trust::Trust;

/// Gives the mesh as it is now.
pub type MeshView = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// How long one address may take to accept, so that a dead endpoint leaves time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Whom a request is for.
#[derive(Clone, Copy, Debug)]
pub enum To<'a> {
    /// Whoever serves an address of the web.
    Url(&'a Uri),
    /// A port of a service of the mesh, in plaintext.
    Service(&'a NamespacedHostname, u16),
}

/// Sends requests. Clones share what they know.
#[derive(Clone)]
pub struct Client {
    mesh: MeshView,
    trust: Arc<Trust>,
    /// Namespace in whose eyes short names are read.
    namespace: Arc<str>,
    /// Whether whoever runs the agent has said whom to ask: then it may be the node itself.
    is_operators: bool,
    /// Whom servers have to prove to be, if not who the URL names.
    server_name: Option<Arc<str>>,
}

impl Client {
    /// Reads short names as a client of `namespace` would.
    pub fn new(mesh: MeshView, trust: Trust, namespace: &str) -> Self {
        Self {
            mesh,
            trust: Arc::new(trust),
            namespace: namespace.into(),
            is_operators: false,
            server_name: None,
        }
    }

    /// Asks whom whoever runs the agent has named, the node itself among them; a server has to prove to be
    /// `server_name`, if that is given, and else whom the URL names.
    #[must_use]
    pub fn for_operator(mut self, server_name: Option<&str>) -> Self {
        self.is_operators = true;
        self.server_name = server_name.map(Arc::from);
        self
    }

    /// Whom a request would be sent to now.
    ///
    /// # Errors
    /// Nobody: [`FetchError::Url`] or [`FetchError::Misplaced`].
    pub fn places(&self, to: To<'_>) -> Result<Vec<Place>, FetchError> {
        let mesh = (self.mesh)();
        let places = match to {
            To::Url(url) => {
                let (host, port) = target(url)?;
                address::of_host(&mesh, (host, port), &self.namespace)
            }
            To::Service(key, port) => address::of_key(&mesh, key, port),
        };
        Ok(places?)
    }

    /// Sends a request to the first that accepts a connection, and reads the whole answer, whatever its
    /// status.
    ///
    /// # Errors
    /// [`FetchError`]: who could not be found or reached, or what was wrong with the answer.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn send(&self, to: To<'_>, ask: Ask, within: Duration) -> Result<Answer, FetchError> {
        let sent = async {
            let stream = self.connect(&self.places(to)?).await?;
            self.converse(to, stream, ask).await
        };
        timeout(within, sent)
            .await
            .unwrap_or(Err(FetchError::Late(within)))
    }

    /// Sends a request over a connection, in TLS where the URL says so.
    async fn converse(
        &self,
        to: To<'_>,
        stream: TcpStream,
        ask: Ask,
    ) -> Result<Answer, FetchError> {
        let url = match to {
            To::Url(url) if url.scheme_str() == Some("https") => url,
            To::Url(_) | To::Service(..) => return exchange::exchange(stream, ask).await,
        };
        let (host, _) = target(url)?;
        let host = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_invalid| FetchError::Url(url.to_string()))?;
        let mut config = self.trust.config()?;
        if ask.version == Version::Http2 {
            // RFC 9113 §3.2; gRPC servers insist on it.
            let mut with_name = rustls::ClientConfig::clone(&config);
            with_name.alpn_protocols = vec![b"h2".to_vec()];
            config = Arc::new(with_name);
        }
        let tls = TlsConnector::from(config);
        let stream = tls.connect(name, stream).await;
        let stream = stream.map_err(|source| FetchError::Tls {
            host: host.to_owned(),
            source,
        })?;
        exchange::exchange(stream, ask).await
    }

    async fn connect(&self, places: &[Place]) -> Result<TcpStream, FetchError> {
        let mut last = FetchError::Misplaced(Misplaced::NoEndpoint);
        for place in places {
            for address in lookup(place).await? {
                if !self.is_operators && is_forbidden(address.ip()) {
                    last = FetchError::Forbidden(address.ip());
                    continue;
                }
                let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
                match connected.unwrap_or_else(|late| Err(late.into())) {
                    Ok(stream) => return Ok(stream),
                    Err(source) => last = FetchError::Connect { address, source },
                }
            }
        }
        Err(last)
    }
}

/// Host without brackets, and port, of an http or https URL.
fn target(url: &Uri) -> Result<(&str, u16), FetchError> {
    let read = || {
        let port = match url.scheme_str()? {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
        Some((host, url.port_u16().unwrap_or(port)))
    };
    read().ok_or_else(|| FetchError::Url(url.to_string()))
}

async fn lookup(place: &Place) -> Result<Vec<SocketAddr>, FetchError> {
    match place {
        Place::Address(address) => Ok(vec![*address]),
        Place::Name(host, port) => {
            let found = lookup_host((host.as_str(), *port)).await;
            let found = found.map_err(|source| FetchError::Resolve {
                host: host.clone(),
                source,
            })?;
            Ok(found.collect())
        }
    }
}

/// Whoever may write a `RequestAuthentication` chooses what the agent dials, and the agent is on the node's
/// network: what only the node itself may ask (its loopback, the cloud's metadata server) is not for them.
fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
        }
    }
}
