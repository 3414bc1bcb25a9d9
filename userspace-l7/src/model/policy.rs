//! L4 authorization policies in the normal form that ztunnel and istiod exchange:
//! a policy is an OR of rules, a rule an AND of clauses, a clause an OR of matches.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

/// `<namespace>/<name>` of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Object name, or the name of a policy derived from PeerAuthentication.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which workloads a policy speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// Workloads that name the policy in [`super::Workload::authorization_policies`].
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Let the connection pass, and by existing refuse what nothing allows.
    Allow,
    /// Refuse the connection, whatever allows it.
    Deny,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its name.
    pub key: PolicyKey,
    /// Whom it speaks about.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Evaluated and reported, but never enforced (`istio.io/dry-run`).
    pub dry_run: bool,
    /// OR. No rule matches nothing.
    pub rules: Vec<Rule>,
}

/// AND of its clauses. No clause matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// AND.
    pub clauses: Vec<Clause>,
}

/// OR of its matches. No match matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Clause {
    /// OR.
    pub matches: Vec<Match>,
}

/// AND of its fields; within a field OR; of a `not_` field none may hold. All fields empty matches
/// nothing, so that a DENY whose every condition was dropped has no effect.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Match {
    /// Namespace of the peer's identity.
    pub namespaces: Vec<StringMatch>,
    /// Not this namespace.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's SPIFFE ID without its scheme.
    pub principals: Vec<StringMatch>,
    /// Not this principal; holds for a peer without identity.
    pub not_principals: Vec<StringMatch>,
    /// Namespace and service account, in any trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not this service account.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Address of the TCP peer.
    pub source_ips: Vec<IpNet>,
    /// Not this address.
    pub not_source_ips: Vec<IpNet>,
    /// Address of the workload itself.
    pub destination_ips: Vec<IpNet>,
    /// Not this address.
    pub not_destination_ips: Vec<IpNet>,
    /// Port of the workload (never a service port).
    pub destination_ports: Vec<u16>,
    /// Not this port.
    pub not_destination_ports: Vec<u16>,
}

/// Istio's string patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// The same text.
    Exact(Arc<str>),
    /// `abc*`.
    Prefix(Arc<str>),
    /// `*abc`.
    Suffix(Arc<str>),
    /// `*`: any text but the empty one.
    Presence,
}

/// A service account of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Account name.
    pub service_account: Arc<str>,
}
