//! PEM → the values that TLS is made with. Pure.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use userspace_l7::model::{Authorities, Credential, PrivateKey};

use super::Unusable;
use crate::mesh::credential::CredentialSource;
use crate::mesh::object::ObjectKey;

/// Certificates, at least one.
pub(super) fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.ok().filter(|read| !read.is_empty())?;
    Some(read.iter().map(|one| one.to_vec()).collect())
}

fn private_key(pem: &[u8]) -> Option<PrivateKey> {
    Some(match PrivateKeyDer::from_pem_slice(pem).ok()? {
        PrivateKeyDer::Pkcs8(der) => PrivateKey::Pkcs8(der.secret_pkcs8_der().into()),
        PrivateKeyDer::Pkcs1(der) => PrivateKey::Pkcs1(der.secret_pkcs1_der().into()),
        PrivateKeyDer::Sec1(der) => PrivateKey::Sec1(der.secret_sec1_der().into()),
        _ => return None,
    })
}

/// The authorities that a Secret or `ConfigMap` holds.
pub(super) fn authorities(
    key: &ObjectKey,
    source: &CredentialSource,
) -> Result<Authorities, Unusable> {
    let missing = || format!("names {key}, which has no ca.crt");
    let pem = source.authorities().ok_or_else(missing)?;
    let broken = || format!("names {key}, whose ca.crt holds no certificates in PEM");
    let certificates = certificates(pem).ok_or_else(broken)?;
    Ok(Authorities::Certificates(certificates.into()))
}

/// The certificate and key that a Secret holds.
pub(super) fn credential(
    key: &ObjectKey,
    source: &CredentialSource,
) -> Result<Credential, Unusable> {
    let missing = |what: &str| format!("names {key}, which has no {what}");
    let broken = |what: &str| format!("names {key}, whose {what} is not in PEM");
    let chain = source.chain().ok_or_else(|| missing("tls.crt"))?;
    let own = source.key().ok_or_else(|| missing("tls.key"))?;
    let chain = certificates(chain).ok_or_else(|| broken("tls.crt"))?;
    let own = private_key(own).ok_or_else(|| broken("tls.key"))?;
    Ok(Credential {
        chain: Arc::from(chain),
        key: own,
    })
}
