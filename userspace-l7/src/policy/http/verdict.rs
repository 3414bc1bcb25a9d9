//! What the judgement of a request says.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use crate::model::{ExternalAuthorizer, PolicyKey};
use crate::policy::path::{InvalidPath, NormalizedPath};

/// The judgement of one request.
#[derive(Debug)]
pub struct HttpVerdict {
    /// What to do.
    pub decision: HttpDecision,
    /// What policies that are only watched (`istio.io/dry-run`) would have done.
    pub dry_run: Vec<HttpDryRun>,
    /// AUDIT rules that matched, one for each policy.
    pub audited: Vec<RuleName>,
}

impl HttpVerdict {
    pub(super) fn denied(denial: HttpDenial) -> Self {
        Self::plain(HttpDecision::Denied(denial))
    }

    pub(super) fn ask(ask: Ask) -> Self {
        Self::plain(HttpDecision::Ask(ask))
    }

    fn plain(decision: HttpDecision) -> Self {
        Self {
            decision,
            dry_run: Vec::new(),
            audited: Vec::new(),
        }
    }
}

/// What to do with a request.
#[derive(Debug)]
pub enum HttpDecision {
    /// Forward it, with the path that was judged.
    Allowed(HttpAllowed),
    /// Refuse it.
    Denied(HttpDenial),
    /// Ask first.
    Ask(Ask),
}

/// Proof that a request was judged and allowed.
#[derive(Debug)]
pub struct HttpAllowed {
    path: NormalizedPath,
}

impl HttpAllowed {
    pub(super) fn new(path: NormalizedPath) -> Self {
        Self { path }
    }

    /// The path that was judged. The application has to get this one: another spelling could be another
    /// resource. Empty for CONNECT.
    pub fn path(&self) -> &NormalizedPath {
        &self.path
    }
}

/// Who has to let a request pass before it is judged on.
#[derive(Debug)]
pub struct Ask {
    /// All of these; never empty.
    pub authorizers: Vec<Asked>,
    /// The path in its one spelling, which they are to be asked about.
    pub path: NormalizedPath,
    /// The way on.
    pub then: AfterAsking,
}

impl Ask {
    pub(super) fn new(authorizers: Vec<Asked>, path: NormalizedPath) -> Self {
        Self {
            authorizers,
            path,
            then: AfterAsking(()),
        }
    }
}

/// One provider to ask, and the CUSTOM rule that wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Whom.
    pub authorizer: Arc<ExternalAuthorizer>,
    /// Why.
    pub rule: RuleName,
}

/// Leads from the answers of external authorizers to the rest of the judgement.
#[derive(Debug)]
pub struct AfterAsking(());

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpDenial {
    /// A DENY rule matched.
    Explicit(RuleName),
    /// ALLOW policies exist and none matched.
    NotAllowed,
    /// A CUSTOM rule matched whose provider does not exist.
    NoAuthorizer(RuleName),
    /// The path has no one spelling.
    InvalidPath(InvalidPath),
    /// The path could still mean another to a server, and policies speak of paths.
    AmbiguousPath,
    /// Bytes come where nothing is declared to be spoken, and requests would have to be seen.
    Unseen,
}

impl HttpDenial {
    /// What the client is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Explicit(_) | Self::NotAllowed | Self::NoAuthorizer(_) | Self::Unseen => {
                StatusCode::FORBIDDEN
            }
            Self::InvalidPath(why) => why.status(),
            Self::AmbiguousPath => StatusCode::BAD_REQUEST,
        }
    }

    /// The answer's body: Envoy's words for what a policy refuses.
    pub fn body(&self) -> &'static str {
        match self {
            Self::Explicit(_) | Self::NotAllowed | Self::NoAuthorizer(_) | Self::Unseen => {
                "RBAC: access denied"
            }
            Self::InvalidPath(_) | Self::AmbiguousPath => "",
        }
    }
}

/// The access log's `%RESPONSE_CODE_DETAILS%`.
impl fmt::Display for HttpDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Explicit(rule) => write!(f, "rbac_access_denied_matched_policy[{rule}]"),
            Self::NotAllowed => f.write_str("rbac_access_denied_matched_policy[none]"),
            Self::NoAuthorizer(_) => f.write_str("ext_authz_error"),
            Self::Unseen => f.write_str("jwt_authn_access_denied{requests cannot be seen}"),
            Self::InvalidPath(InvalidPath::NotAbsolute) => f.write_str("absolute_path_rejected"),
            Self::InvalidPath(InvalidPath::Fragment) => f.write_str("path_with_fragment_rejected"),
            Self::InvalidPath(InvalidPath::Nul | InvalidPath::Control) | Self::AmbiguousPath => {
                f.write_str("path_normalization_failed")
            }
        }
    }
}

/// What policies that are only watched would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpDryRun {
    /// This DENY rule would have refused.
    WouldDeny(RuleName),
    /// This ALLOW rule would have allowed.
    WouldAllow(RuleName),
    /// ALLOW policies are watched and none would have allowed.
    WouldNotAllow,
}

impl fmt::Display for HttpDryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldDeny(rule) => write!(f, "shadow denied, matched policy {rule}"),
            Self::WouldAllow(rule) => write!(f, "shadow allowed, matched policy {rule}"),
            Self::WouldNotAllow => f.write_str("shadow denied, matched policy none"),
        }
    }
}

/// A rule by its policy and place: `ns[<namespace>]-policy[<name>]-rule[<index>]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName {
    /// The policy.
    pub policy: PolicyKey,
    /// Place in the policy, from 0.
    pub rule: usize,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, rule } = self;
        let PolicyKey { namespace, name } = policy;
        write!(f, "ns[{namespace}]-policy[{name}]-rule[{rule}]")
    }
}
