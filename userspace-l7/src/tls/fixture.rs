//! Certificates and in-memory peers for the tests of this crate.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion, version,
};

use super::{Established, Handshake, Identity, Progress, TlsError};
use crate::model::SpiffeId;

/// A certificate authority with a self-signed root.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// How a leaf differs from an ordinary SVID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    NoClientAuth,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn anchors(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).unwrap();
        Arc::new(roots)
    }

    /// A leaf with these URI names.
    pub(crate) fn leaf(&self, names: &[&str], flaw: Flaw) -> Credential {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names
            .iter()
            .map(|name| SanType::URI((*name).try_into().unwrap()))
            .collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if flaw != Flaw::NoClientAuth {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if flaw == Flaw::Expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Credential {
            chain: vec![certificate.into()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// The SVID of one name.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.leaf(&[name], Flaw::None).identity(self)
    }
}

/// A chain with its key.
pub(crate) struct Credential {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Credential {
    /// The identity that trusts `authority`.
    pub(crate) fn identity(self, authority: &Authority) -> Identity {
        Identity::new(self.chain, &self.key, vec![authority.root()]).unwrap()
    }
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// The two ends of a session between `client` and `server`.
pub(crate) fn established(client: &Identity, server: &Identity) -> (Established, Established) {
    let (client_end, server_end) = shake_hands(
        Handshake::client(client, std::slice::from_ref(server.id())).unwrap(),
        Handshake::server(server).unwrap(),
    );
    (client_end.unwrap(), server_end.unwrap())
}

/// Runs two machines of ours against each other. Nothing is delivered to a side that has failed; what a side
/// has said before failing is.
pub(crate) fn shake_hands(
    client: Handshake,
    server: Handshake,
) -> (Result<Established, TlsError>, Result<Established, TlsError>) {
    let mut to_server = Vec::new();
    let mut to_client = Vec::new();
    let mut client = client.step(&[], &mut to_server);
    let mut server = Ok(Progress::Continue(server));
    loop {
        let quiet = to_server.is_empty() && to_client.is_empty();
        server = deliver(server, &mut to_server, &mut to_client);
        client = deliver(client, &mut to_client, &mut to_server);
        if quiet {
            return (finished(client), finished(server));
        }
    }
}

fn deliver(
    side: Result<Progress, TlsError>,
    input: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Progress, TlsError> {
    let input = std::mem::take(input);
    match side? {
        Progress::Continue(handshake) if !input.is_empty() => handshake.step(&input, out),
        Progress::Done(mut done) if !input.is_empty() => {
            let mut input = input;
            // The peer's alert, if it did not like our last flight.
            match done
                .opener
                .open(&mut input, |_| Ok::<_, super::RecordError>(()))
            {
                Err(super::RecordError::PeerAlert(alert)) => Err(TlsError::PeerAlert(alert)),
                other => {
                    other.unwrap();
                    Ok(Progress::Done(done))
                }
            }
        }
        other => Ok(other),
    }
}

fn finished(side: Result<Progress, TlsError>) -> Result<Established, TlsError> {
    match side? {
        Progress::Done(done) => Ok(done),
        Progress::Continue(_) => Err(TlsError::ClosedEarly),
    }
}

/// How an ordinary rustls peer is set up.
pub(crate) struct Plain {
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    pub(crate) suites: Vec<rustls::SupportedCipherSuite>,
    pub(crate) alpn: Vec<Vec<u8>>,
    pub(crate) tickets: usize,
}

impl Default for Plain {
    fn default() -> Self {
        Self {
            versions: vec![&version::TLS13],
            suites: aws_lc_rs::default_provider().cipher_suites,
            alpn: vec![b"h2".to_vec()],
            tickets: 2,
        }
    }
}

impl Plain {
    fn provider(&self) -> Arc<CryptoProvider> {
        let cipher_suites = self.suites.clone();
        Arc::new(CryptoProvider {
            cipher_suites,
            ..aws_lc_rs::default_provider()
        })
    }

    pub(crate) fn server(self, authority: &Authority, own: Credential) -> rustls::Connection {
        let provider = self.provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(authority.anchors(), Arc::clone(&provider))
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(own.chain, own.key)
            .unwrap();
        config.alpn_protocols = self.alpn;
        config.send_tls13_tickets = self.tickets;
        rustls::ServerConnection::new(Arc::new(config))
            .unwrap()
            .into()
    }

    pub(crate) fn client(self, own: Option<Credential>) -> rustls::Connection {
        let builder = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let mut config = match own {
            Some(own) => builder.with_client_auth_cert(own.chain, own.key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn;
        let name = ServerName::try_from("server.example").unwrap();
        rustls::ClientConnection::new(Arc::new(config), name)
            .unwrap()
            .into()
    }
}

/// Checks signatures but no names and no chain: these tests look at our side's checks.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Everything that `peer` has to say.
pub(crate) fn written(peer: &mut rustls::Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Hands `bytes` to `peer`.
pub(crate) fn feed(peer: &mut rustls::Connection, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        peer.read_tls(&mut bytes).unwrap();
        peer.process_new_packets()?;
    }
    Ok(())
}

/// All plaintext that `peer` has.
pub(crate) fn read_all(peer: &mut rustls::Connection) -> Vec<u8> {
    use std::io::Read;
    let mut plaintext = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = peer.reader().read(&mut chunk) {
        plaintext.extend_from_slice(&chunk[..length]);
    }
    plaintext
}

/// Runs our machine against an ordinary rustls peer, `cut` bytes at a time.
pub(crate) fn shake_hands_with(
    ours: Handshake,
    peer: &mut rustls::Connection,
    cut: usize,
) -> (Result<Established, TlsError>, Result<(), Error>) {
    let mut out = Vec::new();
    let mut ours = ours.step(&[], &mut out);
    let mut theirs = Ok(());
    loop {
        let said = std::mem::take(&mut out);
        if theirs.is_ok() {
            theirs = feed(peer, &said);
        }
        let heard = written(peer);
        if said.is_empty() && heard.is_empty() {
            return (finished(ours), theirs);
        }
        for piece in heard.chunks(cut) {
            ours = deliver(ours, &mut piece.to_vec(), &mut out);
        }
    }
}
