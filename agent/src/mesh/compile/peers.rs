//! PeerAuthentications → DENY policies for peers without identity (as istiod converts them).
//!
//! Precedence: port of a workload, workload, namespace, mesh; of several on one level the oldest.

use std::collections::BTreeMap;
use std::sync::Arc;

use userspace_l7::model::{
    Action, AuthorizationPolicy, Clause, Match, PolicyKey, Rule, Scope, StringMatch,
};

use super::Compiler;
use super::policies::Verdict;
use crate::mesh::meta::{Interner, Labels};
use crate::mesh::peer_authentication::PeerAuthentication;

/// The policy of workloads that take mTLS only, on every port.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// Prefix of policies with exceptions for ports.
const CONVERTED: &str = "converted_peer_authentication_";

/// What the PeerAuthentications of one namespace come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PeerRules {
    /// Whether workloads that no selector selects are strict.
    strict: bool,
    /// Selectors in order of precedence, with the policy that each means.
    selected: Vec<(Labels, Option<PolicyKey>)>,
    /// Policies with exceptions for ports.
    pub(super) policies: BTreeMap<PolicyKey, Arc<AuthorizationPolicy>>,
}

impl Compiler {
    /// What the PeerAuthentications of `namespace` come to.
    pub(super) fn compile_peers(&self, namespace: &str) -> PeerRules {
        let root = &*self.options.root_namespace;
        let mesh = self.whole_namespace_mode(root).unwrap_or(false);
        let inherited = self.whole_namespace_mode(namespace).unwrap_or(mesh);
        let mut rules = PeerRules {
            strict: inherited,
            ..PeerRules::default()
        };
        if namespace == root {
            // In the root namespace a selector is left to sidecars, as Istio has it.
            return rules;
        }
        for policy in self.by_age(namespace) {
            let Some(labels) = policy.spec.labels() else {
                continue;
            };
            let selector = Labels::new(Some(labels.clone()), &mut Interner::default());
            let strict = policy.spec.mode().is_strict().unwrap_or(inherited);
            let converted = convert(policy, strict);
            let key = match &converted {
                Some(policy) => Some(policy.key.clone()),
                None => strict.then(|| self.static_strict_key()),
            };
            rules.selected.push((selector, key));
            if let Some(policy) = converted {
                rules.policies.insert(policy.key.clone(), Arc::new(policy));
            }
        }
        rules
    }

    /// The one policy that PeerAuthentication means for a workload.
    pub(super) fn peer_policy(&self, namespace: &str, labels: &Labels) -> Option<PolicyKey> {
        let root = &self.options.root_namespace;
        let rules = self
            .peer_rules
            .get(namespace)
            .or_else(|| self.peer_rules.get(root))?;
        let selected = rules
            .selected
            .iter()
            .find(|(selector, _)| selector.select(labels));
        match selected {
            Some((_, key)) => key.clone(),
            None => rules.strict.then(|| self.static_strict_key()),
        }
    }

    fn by_age(&self, namespace: &str) -> Vec<&PeerAuthentication> {
        let mut policies: Vec<_> = self
            .store
            .peers
            .in_namespace(namespace)
            .map(|policy| &**policy)
            .collect();
        policies.sort_by_key(|policy| policy.meta.age_order());
        policies
    }

    /// Mode of the oldest policy for a whole namespace, if it has one.
    fn whole_namespace_mode(&self, namespace: &str) -> Option<bool> {
        let policies = self.by_age(namespace);
        let whole = policies
            .iter()
            .find(|policy| policy.spec.labels().is_none());
        whole.and_then(|policy| policy.spec.mode().is_strict())
    }

    pub(super) fn static_strict_key(&self) -> PolicyKey {
        let namespace = Arc::clone(&self.options.root_namespace);
        PolicyKey {
            namespace,
            name: STATIC_STRICT.into(),
        }
    }

    /// The policy for strict workloads; there only while some PeerAuthentication is.
    pub(super) fn static_strict(&self) -> Option<AuthorizationPolicy> {
        self.store.peers.iter().next()?;
        let rule = Rule {
            clauses: vec![one_clause(anonymous())],
        };
        Some(deny(self.static_strict_key(), vec![rule]))
    }

    pub(super) fn peer_verdict(&self, policy: &PeerAuthentication) -> Verdict {
        let ignored = policy.meta.name.namespace == self.options.root_namespace
            && policy.spec.labels().is_some();
        if ignored {
            let message = "a selector in the root namespace selects nothing in ambient mode: move the policy to the workload's namespace";
            return Verdict::unsupported_by_l4(message.to_owned(), message);
        }
        Verdict::accepted_by_l4()
    }
}

/// The policy of a workload whose ports differ; none if they do not.
fn convert(policy: &PeerAuthentication, strict: bool) -> Option<AuthorizationPolicy> {
    let modes = policy.spec.port_modes();
    let differing = modes.filter(|(_, mode)| mode.is_strict() == Some(!strict));
    let mut ports: Vec<_> = differing.map(|(port, _)| port).collect();
    if ports.is_empty() {
        return None;
    }
    ports.sort_unstable();
    let clauses = if strict {
        let elsewhere = Match {
            not_destination_ports: ports,
            ..Match::default()
        };
        vec![one_clause(anonymous()), one_clause(elsewhere)]
    } else {
        vec![one_clause(Match {
            destination_ports: ports,
            ..anonymous()
        })]
    };
    let name = &policy.meta.name;
    let key = PolicyKey {
        namespace: Arc::clone(&name.namespace),
        name: format!("{CONVERTED}{}", name.name).into(),
    };
    Some(deny(key, vec![Rule { clauses }]))
}

/// A peer without identity: it came in plaintext.
fn anonymous() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

fn one_clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

fn deny(key: PolicyKey, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key,
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules,
    }
}
