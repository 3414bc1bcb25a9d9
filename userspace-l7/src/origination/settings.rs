//! What a policy says of TLS → what rustls needs, once for each.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    ServerName,
};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

use super::Name;
use super::verify::Verifier;
use crate::model::{AppProtocol, Authorities, Credential, PrivateKey, UpstreamTls};

/// Settings that are kept beyond those that the mesh has now.
const KEPT: usize = 256;

/// Why nothing can be made of what a policy says.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnusableTls {
    /// The server's name is none.
    #[error("`{0}` is no name that a server could prove: set one")]
    Name(String),
    /// There is nobody whom a server could be vouched for by.
    #[error("there is no authority that could vouch for the server")]
    NoAuthority,
    /// A certificate of an authority is none.
    #[error("the certificate of an authority cannot be used: {0}")]
    Authority(rustls::Error),
    /// Key and certificate do not fit together.
    #[error("the client's certificate and key cannot be used: {0}")]
    Credential(rustls::Error),
    /// rustls itself refuses.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Whether a connection could be begun with these settings, as far as that shows before one is made.
///
/// # Errors
/// [`UnusableTls`] names what cannot be used.
pub fn check(tls: &UpstreamTls) -> Result<(), UnusableTls> {
    if !tls.server_name.is_empty() {
        server_name(&tls.server_name)?;
    }
    // The system's authorities are looked at when a server has to prove itself by them.
    if tls.authorities != Authorities::System || tls.credential.is_some() {
        build(tls, &RootCertStore::empty().into())?;
    }
    Ok(())
}

/// One worker's settings, made when they are first used.
#[derive(Debug, Default)]
pub(crate) struct Settings(RefCell<HashMap<Arc<UpstreamTls>, Arc<ClientConfig>>>);

impl Settings {
    /// What rustls needs for a connection that speaks this.
    pub(super) fn config(
        &self,
        tls: &Arc<UpstreamTls>,
        speaks: AppProtocol,
    ) -> Result<Arc<ClientConfig>, UnusableTls> {
        let known = self.0.borrow().get(tls).map(Arc::clone);
        let template = if let Some(known) = known {
            known
        } else {
            let built = Arc::new(build(tls, system())?);
            let mut all = self.0.borrow_mut();
            if all.len() >= KEPT {
                // Whoever else knows it is the mesh.
                all.retain(|tls, _| Arc::strong_count(tls) > 1);
            }
            all.insert(Arc::clone(tls), Arc::clone(&built));
            built
        };
        let Some(offered) = alpn(speaks) else {
            return Ok(template);
        };
        let mut config = ClientConfig::clone(&template);
        config.alpn_protocols = vec![offered.to_vec()];
        Ok(Arc::new(config))
    }
}

/// What the server is told of what is spoken inside (RFC 7301).
fn alpn(speaks: AppProtocol) -> Option<&'static [u8]> {
    match speaks {
        AppProtocol::Http1 => Some(b"http/1.1"),
        AppProtocol::Http2 => Some(b"h2"),
        AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Detect => None,
    }
}

pub(super) fn server_name(name: &str) -> Result<Name, UnusableTls> {
    ServerName::try_from(name.to_owned()).map_err(|_invalid| UnusableTls::Name(name.to_owned()))
}

/// TLS 1.2 and 1.3: applications are of any age.
fn build(tls: &UpstreamTls, system: &Arc<RootCertStore>) -> Result<ClientConfig, UnusableTls> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = match &tls.authorities {
        Authorities::System => Some(Arc::clone(system)),
        Authorities::Certificates(certificates) => Some(Arc::new(anchors(certificates)?)),
        Authorities::Unverified => None,
    };
    let verifier = Verifier::new(roots, &tls.names, &provider)?;
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(UnusableTls::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match &tls.credential {
        None => Ok(builder.with_no_client_auth()),
        Some(Credential { chain, key }) => {
            let chain = chain.iter().cloned().map(CertificateDer::from);
            let config = builder.with_client_auth_cert(chain.collect(), private_key(key));
            config.map_err(UnusableTls::Credential)
        }
    }
}

fn private_key(key: &PrivateKey) -> PrivateKeyDer<'static> {
    match key {
        PrivateKey::Pkcs8(der) => PrivatePkcs8KeyDer::from(der.to_vec()).into(),
        PrivateKey::Pkcs1(der) => PrivatePkcs1KeyDer::from(der.to_vec()).into(),
        PrivateKey::Sec1(der) => PrivateSec1KeyDer::from(der.to_vec()).into(),
    }
}

fn anchors(certificates: &[Vec<u8>]) -> Result<RootCertStore, UnusableTls> {
    if certificates.is_empty() {
        return Err(UnusableTls::NoAuthority);
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(CertificateDer::from(certificate.clone()));
        added.map_err(UnusableTls::Authority)?;
    }
    Ok(roots)
}

/// The system's authorities, read once: a few milliseconds of the first connection that needs them. Empty where the
/// system has none, and then no server is believed.
fn system() -> &'static Arc<RootCertStore> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!(%error, "some of the system's authorities cannot be read");
        }
        let mut roots = RootCertStore::empty();
        let (_added, _ignored) = roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    })
}
