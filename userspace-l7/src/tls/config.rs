//! rustls settings of the mesh: TLS 1.3, AES-GCM, ALPN `h2`, certificates on both sides, no resumption.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig, version};

use super::verify::{PeerRule, SpiffeClientVerifier, SpiffeServerVerifier};
use crate::model::{SpiffeId, TrustDomain};

/// The one application protocol: HBONE is HTTP/2.
pub(super) const ALPN: &[u8] = b"h2";

/// A certificate chain with its key.
pub(super) struct Credential {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Cipher suites and their order are ztunnel's; everything else is aws-lc's default.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// Settings of an identity's outgoing connections, without the server that a connection expects.
#[derive(Clone, Debug)]
pub(super) struct ClientSettings {
    template: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
}

impl ClientSettings {
    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        roots: &Arc<RootCertStore>,
        credential: Credential,
    ) -> Result<Self, Error> {
        let nobody = server_verifier(provider, roots, Vec::new());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(nobody)
            .with_client_auth_cert(credential.chain, credential.key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Servers choose their certificate by the pod that was dialled.
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Ok(Self {
            template: Arc::new(config),
            roots: Arc::clone(roots),
        })
    }

    /// Settings of one connection: a server that is none of `expected` fails the handshake before it learns
    /// who we are.
    pub(super) fn expecting(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.template);
        let verifier = server_verifier(config.crypto_provider(), &self.roots, expected.to_vec());
        config.dangerous().set_certificate_verifier(verifier);
        Arc::new(config)
    }
}

fn server_verifier(
    provider: &CryptoProvider,
    roots: &Arc<RootCertStore>,
    expected: Vec<SpiffeId>,
) -> Arc<SpiffeServerVerifier> {
    Arc::new(SpiffeServerVerifier {
        roots: Arc::clone(roots),
        rule: PeerRule::OneOf(expected),
        algorithms: provider.signature_verification_algorithms,
    })
}

/// Settings of an identity's incoming connections.
pub(super) fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    own: &TrustDomain,
    credential: Credential,
) -> Result<Arc<ServerConfig>, Error> {
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
    let chain = builder.build().map_err(|error| match error {
        VerifierBuilderError::InvalidCrl(error) => Error::InvalidCertRevocationList(error),
        other => Error::General(other.to_string()),
    })?;
    let verifier = SpiffeClientVerifier {
        chain,
        rule: PeerRule::Within(own.clone()),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(credential.chain, credential.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}
