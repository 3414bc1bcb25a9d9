//! AuthorizationPolicy as Istio defines it (`security.istio.io`), layer 7 fields included.

mod check;

use serde::Deserialize;

use super::meta::Meta;
use super::selector::{TargetReference, WorkloadSelector};

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: AuthorizationPolicySpec,
}

/// `spec` of an AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// Workloads it is about; absent: its whole namespace.
    pub selector: Option<WorkloadSelector>,
    /// Old form of `targetRefs`.
    pub target_ref: Option<TargetReference>,
    /// Objects it is about.
    #[serde(default)]
    pub target_refs: Vec<TargetReference>,
    /// What a match means.
    #[serde(default)]
    pub action: PolicyAction,
    /// Who decides, for CUSTOM.
    pub provider: Option<Provider>,
    /// OR.
    #[serde(default)]
    pub rules: Vec<PolicyRule>,
}

impl AuthorizationPolicySpec {
    /// All targets, whichever field names them.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &TargetReference> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

/// `action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// Let it pass.
    #[default]
    Allow,
    /// Refuse it.
    Deny,
    /// Only note it.
    Audit,
    /// Ask the provider.
    Custom,
}

/// `provider`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Provider {
    /// Name of an extension provider.
    #[serde(default)]
    pub name: String,
}

/// One rule: from AND to AND when.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
pub struct PolicyRule {
    /// OR.
    #[serde(default)]
    pub from: Vec<From>,
    /// OR.
    #[serde(default)]
    pub to: Vec<To>,
    /// AND.
    #[serde(default)]
    pub when: Vec<Condition>,
}

/// One entry of `from`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
pub struct From {
    /// Who.
    pub source: Option<Source>,
}

/// One entry of `to`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
pub struct To {
    /// What.
    pub operation: Option<Operation>,
}

/// Who calls: AND of its fields, each an OR of its values.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is called: AND of its fields, each an OR of its values.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// One entry of `when`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The attribute.
    pub key: String,
    /// OR.
    #[serde(default)]
    pub values: Vec<String>,
    /// None of them.
    #[serde(default)]
    pub not_values: Vec<String>,
}

/// Keys of `when` that layer 4 can answer.
pub(crate) const L4_KEYS: [&str; 7] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
];
