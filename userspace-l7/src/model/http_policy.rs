//! Authorization policies that speak about requests (`AuthorizationPolicy` with `targetRefs`).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

use super::policy::{PolicyKey, ServiceAccountMatch, StringMatch};
use super::service::NamespacedHostname;

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpPolicy {
    /// Its name.
    pub key: PolicyKey,
    /// What a match means.
    pub action: HttpPolicyAction,
    /// Evaluated and reported, but never enforced (`istio.io/dry-run`).
    pub dry_run: bool,
    /// OR. No rule matches nothing.
    pub rules: Vec<HttpPolicyRule>,
}

/// What a match means.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpPolicyAction {
    /// Let the request pass, and by existing refuse what nothing allows.
    Allow,
    /// Refuse it, whatever allows it.
    Deny,
    /// Note it.
    Audit,
    /// Ask somebody; `None` if the named provider does not exist, which refuses.
    Custom(Option<Arc<ExternalAuthorizer>>),
}

/// `from` AND `to` AND `when`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HttpPolicyRule {
    /// OR; empty matches all.
    pub from: Vec<SourceMatch>,
    /// OR; empty matches all.
    pub to: Vec<OperationMatch>,
    /// AND.
    pub when: Vec<AttributeMatch>,
}

/// Who calls. AND of its fields, each an OR of its values; none of a `not_` field may hold.
#[derive(Clone, Debug, PartialEq, Default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct SourceMatch {
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    /// `*` may stand anywhere in a namespace pattern at a waypoint.
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub trust_domains: Vec<StringMatch>,
    pub not_trust_domains: Vec<StringMatch>,
    /// The client's own address, as its node vouches for it.
    pub ip_blocks: Vec<IpNet>,
    pub not_ip_blocks: Vec<IpNet>,
    /// The client's own address, or the one that it forwards the request for (the last of `x-forwarded-for`), if it is believed
    /// about that ([`Demands::forwarders`](super::Demands)).
    pub remote_ip_blocks: Vec<IpNet>,
    pub not_remote_ip_blocks: Vec<IpNet>,
    /// `<iss>/<sub>` of a validated token.
    pub request_principals: Vec<StringMatch>,
    pub not_request_principals: Vec<StringMatch>,
}

/// What is called. AND of its fields, each an OR of its values; none of a `not_` field may hold.
#[derive(Clone, Debug, PartialEq, Default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct OperationMatch {
    /// Compared without regard to case.
    pub hosts: Vec<StringMatch>,
    pub not_hosts: Vec<StringMatch>,
    /// Service ports where the policy targets a service, else the workload's.
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<StringMatch>,
    pub not_methods: Vec<StringMatch>,
    /// Against the normalized path without its query.
    pub paths: Vec<PathPattern>,
    pub not_paths: Vec<PathPattern>,
}

/// How a path is brought to one spelling before it is judged, routed and forwarded (Istio's mesh setting
/// `pathNormalization`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PathNormalization {
    /// As it came.
    None,
    /// Dot segments resolved, `\` as `/`, unreserved characters decoded (Istio's default).
    #[default]
    Base,
    /// And several slashes in a row are one.
    MergeSlashes,
    /// And `%2F` and `%5C` are decoded before that.
    DecodeAndMergeSlashes,
}

/// How a policy matches a path.
#[derive(Clone, Debug, PartialEq)]
pub enum PathPattern {
    /// Exact, `abc*`, `*abc` or `*`.
    Text(StringMatch),
    /// A template: `{*}` is one segment, `{**}` the rest.
    Template(PathTemplate),
}

/// A path template (Istio's `{*}` and `{**}`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    /// Segments between slashes, in order.
    pub segments: Vec<TemplateSegment>,
}

/// One segment of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateSegment {
    /// This text.
    Literal(Arc<str>),
    /// `{*}`: exactly one segment that is not empty.
    One,
    /// `{**}`: zero or more segments; literals may follow it, other operators not.
    Rest,
}

/// One entry of `when`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeMatch {
    /// Which attribute.
    pub attribute: Attribute,
    /// OR; empty asks for nothing.
    pub values: Vec<AttributeValue>,
    /// None of these.
    pub not_values: Vec<AttributeValue>,
}

/// An attribute of `when`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `request.headers[…]`.
    Header(HeaderName),
    /// `request.headers[:authority]`: host and port, as the client says them.
    Authority,
    /// `request.headers[:method]`.
    Method,
    /// `request.headers[:path]`: the path in its one spelling, and the query.
    Target,
    /// `source.ip`.
    SourceIp,
    /// `remote.ip`.
    RemoteIp,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.principal`.
    SourcePrincipal,
    /// `source.serviceAccount`.
    SourceServiceAccount,
    /// `source.trustDomain`.
    SourceTrustDomain,
    /// `request.auth.principal`.
    RequestPrincipal,
    /// `request.auth.audiences`.
    RequestAudiences,
    /// `request.auth.presenter`.
    RequestPresenter,
    /// `request.auth.claims[a][b]`: the way to it.
    RequestClaim(Vec<Arc<str>>),
    /// `destination.ip`.
    DestinationIp,
    /// `destination.port`.
    DestinationPort,
    /// A key that no proxy of this mesh can answer (`connection.sni`, `experimental.…`): fulfilled where that refuses or asks,
    /// not where it lets pass or notes.
    Unanswerable(Arc<str>),
}

/// A value to compare with.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    /// For text.
    Text(StringMatch),
    /// For addresses.
    Net(IpNet),
    /// For ports.
    Port(u16),
    /// For service accounts.
    ServiceAccount(ServiceAccountMatch),
}

/// Whom a CUSTOM policy asks: an extension provider of the mesh's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ExternalAuthorizer {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub service: NamespacedHostname,
    /// Its service port.
    pub port: u16,
    /// What it speaks.
    pub protocol: ExternalAuthorizerProtocol,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether requests pass when it does not answer.
    pub fail_open: bool,
    /// The status when it does not answer, unless they pass.
    pub status_on_error: StatusCode,
    /// How much of a request's body it gets to see; `None`: nothing.
    pub body: Option<CheckedBody>,
}

/// How much of a request's body an external authorizer gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedBody {
    /// At most so many bytes.
    pub max_bytes: usize,
    /// A longer one is shown in part; else it is refused with 413.
    pub allow_partial: bool,
    /// gRPC: as bytes; else as text, in which what is no UTF-8 is U+FFFD.
    pub as_bytes: bool,
}

/// What an external authorizer speaks.
#[derive(Clone, Debug, PartialEq)]
pub enum ExternalAuthorizerProtocol {
    /// Envoy's gRPC `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
    /// The request's head, sent to the authorizer as HTTP.
    Http(HttpAuthorizer),
}

/// Settings of `envoyExtAuthzHttp`. Patterns of header names are in lower case.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HttpAuthorizer {
    /// Put before the request's path.
    pub path_prefix: Arc<str>,
    /// Headers that go to the authorizer besides `Host` and `Authorization`; `abc*` and `*abc` allowed.
    pub request_headers: Vec<StringMatch>,
    /// Headers that are added to what goes to the authorizer, overwriting.
    pub additional_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers of an allowing answer that go upstream, overwriting.
    pub upstream_headers: Vec<StringMatch>,
    /// Headers of an allowing answer that go to the client with the application's response.
    pub downstream_headers_on_allow: Vec<StringMatch>,
    /// Headers of a refusing answer that go to the client; empty: all.
    pub downstream_headers_on_deny: Vec<StringMatch>,
}
