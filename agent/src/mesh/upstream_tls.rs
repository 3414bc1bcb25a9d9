//! What a DestinationRule says of TLS and of the PROXY protocol towards applications.

use serde::Deserialize;

use super::field::{Faults, FieldPath};

/// `trafficPolicy.tls`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct ClientTls {
    pub mode: TlsMode,
    pub client_certificate: String,
    pub private_key: String,
    pub ca_certificates: String,
    pub ca_crl: String,
    pub credential_name: String,
    pub subject_alt_names: Vec<String>,
    pub sni: String,
    pub insecure_skip_verify: bool,
}

/// `tls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum TlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// `trafficPolicy.proxyProtocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ProxyProtocol {
    /// V1 if it says nothing.
    pub version: ProxyVersion,
}

/// `proxyProtocol.version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum ProxyVersion {
    #[default]
    V1,
    V2,
}

impl ClientTls {
    /// The name of the Secret that it takes its certificates from.
    pub(crate) fn credential(&self) -> Option<&str> {
        let name = self.credential_name.as_str();
        let name = name.strip_prefix("kubernetes://").unwrap_or(name);
        (!name.is_empty()).then_some(name)
    }

    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let files = [
            ("clientCertificate", &self.client_certificate),
            ("privateKey", &self.private_key),
        ];
        let named = !self.credential_name.is_empty();
        let has_files = files.iter().all(|(_, path)| !path.is_empty());
        if self.mode == TlsMode::Mutual && !named && !has_files {
            let rule = "is missing: MUTUAL needs a Secret with tls.crt, tls.key and ca.crt";
            faults.add(place.join("credentialName"), rule);
        }
        if named {
            for (name, path) in files {
                if !path.is_empty() {
                    let rule = "a certificate comes from credentialName or from files, not both: remove one";
                    faults.add(place.join(name), rule);
                }
            }
        }
        for (index, name) in self.subject_alt_names.iter().enumerate() {
            if name.is_empty() {
                let rule = "is empty: write a DNS name, an IP address or a URI";
                faults.add(place.join("subjectAltNames").join(index), rule);
            }
        }
    }
}
