//! What a connection to an application begins with, before the first byte that is for it (DestinationRule's `tls` and
//! `proxyProtocol`, BackendTLSPolicy).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What comes first on a connection to an application.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Opening {
    /// A header that says who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The application's own encryption: behind that header, and inside of the mesh's tunnel where there is one.
    pub encryption: Encryption,
}

impl Opening {
    /// Whether nothing comes first.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The same towards the host that a client asked a wildcard for, where that is what the server has to prove; `None`
    /// where it makes no difference.
    pub fn in_name_of(&self, host: &str) -> Option<Self> {
        let Encryption::Tls(tls) = &self.encryption else {
            return None;
        };
        tls.server_name.is_empty().then(|| Self {
            proxy_protocol: self.proxy_protocol,
            encryption: Encryption::Tls(Arc::new(UpstreamTls {
                server_name: host.into(),
                ..UpstreamTls::clone(tls)
            })),
        })
    }
}

/// A version of HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// How an application wants its connections encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Encryption {
    /// Not.
    #[default]
    None,
    /// By the mesh, which it is in every tunnel. Outside of one there is no such thing, and nothing may be sent.
    Mesh,
    /// By TLS of its own.
    Tls(Arc<UpstreamTls>),
    /// TLS was asked for and cannot be had, for this reason: nothing may be sent.
    Unusable(Arc<str>),
}

/// TLS with a server of the application's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The server's name: asked for (SNI) and, where `names` is empty, to be proven. Empty: the one that a client asks a
    /// wildcard for.
    pub server_name: Arc<str>,
    /// Of these names one has to be proven: DNS names, IP addresses, URIs.
    pub names: Vec<Arc<str>>,
    /// Who may vouch for the server.
    pub authorities: Authorities,
    /// Who we prove to be, if the server asks.
    pub credential: Option<Credential>,
}

/// Hashed by its name alone: certificates are long, and few settings share a name.
impl Hash for UpstreamTls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.server_name.hash(state);
    }
}

/// Who may vouch for a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Those that the system trusts.
    System,
    /// These certificates, DER.
    Certificates(Arc<[Vec<u8>]>),
    /// Nobody needs to: whoever answers is believed (`insecureSkipVerify`).
    Unverified,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The leaf first, DER.
    pub chain: Arc<[Vec<u8>]>,
    /// PKCS #8, PKCS #1 or SEC 1, DER.
    pub key: PrivateKey,
}

/// Says how long the chain is; the key is nowhere in it.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// A private key, DER, by its form.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum PrivateKey {
    Pkcs8(Arc<[u8]>),
    Pkcs1(Arc<[u8]>),
    Sec1(Arc<[u8]>),
}

/// Never shown.
impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}
