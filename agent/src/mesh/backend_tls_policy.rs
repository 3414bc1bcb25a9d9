//! BackendTLSPolicy as the Gateway API defines it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::field::{Faults, at};
use super::meta::Meta;
use super::selector::TargetReference;

/// A BackendTLSPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTlsPolicy {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: BackendTlsPolicySpec,
}

/// `spec` of a BackendTLSPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    /// Services or ServiceEntries of its namespace.
    pub target_refs: Vec<PolicyTarget>,
    /// How the server is verified.
    pub validation: Validation,
    /// Of implementations' own: we have none.
    pub options: BTreeMap<String, String>,
}

/// One of `targetRefs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    /// API group; empty for core.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// The name of one port; all of them if it says nothing.
    pub section_name: Option<String>,
}

impl PolicyTarget {
    /// The object alone.
    pub(crate) fn reference(&self) -> TargetReference {
        TargetReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: String::new(),
        }
    }
}

/// `validation`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    /// Who may vouch for the server.
    pub ca_certificate_refs: Vec<CertificateReference>,
    /// Or those that the system trusts.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<WellKnown>,
    /// The server's name.
    pub hostname: String,
    /// Names that it may prove instead.
    pub subject_alt_names: Vec<AlternativeName>,
}

/// One of `caCertificateRefs`, of the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CertificateReference {
    /// API group; empty for core.
    #[serde(default)]
    pub group: String,
    /// `ConfigMap` or `Secret`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// `wellKnownCACertificates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum WellKnown {
    /// Those of the system.
    System,
}

/// One of `subjectAltNames`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AlternativeName {
    /// Which of the two it has.
    #[serde(rename = "type")]
    pub kind: AlternativeKind,
    /// A DNS name.
    pub hostname: Option<String>,
    /// A URI.
    pub uri: Option<String>,
}

/// `type` of an alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the API's own words")]
pub enum AlternativeKind {
    Hostname,
    #[serde(rename = "URI")]
    Uri,
}

impl AlternativeName {
    /// The name itself.
    pub(crate) fn name(&self) -> Option<&str> {
        match self.kind {
            AlternativeKind::Hostname => self.hostname.as_deref(),
            AlternativeKind::Uri => self.uri.as_deref(),
        }
    }
}

/// The kinds that it may target.
const TARGETS: [(&str, &str); 2] = [("", "Service"), ("networking.istio.io", "ServiceEntry")];

impl BackendTlsPolicy {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        if spec.target_refs.is_empty() {
            let rule = "is missing: name the Service or ServiceEntry that wants TLS";
            faults.add(at!["spec", "targetRefs"], rule);
        }
        for (index, target) in spec.target_refs.iter().enumerate() {
            let place = at!["spec", "targetRefs", index];
            let reference = target.reference();
            reference.check_among(&TARGETS, &self.meta.name.namespace, &place, faults);
        }
        let validation = &spec.validation;
        let place = at!["spec", "validation"];
        if validation.hostname.is_empty() {
            faults.add(place.join("hostname"), "is missing: name the server");
        }
        let has_refs = !validation.ca_certificate_refs.is_empty();
        if has_refs == validation.well_known_ca_certificates.is_some() {
            let rule = "set exactly one of caCertificateRefs and wellKnownCACertificates";
            faults.add(place.clone(), rule);
        }
        for (index, name) in validation.subject_alt_names.iter().enumerate() {
            if name.name().is_none_or(str::is_empty) {
                let rule = "has no name of its type: set `hostname` or `uri` as `type` says";
                faults.add(place.join("subjectAltNames").join(index), rule);
            }
        }
    }
}
