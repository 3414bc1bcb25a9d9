//! SVIDs ready for use, and the store that the agent publishes them into.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::config::{self, ClientSettings, Credential};
use super::verify::spiffe_ids;
use crate::model::{Map, SpiffeId};

/// One SVID: who a workload is, the proof of it, and whom it trusts. Immutable; a renewal is a new one.
pub struct Identity {
    id: SpiffeId,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    anchors: Arc<RootCertStore>,
    client: ClientSettings,
    server: Arc<ServerConfig>,
}

/// Why certificates and key do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate at all.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// The first certificate is not X.509.
    #[error("the leaf certificate cannot be read")]
    ReadLeaf(#[source] x509_parser::asn1_rs::Err<x509_parser::error::X509Error>),
    /// The first certificate names no workload.
    #[error("the leaf certificate holds no SPIFFE ID")]
    NoSpiffeId,
    /// A root is not usable as a trust anchor.
    #[error("root certificate {position} of {count} is not usable")]
    Root {
        /// Its place in the bundle, from 1.
        position: usize,
        /// How many there are.
        count: usize,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// No root is given.
    #[error("there is no root certificate")]
    NoRoots,
    /// Key and certificates do not fit together, or cannot be used.
    #[error("the key does not fit the certificate chain")]
    Credential(#[source] rustls::Error),
    /// Peers that trust the same roots would refuse the chain.
    #[error("the certificate chain does not lead to its own roots")]
    Untrusted(#[source] rustls::Error),
}

impl Identity {
    /// Builds an identity from a chain (leaf first), the leaf's key and the roots to trust.
    ///
    /// # Errors
    /// [`IdentityError`] names the part that does not fit.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::EmptyChain)?;
        let id = spiffe_ids(leaf)
            .into_iter()
            .next()
            .ok_or(IdentityError::NoSpiffeId)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(IdentityError::ReadLeaf)?;
        let serial = parsed.tbs_certificate.serial.to_string();
        let not_before = system_time(parsed.validity().not_before.timestamp());
        let not_after = system_time(parsed.validity().not_after.timestamp());
        let anchors = Arc::new(trust_anchors(&roots)?);
        let provider = config::provider();
        let credential = || Credential {
            chain: chain.clone(),
            key: key.clone_key(),
        };
        let client = ClientSettings::new(&provider, &anchors, credential())
            .map_err(IdentityError::Credential)?;
        let server = config::server(&provider, &anchors, id.trust_domain(), credential())
            .map_err(IdentityError::Credential)?;
        Ok(Self {
            id,
            serial,
            not_before,
            not_after,
            chain,
            roots,
            anchors,
            client,
            server,
        })
    }

    /// Checks that a peer with the same roots would accept this identity at `now`, as a client and as a server.
    ///
    /// # Errors
    /// [`IdentityError::Untrusted`] with what the peer would say.
    pub fn check_trusted(&self, now: SystemTime) -> Result<(), IdentityError> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(IdentityError::EmptyChain)?;
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let now = UnixTime::since_unix_epoch(since_epoch);
        let provider = config::provider();
        let algorithms = provider.signature_verification_algorithms;
        let as_server = ParsedCertificate::try_from(leaf).and_then(|leaf| {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &self.anchors,
                intermediates,
                now,
                algorithms.all,
            )
        });
        as_server.map_err(IdentityError::Untrusted)?;
        let anchors = Arc::clone(&self.anchors);
        let verifier = WebPkiClientVerifier::builder_with_provider(anchors, provider)
            .build()
            .map_err(|error| IdentityError::Untrusted(rustls::Error::General(error.to_string())))?;
        verifier
            .verify_client_cert(leaf, intermediates, now)
            .map(drop)
            .map_err(IdentityError::Untrusted)
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's serial number, in decimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Start of the leaf's validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the leaf's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Leaf and intermediates as they are sent, DER.
    pub fn chain(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    /// The roots that peers are checked against, DER.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.roots.iter().map(AsRef::as_ref)
    }

    pub(super) fn client(&self) -> &ClientSettings {
        &self.client
    }

    pub(super) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}

/// Names the SVID; the key is nowhere in it.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn trust_anchors(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, IdentityError> {
    if roots.is_empty() {
        return Err(IdentityError::NoRoots);
    }
    let mut anchors = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        let count = roots.len();
        let unusable = |source| IdentityError::Root {
            position: index + 1,
            count,
            source,
        };
        anchors.add(root.clone()).map_err(unusable)?;
    }
    Ok(anchors)
}

/// A time of X.509, which begins before Unix time does.
fn system_time(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    let time = if unix_seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The SVIDs of this node's workloads. The agent publishes, workers read without a lock; sessions that are open
/// keep the SVID that they began with.
#[derive(Debug, Default)]
pub struct Identities {
    by_id: ArcSwap<Map<SpiffeId, Arc<Identity>>>,
}

impl Identities {
    /// The current SVID of a workload.
    pub fn get(&self, id: &SpiffeId) -> Option<Arc<Identity>> {
        self.by_id.load().get(id).cloned()
    }

    /// Adds an SVID, or replaces the one of the same name for new sessions.
    pub fn publish(&self, identity: &Arc<Identity>) {
        self.by_id
            .rcu(|current| current.update(identity.id().clone(), Arc::clone(identity)));
    }

    /// Removes an SVID: no new session begins with it.
    pub fn withdraw(&self, id: &SpiffeId) {
        self.by_id.rcu(|current| current.without(id));
    }

    /// All SVIDs, ordered by name.
    pub fn all(&self) -> Vec<Arc<Identity>> {
        let mut all: Vec<_> = self.by_id.load().values().cloned().collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
    }
}
