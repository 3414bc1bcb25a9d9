//! Istio's rules → rules of layer 4.

use std::sync::Arc;

use ipnet::IpNet;
use userspace_l7::model::{Action, Clause, Match, Rule, ServiceAccountMatch, StringMatch};

use crate::mesh::authorization::{self as istio, Condition, L4_KEYS, Operation, Source};

/// Reads one policy's rules.
pub(super) struct Reading<'a> {
    pub(super) namespace: &'a Arc<str>,
    pub(super) trust_domain: &'a str,
    pub(super) action: Action,
    /// Names of the attributes that were left out.
    pub(super) unsupported: Vec<String>,
}

impl Reading<'_> {
    /// The rules that one rule comes to: none if it can never match.
    pub(super) fn rule(&mut self, rule: &istio::PolicyRule) -> Vec<Rule> {
        let left_out = self.unsupported.len();
        let mut clauses = Vec::new();
        let sources: Vec<_> = rule
            .from
            .iter()
            .filter_map(|from| from.source.as_ref())
            .collect();
        let sources: Vec<_> = sources
            .into_iter()
            .map(|source| self.source(source))
            .collect();
        let operations: Vec<_> = rule
            .to
            .iter()
            .filter_map(|to| to.operation.as_ref())
            .collect();
        let operations: Vec<_> = operations
            .into_iter()
            .map(|operation| self.operation(operation))
            .collect();
        // A source that two conditions must hold for cannot share a clause with its alternatives.
        let alternatives = if sources.iter().any(|(_, also)| also.is_some()) {
            sources
                .into_iter()
                .map(|(one, also)| {
                    [Some(one), also]
                        .into_iter()
                        .flatten()
                        .map(|one| vec![one])
                        .collect()
                })
                .collect()
        } else if sources.is_empty() {
            vec![Vec::new()]
        } else {
            vec![vec![sources.into_iter().map(|(one, _)| one).collect()]]
        };
        if !operations.is_empty() {
            clauses.push(operations);
        }
        for condition in &rule.when {
            let read = self.condition(condition);
            clauses.push(vec![read]);
        }
        let incomplete = self.unsupported.len() > left_out;
        if incomplete && self.action == Action::Allow {
            return Vec::new();
        }
        let complete = |from: Vec<Vec<Match>>| {
            let all: Vec<_> = from.into_iter().chain(clauses.clone()).collect();
            finish_rule(all, incomplete)
        };
        alternatives.into_iter().filter_map(complete).collect()
    }

    fn source(&mut self, source: &Source) -> (Match, Option<Match>) {
        for (name, list) in [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ] {
            self.note(name, list);
        }
        let domains = self.domains("trustDomains", &source.trust_domains);
        let mut one = Match {
            namespaces: patterns(&source.namespaces),
            not_namespaces: patterns(&source.not_namespaces),
            principals: self.principals(&source.principals),
            not_principals: self.principals(&source.not_principals),
            service_accounts: self.accounts(&source.service_accounts),
            not_service_accounts: self.accounts(&source.not_service_accounts),
            source_ips: ranges(&source.ip_blocks),
            not_source_ips: ranges(&source.not_ip_blocks),
            ..Match::default()
        };
        one.not_principals
            .extend(self.domains("notTrustDomains", &source.not_trust_domains));
        if domains.is_empty() {
            return (one, None);
        }
        if one.principals.is_empty() {
            one.principals = domains;
            return (one, None);
        }
        (
            one,
            Some(Match {
                principals: domains,
                ..Match::default()
            }),
        )
    }

    fn operation(&mut self, operation: &Operation) -> Match {
        for (name, list) in [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ] {
            self.note(name, list);
        }
        Match {
            destination_ports: ports(&operation.ports),
            not_destination_ports: ports(&operation.not_ports),
            ..Match::default()
        }
    }

    fn condition(&mut self, condition: &Condition) -> Match {
        let (yes, no) = (&condition.values, &condition.not_values);
        let mut one = Match::default();
        match condition.key.as_str() {
            "source.ip" => (one.source_ips, one.not_source_ips) = (ranges(yes), ranges(no)),
            "source.namespace" => {
                (one.namespaces, one.not_namespaces) = (patterns(yes), patterns(no));
            }
            "source.principal" => {
                (one.principals, one.not_principals) = (self.principals(yes), self.principals(no));
            }
            "source.serviceAccount" => {
                one.service_accounts = self.accounts(yes);
                one.not_service_accounts = self.accounts(no);
            }
            "source.trustDomain" => {
                one.principals = self.domains("source.trustDomain", yes);
                one.not_principals = self.domains("source.trustDomain", no);
            }
            "destination.ip" => {
                (one.destination_ips, one.not_destination_ips) = (ranges(yes), ranges(no));
            }
            "destination.port" => {
                (one.destination_ports, one.not_destination_ports) = (ports(yes), ports(no));
            }
            other => {
                debug_assert!(
                    !L4_KEYS.contains(&other),
                    "every key of layer 4 has its arm"
                );
                self.unsupported.push(other.to_owned());
            }
        }
        one
    }

    fn note(&mut self, name: &str, list: &[String]) {
        if !list.is_empty() {
            self.unsupported.push(name.to_owned());
        }
    }

    /// `cluster.local` stands for the mesh's own trust domain, whatever it is called.
    fn principals(&self, list: &[String]) -> Vec<StringMatch> {
        let own = |text: &String| match text.strip_prefix("cluster.local/") {
            Some(rest) => pattern(&format!("{}/{rest}", self.trust_domain)),
            None => pattern(text),
        };
        list.iter().map(own).collect()
    }

    fn accounts(&self, list: &[String]) -> Vec<ServiceAccountMatch> {
        let account = |text: &String| match text.split_once('/') {
            Some((namespace, account)) => ServiceAccountMatch {
                namespace: namespace.into(),
                service_account: account.into(),
            },
            None => ServiceAccountMatch {
                namespace: Arc::clone(self.namespace),
                service_account: text.as_str().into(),
            },
        };
        list.iter().map(account).collect()
    }

    /// Trust domains as patterns of whole principals. A pattern of a domain's end cannot be one.
    fn domains(&mut self, field: &str, list: &[String]) -> Vec<StringMatch> {
        let mut found = Vec::new();
        for text in list {
            match pattern(text) {
                StringMatch::Exact(domain) => {
                    let own = if &*domain == "cluster.local" {
                        self.trust_domain
                    } else {
                        &domain
                    };
                    found.push(StringMatch::Prefix(format!("{own}/").into()));
                }
                StringMatch::Suffix(_) => self.unsupported.push(field.to_owned()),
                whole @ (StringMatch::Prefix(_) | StringMatch::Presence) => found.push(whole),
            }
        }
        found
    }
}

