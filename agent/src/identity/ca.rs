//! A CA whose key we hold: an agent's in `--ca-dir`, which signs one SVID per service account, or the controller's in
//! a Secret, which signs for agents.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem};
use userspace_l7::model::{SpiffeId, TrustDomain};
use userspace_l7::tls::{Identity, IdentityError};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::files::{self, CERTIFICATE, CHAIN, CaFiles, CaFilesError, KEY, ROOTS};

/// How far a peer's clock may be behind ours; Istio's CA backdates as much.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 60);

/// Life of a CA that we make ourselves: ten years, Istio's figure.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A CA whose key is here. The key appears in no `Debug`.
#[derive(Debug)]
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    /// Sent behind the leaf: everything between it and a root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

/// The local CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// Its files cannot be had.
    #[error(transparent)]
    Files(#[from] CaFilesError),
    /// A file holds no PEM of the kind that its name promises.
    #[error("{} holds no usable PEM {expected}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// The signing certificate is not X.509.
    #[error("{} cannot be read as a certificate", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: x509_parser::asn1_rs::Err<x509_parser::error::X509Error>,
    },
    /// The key is of a kind that cannot sign certificates here.
    #[error("the key in {} cannot sign: use an RSA or ECDSA key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rcgen::Error,
    },
    /// Certificate and key are of two pairs.
    #[error("{CERTIFICATE} and {KEY} in {} do not belong together: put a matching pair there", directory.display())]
    Mismatch {
        /// The CA directory.
        directory: PathBuf,
    },
    /// The certificate may not sign others.
    #[error("{} is not a CA certificate: its basic constraints do not say so", path.display())]
    NotCa {
        /// The file.
        path: PathBuf,
    },
    /// Workloads would not trust each other.
    #[error("certificates signed by {CERTIFICATE} in {} are not valid under {ROOTS}", directory.display())]
    Trial {
        /// The CA directory.
        directory: PathBuf,
        /// What the trial showed.
        #[source]
        source: IssueError,
    },
    /// A CA could not be made.
    #[error("a new CA could not be made")]
    Make(#[source] rcgen::Error),
}

/// An SVID could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The CA's own time is over.
    #[error("the CA's certificate expired at {0}: replace it")]
    Expired(Timestamp),
    /// The certificate could not be signed.
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    /// What was signed cannot be used.
    #[error("the issued certificate cannot be used")]
    Unusable(#[source] IdentityError),
}

