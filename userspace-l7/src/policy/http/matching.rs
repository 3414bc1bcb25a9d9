//! Whether a rule's conditions hold for a request.

mod attribute;
mod text;

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;
use text::{match_host, match_path, match_request_principal};

use super::{HttpRequest, RuleName};
use crate::model::{
    Attribute, AttributeMatch, HttpPolicy, HttpPolicyAction, HttpPolicyRule, OperationMatch,
    RequestHead, ServiceAccountMatch, SourceMatch, SpiffeId, StringMatch,
};
use crate::policy::jwt::Claims;
use crate::policy::path::NormalizedPath;
use crate::policy::pattern::{glob, match_text};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What of a request may still become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// All of it is as it will be judged.
    Nothing,
    /// Whose token it brings.
    Token,
    /// That, and its header fields, which those who are asked may change. Its target and authority are taken as the client
    /// says them: what is to be denied for those is not let go on the chance of an answer that changes them.
    Fields,
}

/// The request in the form that matching wants: addresses canonical, the principal spelled out once.
#[derive(Clone)]
pub(super) struct Facts<'a> {
    head: RequestHead<'a>,
    path: &'a str,
    identity: Option<&'a SpiffeId>,
    principal: Option<Cow<'a, str>>,
    source: IpAddr,
    /// Whom the client forwards the request for, where it is believed; else the client.
    remote: IpAddr,
    destination: IpAddr,
    port: u16,
    token: Option<&'a Claims>,
    doubt: Doubt,
}

impl<'a> Facts<'a> {
    pub(super) fn new(
        request: &HttpRequest<'a>,
        path: &'a NormalizedPath,
        forwarders: &[ServiceAccountMatch],
    ) -> Self {
        let is_forwarder =
            |id: &SpiffeId| forwarders.iter().any(|one| match_service_account(one, id));
        let is_believed = request.identity.is_some_and(is_forwarder);
        let named = is_believed.then(|| forwarded_for(&request.head)).flatten();
        let source = request.source.to_canonical();
        Self {
            head: request.head,
            path: path.as_str(),
            identity: request.identity,
            principal: request.identity.map(|id| id.principal().into()),
            source,
            remote: named.unwrap_or(source),
            destination: request.destination.ip().to_canonical(),
            port: request.service_port,
            token: request.token,
            doubt: Doubt::Nothing,
        }
    }

    /// The same request, of which not all is known: what is in doubt fulfils nothing, and neither does its absence.
    pub(super) fn doubting(self, doubt: Doubt) -> Self {
        Self { doubt, ..self }
    }

    /// The same request as if it had brought no token.
    pub(super) fn without_token(&self) -> Self {
        Self {
            token: None,
            ..self.clone()
        }
    }

    /// The first rule of a policy that matches.
    pub(super) fn matched_rule(&self, policy: &HttpPolicy) -> Option<RuleName> {
        // What nobody here can answer refuses rather than lets pass, as where no request can be seen.
        let if_unanswerable = match policy.action {
            HttpPolicyAction::Deny | HttpPolicyAction::Custom(_) => true,
            HttpPolicyAction::Allow | HttpPolicyAction::Audit => false,
        };
        let mut rules = policy.rules.iter();
        let rule = rules.position(|rule| self.match_rule(rule, if_unanswerable))?;
        Some(RuleName {
            policy: policy.key.clone(),
            rule,
        })
    }

    fn match_rule(&self, rule: &HttpPolicyRule, if_unanswerable: bool) -> bool {
        let from = rule.from.is_empty() || rule.from.iter().any(|one| self.match_source(one));
        let to = || rule.to.is_empty() || rule.to.iter().any(|one| self.match_operation(one));
        let holds = |one: &AttributeMatch| match one.attribute {
            Attribute::Unanswerable(_) => if_unanswerable,
            _ => self.match_attribute(one),
        };
        let when = || rule.when.iter().all(holds);
        from && to() && when()
    }

