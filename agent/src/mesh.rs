//! Kubernetes and Istio objects → one compiled [`userspace_l7::model::Snapshot`].
//!
//! Pure: no input or output, no clock. The only code that knows what Kubernetes' objects mean; where they
//! come from is the business of [`crate::sources`].
//!
//! ```text
//! JSON value ── decode ──▶ Object ── Change ──▶ Compiler ──▶ Arc<Snapshot>
//!               (checked)       Announcement ──▶             local pods, identities, policy statuses, notices
//! ```

mod announcement;
mod authorization;
mod backend_tls_policy;
mod compile;
mod credential;
mod decode;
mod destination_rule;
mod duration;
mod endpoint_slice;
mod ext_authz;
mod external;
mod field;
mod gateway;
mod grpc_route;
mod http_route;
mod kinds;
mod mesh_config;
mod meta;
mod object;
mod open_telemetry;
mod peer_authentication;
mod pod;
mod rate_limit_policy;
mod request_authentication;
mod retries;
mod route;
mod selector;
mod service;
pub mod status;
mod stream_route;
mod syntax;
mod telemetry;
mod unheeded;
mod upstream_tls;
mod virtual_service;

pub use announcement::{AnnouncedWorkload, Announcement, Layer4};
pub use authorization::{
    AuthorizationPolicy, AuthorizationPolicySpec, Condition, From, Operation, PolicyAction,
    PolicyRule, Provider, Source, To,
};
pub use backend_tls_policy::{
    AlternativeKind, AlternativeName, BackendTlsPolicy, BackendTlsPolicySpec, CertificateReference,
    PolicyTarget, Validation, WellKnown,
};
pub use compile::{
    Bystander, Compiler, LocalPod, MeshOptions, Notice, PodNetns, PolicyStatus, SameNode,
};
pub use credential::CredentialSource;
pub use decode::{Decoded, Standing, closed, decode, decode_served};
pub use destination_rule::{
    ConnectionPool, ConsistentHash, DestinationRule, DestinationRuleSpec, Distribute, Failover,
    HashCookie, HttpSettings, LoadBalancer, LocalityLbSetting, Maglev, OutlierDetection,
    PortPolicy, PortSelector, RetryBudget, RingHash, SimpleBalancer, Subset, TcpSettings,
    TrafficPolicy, UpgradePolicy, Warmup,
};
pub use duration::{GatewayDuration, InvalidDuration, IstioDuration};
pub use endpoint_slice::{EndpointSlice, SliceEndpoint};
pub use ext_authz::{ExtAuthz, IncludedBody};
pub use external::{
    EntryPort, Location, Resolution, ServiceEntry, ServiceEntrySpec, WorkloadEntry,
    WorkloadEntrySpec,
};
pub use field::{FieldError, FieldPath, Segment};
pub use gateway::{
    AllowedRoutes, Gateway, GatewayAddress, GatewayClass, GatewayClassSpec, GatewaySpec,
    LabelExpression, LabelOperator, Listener, NamespaceScope, NamespaceSelector, RouteNamespaces,
};
pub use grpc_route::{
    GrpcMethodMatch, GrpcRoute, GrpcRouteFilter, GrpcRouteMatch, GrpcRouteRule, GrpcRouteSpec,
};
pub use http_route::{
    CorsFilter, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRetry, HttpRouteRule,
    HttpRouteSpec, HttpRouteTimeouts, PathMatch, PathMatchType, PathModifier, PathModifierType,
    RedirectFilter, RewriteFilter, ValueMatch, ValueMatchType,
};
pub use kinds::{UsedKind, idle_kinds, named_kinds, used_kinds};
pub(crate) use mesh_config::is_config_map;
pub use mesh_config::{
    AccessLogEncoding, DefaultProviders, ExtensionProvider, FileAccessLog, LogFormat, MeshConfig,
    MeshConfigSpec, Normalization, NormalizationSetting, ProxyConfig, ProxyTracing,
};
pub use meta::{Interner, Labels, Meta, ObjectName};
pub use object::{Change, Kind, Object, ObjectKey};
pub use open_telemetry::{
    GrpcTransport, HttpTransport, NamedHeader, OpenTelemetry, ResourceDetectors,
};
pub use peer_authentication::{Mtls, MtlsMode, PeerAuthentication, PeerAuthenticationSpec};
pub use pod::Pod;
pub use rate_limit_policy::{
    GlobalLimiter, Limit, LimitKey, LimitWord, LimiterService, RateLimitPolicy, RateLimitPolicySpec,
};
pub use request_authentication::{
    ClaimToHeader, JwtHeader, JwtRule, RequestAuthentication, RequestAuthenticationSpec,
};
pub use retries::HttpRetry;
pub use route::{
    BackendReference, CookieConfig, CookieLifetime, FilteredBackend, ForeignReference, Fraction,
    Header, HeaderFilter, MirrorFilter, ParentReference, SessionPersistence, SessionType,
};
pub use selector::{TargetReference, WorkloadSelector};
pub use service::{Distribution, Port, Service, TargetPort};
pub use stream_route::{StreamRoute, StreamRouteRule, StreamRouteSpec};
pub use telemetry::{
    AccessLogging, CustomTag, LiteralTag, LogFilter, LogSelector, MetricOverride, MetricSelector,
    Metrics, Mode, NamedTag, ProviderName, TagOperation, TagOverride, Telemetry, TelemetrySpec,
    Tracing,
};
pub(crate) use unheeded::of_kind as without_effect;
pub use upstream_tls::{ClientTls, ProxyProtocol, ProxyVersion, TlsMode};
pub use virtual_service::{
    Delegate, DerivePort, DestinationReference, DirectResponse, HeaderOperations, Percent,
    PortNumber, RegexRewrite, ResponseBody, TextPattern, UnmatchedPreflights, VirtualAbort,
    VirtualCors, VirtualDelay, VirtualDestination, VirtualFault, VirtualHeaders, VirtualHttpRoute,
    VirtualMatch, VirtualMirror, VirtualRedirect, VirtualRewrite, VirtualService,
    VirtualServiceSpec, VirtualTcpMatch, VirtualTcpRoute,
};
