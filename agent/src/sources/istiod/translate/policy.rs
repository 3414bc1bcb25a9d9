//! `istio.security.Authorization` → policies. It is the normal form that ours is, too.

use std::sync::Arc;

use prost::Message as _;
use userspace_l7::model::{
    Action, AuthorizationPolicy, Clause, Match, PolicyKey, Rule, Scope, ServiceAccountMatch,
    StringMatch,
};

use super::{AUTHORIZATION, Refused, network, port, required};
use crate::mesh::Announcement;
use crate::sources::istiod::messages as wire;

pub(super) fn translate(one: &wire::Authorization) -> Result<Announcement, Refused> {
    let (key, scope) = head(one)?;
    let action = match one.action {
        0 => Action::Allow,
        1 => Action::Deny,
        other => {
            return Err(Refused::new(format!(
                "has action {other}, which is unknown"
            )));
        }
    };
    let policy = AuthorizationPolicy {
        key: key.clone(),
        scope,
        action,
        dry_run: one.dry_run,
        rules: one.groups.iter().map(rule).collect::<Result<_, _>>()?,
    };
    Ok(Announcement::Policy(key, Some(Arc::new(policy))))
}

/// What stands in for a policy that cannot be understood and never could be: whom it speaks about may not be reached.
/// Nothing if not even that can be read.
pub(in crate::sources::istiod) fn closed(resource: Option<&wire::Any>) -> Option<Announcement> {
    let of_policies = resource.filter(|any| any.type_url == AUTHORIZATION)?;
    let one = wire::Authorization::decode(&*of_policies.value).ok()?;
    let (key, scope) = head(&one).ok()?;
    let policy = AuthorizationPolicy {
        key: key.clone(),
        scope,
        action: Action::Deny,
        dry_run: one.dry_run,
        // No clause matches everything.
        rules: vec![Rule::default()],
    };
    Some(Announcement::Policy(key, Some(Arc::new(policy))))
}

fn head(one: &wire::Authorization) -> Result<(PolicyKey, Scope), Refused> {
    let key = PolicyKey {
        namespace: one.namespace.as_str().into(),
        name: required(one.name.clone(), "name")?,
    };
    let scope = match one.scope {
        0 => Scope::Global,
        1 => Scope::Namespace,
        2 => Scope::WorkloadSelector,
        other => return Err(Refused::new(format!("has scope {other}, which is unknown"))),
    };
    Ok((key, scope))
}

fn rule(group: &wire::Group) -> Result<Rule, Refused> {
    let clauses = group.rules.iter().map(clause).collect::<Result<_, _>>()?;
    Ok(Rule { clauses })
}

fn clause(rules: &wire::Rules) -> Result<Clause, Refused> {
    let matches = rules
        .matches
        .iter()
        .map(one_match)
        .collect::<Result<_, _>>()?;
    Ok(Clause { matches })
}

fn one_match(one: &wire::Match) -> Result<Match, Refused> {
    Ok(Match {
        namespaces: texts(&one.namespaces)?,
        not_namespaces: texts(&one.not_namespaces)?,
        principals: texts(&one.principals)?,
        not_principals: texts(&one.not_principals)?,
        service_accounts: accounts(&one.service_accounts),
        not_service_accounts: accounts(&one.not_service_accounts),
        source_ips: ranges(&one.source_ips)?,
        not_source_ips: ranges(&one.not_source_ips)?,
        destination_ips: ranges(&one.destination_ips)?,
        not_destination_ips: ranges(&one.not_destination_ips)?,
        destination_ports: ports(&one.destination_ports)?,
        not_destination_ports: ports(&one.not_destination_ports)?,
    })
}

fn texts(all: &[wire::StringMatch]) -> Result<Vec<StringMatch>, Refused> {
    let text = |one: &wire::StringMatch| match &one.kind {
        Some(wire::StringMatchKind::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(wire::StringMatchKind::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(wire::StringMatchKind::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(wire::StringMatchKind::Presence(_)) => Ok(StringMatch::Presence),
        None => Err(Refused::new("matches texts in a way that is unknown")),
    };
    all.iter().map(text).collect()
}

fn accounts(all: &[wire::ServiceAccountMatch]) -> Vec<ServiceAccountMatch> {
    let account = |one: &wire::ServiceAccountMatch| ServiceAccountMatch {
        namespace: one.namespace.as_str().into(),
        service_account: one.service_account.as_str().into(),
    };
    all.iter().map(account).collect()
}

fn ranges(all: &[wire::Cidr]) -> Result<Vec<ipnet::IpNet>, Refused> {
    all.iter()
        .map(|one| network(&one.address, one.length))
        .collect()
}

fn ports(all: &[u32]) -> Result<Vec<u16>, Refused> {
    all.iter().map(|one| port(*one)).collect()
}
