//! The objects that the mesh is made of, reduced to what it depends on. Whatever their source (a directory,
//! a cluster), they arrive as these.

use std::fmt;
use std::sync::Arc;

use super::authorization::AuthorizationPolicy;
use super::backend_tls_policy::BackendTlsPolicy;
use super::credential::{AUTHORITIES_SUFFIX, CredentialSource};
use super::destination_rule::DestinationRule;
use super::endpoint_slice::EndpointSlice;
use super::external::{ServiceEntry, WorkloadEntry};
use super::gateway::{Gateway, GatewayClass};
use super::grpc_route::GrpcRoute;
use super::http_route::HttpRoute;
use super::mesh_config::MeshConfig;
use super::meta::{Meta, ObjectName};
use super::peer_authentication::PeerAuthentication;
use super::pod::Pod;
use super::rate_limit_policy::RateLimitPolicy;
use super::request_authentication::RequestAuthentication;
use super::service::Service;
use super::stream_route::StreamRoute;
use super::telemetry::Telemetry;
use super::virtual_service::VirtualService;

/// Which kind of object. In the order in which a whole state is best taken in: what selects before what is
/// selected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1.
    Namespace,
    /// core/v1.
    Node,
    /// gateway.networking.k8s.io.
    GatewayClass,
    /// gateway.networking.k8s.io.
    Gateway,
    /// The `ConfigMap` that holds the mesh's configuration.
    MeshConfig,
    /// core/v1.
    Secret,
    /// A `ConfigMap` that holds certificates of authorities.
    Authorities,
    /// security.istio.io.
    PeerAuthentication,
    /// security.istio.io.
    AuthorizationPolicy,
    /// security.istio.io.
    RequestAuthentication,
    /// core/v1.
    Service,
    /// networking.istio.io.
    ServiceEntry,
    /// culvert.dev.
    RateLimitPolicy,
    /// telemetry.istio.io.
    Telemetry,
    /// networking.istio.io.
    DestinationRule,
    /// gateway.networking.k8s.io.
    BackendTlsPolicy,
    /// networking.istio.io.
    VirtualService,
    /// gateway.networking.k8s.io.
    HttpRoute,
    /// gateway.networking.k8s.io.
    GrpcRoute,
    /// gateway.networking.k8s.io.
    TlsRoute,
    /// gateway.networking.k8s.io.
    TcpRoute,
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// networking.istio.io.
    WorkloadEntry,
    /// core/v1.
    Pod,
    /// Kept, but without effect on layer 4: its group and its kind.
    Other(Arc<str>, Arc<str>),
}

impl Kind {
    /// Whether it is part of Kubernetes, and no custom resource.
    pub fn is_kubernetes_own(&self) -> bool {
        matches!(
            self,
            Self::Namespace
                | Self::Node
                | Self::Pod
                | Self::Service
                | Self::EndpointSlice
                | Self::MeshConfig
                | Self::Secret
                | Self::Authorities
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::MeshConfig | Self::Authorities => "ConfigMap",
            Self::Secret => "Secret",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::GatewayClass => "GatewayClass",
            Self::DestinationRule => "DestinationRule",
            Self::RateLimitPolicy => "RateLimitPolicy",
            Self::Telemetry => "Telemetry",
            Self::VirtualService => "VirtualService",
            Self::Gateway => "Gateway",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::Other(_, kind) => kind,
        })
    }
}

/// Names one object among all.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// One object. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Namespace: its labels and annotations.
    Namespace(Arc<Meta>),
    /// A Node: its labels and annotations.
    Node(Arc<Meta>),
    /// A Pod.
    Pod(Arc<Pod>),
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A ServiceEntry.
    ServiceEntry(Arc<ServiceEntry>),
    /// A WorkloadEntry.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// A DestinationRule.
    DestinationRule(Arc<DestinationRule>),
    /// A BackendTLSPolicy.
    BackendTlsPolicy(Arc<BackendTlsPolicy>),
    /// A Secret.
    Secret(Arc<CredentialSource>),
    /// A `ConfigMap` with certificates of authorities.
    Authorities(Arc<CredentialSource>),
    /// A VirtualService.
    VirtualService(Arc<VirtualService>),
    /// A RateLimitPolicy.
    RateLimitPolicy(Arc<RateLimitPolicy>),
    /// A Telemetry object.
    Telemetry(Arc<Telemetry>),
    /// A RequestAuthentication.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// The mesh's configuration.
    MeshConfig(Arc<MeshConfig>),
    /// A PeerAuthentication.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// A GatewayClass.
    GatewayClass(Arc<GatewayClass>),
    /// A Gateway.
    Gateway(Arc<Gateway>),
    /// An HTTPRoute.
    HttpRoute(Arc<HttpRoute>),
    /// A GRPCRoute.
    GrpcRoute(Arc<GrpcRoute>),
    /// A TLSRoute.
    TlsRoute(Arc<StreamRoute>),
    /// A TCPRoute.
    TcpRoute(Arc<StreamRoute>),
    /// Any other known kind.
    Other(Kind, Arc<Meta>),
}

