//! What a signing request has to be before a key is certified. Pure.

use std::time::Duration;

use rcgen::{CertificateSigningRequestParams, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use userspace_l7::model::SpiffeId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

/// Shortest RSA key, in bits.
const RSA_BITS: usize = 2048;
/// Longest RSA key, in bits: larger ones are work for whoever verifies.
const MOST_RSA_BITS: usize = 8192;
/// Curves of elliptic keys, by their bits: P-256 and P-384.
const CURVE_BITS: [usize; 2] = [256, 384];
/// Shortest certificate: one that is over before it is used helps nobody.
const SHORTEST: Duration = Duration::from_secs(1);

/// A request that will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// It cannot be read.
    #[error("the signing request cannot be read as PEM")]
    Unreadable,
    /// It is not signed with the key that it is about, or asks for what no workload gets.
    #[error("the signing request is not signed by its own key, or asks for extensions of others")]
    Signature,
    /// A key that is too weak, or of a kind that peers do not verify.
    #[error("the key is neither ECDSA on P-256 or P-384 nor RSA of 2048 to 8192 bits")]
    Key,
    /// It names somebody else than the request does.
    #[error("the signing request names somebody else than the request's metadata")]
    Name,
}

/// The key of a request in PEM, if it proves to be its owner's and names nobody else than `id`.
pub(super) fn key(csr: &str, id: &SpiffeId) -> Result<SubjectPublicKeyInfo, Unfit> {
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes())
        .map_err(|_error| Unfit::Unreadable)?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&der).map_err(|_error| Unfit::Unreadable)?;
    let info = &parsed.certification_request_info.subject_pki;
    let is_strong = match info.parsed() {
        Ok(PublicKey::EC(point)) => CURVE_BITS.contains(&point.key_size()),
        Ok(PublicKey::RSA(key)) => (RSA_BITS..=MOST_RSA_BITS).contains(&key.key_size()),
        _ => false,
    };
    if !is_strong {
        return Err(Unfit::Key);
    }
    let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_error| Unfit::Key)?;
    // Verifies the signature.
    CertificateSigningRequestParams::from_der(&der).map_err(|_error| Unfit::Signature)?;
    let expected = id.to_string();
    let extensions = parsed.requested_extensions().into_iter().flatten();
    let mut names = extensions
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    // Who it is about is what the authority says; that both agree shows a mistake early.
    if !names.all(|name| matches!(name, GeneralName::URI(uri) if *uri == expected)) {
        return Err(Unfit::Name);
    }
    Ok(key)
}

/// How long a certificate is valid for which so much was asked.
pub(super) fn lifetime(asked: Duration, longest: Duration) -> Duration {
    if asked.is_zero() {
        return longest;
    }
    asked.clamp(SHORTEST, longest.max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P384_SHA384,
        PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _, SanType,
        SignatureAlgorithm,
    };

    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn id() -> SpiffeId {
        WEB.parse().unwrap()
    }

    fn csr(kind: &'static SignatureAlgorithm, names: &[&str]) -> (KeyPair, String) {
        let mut params = CertificateParams::default();
        for name in names {
            let uri = (*name).try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let key = KeyPair::generate_for(kind).unwrap();
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        (key, csr)
    }

    #[test]
    fn keys_of_known_kinds_are_certified() {
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        for (kind, names, expected) in [
            (p256, &[WEB][..], Ok(())),
            (p256, &[], Ok(())),
            (&PKCS_ECDSA_P384_SHA384, &[WEB], Ok(())),
            (&PKCS_RSA_SHA256, &[WEB], Ok(())),
            (&PKCS_ECDSA_P521_SHA512, &[WEB], Err(Unfit::Key)),
            (&PKCS_ED25519, &[WEB], Err(Unfit::Key)),
            (
                p256,
                &["spiffe://cluster.local/ns/shop/sa/db"],
                Err(Unfit::Name),
            ),
            (
                p256,
                &[WEB, "spiffe://cluster.local/ns/shop/sa/db"],
                Err(Unfit::Name),
            ),
        ] {
            let (own, csr) = csr(kind, names);
            let found = key(&csr, &id());
            assert_eq!(
                found.as_ref().map(drop).map_err(|why| *why),
                expected,
                "{names:?}"
            );
            if let Ok(found) = found {
                assert_eq!(
                    found.subject_public_key_info(),
                    own.subject_public_key_info()
                );
            }
        }
    }

    #[test]
    fn a_request_has_to_be_whole_and_its_own() {
        for text in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            assert_eq!(key(text, &id()), Err(Unfit::Unreadable), "{text}");
        }
        // Another's signature below it: the last byte is the signature's.
        let (_, text) = csr(&rcgen::PKCS_ECDSA_P256_SHA256, &[WEB]);
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).unwrap();
        let mut bytes = der.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            data_encoding::BASE64.encode(&bytes)
        );
        assert_eq!(key(&forged, &id()), Err(Unfit::Signature));
        let mut params = CertificateParams::default();
        let extension = CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
        params.custom_extensions.push(extension);
        let own = KeyPair::generate().unwrap();
        let odd = params.serialize_request(&own).map(|csr| csr.pem().unwrap());
        if let Ok(odd) = odd {
            assert_eq!(key(&odd, &id()), Err(Unfit::Signature));
        }
    }

    #[test]
    fn lifetimes_are_capped() {
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        for (asked, expected) in [
            (Duration::ZERO, day),
            (second / 2, second),
            (day / 2, day / 2),
            (day * 30, day),
        ] {
            assert_eq!(lifetime(asked, day), expected, "{asked:?}");
        }
    }
}
