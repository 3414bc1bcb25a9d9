//! Who may make a request: AuthorizationPolicies with HTTP conditions. Pure: demands and the facts of a
//! request go in, an [`HttpVerdict`] comes out. Forwarding demands the [`HttpAllowed`] that only this module
//! makes, and goes on with the path that it carries.

mod matching;
mod verdict;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::Method;
use matching::{Doubt, Facts};
pub use verdict::{
    AfterAsking, Ask, Asked, HttpAllowed, HttpDecision, HttpDenial, HttpDryRun, HttpVerdict,
    RuleName,
};

use super::jwt::Claims;
use super::path::{self, NormalizedPath};
use crate::model::{
    Attribute, Demands, HttpPolicy, HttpPolicyAction, PathNormalization, RequestHead, SpiffeId,
};

/// What is known about a request when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// The head, its path as it was received.
    pub head: RequestHead<'a>,
    /// How the mesh spells paths.
    pub normalization: PathNormalization,
    /// The verified identity of the client; `None` for plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The client's own address, as its node vouches for it.
    pub source: IpAddr,
    /// The workload's own address and port.
    pub destination: SocketAddr,
    /// The port that was called: the service's, or the workload's where its own address was called.
    pub service_port: u16,
    /// The validated token.
    pub token: Option<&'a Claims>,
}

/// Judges a request by every policy that speaks about it: CUSTOM first, then DENY, then ALLOW, of which one
/// has to match where any exists. AUDIT only takes note.
pub fn judge_http(demands: &Demands, request: &HttpRequest<'_>) -> HttpVerdict {
    judge(demands, request, true)
}

/// Whom to ask before a request is judged, and even before its token is looked at (Envoy's `ext_authz` stands in front
/// of `jwt_authn`, so that an answer may bring the token). Nobody, most of the time.
///
/// # Errors
/// Nobody can be asked whom a policy wants to be asked, or the path has no one spelling.
pub fn ask_first(demands: &Demands, request: &HttpRequest<'_>) -> Result<Option<Ask>, HttpDenial> {
    let asks = |policy: &Arc<HttpPolicy>| matches!(policy.action, HttpPolicyAction::Custom(_));
    if !demands.authorization.iter().any(asks) {
        return Ok(None);
    }
    let path = spelled(demands, request)?;
    let facts = Facts::new(request, &path, &demands.forwarders);
    let judge = Judge {
        policies: &demands.authorization,
        facts: &facts,
    };
    let authorizers = judge.ask()?;
    Ok((!authorizers.is_empty()).then(|| Ask::new(authorizers, path.clone())))
}

/// Refuses what is sure to be refused by whoever judges the request, and may ask and have keys that are not here. What an
/// answer may still change, or a token that cannot be checked here may still say, refuses nothing here; DENY rules
/// that are about nothing of that do.
///
/// # Errors
/// Why it will be refused.
pub fn foresee_http(
    demands: &Demands,
    request: &HttpRequest<'_>,
    is_token_known: bool,
) -> Result<(), HttpDenial> {
    let doubt = match ask_first(demands, request)? {
        Some(_) => Doubt::Fields,
        None if !is_token_known => Doubt::Token,
        None => Doubt::Nothing,
    };
    let path = spelled(demands, request)?;
    let facts = Facts::new(request, &path, &demands.forwarders).doubting(doubt);
    let judge = Judge {
        policies: &demands.authorization,
        facts: &facts,
    };
    match doubt {
        Doubt::Nothing => judge.deny_or_allow(),
        Doubt::Token | Doubt::Fields => judge.deny(),
    }
}

impl AfterAsking {
    /// Judges on, once everybody who was asked has let the request pass; the request is what their answers
    /// made of it.
    pub fn judge(self, demands: &Demands, request: &HttpRequest<'_>) -> HttpVerdict {
        judge(demands, request, false)
    }
}

fn judge(demands: &Demands, request: &HttpRequest<'_>, asks: bool) -> HttpVerdict {
    let path = match spelled(demands, request) {
        Ok(path) => path,
        Err(denial) => return HttpVerdict::denied(denial),
    };
    let facts = Facts::new(request, &path, &demands.forwarders);
    let judge = Judge {
        policies: &demands.authorization,
        facts: &facts,
    };
    if asks {
        match judge.ask() {
            Ok(asked) if asked.is_empty() => {}
            Ok(asked) => return HttpVerdict::ask(Ask::new(asked, path.clone())),
            Err(denial) => return HttpVerdict::denied(denial),
        }
    }
    let decision = match judge.deny_or_allow() {
        Ok(()) => HttpDecision::Allowed(HttpAllowed::new(path.clone())),
        Err(denial) => HttpDecision::Denied(denial),
    };
    HttpVerdict {
        decision,
        dry_run: judge.dry_runs(),
        audited: judge.audited(),
    }
}

