//! The cluster's certificate authority and what it has signed, in files.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// The first address of the services' network, as which pods know the server.
const IN_CLUSTER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1));

/// A certificate and its key.
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Everything that the server and its administrator are known by.
pub(super) struct Credentials {
    pub(super) authority: PathBuf,
    pub(super) server: Pair,
    pub(super) admin: Pair,
    /// Key that service accounts' tokens are signed with, and the public one that they are verified with.
    pub(super) token_keys: [PathBuf; 2],
}

impl Credentials {
    pub(super) fn create(directory: &Path, address: IpAddr) -> Result<Self> {
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        name(&mut authority, "test-cluster", None);
        let key = KeyPair::generate().context("a key")?;
        let issuer = CertifiedIssuer::self_signed(authority, key).context("an authority")?;
        let sign = |file: &str, parameters: &CertificateParams| -> Result<Pair> {
            let key = KeyPair::generate().context("a key")?;
            let signed = parameters
                .signed_by(&key, &issuer)
                .context("a certificate")?;
            Ok(Pair {
                certificate: write(&format!("{file}.crt"), &signed.pem())?,
                key: write(&format!("{file}.key"), &key.serialize_pem())?,
            })
        };
        let tokens = KeyPair::generate().context("a key")?;
        let mut server = CertificateParams::default();
        name(&mut server, "kube-apiserver", None);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.subject_alt_names = vec![
            SanType::IpAddress(address),
            SanType::IpAddress(IN_CLUSTER),
            SanType::DnsName("kubernetes.default.svc".try_into().context("a name")?),
        ];
        let mut admin = CertificateParams::default();
        // The group that RBAC lets do everything.
        name(&mut admin, "admin", Some("system:masters"));
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Self {
            authority: write("ca.crt", &issuer.pem())?,
            server: sign("kube-apiserver", &server)?,
            admin: sign("admin", &admin)?,
            token_keys: [
                write("tokens.key", &tokens.serialize_pem())?,
                write("tokens.pub", &tokens.public_key_pem())?,
            ],
        })
    }

    /// The administrator as a kubeconfig knows one.
    pub(super) fn admin_user(&self) -> Value {
        json!({
            "client-certificate": self.admin.certificate,
            "client-key": self.admin.key,
        })
    }
}

fn name(parameters: &mut CertificateParams, common: &str, organization: Option<&str>) {
    parameters
        .distinguished_name
        .push(DnType::CommonName, common);
    if let Some(organization) = organization {
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
}
