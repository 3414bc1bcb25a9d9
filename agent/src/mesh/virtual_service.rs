//! VirtualService as Istio defines it, as far as a mesh has a use for it.

mod check;
mod delegation;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::duration::IstioDuration;
use super::meta::Meta;
use super::retries::HttpRetry;

/// A VirtualService.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: VirtualServiceSpec,
}

/// `spec` of a VirtualService.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualServiceSpec {
    pub hosts: Vec<String>,
    pub gateways: Vec<String>,
    pub http: Vec<VirtualHttpRoute>,
    /// By server name: of gateways only.
    pub tls: Vec<Value>,
    pub tcp: Vec<VirtualTcpRoute>,
    pub export_to: Vec<String>,
}

/// One of `http`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualHttpRoute {
    pub name: String,
    #[serde(rename = "match")]
    pub matches: Vec<VirtualMatch>,
    pub route: Vec<VirtualDestination>,
    pub redirect: Option<VirtualRedirect>,
    pub direct_response: Option<DirectResponse>,
    pub delegate: Option<Delegate>,
    pub rewrite: Option<VirtualRewrite>,
    pub timeout: Option<IstioDuration>,
    pub retries: Option<HttpRetry>,
    pub fault: Option<VirtualFault>,
    pub mirror: Option<DestinationReference>,
    pub mirrors: Vec<VirtualMirror>,
    pub mirror_percent: Option<u32>,
    pub mirror_percentage: Option<Percent>,
    pub cors_policy: Option<VirtualCors>,
    pub headers: VirtualHeaders,
}

/// `delegate`: the VirtualService without hosts whose rules stand in the place of this one.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; empty: that of whoever delegates.
    pub namespace: String,
}

/// How a text is matched; nothing set: it is there.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct TextPattern {
    pub exact: Option<String>,
    pub prefix: Option<String>,
    pub regex: Option<String>,
}

/// One of `match`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualMatch {
    pub name: String,
    pub uri: Option<TextPattern>,
    pub scheme: Option<TextPattern>,
    pub method: Option<TextPattern>,
    pub authority: Option<TextPattern>,
    pub headers: BTreeMap<String, TextPattern>,
    pub without_headers: BTreeMap<String, TextPattern>,
    pub query_params: BTreeMap<String, TextPattern>,
    pub port: Option<u32>,
    pub ignore_uri_case: bool,
    /// Of sidecars, which know their client: a waypoint has no match for such (Istio).
    pub source_labels: BTreeMap<String, String>,
    /// As `sourceLabels`.
    pub source_namespace: String,
    pub gateways: Vec<String>,
    pub stat_prefix: String,
}

/// `destination`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct DestinationReference {
    pub host: String,
    pub subset: String,
    pub port: Option<PortNumber>,
}

/// `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct PortNumber {
    /// A service port.
    pub number: u32,
}

/// One of `route`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualDestination {
    pub destination: DestinationReference,
    pub weight: Option<i64>,
    pub headers: VirtualHeaders,
}

/// `headers`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualHeaders {
    pub request: HeaderOperations,
    pub response: HeaderOperations,
}

/// `headers.request` and `headers.response`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct HeaderOperations {
    pub set: BTreeMap<String, String>,
    pub add: BTreeMap<String, String>,
    pub remove: Vec<String>,
}

/// `redirect`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualRedirect {
    pub uri: Option<String>,
    pub authority: Option<String>,
    pub scheme: Option<String>,
    pub port: Option<u32>,
    pub derive_port: Option<DerivePort>,
    pub redirect_code: Option<u16>,
}

/// `redirect.derivePort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// None is named, so it is the scheme's.
    FromProtocolDefault,
    /// The one that the request came to.
    FromRequestPort,
}

/// `directResponse`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct DirectResponse {
    /// Status.
    pub status: u16,
    /// Body.
    pub body: Option<ResponseBody>,
}

/// `directResponse.body`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ResponseBody {
    /// Text.
    pub string: Option<String>,
    /// Base64.
    pub bytes: Option<String>,
}

/// `rewrite`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualRewrite {
    pub uri: Option<String>,
    pub authority: Option<String>,
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// `rewrite.uriRegexRewrite`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RegexRewrite {
    /// What is replaced.
    #[serde(rename = "match")]
    pub pattern: String,
    /// By what; `\1` is the first group.
    pub rewrite: String,
}

/// `fault`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct VirtualFault {
    /// Wait.
    pub delay: Option<VirtualDelay>,
    /// Answer.
    pub abort: Option<VirtualAbort>,
}

/// `fault.delay`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualDelay {
    pub fixed_delay: Option<IstioDuration>,
    pub percentage: Option<Percent>,
    pub percent: Option<u32>,
}

/// `fault.abort`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualAbort {
    pub http_status: Option<u16>,
    pub grpc_status: Option<String>,
    pub percentage: Option<Percent>,
}

/// A percentage.
#[derive(Clone, Copy, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Percent {
    /// 0 to 100.
    pub value: f64,
}

/// One of `mirrors`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct VirtualMirror {
    /// For whom.
    pub destination: DestinationReference,
    /// How many.
    pub percentage: Option<Percent>,
}

/// `corsPolicy`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualCors {
    /// Old name of the next, exact only.
    pub allow_origin: Vec<String>,
    pub allow_origins: Vec<TextPattern>,
    pub allow_methods: Vec<String>,
    pub allow_headers: Vec<String>,
    pub expose_headers: Vec<String>,
    pub max_age: Option<IstioDuration>,
    pub allow_credentials: bool,
    pub unmatched_preflights: UnmatchedPreflights,
}

/// `corsPolicy.unmatchedPreflights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum UnmatchedPreflights {
    #[default]
    Unspecified,
    Forward,
    Ignore,
}

/// One of `tcp`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct VirtualTcpRoute {
    /// Which connections.
    #[serde(rename = "match")]
    pub matches: Vec<VirtualTcpMatch>,
    /// Where they go.
    pub route: Vec<VirtualDestination>,
}

/// One of `tcp[].match`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct VirtualTcpMatch {
    pub port: Option<u32>,
    pub destination_subnets: Vec<String>,
    pub source_labels: BTreeMap<String, String>,
    pub source_namespace: String,
    pub gateways: Vec<String>,
}

impl VirtualMatch {
    /// Whether it may hold for a request at a waypoint: not one about certain clients only, or for gateways.
    pub(crate) fn is_for_waypoints(&self) -> bool {
        self.source_labels.is_empty()
            && self.source_namespace.is_empty()
            && names_mesh(&self.gateways)
    }
}

impl VirtualTcpMatch {
    /// The same for a connection.
    pub(crate) fn is_for_waypoints(&self) -> bool {
        self.source_labels.is_empty()
            && self.source_namespace.is_empty()
            && names_mesh(&self.gateways)
    }
}

fn names_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
}

impl VirtualServiceSpec {
    /// Whether it is only there to be delegated to: it has no hosts of its own.
    pub(crate) fn is_delegate(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Whether it is about traffic within the mesh: no gateway named, or the one that stands for it.
    pub(crate) fn is_for_mesh(&self) -> bool {
        names_mesh(&self.gateways)
    }
}
