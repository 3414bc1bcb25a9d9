//! An authority elsewhere: istiod, cert-manager's istio-csr or our controller, asked as ztunnel asks (spec: one request
//! for each identity, with the token of the agent's service account, and the identity in the request's metadata).
//!
//! ```text
//!  key, CSR ─▶ CreateCertificate (TLS, bearer token) ─▶ chain ─▶ right key? right name? trusted? ─▶ Identity
//! ```
//!
//! Token and roots are read for each request, so that rotation of either needs nothing here. The key never leaves
//! this process.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXUPPER;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use hyper::{Method, StatusCode, Uri};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem};
use userspace_l7::model::{SpiffeId, grpc_status};
use userspace_l7::tls::{Identity, IdentityError};

use super::ca::without_roots;
use crate::fetch::{Answer, Ask, Client, FetchError, MeshView, To, Trust, TrustError, Version};
use crate::signing::{self, Question};

/// How long one request may take in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which of an operator's clusters the token is of: istiod asks that cluster's API about it.
const CLUSTER: HeaderName = HeaderName::from_static("clusterid");

/// Whom to ask, and how to be known.
#[derive(Clone, Debug)]
pub struct RemoteSettings {
    /// `https://HOST:PORT`.
    pub address: Uri,
    /// Whom the server has to prove to be, if not the host of the address.
    pub server_name: Option<String>,
    /// Whose certificate the server has to show.
    pub root: RootSource,
    /// File with the bearer token.
    pub token: PathBuf,
    /// Name of the cluster.
    pub cluster: String,
    /// For how long certificates are asked.
    pub lifetime: Duration,
    /// Headers of the operator's, for whoever passes the calls on. The agent's own go before them.
    pub headers: HeaderMap,
}

/// Where the authorities of the authority's server are found, as ztunnel's `CA_ROOT_CA` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// Those of the system.
    System,
    /// Certificates in PEM.
    Pem(String),
    /// A file with such.
    File(PathBuf),
}

impl FromStr for RootSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "SYSTEM" {
            Self::System
        } else if text.contains("-----BEGIN ") {
            Self::Pem(text.to_owned())
        } else {
            Self::File(text.into())
        })
    }
}