/// Puts a rule together. Of alternatives those that are empty match nothing; a clause of nothing but such
/// is left out of a DENY rule that has others, and makes a rule void that has none.
fn finish_rule(clauses: Vec<Vec<Match>>, incomplete: bool) -> Option<Rule> {
    if !incomplete {
        let clauses = clauses
            .into_iter()
            .map(|matches| Clause { matches })
            .collect();
        return Some(Rule { clauses });
    }
    let mut kept = Vec::new();
    for mut matches in clauses {
        matches.retain(|one| *one != Match::default());
        if !matches.is_empty() {
            kept.push(Clause { matches });
        }
    }
    (!kept.is_empty()).then_some(Rule { clauses: kept })
}

pub(in crate::mesh::compile) fn pattern(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Presence
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

pub(in crate::mesh::compile) fn patterns(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|text| pattern(text)).collect()
}

/// Checked when the object was read.
pub(in crate::mesh::compile) fn ranges(list: &[String]) -> Vec<IpNet> {
    let range = |text: &String| {
        let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
        text.parse::<IpNet>()
            .or_else(|_| address())
            .ok()
            .map(|net| net.trunc())
    };
    list.iter().filter_map(range).collect()
}

/// Checked when the object was read.
pub(in crate::mesh::compile) fn ports(list: &[String]) -> Vec<u16> {
    list.iter().filter_map(|text| text.parse().ok()).collect()
}