/// For whom a certificate is signed.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A workload.
    Workload(&'a SpiffeId),
    /// A server, by its DNS names.
    Server(&'a [String]),
}

impl LocalCa {
    /// Opens the CA in `directory`, which is made on first use. Also what it was loaded from.
    ///
    /// # Errors
    /// [`LocalCaError`]: one sentence about what is wrong and what to do.
    pub(super) fn open(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(Self, CaFiles), LocalCaError> {
        let files = files::read_or_create(directory, || make(trust_domain, now))?;
        let ca = Self::load(&files, directory, trust_domain, now)?;
        Ok((ca, files))
    }

    /// A new CA, which is its own root and lives for ten years.
    ///
    /// # Errors
    /// [`LocalCaError::Make`].
    pub fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<CaFiles, LocalCaError> {
        make(trust_domain, now)
    }

    /// Takes over the contents of `directory`, which is named in errors only.
    ///
    /// # Errors
    /// [`LocalCaError`]: they do not make a CA that workloads would trust.
    pub fn load(
        files: &CaFiles,
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, LocalCaError> {
        let path = |name: &str| directory.join(name);
        let signing = certificates(&files.certificate, &path(CERTIFICATE))?;
        let roots = certificates(&files.roots, &path(ROOTS))?;
        // `certificates` never yields an empty list.
        let certificate = &signing[0];
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|source| LocalCaError::Certificate {
                path: path(CERTIFICATE),
                source,
            })?;
        if !parsed.is_ca() {
            return Err(LocalCaError::NotCa {
                path: path(CERTIFICATE),
            });
        }
        let key = signing_key(&files.key, &path(KEY))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(LocalCaError::Mismatch {
                directory: directory.to_owned(),
            });
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
        let issuer =
            Issuer::from_ca_cert_der(certificate, key).map_err(|source| LocalCaError::Key {
                path: path(CERTIFICATE),
                source,
            })?;
        let mut intermediates = signing.clone();
        if !files.chain.is_empty() {
            intermediates.extend(certificates(&files.chain, &path(CHAIN))?);
        }
        let ca = Self {
            issuer,
            intermediates: without_roots(intermediates),
            roots,
            not_after,
        };
        // Better to learn now than from every handshake that the chain leads nowhere.
        let trial = SpiffeId::new(trust_domain.clone(), "culvert", "trial");
        ca.issue(&trial, now, CLOCK_SKEW)
            .map_err(|source| LocalCaError::Trial {
                directory: directory.to_owned(),
                source,
            })?;
        Ok(ca)
    }

    /// Issues an SVID with a new key, valid for `lifetime` from `now` but not beyond the CA itself.
    ///
    /// # Errors
    /// [`IssueError`]: what comes out would not be accepted by peers with the same roots.
    pub(super) fn issue(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, IssueError> {
        let key = KeyPair::generate().map_err(IssueError::Sign)?;
        let leaf = self.sign(Subject::Workload(id), &key, now, lifetime)?;
        let chain = std::iter::once(leaf.into()).chain(self.intermediates.iter().cloned());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let identity = Identity::new(chain.collect(), &key, self.roots.clone())
            .map_err(IssueError::Unusable)?;
        identity.check_trusted(now).map_err(IssueError::Unusable)?;
        Ok(identity)
    }

    /// Signs a certificate for a key, valid for `lifetime` from `now` but not beyond the CA itself.
    ///
    /// # Errors
    /// [`IssueError`]: the CA is over, or cannot sign this.
    pub fn sign(
        &self,
        subject: Subject<'_>,
        key: &impl PublicKeyData,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Certificate, IssueError> {
        if now >= self.not_after {
            let expired = Timestamp::try_from(self.not_after).unwrap_or(Timestamp::MAX);
            return Err(IssueError::Expired(expired));
        }
        let mut params = CertificateParams::default();
        let from = now - CLOCK_SKEW.min(lifetime / 10);
        set_validity(&mut params, from, (now + lifetime).min(self.not_after));
        // Empty, which makes the SPIFFE ID a critical name (RFC 5280 §4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        match subject {
            Subject::Workload(id) => {
                let uri = id.to_string().try_into().map_err(IssueError::Sign)?;
                params.subject_alt_names = vec![SanType::URI(uri)];
                params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ClientAuth);
            }
            Subject::Server(names) => {
                for name in names {
                    let name = name.clone().try_into().map_err(IssueError::Sign)?;
                    params.subject_alt_names.push(SanType::DnsName(name));
                }
            }
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(key, &self.issuer)
            .map_err(IssueError::Sign)
    }

    /// What is between a certificate of ours and a root.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// The roots that workloads trust.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Until when it can sign.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// A self-signed ECDSA P-256 CA, which is its own root.
fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<CaFiles, LocalCaError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, now - CLOCK_SKEW, now + CA_LIFETIME);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain.as_str());
    params
        .distinguished_name
        .push(DnType::CommonName, "Culvert mesh CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(LocalCaError::Make)?;
    let certificate = params
        .self_signed(&key)
        .map_err(LocalCaError::Make)?
        .pem()
        .into_bytes();
    Ok(CaFiles {
        roots: certificate.clone(),
        chain: certificate.clone(),
        certificate,
        key: key.serialize_pem().into_bytes(),
    })
}

/// All certificates of a PEM file, at least one.
fn certificates(
    contents: &[u8],
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, LocalCaError> {
    let unusable = |source| LocalCaError::Pem {
        path: path.to_owned(),
        expected: "certificate",
        source,
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(contents)
        .collect::<Result<_, _>>()
        .map_err(unusable)?;
    if found.is_empty() {
        return Err(unusable(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn signing_key(contents: &[u8], path: &Path) -> Result<KeyPair, LocalCaError> {
    let der = PrivateKeyDer::from_pem_slice(contents).map_err(|source| LocalCaError::Pem {
        path: path.to_owned(),
        expected: "private key",
        source,
    })?;
    KeyPair::try_from(&der).map_err(|source| LocalCaError::Key {
        path: path.to_owned(),
        source,
    })
}

/// Each certificate once, and no self-signed one: peers have their own roots, and believe no other.
pub(super) fn without_roots(chain: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for certificate in chain {
        let is_root = X509Certificate::from_der(&certificate)
            .is_ok_and(|(_, parsed)| parsed.issuer() == parsed.subject());
        if !is_root && !kept.contains(&certificate) {
            kept.push(certificate);
        }
    }
    kept
}

/// Sets a certificate's validity. X.509 knows whole seconds; a date before the epoch does not come up.
fn set_validity(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let epoch = date_time_ymd(1970, 1, 1);
    let whole_seconds = |time: SystemTime| {
        let since_epoch = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Duration::from_secs(since_epoch.as_secs())
    };
    params.not_before = epoch + whole_seconds(from);
    params.not_after = epoch + whole_seconds(to);
}
