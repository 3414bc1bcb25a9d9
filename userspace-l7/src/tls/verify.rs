//! Who may be at the other end: rustls' own chain building, plus the SPIFFE rules that certificates carry in
//! their URI names. The only place that makes a [`VerifiedPeer`].

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::model::{SpiffeId, TrustDomain};

/// Proof that a peer holds the key of a certificate that our roots vouch for and that names it so.
///
/// Only a finished handshake makes one; a policy that wants a peer's identity asks for this type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerifiedPeer {
    id: SpiffeId,
}

impl VerifiedPeer {
    /// The peer of a finished handshake, whose verifier has checked `chain` already. The rule is applied once
    /// more, since the name that it accepts is wanted here.
    pub(super) fn of_handshake(
        chain: Option<&[CertificateDer<'_>]>,
        rule: &PeerRule,
    ) -> Result<Self, PeerRefused> {
        let leaf = chain
            .and_then(<[_]>::first)
            .ok_or(PeerRefused::NoSpiffeId)?;
        Ok(Self {
            id: rule.check(leaf)?,
        })
    }

    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

/// The certificate is sound but does not name a peer that we talk to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// No URI name of the mesh's shape.
    #[error("the peer's certificate holds no SPIFFE ID")]
    NoSpiffeId,
    /// A server proves to be someone else.
    #[error("the peer is {}, expected {}", Listed(found), Listed(expected))]
    WrongIdentity {
        /// Whom we wanted.
        expected: Vec<SpiffeId>,
        /// Whom the certificate names.
        found: Vec<SpiffeId>,
    },
    /// A client comes from another trust domain.
    #[error("the peer is {}, outside the trust domain {own}", Listed(found))]
    WrongTrustDomain {
        /// Our trust domain.
        own: TrustDomain,
        /// Whom the certificate names.
        found: Vec<SpiffeId>,
    },
}

struct Listed<'a>(&'a [SpiffeId]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody");
        }
        for (index, id) in self.0.iter().enumerate() {
            write!(f, "{}{id}", if index > 0 { " or " } else { "" })?;
        }
        Ok(())
    }
}

/// Which names a peer may have (Istio's rules, as ztunnel has them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PeerRule {
    /// Servers: one of these exactly. An empty list admits nobody.
    OneOf(Vec<SpiffeId>),
    /// Clients: anyone of our trust domain; the rest is authorization.
    Within(TrustDomain),
}

impl PeerRule {
    /// The name that admits the certificate: its first SPIFFE ID that fulfils the rule. A certificate with a
    /// foreign name before an own one is known by its own, so a policy never meets an unverified trust
    /// domain.
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerRefused> {
        let found = spiffe_ids(leaf);
        if found.is_empty() {
            return Err(PeerRefused::NoSpiffeId);
        }
        match self {
            Self::OneOf(expected) => match found.iter().find(|id| expected.contains(id)) {
                Some(id) => Ok(id.clone()),
                None => Err(PeerRefused::WrongIdentity {
                    expected: expected.clone(),
                    found,
                }),
            },
            Self::Within(own) => match found.iter().find(|id| id.trust_domain() == own) {
                Some(id) => Ok(id.clone()),
                None => Err(PeerRefused::WrongTrustDomain {
                    own: own.clone(),
                    found,
                }),
            },
        }
    }

    fn check_in_handshake(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        self.check(leaf).map(drop).map_err(|refused| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
        })
    }
}

/// The SPIFFE IDs among a certificate's URI names, in their order. Names of another shape are skipped.
pub(super) fn spiffe_ids(certificate: &CertificateDer<'_>) -> Vec<SpiffeId> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    // A certificate with two such extensions is malformed: no name of it counts.
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// What a client asks of a server's certificate.
#[derive(Debug)]
pub(super) struct SpiffeServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) rule: PeerRule,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SpiffeServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.rule.check_in_handshake(end_entity)?;
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

/// What a server asks of a client's certificate: rustls' verifier for client authentication, then the rule.
#[derive(Debug)]
pub(super) struct SpiffeClientVerifier {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) rule: PeerRule,
}

impl ClientCertVerifier for SpiffeClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// No hints: a client has one certificate, and a list that lags behind a rotation of roots would make
    /// some clients send none.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        self.rule.check_in_handshake(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
