//! Routes, each by itself: its matches and backends as every service that it is attached to uses them.

mod delegation;
mod filters;
mod grpc;
mod http;
mod virtual_service;

use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::{BackendTarget, HeaderModifier, HttpRouteEntry, WeightedBackend};

use self::virtual_service::VirtualTables;
use super::Compiler;
use super::backends::Unresolved;
use super::precedence::{Age, Precedence};
use super::store::Owner;
use crate::mesh::grpc_route::GrpcRoute;
use crate::mesh::http_route::HttpRoute;
use crate::mesh::meta::{Meta, ObjectName};
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::route::{Backend, BackendReference, ParentKind, ParentReference};
use crate::mesh::stream_route::StreamRoute;
use crate::mesh::virtual_service::VirtualService;

/// A route of any kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Route {
    Http(Arc<HttpRoute>),
    Grpc(Arc<GrpcRoute>),
    /// TCPRoute or TLSRoute.
    Stream(Arc<StreamRoute>),
    Virtual(Arc<VirtualService>),
}

/// What a route comes to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CompiledRoute {
    /// What it is attached to. Whether that is there is the business of who asks.
    pub(super) attachments: Attachments,
    /// What it does.
    pub(super) body: RouteBody,
    /// Why it is not accepted, though it is attached.
    pub(super) refused: Option<Unresolved>,
    /// Why some reference of it does not resolve: the first that does not.
    pub(super) unresolved: Option<Unresolved>,
}

/// Parents of a route, of which most have one.
pub(super) type Attachments = SmallVec<[Attachment; 1]>;

/// One parent of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attachment {
    pub(super) parent: Owner,
    /// Only this port of it.
    pub(super) port: Option<u16>,
}

/// Which protocol a route speaks. Of several on one port only the first applies (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RouteKind {
    Grpc,
    Http,
    Tls,
    Tcp,
}

impl RouteKind {
    /// Whether connections are all that there is to see: only the oldest of such routes applies.
    pub(super) fn is_stream(self) -> bool {
        matches!(self, Self::Tls | Self::Tcp)
    }
}

/// What a route does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RouteBody {
    /// HTTPRoute and GRPCRoute.
    Requests {
        age: Age,
        entries: Vec<(Precedence, HttpRouteEntry)>,
    },
    /// TCPRoute and TLSRoute.
    Connections(Arc<[WeightedBackend]>),
    /// VirtualService: by the services that it is about.
    Tables(VirtualTables),
}

/// Collects what is wrong with a route.
#[derive(Debug, Default)]
pub(super) struct RouteFaults {
    refused: Option<Unresolved>,
    unresolved: Option<Unresolved>,
}

impl CompiledRoute {
    /// Whether it is about a port of an owner's services.
    pub(super) fn is_attached(&self, owner: &Owner, port: u16) -> bool {
        let mut attachments = self.attachments.iter();
        attachments.any(|one| one.port.is_none_or(|own| own == port) && one.parent == *owner)
    }
}

impl RouteFaults {
    fn refuse(&mut self, reason: &'static str, message: String) {
        self.refused.get_or_insert(Unresolved { reason, message });
    }
}

impl Route {
    pub(super) fn meta(&self) -> &Meta {
        match self {
            Self::Http(route) => &route.meta,
            Self::Grpc(route) => &route.meta,
            Self::Stream(route) => &route.meta,
            Self::Virtual(route) => &route.meta,
        }
    }

    pub(super) fn parents(&self) -> &[ParentReference] {
        match self {
            Self::Http(route) => &route.spec.parent_refs,
            Self::Grpc(route) => &route.spec.parent_refs,
            Self::Stream(route) => &route.spec.parent_refs,
            // It is about hosts.
            Self::Virtual(_) => &[],
        }
    }