/// The path in its one spelling. Where policies speak of paths, one that a server could still take for
/// another is refused: no rule can be right about it.
fn spelled(demands: &Demands, request: &HttpRequest<'_>) -> Result<NormalizedPath, HttpDenial> {
    if *request.head.method == Method::CONNECT && request.head.path.is_empty() {
        return Ok(NormalizedPath::none());
    }
    let path = path::normalize(request.head.path, request.normalization)
        .map_err(HttpDenial::InvalidPath)?;
    let is_ambiguous =
        request.normalization != PathNormalization::None && path.hides_dot_segments();
    if is_ambiguous && demands.authorization.iter().any(|one| names_paths(one)) {
        return Err(HttpDenial::AmbiguousPath);
    }
    Ok(path)
}

fn names_paths(policy: &HttpPolicy) -> bool {
    if policy.dry_run || policy.action == HttpPolicyAction::Audit {
        return false;
    }
    let mut operations = policy.rules.iter().flat_map(|rule| &rule.to);
    let mut conditions = policy.rules.iter().flat_map(|rule| &rule.when);
    operations.any(|operation| !operation.paths.is_empty() || !operation.not_paths.is_empty())
        || conditions.any(|condition| condition.attribute == Attribute::Target)
}

/// The policies of one target, and what they are asked about.
struct Judge<'a> {
    policies: &'a [Arc<HttpPolicy>],
    facts: &'a Facts<'a>,
}

impl<'a> Judge<'a> {
    fn of(&self, action: &HttpPolicyAction, dry_run: bool) -> impl Iterator<Item = &'a HttpPolicy> {
        let selected =
            move |policy: &&HttpPolicy| policy.dry_run == dry_run && policy.action == *action;
        self.policies.iter().map(AsRef::as_ref).filter(selected)
    }

    /// The first rule that matches, of the first policy that has one.
    fn first(&self, mut policies: impl Iterator<Item = &'a HttpPolicy>) -> Option<RuleName> {
        policies.find_map(|policy| self.facts.matched_rule(policy))
    }

    /// Whom to ask: the provider of every CUSTOM policy that matches, each once.
    fn ask(&self) -> Result<Vec<Asked>, HttpDenial> {
        // Envoy asks before tokens are looked at, so no such rule can be about one (Istio).
        let facts = self.facts.without_token();
        let mut asked: Vec<Asked> = Vec::new();
        for policy in self.policies.iter().filter(|policy| !policy.dry_run) {
            let HttpPolicyAction::Custom(authorizer) = &policy.action else {
                continue;
            };
            let Some(rule) = facts.matched_rule(policy) else {
                continue;
            };
            let Some(authorizer) = authorizer else {
                return Err(HttpDenial::NoAuthorizer(rule));
            };
            if !asked.iter().any(|other| other.authorizer == *authorizer) {
                let authorizer = Arc::clone(authorizer);
                asked.push(Asked { authorizer, rule });
            }
        }
        Ok(asked)
    }

    fn deny(&self) -> Result<(), HttpDenial> {
        let rule = self.first(self.of(&HttpPolicyAction::Deny, false));
        rule.map_or(Ok(()), |rule| Err(HttpDenial::Explicit(rule)))
    }

    fn deny_or_allow(&self) -> Result<(), HttpDenial> {
        self.deny()?;
        let mut allowing = self.of(&HttpPolicyAction::Allow, false).peekable();
        if allowing.peek().is_none() || self.first(allowing).is_some() {
            Ok(())
        } else {
            Err(HttpDenial::NotAllowed)
        }
    }

    fn dry_runs(&self) -> Vec<HttpDryRun> {
        let mut runs = Vec::new();
        if let Some(rule) = self.first(self.of(&HttpPolicyAction::Deny, true)) {
            runs.push(HttpDryRun::WouldDeny(rule));
        }
        let mut allowing = self.of(&HttpPolicyAction::Allow, true).peekable();
        if allowing.peek().is_some() {
            runs.push(match self.first(allowing) {
                Some(rule) => HttpDryRun::WouldAllow(rule),
                None => HttpDryRun::WouldNotAllow,
            });
        }
        runs
    }

    fn audited(&self) -> Vec<RuleName> {
        let policies = self.of(&HttpPolicyAction::Audit, false);
        policies
            .filter_map(|policy| self.facts.matched_rule(policy))
            .collect()
    }
}

#[cfg(test)]
mod tests;
