//! The harness: scratch directories, CAs that operators bring along, handshakes in memory.

mod directory;
mod issue;
mod keeper;
mod remote;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use userspace_l7::model::{SpiffeId, TrustDomain};
use userspace_l7::tls::{Handshake, Identity, Progress};

use super::ca::LocalCa;
use super::files::{CERTIFICATE, CHAIN, KEY, ROOTS};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A directory of its own for each test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "culvert-ca-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// A CA directory with these files.
    fn with(&self, files: &[(&str, &str)]) -> PathBuf {
        fs::create_dir_all(self.ca()).unwrap();
        for (name, contents) in files {
            fs::write(self.ca().join(name), contents).unwrap();
        }
        self.ca()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(domain(), "shop", account)
}

fn open(directory: &Path) -> Result<LocalCa, LocalCaError> {
    LocalCa::open(directory, &domain(), SystemTime::now()).map(|(ca, _)| ca)
}

fn issue(ca: &LocalCa, account: &str) -> Identity {
    ca.issue(&id(account), SystemTime::now(), DAY).unwrap()
}

/// Whether a session comes about between the two.
fn trust_each_other(client: &Identity, server: &Identity) -> bool {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let expected = [server.id().clone()];
    let mut client = Handshake::client(client, &expected)
        .unwrap()
        .step(&[], &mut to_server);
    let mut server = Handshake::server(server).unwrap().step(&[], &mut to_client);
    for _ in 0..4 {
        server = match server {
            Ok(Progress::Continue(machine)) => {
                machine.step(&std::mem::take(&mut to_server), &mut to_client)
            }
            other => other,
        };
        client = match client {
            Ok(Progress::Continue(machine)) => {
                machine.step(&std::mem::take(&mut to_client), &mut to_server)
            }
            other => other,
        };
    }
    matches!(
        (client, server),
        (Ok(Progress::Done(_)), Ok(Progress::Done(_)))
    )
}

/// Certificate and key of a CA that an operator might bring along.
struct Plugged {
    certificate: Certificate,
    params: CertificateParams,
    key: KeyPair,
}

impl Plugged {
    fn params(name: &str, is_ca: IsCa) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = is_ca;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn root(name: &str, key: KeyPair) -> Self {
        let params = Self::params(name, IsCa::Ca(BasicConstraints::Unconstrained));
        Self {
            certificate: params.self_signed(&key).unwrap(),
            params,
            key,
        }
    }

    fn below(&self, params: CertificateParams, key: KeyPair) -> Self {
        let issuer = Issuer::from_params(&self.params, &self.key);
        Self {
            certificate: params.signed_by(&key, &issuer).unwrap(),
            params,
            key,
        }
    }

    fn intermediate(&self, name: &str, key: KeyPair) -> Self {
        self.below(
            Self::params(name, IsCa::Ca(BasicConstraints::Unconstrained)),
            key,
        )
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }
}

fn p256() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn rsa() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap()
}

/// A directory whose CA, below a root, is over at `end`.
fn ending(scratch: &Scratch, end: SystemTime) -> PathBuf {
    let mut params = Plugged::params("short", IsCa::Ca(BasicConstraints::Unconstrained));
    let seconds = end
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let root = Plugged::root("root", p256());
    let ca = root.below(params, p256());
    scratch.with(&[
        (CERTIFICATE, &ca.pem()),
        (KEY, &ca.key.serialize_pem()),
        (ROOTS, &root.pem()),
    ])
}
