//! AuthorizationPolicies with targets → policies of layer 7.

use std::sync::Arc;

use http::HeaderName;
use userspace_l7::model::{
    Attribute, AttributeMatch, AttributeValue, HttpPolicy, HttpPolicyAction, HttpPolicyRule,
    OperationMatch, PathPattern, PathTemplate, ServiceAccountMatch, SourceMatch, StringMatch,
    TemplateSegment,
};

use super::Compiler;
use super::policies::reading::{pattern, patterns, ports, ranges};
use super::policies::{DRY_RUN, policy_key};
use crate::mesh::authorization::{
    AuthorizationPolicy, Condition, Operation, PolicyAction, PolicyRule, Source,
};

/// Reads one policy's rules.
struct Reading<'a> {
    namespace: &'a Arc<str>,
    /// The mesh's own trust domain, then its aliases.
    domains: &'a [Arc<str>],
}

impl Compiler {
    /// What a policy with targets demands of requests.
    pub(super) fn http_policy(&self, policy: &AuthorizationPolicy) -> HttpPolicy {
        let name = &policy.meta.name;
        let action = match policy.spec.action {
            PolicyAction::Allow => HttpPolicyAction::Allow,
            PolicyAction::Deny => HttpPolicyAction::Deny,
            PolicyAction::Audit => HttpPolicyAction::Audit,
            PolicyAction::Custom => {
                let provider = policy.spec.provider.as_ref();
                HttpPolicyAction::Custom(
                    provider.and_then(|provider| self.authorizer(&provider.name)),
                )
            }
        };
        let domains = self.trust_domains();
        let reading = Reading {
            namespace: &name.namespace,
            domains: &domains,
        };
        HttpPolicy {
            key: policy_key(name),
            action,
            dry_run: policy.meta.annotations.get(DRY_RUN) == Some("true"),
            rules: policy
                .spec
                .rules
                .iter()
                .map(|rule| reading.rule(rule))
                .collect(),
        }
    }
}

impl Reading<'_> {
    fn rule(&self, rule: &PolicyRule) -> HttpPolicyRule {
        let sources = rule.from.iter().filter_map(|from| from.source.as_ref());
        let operations = rule.to.iter().filter_map(|to| to.operation.as_ref());
        HttpPolicyRule {
            from: sources.map(|source| self.source(source)).collect(),
            to: operations.map(operation).collect(),
            when: rule.when.iter().map(|one| self.condition(one)).collect(),
        }
    }

    fn source(&self, source: &Source) -> SourceMatch {
        SourceMatch {
            principals: self.principals(&source.principals),
            not_principals: self.principals(&source.not_principals),
            namespaces: patterns(&source.namespaces),
            not_namespaces: patterns(&source.not_namespaces),
            service_accounts: self.accounts(&source.service_accounts),
            not_service_accounts: self.accounts(&source.not_service_accounts),
            trust_domains: self.trust_domains(&source.trust_domains),
            not_trust_domains: self.trust_domains(&source.not_trust_domains),
            ip_blocks: ranges(&source.ip_blocks),
            not_ip_blocks: ranges(&source.not_ip_blocks),
            remote_ip_blocks: ranges(&source.remote_ip_blocks),
            not_remote_ip_blocks: ranges(&source.not_remote_ip_blocks),
            request_principals: patterns(&source.request_principals),
            not_request_principals: patterns(&source.not_request_principals),
        }
    }

    fn condition(&self, condition: &Condition) -> AttributeMatch {
        let texts = |list: &[String]| texts(patterns(list));
        let read = |list: &[String]| -> Vec<AttributeValue> {
            match condition.key.as_str() {
                "source.ip" | "remote.ip" | "destination.ip" => {
                    let ranges = ranges(list).into_iter();
                    ranges.map(AttributeValue::Net).collect::<Vec<_>>()
                }
                "destination.port" => ports(list).into_iter().map(AttributeValue::Port).collect(),
                "source.serviceAccount" => {
                    let accounts = self.accounts(list).into_iter();
                    accounts.map(AttributeValue::ServiceAccount).collect()
                }
                "source.principal" => self::texts(self.principals(list)),
                "source.trustDomain" => self::texts(self.trust_domains(list)),
                _ => texts(list),
            }
        };
        AttributeMatch {
            attribute: attribute(&condition.key),
            values: read(&condition.values),
            not_values: read(&condition.not_values),
        }
    }

    /// A principal of any of the mesh's own trust domains is meant in all of them: they are names of one.
    fn principals(&self, list: &[String]) -> Vec<StringMatch> {
        let expand = |text: &String| -> Vec<StringMatch> {
            let own = text
                .split_once('/')
                .filter(|(domain, _)| self.is_own(domain));
            match own {
                Some((_, rest)) => {
                    let domains = self.domains.iter();
                    domains
                        .map(|domain| pattern(&format!("{domain}/{rest}")))
                        .collect()
                }
                None => vec![pattern(text)],
            }
        };
        list.iter().flat_map(expand).collect()
    }

    fn trust_domains(&self, list: &[String]) -> Vec<StringMatch> {
        let expand = |text: &String| -> Vec<StringMatch> {
            if self.is_own(text) {
                self.domains
                    .iter()
                    .map(|domain| StringMatch::Exact(Arc::clone(domain)))
                    .collect()
            } else {
                vec![pattern(text)]
            }
        };
        list.iter().flat_map(expand).collect()
    }

    /// `cluster.local` stands for the mesh's own trust domain, whatever it is called.
    fn is_own(&self, domain: &str) -> bool {
        domain == "cluster.local" || self.domains.iter().any(|own| **own == *domain)
    }

    fn accounts(&self, list: &[String]) -> Vec<ServiceAccountMatch> {
        let account = |text: &String| {
            let (namespace, account) = match text.split_once('/') {
                Some((namespace, account)) => (namespace.into(), account),
                None => (Arc::clone(self.namespace), text.as_str()),
            };
            ServiceAccountMatch {
                namespace,
                service_account: account.into(),
            }
        };
        list.iter().map(account).collect()
    }
}

