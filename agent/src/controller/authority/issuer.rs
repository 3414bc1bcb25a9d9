//! The authority as it is now: what signs, what is trusted, and what its own server shows. Immutable; a change is
//! another one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use userspace_l7::model::{SpiffeId, TrustDomain};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;

use super::rotation::Signer;
use crate::identity::{CaFiles, IssueError, LocalCa, LocalCaError, Subject};

/// Life of the certificate that the server shows.
const SERVER_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// It is renewed when so much of that is left.
const SERVER_LEFT: Duration = Duration::from_secs(12 * 60 * 60);

/// What signs, and is shown.
pub(super) struct Issuer {
    ca: LocalCa,
    /// What its certificate says of itself.
    signer: Signer,
    /// Certificates between a leaf and the root, and the roots, in PEM.
    intermediates: Vec<String>,
    roots: String,
    server: Arc<ServerConfig>,
    /// Until when the server need not be shown another certificate.
    fresh_until: SystemTime,
}

/// No authority can be made of what is there.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssuerError {
    #[error(transparent)]
    Load(#[from] LocalCaError),
    #[error("the authority's certificate cannot be read")]
    Certificate,
    #[error("no certificate can be issued to the authority's own server")]
    Server(#[from] IssueError),
    #[error("the authority's own certificate cannot be served")]
    Tls(#[from] rustls::Error),
    #[error("no key could be made")]
    Key(#[from] rcgen::Error),
}

/// A certificate that was issued.
pub(super) struct Issued {
    /// Leaf, intermediates, roots.
    pub(super) chain: Vec<String>,
    /// Of the leaf, in decimal as dumps have it.
    pub(super) serial: String,
    /// Its end.
    pub(super) not_after: Timestamp,
}

impl Issuer {
    /// Takes files over; `place` names them in errors. The server proves by them to be any of `names`.
    pub(super) fn new(
        files: &CaFiles,
        (place, trust_domain, names): (&Path, &TrustDomain, &[String]),
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        let ca = LocalCa::load(files, place, trust_domain, now)?;
        let pem = Pem::iter_from_buffer(&files.certificate).next();
        let pem = pem.and_then(Result::ok).ok_or(IssuerError::Certificate)?;
        let certificate = pem
            .parse_x509()
            .map_err(|_error| IssuerError::Certificate)?;
        let signer = signer(&certificate).ok_or(IssuerError::Certificate)?;
        let key = KeyPair::generate()?;
        let shown = ca.sign(Subject::Server(names), &key, now, SERVER_LIFE)?;
        let chain = std::iter::once(shown.into()).chain(ca.intermediates().iter().cloned());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain.collect(), key)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let intermediates = ca.intermediates().iter();
        Ok(Self {
            signer,
            intermediates: intermediates.map(|one| in_pem(one)).collect(),
            roots: ca.roots().iter().map(|one| in_pem(one)).collect(),
            server: Arc::new(server),
            fresh_until: (now + SERVER_LIFE - SERVER_LEFT).min(ca.not_after()),
            ca,
        })
    }

    pub(super) fn signer(&self) -> Signer {
        self.signer
    }

    /// How its server answers.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Whether the server's certificate may still be shown for long.
    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        now < self.fresh_until
    }

    /// Certifies a key.
    pub(super) fn issue(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        (now, lifetime): (SystemTime, Duration),
    ) -> Result<Issued, IssueError> {
        let leaf = self.ca.sign(Subject::Workload(id), key, now, lifetime)?;
        let not_after = (now + lifetime).min(self.ca.not_after());
        let serial = leaf_serial(leaf.der()).unwrap_or_default();
        let mut chain = vec![leaf.pem()];
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.roots.clone());
        Ok(Issued {
            chain,
            serial,
            not_after: Timestamp::try_from(not_after).unwrap_or(Timestamp::MAX),
        })
    }
}

fn signer(certificate: &X509Certificate<'_>) -> Option<Signer> {
    let validity = certificate.validity();
    Some(Signer {
        is_root: certificate.issuer() == certificate.subject(),
        not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
    })
}

fn leaf_serial(der: &[u8]) -> Option<String> {
    use x509_parser::prelude::FromDer as _;
    let (_, leaf) = X509Certificate::from_der(der).ok()?;
    Some(leaf.tbs_certificate.serial.to_string())
}

fn in_pem(der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
