//! An authority of a scenario's own, with servers and clients that it vouches for.

use std::fmt::Write as _;
use std::io::{BufReader, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use crate::net;
use crate::net::http::{Ask, Response, read_response};

/// An authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, of this name.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server that proves these names, and wants a certificate of `clients` if there is such an authority.
    ///
    /// # Errors
    /// If the names are none.
    pub fn server(&self, names: &[&str], clients: Option<&Self>) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone())?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut config = builder.with_single_cert(vec![leaf.der().clone()], key.into())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate that proves these names, and its key, PEM.
    ///
    /// # Errors
    /// If the names are none.
    pub fn certificate(&self, names: &[&str]) -> Result<(String, String)> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    /// Sends a request inside of TLS, over a connection of its own, to a server that has to prove a name.
    ///
    /// # Errors
    /// If the server does not prove it, or there is no answer.
    pub fn ask(&self, name: &str, to: SocketAddr, ask: &Ask) -> Result<Response> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned())?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = StreamOwned::new(connection, net::connect(to)?);
        let ask = ask.clone().with("Connection", "close");
        stream
            .write_all(&ask.wire())
            .context("cannot send the request")?;
        read_response(&mut BufReader::new(stream), &ask.method)
    }

    /// A Secret of the shop with this authority, and a client's certificate with its key if `clients` vouches for one.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn secret(&self, name: &str, clients: Option<&Self>) -> Result<String> {
        let mut text = format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: shop}}\nstringData:\n"
        );
        entry(&mut text, "ca.crt", &self.pem());
        if let Some(clients) = clients {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(vec!["client.example".to_owned()])?;
            let leaf = params.signed_by(&key, &clients.issuer)?;
            entry(&mut text, "tls.crt", &leaf.pem());
            entry(&mut text, "tls.key", &key.serialize_pem());
        }
        Ok(text)
    }

    /// A `ConfigMap` of the shop with this authority.
    pub fn config_map(&self, name: &str) -> String {
        let mut text = format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: shop}}\ndata:\n"
        );
        entry(&mut text, "ca.crt", &self.pem());
        text
    }
}

/// One key of a map, its value a block of lines.
fn entry(text: &mut String, key: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  {key}: |");
    for line in value.lines() {
        let _ = writeln!(text, "    {line}");
    }
}
