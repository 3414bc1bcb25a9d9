//! What demands on requests mean where no request can be seen (spec: §3.6). Pure.

use crate::model::{
    Attribute, Demands, HttpPolicy, HttpPolicyAction, HttpPolicyRule, OperationMatch, SourceMatch,
};

/// Demands as they hold for a connection that is carried as bytes: a rule of an ALLOW policy that asks about
/// requests never matches, one of a DENY policy loses what asks about requests and so denies more. A DENY rule
/// that asks about nothing else has no effect, and neither have CUSTOM, AUDIT and tokens.
#[must_use]
pub fn without_requests(demands: &Demands) -> Demands {
    let authorization = demands.authorization.iter().filter_map(|policy| {
        let rules = match policy.action {
            HttpPolicyAction::Allow => allowing(&policy.rules),
            HttpPolicyAction::Deny => denying(&policy.rules),
            HttpPolicyAction::Audit | HttpPolicyAction::Custom(_) => return None,
        };
        let reduced = HttpPolicy {
            key: policy.key.clone(),
            action: policy.action.clone(),
            dry_run: policy.dry_run,
            rules,
        };
        Some(reduced.into())
    });
    Demands {
        authorization: authorization.collect(),
        ..Demands::default()
    }
}

fn allowing(rules: &[HttpPolicyRule]) -> Vec<HttpPolicyRule> {
    let seen = |rule: &&HttpPolicyRule| reduce(rule) == **rule;
    rules.iter().filter(seen).cloned().collect()
}

fn denying(rules: &[HttpPolicyRule]) -> Vec<HttpPolicyRule> {
    let reduced = rules.iter().filter_map(|rule| {
        let reduced = reduce(rule);
        let is_left = reduced != HttpPolicyRule::default() || *rule == HttpPolicyRule::default();
        is_left.then_some(reduced)
    });
    reduced.collect()
}

/// A rule without what asks about requests. A list of alternatives of which one asked about nothing else asks
/// about nothing at all.
fn reduce(rule: &HttpPolicyRule) -> HttpPolicyRule {
    let from: Vec<_> = rule.from.iter().map(source).collect();
    let to: Vec<_> = rule.to.iter().map(operation).collect();
    let is_seen = |attribute: &Attribute| {
        matches!(
            attribute,
            Attribute::SourceIp
                | Attribute::SourceNamespace
                | Attribute::SourcePrincipal
                | Attribute::SourceServiceAccount
                | Attribute::SourceTrustDomain
                | Attribute::DestinationIp
                | Attribute::DestinationPort
        )
    };
    HttpPolicyRule {
        from: asking(from, &SourceMatch::default()),
        to: asking(to, &OperationMatch::default()),
        when: rule
            .when
            .iter()
            .filter(|one| is_seen(&one.attribute))
            .cloned()
            .collect(),
    }
}

fn asking<T: PartialEq>(alternatives: Vec<T>, nothing: &T) -> Vec<T> {
    if alternatives.contains(nothing) {
        Vec::new()
    } else {
        alternatives
    }
}

fn source(source: &SourceMatch) -> SourceMatch {
    SourceMatch {
        remote_ip_blocks: Vec::new(),
        not_remote_ip_blocks: Vec::new(),
        request_principals: Vec::new(),
        not_request_principals: Vec::new(),
        ..source.clone()
    }
}

fn operation(operation: &OperationMatch) -> OperationMatch {
    OperationMatch {
        ports: operation.ports.clone(),
        not_ports: operation.not_ports.clone(),
        ..OperationMatch::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::without_requests;
    use crate::model::{
        Demands, HttpPolicy, HttpPolicyAction, HttpPolicyRule, OperationMatch, PolicyKey,
        SourceMatch, StringMatch,
    };

    fn rule(principal: Option<&str>, method: Option<&str>, port: Option<u16>) -> HttpPolicyRule {
        let exact = |text: &str| StringMatch::Exact(text.into());
        let from = principal.map(|principal| SourceMatch {
            principals: vec![exact(principal)],
            ..SourceMatch::default()
        });
        let to = (method.is_some() || port.is_some()).then(|| OperationMatch {
            methods: method.map(exact).into_iter().collect(),
            ports: port.into_iter().collect(),
            ..OperationMatch::default()
        });
        HttpPolicyRule {
            from: from.into_iter().collect(),
            to: to.into_iter().collect(),
            when: Vec::new(),
        }
    }

    #[track_caller]
    fn check(action: &HttpPolicyAction, before: HttpPolicyRule, after: Option<HttpPolicyRule>) {
        let policy = HttpPolicy {
            key: PolicyKey {
                namespace: "n".into(),
                name: "p".into(),
            },
            action: action.clone(),
            dry_run: false,
            rules: vec![before],
        };
        let demands = Demands {
            authorization: vec![Arc::new(policy)],
            ..Demands::default()
        };
        let reduced = without_requests(&demands);
        let rules: Vec<_> = after.into_iter().collect();
        assert_eq!(reduced.authorization[0].rules, rules, "{action:?}");
    }

    #[test]
    fn allow_rules_that_ask_about_requests_never_match() {
        let allow = HttpPolicyAction::Allow;
        check(&allow, rule(Some("a"), Some("GET"), None), None);
        check(&allow, rule(None, Some("GET"), Some(80)), None);
        check(
            &allow,
            rule(Some("a"), None, Some(80)),
            Some(rule(Some("a"), None, Some(80))),
        );
        check(
            &allow,
            HttpPolicyRule::default(),
            Some(HttpPolicyRule::default()),
        );
    }

    #[test]
    fn deny_rules_keep_what_can_be_seen() {
        let deny = HttpPolicyAction::Deny;
        check(
            &deny,
            rule(Some("a"), Some("GET"), None),
            Some(rule(Some("a"), None, None)),
        );
        check(
            &deny,
            rule(None, Some("GET"), Some(80)),
            Some(rule(None, None, Some(80))),
        );
        check(&deny, rule(None, Some("GET"), None), None);
        check(
            &deny,
            HttpPolicyRule::default(),
            Some(HttpPolicyRule::default()),
        );
    }

    #[test]
    fn nobody_is_asked_about_bytes() {
        let policy = HttpPolicy {
            key: PolicyKey {
                namespace: "n".into(),
                name: "p".into(),
            },
            action: HttpPolicyAction::Custom(None),
            dry_run: false,
            rules: vec![HttpPolicyRule::default()],
        };
        let demands = Demands {
            authorization: vec![Arc::new(policy)],
            ..Demands::default()
        };
        assert!(without_requests(&demands).is_empty());
    }
}