    /// Who has no identity satisfies no positive field about it and every negative one; the same for tokens.
    fn match_source(&self, one: &SourceMatch) -> bool {
        if self.is_in_doubt(one) {
            return false;
        }
        let trust_domain = |wanted: &StringMatch| self.match_trust_domain(wanted);
        let principal = |wanted: &StringMatch| self.match_principal(wanted);
        let namespace = |wanted: &StringMatch| self.match_namespace(wanted);
        let account = |wanted: &ServiceAccountMatch| self.match_service_account(wanted);
        let token = |wanted: &StringMatch| {
            self.token
                .is_some_and(|token| match_request_principal(wanted, token))
        };
        let source = |net: &IpNet| net.contains(&self.source);
        let remote = |net: &IpNet| net.contains(&self.remote);
        field(&one.principals, &one.not_principals, principal)
            && field(&one.namespaces, &one.not_namespaces, namespace)
            && field(&one.service_accounts, &one.not_service_accounts, account)
            && field(&one.trust_domains, &one.not_trust_domains, trust_domain)
            && field(&one.ip_blocks, &one.not_ip_blocks, source)
            && field(&one.remote_ip_blocks, &one.not_remote_ip_blocks, remote)
            && field(&one.request_principals, &one.not_request_principals, token)
    }

    /// Whether a source asks about what may still become another.
    fn is_in_doubt(&self, one: &SourceMatch) -> bool {
        let asks_for_token =
            !one.request_principals.is_empty() || !one.not_request_principals.is_empty();
        // Found in a header field, where it is not the client's own.
        let asks_for_remote =
            !one.remote_ip_blocks.is_empty() || !one.not_remote_ip_blocks.is_empty();
        (asks_for_token && self.doubt >= Doubt::Token)
            || (asks_for_remote && self.doubt >= Doubt::Fields)
    }

    fn match_operation(&self, one: &OperationMatch) -> bool {
        let host = |wanted: &StringMatch| match_host(wanted, self.head.authority);
        let port = |wanted: &u16| *wanted == self.port;
        let method = |wanted: &StringMatch| match_text(wanted, self.head.method.as_str());
        field(&one.hosts, &one.not_hosts, host)
            && field(&one.ports, &one.not_ports, port)
            && field(&one.methods, &one.not_methods, method)
            && field(&one.paths, &one.not_paths, |wanted| {
                match_path(wanted, self.path)
            })
    }

    /// Policies of a waypoint are about its clients: nobody is the waypoint to itself.
    fn match_principal(&self, wanted: &StringMatch) -> bool {
        let client = self.principal.as_deref();
        client.is_some_and(|principal| match_text(wanted, principal))
    }

    fn match_namespace(&self, wanted: &StringMatch) -> bool {
        self.identity.is_some_and(|id| glob(wanted, id.namespace()))
    }

    fn match_service_account(&self, wanted: &ServiceAccountMatch) -> bool {
        let is = |id: &SpiffeId| match_service_account(wanted, id);
        self.identity.is_some_and(is)
    }

    fn match_trust_domain(&self, wanted: &StringMatch) -> bool {
        self.identity
            .is_some_and(|id| match_text(wanted, id.trust_domain().as_str()))
    }
}

fn match_service_account(wanted: &ServiceAccountMatch, id: &SpiffeId) -> bool {
    id.namespace() == &*wanted.namespace && id.service_account() == &*wanted.service_account
}

/// The last address of `x-forwarded-for`: the one that the client itself has added. Those before it are what others said to
/// the client.
fn forwarded_for(head: &RequestHead<'_>) -> Option<IpAddr> {
    let last = head.headers.get_all(FORWARDED_FOR).iter().next_back()?;
    let address = last.to_str().ok()?.rsplit(',').next()?;
    let address: IpAddr = address.trim().parse().ok()?;
    Some(address.to_canonical())
}

/// An empty positive list asks for nothing.
fn field<T>(wanted: &[T], unwanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&holds)) && !unwanted.iter().any(&holds)
}
