//! Whose certificates are believed: the system's authorities, and those of a file (istiod's
//! `jwksResolverExtraRootCA`).

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

use super::TrustError;

/// The authorities. The system's are read when a server first has to prove itself by them: most agents
/// never ask one.
pub struct Trust {
    own: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Trusts the certificates in a PEM file besides the system's.
    ///
    /// # Errors
    /// [`TrustError`]: the file cannot be read or holds none.
    pub fn open(file: Option<&Path>) -> Result<Self, TrustError> {
        let mut own = Vec::new();
        if let Some(path) = file {
            let text = fs::read(path).map_err(|source| TrustError::Read {
                path: path.to_owned(),
                source,
            })?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            own = read.unwrap_or_default();
            if own.is_empty() {
                let path = path.to_owned();
                return Err(TrustError::NotPem { path });
            }
        }
        Ok(Self {
            own,
            config: OnceLock::new(),
        })
    }

    /// Trusts these authorities and nobody else, and speaks TLS 1.3 only.
    ///
    /// # Errors
    /// [`TrustError::Unusable`]: one of them is no certificate of an authority.
    pub fn only(roots: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(TrustError::Unusable)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TrustError::Unusable)?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self {
            own: Vec::new(),
            config: OnceLock::from(Arc::new(config)),
        })
    }

    /// How servers are verified.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!(%error, "some of the system's authorities cannot be read");
        }
        let (_added, _ignored) = roots.add_parsable_certificates(found.certs);
        for certificate in &self.own {
            roots
                .add(certificate.clone())
                .map_err(TrustError::Unusable)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}