    /// Every backend that it names, mirrors included.
    pub(super) fn backends(&self) -> Vec<Backend<'_>> {
        match self {
            Self::Http(route) => http::backends(route),
            Self::Grpc(route) => grpc::backends(route),
            Self::Stream(route) => {
                let rules = route.spec.rules.iter();
                let references = rules.flat_map(|rule| &rule.backend_refs);
                references.map(BackendReference::backend).collect()
            }
            Self::Virtual(_) => Vec::new(),
        }
    }

    /// Hosts that it names otherwise than as backends.
    pub(super) fn hosts(&self) -> Vec<&str> {
        match self {
            Self::Virtual(route) => virtual_service::hosts(route).collect(),
            Self::Http(_) | Self::Grpc(_) | Self::Stream(_) => Vec::new(),
        }
    }

    /// Whether it is only there to be delegated to.
    pub(super) fn is_delegate(&self) -> bool {
        matches!(self, Self::Virtual(route) if route.spec.is_delegate())
    }

    /// Routes whose rules are put in places of this one.
    pub(super) fn delegates(&self) -> Vec<ObjectKey> {
        let Self::Virtual(route) = self else {
            return Vec::new();
        };
        let key = |name| ObjectKey {
            kind: Kind::VirtualService,
            name,
        };
        delegation::delegates(route).map(key).collect()
    }

    /// The parents of it that a mesh knows.
    pub(super) fn attachments(&self) -> Attachments {
        let own = &self.meta().name.namespace;
        let attachment = |parent: &ParentReference| {
            let namespace = parent.namespace.as_deref().map(Arc::from);
            let name = ObjectName {
                namespace: namespace.unwrap_or_else(|| Arc::clone(own)),
                name: parent.name.as_str().into(),
            };
            let owner = match parent.target()? {
                ParentKind::Service => Owner::Service(name),
                ParentKind::ServiceEntry => Owner::Entry(name),
                ParentKind::Gateway => return None,
            };
            Some(Attachment {
                parent: owner,
                port: parent.port(),
            })
        };
        let mut all: Attachments = self.parents().iter().filter_map(attachment).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Which protocol the routes of an object's kind speak; none if it is no route.
pub(super) fn route_kind(kind: &Kind) -> Option<RouteKind> {
    match kind {
        Kind::HttpRoute => Some(RouteKind::Http),
        Kind::GrpcRoute => Some(RouteKind::Grpc),
        Kind::TlsRoute => Some(RouteKind::Tls),
        Kind::TcpRoute => Some(RouteKind::Tcp),
        _ => None,
    }
}

impl Compiler {
    pub(super) fn compile_route(&self, key: &ObjectKey) -> Option<CompiledRoute> {
        let route = self.store.routes.get(key)?;
        let meta = route.meta();
        let age = Age {
            created: meta.created,
            route: meta.name.clone(),
        };
        let mut faults = RouteFaults::default();
        let body = match route {
            Route::Http(route) => {
                let entries = self.http_entries(route, &mut faults);
                RouteBody::Requests { age, entries }
            }
            Route::Grpc(route) => {
                let entries = self.grpc_entries(route, &mut faults);
                RouteBody::Requests { age, entries }
            }
            Route::Stream(route) => RouteBody::Connections(self.connections(route, &mut faults)),
            Route::Virtual(route) => RouteBody::Tables(self.virtual_tables(route, &mut faults)),
        };
        Some(CompiledRoute {
            attachments: route.attachments(),
            body,
            refused: faults.refused,
            unresolved: faults.unresolved,
        })
    }

    /// Where connections go. Further rules can never be reached: the first has nothing to match.
    fn connections(&self, route: &StreamRoute, faults: &mut RouteFaults) -> Arc<[WeightedBackend]> {
        let first = route.spec.rules.first();
        let references = first.into_iter().flat_map(|rule| &rule.backend_refs);
        let mut backends = Vec::new();
        for reference in references {
            backends.push(WeightedBackend {
                weight: reference.backend().weight(),
                target: self.target(&route.meta.name.namespace, reference.backend(), faults),
                request_headers: HeaderModifier::default(),
                response_headers: HeaderModifier::default(),
            });
        }
        backends.into()
    }

    /// The target of a backend reference; what does not resolve is noted.
    fn target(
        &self,
        namespace: &Arc<str>,
        reference: Backend<'_>,
        faults: &mut RouteFaults,
    ) -> BackendTarget {
        match self.backend(namespace, reference) {
            Ok((service, port)) => BackendTarget::Service {
                service,
                port,
                subset: None,
            },
            Err(why) => {
                let target = why.target();
                faults.unresolved.get_or_insert(why);
                target
            }
        }
    }
}