impl Object {
    /// What names it.
    pub fn key(&self) -> ObjectKey {
        let (kind, meta) = match self {
            Self::Namespace(meta) => (Kind::Namespace, &**meta),
            Self::Node(meta) => (Kind::Node, &**meta),
            Self::Pod(pod) => (Kind::Pod, &pod.meta),
            Self::Service(service) => (Kind::Service, &service.meta),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.meta),
            Self::ServiceEntry(entry) => (Kind::ServiceEntry, &entry.meta),
            Self::WorkloadEntry(entry) => (Kind::WorkloadEntry, &entry.meta),
            Self::AuthorizationPolicy(policy) => (Kind::AuthorizationPolicy, &policy.meta),
            Self::RequestAuthentication(policy) => (Kind::RequestAuthentication, &policy.meta),
            Self::VirtualService(route) => (Kind::VirtualService, &route.meta),
            Self::RateLimitPolicy(policy) => (Kind::RateLimitPolicy, &policy.meta),
            Self::Telemetry(telemetry) => (Kind::Telemetry, &telemetry.meta),
            Self::DestinationRule(rule) => (Kind::DestinationRule, &rule.meta),
            Self::BackendTlsPolicy(policy) => (Kind::BackendTlsPolicy, &policy.meta),
            Self::Secret(source) => (Kind::Secret, &source.meta),
            Self::Authorities(source) => (Kind::Authorities, &source.meta),
            Self::MeshConfig(config) => (Kind::MeshConfig, &config.meta),
            Self::PeerAuthentication(policy) => (Kind::PeerAuthentication, &policy.meta),
            Self::GatewayClass(class) => (Kind::GatewayClass, &class.meta),
            Self::Gateway(gateway) => (Kind::Gateway, &gateway.meta),
            Self::HttpRoute(route) => (Kind::HttpRoute, &route.meta),
            Self::GrpcRoute(route) => (Kind::GrpcRoute, &route.meta),
            Self::TlsRoute(route) => (Kind::TlsRoute, &route.meta),
            Self::TcpRoute(route) => (Kind::TcpRoute, &route.meta),
            Self::Other(kind, meta) => (kind.clone(), &**meta),
        };
        ObjectKey {
            kind,
            name: meta.name.clone(),
        }
    }
}

impl Object {
    /// The Secrets and ConfigMaps that it takes certificates from, whether they are there or not.
    pub fn names(&self) -> Vec<ObjectKey> {
        match self {
            Self::DestinationRule(rule) => {
                let secrets = rule
                    .spec
                    .credentials()
                    .flat_map(|name| [name.to_owned(), format!("{name}{AUTHORITIES_SUFFIX}")]);
                let secrets = secrets.map(|name| (Kind::Secret, name));
                keys(&rule.meta, secrets)
            }
            Self::BackendTlsPolicy(policy) => {
                let references = policy.spec.validation.ca_certificate_refs.iter();
                let named = references.filter_map(|one| match one.kind.as_str() {
                    "ConfigMap" => Some((Kind::Authorities, one.name.clone())),
                    "Secret" => Some((Kind::Secret, one.name.clone())),
                    _ => None,
                });
                keys(&policy.meta, named)
            }
            _ => Vec::new(),
        }
    }
}

fn keys(meta: &Meta, named: impl Iterator<Item = (Kind, String)>) -> Vec<ObjectKey> {
    let key = |(kind, name): (Kind, String)| ObjectKey {
        kind,
        name: ObjectName {
            namespace: Arc::clone(&meta.name.namespace),
            name: name.into(),
        },
    };
    named.map(key).collect()
}

/// One difference between two states of the objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new or different.
    Upsert(Object),
    /// The object is gone.
    Remove(ObjectKey),
}