/// An authority elsewhere gave no usable SVID.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The roots cannot be read.
    #[error("cannot read the authority's root certificates in {}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The roots are none.
    #[error("{place} holds no certificates in PEM")]
    NoRoots {
        /// Where they should be.
        place: String,
    },
    /// The roots cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The token cannot be read.
    #[error("cannot read the service account's token in {}: mount a projected token there", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no token", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// No key or request could be made.
    #[error("a signing request could not be made")]
    Request(#[source] rcgen::Error),
    /// Nobody was reached, or no answer came.
    #[error("the authority cannot be asked")]
    Fetch(#[from] FetchError),
    /// Something else than gRPC answers there.
    #[error("the authority answers {0}: is it one that speaks gRPC?")]
    Status(StatusCode),
    /// It refuses.
    #[error("the authority refuses ({code}): {message}")]
    Refused {
        /// gRPC's name of the reason.
        code: String,
        /// Its words.
        message: String,
    },
    /// The answer is no answer.
    #[error("the authority's answer is no certificate chain that ends in a root")]
    Chain,
    /// A part of the answer is no PEM.
    #[error("the authority's answer cannot be read as PEM")]
    Pem(#[source] pem::Error),
    /// The certificate is of another's name.
    #[error("the authority has certified {got} where {asked} was asked for")]
    Other {
        /// Who was asked for.
        asked: SpiffeId,
        /// Who came.
        got: SpiffeId,
    },
    /// The certificates cannot be used.
    #[error("the authority's certificate cannot be used")]
    Unusable(#[from] IdentityError),
}

/// Certificates of the authorities that certify its server.
pub(super) type Roots = Vec<CertificateDer<'static>>;

/// Asks for SVIDs.
pub(super) struct RemoteCa {
    settings: RemoteSettings,
    mesh: MeshView,
}

impl RemoteCa {
    pub(super) fn new(settings: RemoteSettings, mesh: MeshView) -> Self {
        Self { settings, mesh }
    }

    /// Whom it asks.
    pub(super) fn address(&self) -> &Uri {
        &self.settings.address
    }

    /// The roots as they are now; none where the system's are used, which are no roots of a mesh.
    pub(super) fn roots(&self) -> Result<Roots, RemoteError> {
        let (text, place) = match &self.settings.root {
            RootSource::System => return Ok(Roots::new()),
            RootSource::Pem(text) => (text.clone().into_bytes(), "the given root".to_owned()),
            RootSource::File(path) => {
                let text = std::fs::read(path).map_err(|source| RemoteError::Root {
                    path: path.clone(),
                    source,
                })?;
                (text, path.display().to_string())
            }
        };
        let read: Result<Roots, _> = CertificateDer::pem_slice_iter(&text).collect();
        let read = read.unwrap_or_default();
        if read.is_empty() {
            return Err(RemoteError::NoRoots { place });
        }
        Ok(read)
    }

    /// Asks for an SVID with a new key.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up; the authority may have answered it all the same.
    pub(super) async fn issue(&self, id: &SpiffeId) -> Result<Identity, RemoteError> {
        let roots = self.roots()?;
        let trust = match &self.settings.root {
            RootSource::System => Trust::open(None)?,
            RootSource::Pem(_) | RootSource::File(_) => Trust::only(roots.clone())?,
        };
        let client = Client::new(Arc::clone(&self.mesh), trust, "istio-system")
            .for_operator(self.settings.server_name.as_deref());
        let (key, csr) = request(id).map_err(RemoteError::Request)?;
        let question = Question {
            csr,
            lifetime: self.settings.lifetime,
            identity: Some(id.to_string()),
        };
        let url = self.method()?;
        let ask = Ask {
            version: Version::Http2,
            method: Method::POST,
            url: url.clone(),
            headers: self.headers()?,
            body: question.framed(),
            most_bytes: signing::MOST_BYTES,
        };
        let answer = client.send(To::Url(&url), ask, PATIENCE).await?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        assemble(&chain(&answer)?, &key, roots, id, SystemTime::now())
    }

    fn method(&self) -> Result<Uri, RemoteError> {
        let address = self.settings.address.to_string();
        let url = format!("{}{}", address.trim_end_matches('/'), signing::METHOD);
        Ok(url
            .parse::<Uri>()
            .map_err(|_invalid| FetchError::Url(url))?)
    }

    fn headers(&self) -> Result<HeaderMap, RemoteError> {
        let path = || self.settings.token.clone();
        let token = std::fs::read_to_string(path()).map_err(|source| RemoteError::Token {
            path: path(),
            source,
        })?;
        let token = token.trim();
        let bearer = HeaderValue::try_from(format!("Bearer {token}"));
        let mut bearer = bearer.map_err(|_invalid| RemoteError::NoToken { path: path() })?;
        if token.is_empty() {
            return Err(RemoteError::NoToken { path: path() });
        }
        bearer.set_sensitive(true);
        let said = self.settings.headers.clone();
        Ok(with_own(said, bearer, &self.settings.cluster))
    }
}

/// The operator's headers and the agent's, which go before them.
pub(super) fn with_own(mut headers: HeaderMap, bearer: HeaderValue, cluster: &str) -> HeaderMap {
    headers.insert(AUTHORIZATION, bearer);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(signing::CONTENT_TYPE),
    );
    if let Ok(cluster) = HeaderValue::try_from(cluster) {
        headers.insert(CLUSTER, cluster);
    }
    headers
}

/// A key, and a request with an empty subject that names the identity (ECDSA P-256, as ztunnel's).
pub(super) fn request(id: &SpiffeId) -> Result<(KeyPair, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    let key = KeyPair::generate()?;
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

/// The chain in an answer, or why there is none.
pub(super) fn chain(answer: &Answer) -> Result<Vec<String>, RemoteError> {
    if answer.status != StatusCode::OK {
        return Err(RemoteError::Status(answer.status));
    }
    // In the trailers, or in the header of an answer without a body (gRPC over HTTP/2, "Trailers-Only").
    let field = |name: &str| {
        let field = answer.trailers.get(name);
        let field = field.or_else(|| answer.headers.get(name));
        field.and_then(|field| field.to_str().ok())
    };
    match field("grpc-status") {
        Some("0") => signing::read_chain(&answer.body).map_err(|_malformed| RemoteError::Chain),
        code => Err(RemoteError::Refused {
            code: code_name(code.unwrap_or_default()),
            message: percent_decoded(field("grpc-message").unwrap_or_default()),
        }),
    }
}

/// gRPC's name of a status code.
fn code_name(code: &str) -> String {
    let known = code.parse().ok().and_then(grpc_status::name);
    known.map_or_else(|| format!("gRPC status `{code}`"), ToOwned::to_owned)
}

/// The text of a `grpc-message` (gRPC over HTTP/2, "Percent-Encoded").
pub(super) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let pair = tail.get(..2).map(<[u8]>::to_ascii_uppercase);
        let byte = pair.and_then(|pair| HEXUPPER.decode(&pair).ok()?.first().copied());
        if let (b'%', Some(byte)) = (first, byte) {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes an SVID of an answer: leaf, intermediates, and in the last place the roots. What certifies the authority's
/// own server is a root as well, so that during a rotation either half that has arrived is enough.
///
/// # Errors
/// It is not what was asked for, or peers with the same roots would refuse it.
pub(super) fn assemble(
    answer: &[String],
    key: &PrivateKeyDer<'_>,
    own_roots: Roots,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<Identity, RemoteError> {
    let [leaf, intermediates @ .., last] = answer else {
        return Err(RemoteError::Chain);
    };
    let read = |text: &String| -> Result<Roots, RemoteError> {
        CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(RemoteError::Pem)
    };
    let mut chain = read(leaf)?;
    if chain.is_empty() {
        return Err(RemoteError::Chain);
    }
    // The first certificate is the leaf, whatever an authority puts into the first text with it.
    let mut between = chain.split_off(1);
    for text in intermediates {
        between.extend(read(text)?);
    }
    chain.extend(without_roots(between));
    let mut roots = read(last)?;
    for root in own_roots {
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    let identity = Identity::new(chain, key, roots)?;
    if identity.id() != id {
        return Err(RemoteError::Other {
            asked: id.clone(),
            got: identity.id().clone(),
        });
    }
    identity.check_trusted(now)?;
    Ok(identity)
}
