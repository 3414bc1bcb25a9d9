//! Whether a server is the one that a policy means.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::settings;
use super::settings::UnusableTls;

/// rustls' own chain building; then the names that the policy gives, or else the server's own.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Nothing: nobody has to vouch for the server.
    roots: Option<Arc<RootCertStore>>,
    names: Vec<Wanted>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A name, one of which the server has to prove.
#[derive(Debug)]
enum Wanted {
    /// DNS name or IP address.
    Server(ServerName<'static>),
    /// URI, as of a SPIFFE ID.
    Uri(Arc<str>),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(&name.to_str()),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

/// The certificate is sound and names somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's certificate is for none of {0}")]
pub(crate) struct WrongName(String);

impl Verifier {
    pub(super) fn new(
        roots: Option<Arc<RootCertStore>>,
        names: &[Arc<str>],
        provider: &CryptoProvider,
    ) -> Result<Self, UnusableTls> {
        let wanted = |name: &Arc<str>| {
            if name.contains("://") {
                Ok(Wanted::Uri(Arc::clone(name)))
            } else {
                settings::server_name(name).map(Wanted::Server)
            }
        };
        Ok(Self {
            roots,
            names: names.iter().map(wanted).collect::<Result<_, _>>()?,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    fn check_names(
        &self,
        leaf: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        server: &ServerName<'_>,
    ) -> Result<(), Error> {
        if self.names.is_empty() {
            return verify_server_name(parsed, server);
        }
        let proven = self.names.iter().any(|wanted| match wanted {
            Wanted::Server(name) => verify_server_name(parsed, name).is_ok(),
            Wanted::Uri(uri) => has_uri(leaf, uri),
        });
        if proven {
            return Ok(());
        }
        let names: Vec<_> = self.names.iter().map(ToString::to_string).collect();
        let wrong = WrongName(names.join(", "));
        let wrong = CertificateError::Other(OtherError(Arc::new(wrong)));
        Err(Error::InvalidCertificate(wrong))
    }
}

fn has_uri(certificate: &CertificateDer<'_>, wanted: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    // A certificate with two such extensions is malformed: no name of it counts.
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let mut names = names.value.general_names.iter();
    names.any(|name| matches!(name, GeneralName::URI(uri) if *uri == wanted))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.check_names(end_entity, &parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
