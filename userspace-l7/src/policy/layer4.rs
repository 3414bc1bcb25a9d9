//! What demands on requests mean where no request can be seen (spec: §3.6). Pure.

use crate::model::{
    Attribute, Demands, HttpPolicy, HttpPolicyAction, HttpPolicyRule, OperationMatch, SourceMatch,
};

/// Demands as they hold for a connection that is carried as bytes: a rule of an ALLOW policy that asks about requests
/// never matches, one of a DENY policy loses what asks about requests and so denies more: all there is, if it asks about
/// nothing else (a TCP chain of Istio's is as strict). AUDIT and tokens have no effect, and neither has CUSTOM on a port
/// that is declared to carry bytes. On one that is not, who keeps silent or begins strangely must not get around those who
/// would be asked about its requests: whoever CUSTOM speaks of is denied.
#[must_use]
pub fn without_requests(demands: &Demands, is_declared: bool) -> Demands {
    let authorization = demands.authorization.iter().filter_map(|policy| {
        let (action, rules) = match policy.action {
            HttpPolicyAction::Allow => (HttpPolicyAction::Allow, allowing(&policy.rules)),
            HttpPolicyAction::Deny => (HttpPolicyAction::Deny, denying(&policy.rules)),
            HttpPolicyAction::Custom(_) if !is_declared => {
                (HttpPolicyAction::Deny, denying(&policy.rules))
            }
            HttpPolicyAction::Audit | HttpPolicyAction::Custom(_) => return None,
        };
        let reduced = HttpPolicy {
            key: policy.key.clone(),
            action,
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
    rules.iter().map(reduce).collect()
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
        let reduced = without_requests(&demands, true);
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
        // Which requests it is about cannot be seen: all that there might be.
        check(
            &deny,
            rule(None, Some("GET"), None),
            Some(HttpPolicyRule::default()),
        );
        check(
            &deny,
            HttpPolicyRule::default(),
            Some(HttpPolicyRule::default()),
        );
    }

    #[test]
    fn nobody_is_asked_about_bytes_and_nobody_hides_in_them() {
        let policy = HttpPolicy {
            key: PolicyKey {
                namespace: "n".into(),
                name: "p".into(),
            },
            action: HttpPolicyAction::Custom(None),
            dry_run: false,
            rules: vec![rule(Some("a"), Some("GET"), None)],
        };
        let demands = Demands {
            authorization: vec![Arc::new(policy)],
            ..Demands::default()
        };
        assert!(without_requests(&demands, true).is_empty());
        let hidden = without_requests(&demands, false);
        assert_eq!(hidden.authorization[0].action, HttpPolicyAction::Deny);
        assert_eq!(hidden.authorization[0].rules, [rule(Some("a"), None, None)]);
    }
}
