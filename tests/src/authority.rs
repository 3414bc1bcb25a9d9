//! A client of the mesh's certificate authority that asks for whatever it is told to, as whomever: what an agent that was
//! taken over could do. Written against `security/v1alpha1/ca.proto` by itself, not with the agent's code. And a cluster
//! with an authority to ask.

mod mesh;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::lab::Netns;
pub use mesh::{Mesh, hand_out_tokens};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The service's port.
const PORT: u16 = 15012;
/// Whom its server has to prove to be.
const NAME: &str = "culvert-ca.culvert-system.svc";

/// A request.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The bearer token, if one is sent.
    pub token: Option<&'a str>,
    /// The identity in the metadata, if there is one.
    pub identity: Option<&'a str>,
    /// For how many seconds.
    pub seconds: i64,
    /// The signing request, in PEM.
    pub csr: &'a str,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// gRPC's status.
    pub status: u16,
    /// Its words.
    pub message: String,
    /// Certificates in PEM, the leaf first, the roots last.
    pub chain: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
}

/// A signing request of a new key that names `identity`.
///
/// # Errors
/// If the name is none.
pub fn csr(identity: &str) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    let key = KeyPair::generate()?;
    Ok(params.serialize_request(&key)?.pem()?)
}

/// Asks the authority at an address, from a network namespace, trusting `roots` only.
///
/// # Errors
/// If it cannot be reached or trusted, or answers something else than gRPC.
pub fn ask(from: &Netns, server: IpAddr, roots: &str, ask: &Ask<'_>) -> Result<Answer> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let request = request(ask)?;
    from.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let exchanged = async {
            let stream = tokio::net::TcpStream::connect(SocketAddr::new(server, PORT)).await?;
            let tls = TlsConnector::from(Arc::new(config));
            let stream = tls.connect(ServerName::try_from(NAME)?, stream).await?;
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            let (mut sender, connection) = shaken;
            tokio::spawn(async move { drop(connection.await) });
            let response = sender.send_request(request).await?;
            ensure!(response.status() == 200, "{}", response.status());
            let headers = response.headers().clone();
            let whole = response.into_body().collect().await?;
            let trailers = whole.trailers().cloned().unwrap_or(headers);
            Ok((trailers, whole.to_bytes()))
        };
        let exchanged = runtime.block_on(async { timeout(PATIENCE, exchanged).await });
        let (trailers, body) = exchanged.context("no answer in time")??;
        let field = |name: &str| {
            let value = trailers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let chain = match body.get(5..) {
            Some(message) => CertificateResponse::decode(message)?.cert_chain,
            None => Vec::new(),
        };
        Ok(Answer {
            status: field("grpc-status").parse().context("no grpc-status")?,
            message: field("grpc-message"),
            chain,
        })
    })
}

fn request(ask: &Ask<'_>) -> Result<Request<Full<Bytes>>> {
    let value = |identity: &str| Value {
        text: Some(identity.to_owned()),
    };
    let metadata = ask.identity.map(|identity| Struct {
        fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value(identity))]),
    });
    let message = CertificateRequest {
        csr: ask.csr.to_owned(),
        validity_duration: ask.seconds,
        metadata,
    };
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
    body.extend_from_slice(&message);
    let path = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let mut request = Request::post(format!("https://{NAME}:{PORT}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(token) = ask.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    Ok(request.body(Full::new(body.into()))?)
}