fn texts(patterns: Vec<StringMatch>) -> Vec<AttributeValue> {
    patterns.into_iter().map(AttributeValue::Text).collect()
}

fn operation(operation: &Operation) -> OperationMatch {
    OperationMatch {
        hosts: patterns(&operation.hosts),
        not_hosts: patterns(&operation.not_hosts),
        ports: ports(&operation.ports),
        not_ports: ports(&operation.not_ports),
        methods: patterns(&operation.methods),
        not_methods: patterns(&operation.not_methods),
        paths: operation.paths.iter().map(|text| path(text)).collect(),
        not_paths: operation.not_paths.iter().map(|text| path(text)).collect(),
    }
}

/// A path with braces is a template: its form was checked when the object was read.
fn path(text: &str) -> PathPattern {
    if !text.contains(['{', '}']) {
        return PathPattern::Text(pattern(text));
    }
    let text = text.strip_prefix('/').unwrap_or(text);
    let segment = |text: &str| match text {
        "{*}" => TemplateSegment::One,
        "{**}" => TemplateSegment::Rest,
        literal => TemplateSegment::Literal(literal.into()),
    };
    PathPattern::Template(PathTemplate {
        segments: text.split('/').map(segment).collect(),
    })
}

/// The attribute that a key of `when` names.
fn attribute(key: &str) -> Attribute {
    let inner = |prefix: &str| key.strip_prefix(prefix)?.strip_suffix(']');
    if let Some(name) = inner("request.headers[") {
        // As Envoy's matchers see them, in whatever version the client speaks.
        match name {
            ":authority" => return Attribute::Authority,
            ":method" => return Attribute::Method,
            ":path" => return Attribute::Target,
            _ => {}
        }
        let name = HeaderName::from_bytes(name.as_bytes());
        return name.map_or_else(|_| Attribute::Unanswerable(key.into()), Attribute::Header);
    }
    if let Some(claims) = inner("request.auth.claims[") {
        return Attribute::RequestClaim(claims.split("][").map(Arc::from).collect());
    }
    match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::SourceNamespace,
        "source.principal" => Attribute::SourcePrincipal,
        "source.serviceAccount" => Attribute::SourceServiceAccount,
        "source.trustDomain" => Attribute::SourceTrustDomain,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::RequestAudiences,
        "request.auth.presenter" => Attribute::RequestPresenter,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        other => Attribute::Unanswerable(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use userspace_l7::model::{Attribute, PathPattern, StringMatch, TemplateSegment};

    use super::{attribute, path};

    #[test]
    fn keys_name_attributes() {
        let claims = |names: &[&str]| {
            Attribute::RequestClaim(names.iter().map(|name| (*name).into()).collect())
        };
        for (key, expected) in [
            (
                "request.headers[X-A]",
                Attribute::Header(http::HeaderName::from_static("x-a")),
            ),
            ("request.headers[:authority]", Attribute::Authority),
            ("request.headers[:method]", Attribute::Method),
            ("request.headers[:path]", Attribute::Target),
            ("request.auth.claims[a]", claims(&["a"])),
            ("request.auth.claims[a][b]", claims(&["a", "b"])),
            ("source.ip", Attribute::SourceIp),
            (
                "connection.sni",
                Attribute::Unanswerable("connection.sni".into()),
            ),
        ] {
            assert_eq!(attribute(key), expected, "{key}");
        }
    }

    #[test]
    fn a_path_with_braces_is_a_template() {
        let PathPattern::Template(template) = path("/a/{*}/{**}") else {
            panic!("not a template");
        };
        assert_eq!(
            template.segments,
            [
                TemplateSegment::Literal("a".into()),
                TemplateSegment::One,
                TemplateSegment::Rest,
            ]
        );
        assert_eq!(
            path("/a*"),
            PathPattern::Text(StringMatch::Prefix("/a".into()))
        );
    }
}
