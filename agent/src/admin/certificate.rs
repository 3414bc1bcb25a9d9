//! What operators may see of a certificate: never its key.

use data_encoding::BASE64;
use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// One identity of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// SPIFFE URI.
    pub identity: String,
    /// Whether it can be used.
    pub state: CertificateState,
    /// The leaf first, then intermediates; empty unless available.
    pub chain: Vec<CertificateEntry>,
    /// The roots that peers of this identity are checked against.
    pub roots: Vec<CertificateEntry>,
}

/// Whether an identity can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateState {
    /// A valid certificate is there.
    Available,
    /// The first one has been asked for.
    Initializing,
    /// It could not be had, with the reason.
    Unavailable(String),
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateEntry {
    /// PEM text.
    pub pem: String,
    /// Serial number, decimal.
    pub serial: String,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// The bytes are no X.509 certificate that can be shown.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCertificate {
    /// Not DER, or not a certificate.
    #[error("the certificate cannot be decoded")]
    Decode(#[source] x509_parser::error::X509Error),
    /// A date outside what a timestamp can hold.
    #[error("the certificate's validity is out of range")]
    Validity(#[source] jiff::Error),
}

impl CertificateEntry {
    /// Reads what is shown from a DER certificate.
    ///
    /// # Errors
    /// [`InvalidCertificate`] if it cannot be decoded or its dates are absurd.
    pub fn from_der(der: &[u8]) -> Result<Self, InvalidCertificate> {
        let (_rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| InvalidCertificate::Decode(flatten(error)))?;
        let time = |seconds| Timestamp::from_second(seconds).map_err(InvalidCertificate::Validity);
        let validity = certificate.validity();
        Ok(Self {
            pem: pem(der),
            serial: certificate.tbs_certificate.serial.to_string(),
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }
}

fn flatten(
    error: x509_parser::nom::Err<x509_parser::error::X509Error>,
) -> x509_parser::error::X509Error {
    match error {
        x509_parser::nom::Err::Error(inner) | x509_parser::nom::Err::Failure(inner) => inner,
        x509_parser::nom::Err::Incomplete(_) => x509_parser::error::X509Error::InvalidCertificate,
    }
}

/// RFC 7468: base64 in lines of 64 characters between the two markers.
fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for bytes in der.chunks(PEM_LINE_BYTES) {
        BASE64.encode_append(bytes, &mut text);
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// 64 characters of base64.
const PEM_LINE_BYTES: usize = 48;

#[cfg(test)]
mod tests {
    use super::CertificateEntry;

    #[test]
    fn a_certificate_is_shown_with_its_serial_dates_and_pem() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.serial_number = Some(vec![0x01, 0, 0, 0, 0, 0, 0, 0, 0x02].into());
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2026, 3, 4);
        let certificate = params.self_signed(&key).unwrap();

        let entry = CertificateEntry::from_der(certificate.der()).unwrap();

        assert_eq!(
            entry.serial, "18446744073709551618",
            "2^64 + 2: decimal, beyond any integer"
        );
        assert_eq!(entry.not_before.to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(entry.not_after.to_string(), "2026-03-04T00:00:00Z");
        let (_rest, read) = x509_parser::pem::parse_x509_pem(entry.pem.as_bytes()).unwrap();
        assert_eq!(read.contents, certificate.der().as_ref());
        assert!(entry.pem.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bytes in [&b""[..], b"\x30\x03\x02\x01\x01", b"not DER at all"] {
            assert!(CertificateEntry::from_der(bytes).is_err(), "{bytes:?}");
        }
    }
}
