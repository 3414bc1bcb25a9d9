//! L0: the mesh as plain immutable values. No input or output, no clock, no async, no Kubernetes.
//!
//! The control plane compiles its objects into a [`Snapshot`]; workers read it and never change it.

mod app_protocol;
mod expression;
pub mod grpc_status;
mod http_policy;
mod http_route;
mod identity;
mod jwt;
mod layer7;
mod nearness;
mod opening;
mod policy;
mod rate_limit;
mod request_head;
mod service;
mod snapshot;
mod telemetry;
mod traffic;
mod workload;

pub use app_protocol::AppProtocol;
pub use expression::{CelExpression, InvalidExpression};
pub use http_policy::{
    Attribute, AttributeMatch, AttributeValue, CheckedBody, ExternalAuthorizer,
    ExternalAuthorizerProtocol, HttpAuthorizer, HttpPolicy, HttpPolicyAction, HttpPolicyRule,
    OperationMatch, PathNormalization, PathPattern, PathTemplate, SourceMatch, TemplateSegment,
};
pub use http_route::{
    AbortAnswer, BackendTarget, Cors, Fault, FaultAbort, FaultDelay, FullRegex, HeaderMatch,
    HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRouteTable, HttpRule, Mirror,
    OriginMatch, PathChange, PathMatch, QueryMatch, Redirect, RedirectPort, RetryOn, RetryPolicy,
    Rewrite, SearchRegex, SessionCarrier, SessionPersistence, TextMatch, WeightedBackend,
};
pub use identity::{InvalidSpiffeId, SpiffeId, TrustDomain};
pub use jwt::{JwksSource, JwtKeys, JwtLocation, JwtRule};
pub use layer7::{
    CanaryLayer7, Demands, PortLayer7, PortRoutes, ServiceLayer7, ServicesLayer7, Side,
    WaypointKey, WorkloadLayer7,
};
pub use nearness::{
    ComparedLabel, LocalityPattern, LocalityShares, Nearness, PriorityLabel, Tiering,
};
pub use opening::{
    Authorities, Credential, Encryption, Opening, PrivateKey, ProxyProtocol, UpstreamTls,
};
pub use policy::{
    Action, AuthorizationPolicy, Clause, Match, PolicyKey, Rule, Scope, ServiceAccountMatch,
    StringMatch,
};
pub use rate_limit::{RateLimit, RateLimitKey, RateLimiter};
pub use request_head::RequestHead;
pub use service::{
    Endpoint, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, NamespacedHostname,
    RoutingScope, Service, ServicePort,
};
pub use snapshot::{Map, MeshSettings, Snapshot};
pub use telemetry::{
    AccessLog, AccessLogFormat, HttpMetric, MetricOverride, Propagation, SpanCollector, SpanTag,
    SpanTagValue, SpanTransport, Telemetry, TracingSettings,
};
pub use traffic::{
    Balance, ConnectionLimits, HashAlgorithm, HashKey, OutlierDetection, RetryBudget,
    ServiceTraffic, Subset, TrafficPolicy, Warmup,
};
pub use workload::{
    ApplicationTunnel, Health, Locality, Network, NetworkMode, Peer, TunnelProtocol,
    WaypointReference, Workload, WorkloadLabels, WorkloadUid,
};
