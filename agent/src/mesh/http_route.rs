//! HTTPRoute as Gateway API defines it.

mod check;

use serde::Deserialize;

pub(crate) use self::check::{check_filter_type, check_rule_names};
use super::duration::GatewayDuration;
use super::meta::Meta;
use super::route::{
    FilteredBackend, ForeignReference, HeaderFilter, MirrorFilter, ParentReference,
    SessionPersistence,
};

/// An HTTPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: HttpRouteSpec,
}

/// `spec` of an HTTPRoute.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// Hosts; a mesh ignores them (GEP-1294).
    pub hostnames: Vec<String>,
    /// Whether default gateways take it.
    pub use_default_gateways: Option<String>,
    /// In order.
    pub rules: Vec<HttpRouteRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteRule {
    /// Name, unique in the route.
    pub name: Option<String>,
    /// OR; none matches everything.
    pub matches: Vec<HttpRouteMatch>,
    /// What is done to the request and its answer.
    pub filters: Vec<HttpRouteFilter>,
    /// Where it goes.
    pub backend_refs: Vec<FilteredBackend<HttpRouteFilter>>,
    /// How long it may take.
    pub timeouts: Option<HttpRouteTimeouts>,
    /// When it is tried again.
    pub retry: Option<HttpRouteRetry>,
    /// Which endpoint later requests go to.
    pub session_persistence: Option<SessionPersistence>,
}

/// AND of its fields.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteMatch {
    /// Path.
    pub path: Option<PathMatch>,
    /// AND; of a repeated name the first counts.
    pub headers: Vec<ValueMatch>,
    /// AND; of a repeated name the first counts.
    pub query_params: Vec<ValueMatch>,
    /// Method.
    pub method: Option<String>,
}

/// `path`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PathMatch {
    /// How.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// What; `/` if it says nothing.
    pub value: Option<String>,
}

/// `path.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[expect(missing_docs, reason = "Gateway API's own words")]
pub enum PathMatchType {
    Exact,
    #[default]
    PathPrefix,
    RegularExpression,
}

/// A header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValueMatch {
    /// How the value is matched.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// How a value is matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[expect(missing_docs, reason = "Gateway API's own words")]
pub enum ValueMatchType {
    #[default]
    Exact,
    RegularExpression,
}

/// A filter: its type, and the field of that name.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is Gateway API's own, by its own name"
)]
pub struct HttpRouteFilter {
    /// Which of the others is meant.
    #[serde(rename = "type")]
    pub kind: String,
    pub request_header_modifier: Option<HeaderFilter>,
    pub response_header_modifier: Option<HeaderFilter>,
    pub request_mirror: Option<MirrorFilter>,
    pub request_redirect: Option<RedirectFilter>,
    pub url_rewrite: Option<RewriteFilter>,
    pub cors: Option<CorsFilter>,
    pub external_auth: Option<ForeignReference>,
    pub extension_ref: Option<ForeignReference>,
}

/// `requestRedirect`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is Gateway API's own, by its own name"
)]
pub struct RedirectFilter {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
    pub port: Option<i64>,
    pub status_code: Option<u16>,
}

/// `urlRewrite`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "each field is Gateway API's own, by its own name"
)]
pub struct RewriteFilter {
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
}

/// `path` of a redirect or rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// Which of the two.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// The whole path.
    pub replace_full_path: Option<String>,
    /// The prefix that was matched.
    pub replace_prefix_match: Option<String>,
}

/// `path.type` of a redirect or rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "Gateway API's own words")]
pub enum PathModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

/// `cors`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is Gateway API's own, by its own name"
)]
pub struct CorsFilter {
    pub allow_origins: Vec<String>,
    pub allow_credentials: Option<bool>,
    pub allow_methods: Vec<String>,
    pub allow_headers: Vec<String>,
    pub expose_headers: Vec<String>,
    pub max_age: Option<u32>,
}

/// `timeouts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteTimeouts {
    /// From the request's arrival to the end of its answer.
    pub request: Option<GatewayDuration>,
    /// One attempt.
    pub backend_request: Option<GatewayDuration>,
}

/// `retry`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct HttpRouteRetry {
    /// Statuses that are worth another attempt.
    pub codes: Vec<u16>,
    /// Attempts besides the first.
    pub attempts: Option<u32>,
    /// The least pause between attempts.
    pub backoff: Option<GatewayDuration>,
}
