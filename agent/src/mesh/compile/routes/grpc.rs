//! GRPCRoutes → matches and rules. A method is a path: `/<service>/<method>` (gRPC over HTTP/2).

use std::sync::Arc;

use userspace_l7::model::{
    FullRegex, HttpMatch, HttpRouteEntry, HttpRule, PathMatch, WeightedBackend,
};

use super::http::{Filters, header_matches};
use super::{RouteFaults, filters};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::precedence::Precedence;
use crate::mesh::grpc_route::{
    GrpcMethodMatch, GrpcRoute, GrpcRouteFilter, GrpcRouteMatch, GrpcRouteRule,
};
use crate::mesh::http_route::{HttpRouteFilter, ValueMatchType};
use crate::mesh::meta::ObjectName;
use crate::mesh::route::{Backend, FilteredBackend};

/// Every backend that a route names, mirrors included.
pub(super) fn backends(route: &GrpcRoute) -> Vec<Backend<'_>> {
    let mut all = Vec::new();
    for rule in &route.spec.rules {
        all.extend(rule.backend_refs.iter().map(FilteredBackend::backend));
        let mirrors = rule
            .filters
            .iter()
            .filter_map(|one| one.request_mirror.as_ref());
        all.extend(mirrors.map(|one| one.backend_ref.backend()));
    }
    all
}

impl Compiler {
    /// One entry for each match of each rule of a route.
    pub(super) fn grpc_entries(
        &self,
        route: &GrpcRoute,
        faults: &mut RouteFaults,
    ) -> Vec<(Precedence, HttpRouteEntry)> {
        let mut entries = Vec::new();
        for (index, rule) in route.spec.rules.iter().enumerate() {
            let mut compiled = self.grpc_rule(&route.meta.name, (index, rule), faults);
            let default = [GrpcRouteMatch::default()];
            let matches = if rule.matches.is_empty() {
                &default[..]
            } else {
                &rule.matches
            };
            let read: Vec<_> = matches
                .iter()
                .map(|one| (one, read_match(one, faults)))
                .collect();
            compiled.is_usable &= read.iter().all(|(_, read)| read.is_some());
            let compiled = Arc::new(compiled);
            for (place, (written, read)) in read.into_iter().enumerate() {
                let matches = read.unwrap_or_default();
                let method = written.method.as_ref();
                let names = (
                    method.and_then(|one| one.service.as_deref()),
                    method.and_then(|one| one.method.as_deref()),
                );
                let precedence = Precedence::of_grpc(&matches, names, (index, place));
                let rule = Arc::clone(&compiled);
                let matches = Arc::new(matches);
                entries.push((precedence, HttpRouteEntry { matches, rule }));
            }
        }
        entries
    }

    fn grpc_rule(
        &self,
        name: &ObjectName,
        (index, rule): (usize, &GrpcRouteRule),
        faults: &mut RouteFaults,
    ) -> HttpRule {
        let mut read = Filters::default();
        let mut compiled = self.blank_rule(("GRPCRoute", name), (index, rule.name.as_deref()));
        compiled.session = rule.session_persistence.as_ref().map(filters::session);
        for filter in &rule.filters {
            let filter = as_http(filter);
            read.read(&filter, faults);
            compiled
                .mirrors
                .extend(self.mirror(&name.namespace, &filter, faults));
        }
        let mut backends: Vec<WeightedBackend> = Vec::new();
        for backend in &rule.backend_refs {
            let own: Vec<_> = backend.filters.iter().map(as_http).collect();
            let reference = (backend.backend(), &own[..]);
            backends.push(self.http_backend(&name.namespace, reference, &mut read, faults));
        }
        compiled.action = userspace_l7::model::HttpAction::Forward(backends);
        read.finish(&mut compiled);
        compiled
    }
}

/// The same filter in HTTPRoute's terms, which have all of GRPCRoute's.
fn as_http(filter: &GrpcRouteFilter) -> HttpRouteFilter {
    HttpRouteFilter {
        kind: filter.kind.clone(),
        request_header_modifier: filter.request_header_modifier.clone(),
        response_header_modifier: filter.response_header_modifier.clone(),
        request_mirror: filter.request_mirror.clone(),
        extension_ref: filter.extension_ref.clone(),
        ..HttpRouteFilter::default()
    }
}

fn read_match(one: &GrpcRouteMatch, faults: &mut RouteFaults) -> Option<HttpMatch> {
    let path = match &one.method {
        None => Some(PathMatch::Any),
        Some(method) => method_path(method),
    };
    let read = path.zip(header_matches(&one.headers));
    if read.is_none() {
        let message = "a match of a rule cannot be read".to_owned();
        faults.refuse("UnsupportedValue", message);
    }
    read.map(|(path, headers)| HttpMatch {
        path,
        headers,
        ..HttpMatch::default()
    })
}

/// One segment, whatever is in it.
const ANY_NAME: &str = "[^/]+";

fn method_path(one: &GrpcMethodMatch) -> Option<PathMatch> {
    let regex = |service: &str, method: &str| {
        let compiled = FullRegex::new(&format!("/(?:{service})/(?:{method})"));
        compiled.ok().map(PathMatch::Regex)
    };
    let (service, method) = (one.service.as_deref(), one.method.as_deref());
    match (one.kind, service, method) {
        (_, None, None) => Some(PathMatch::Any),
        (ValueMatchType::Exact, Some(service), Some(method)) => {
            Some(PathMatch::Exact(format!("/{service}/{method}").into()))
        }
        (ValueMatchType::Exact, Some(service), None) => {
            Some(PathMatch::Prefix(format!("/{service}").into()))
        }
        // Names have no character that means something in an expression, but for the service's dots.
        (ValueMatchType::Exact, None, Some(method)) => regex(ANY_NAME, method),
        (ValueMatchType::RegularExpression, service, method) => {
            regex(service.unwrap_or(ANY_NAME), method.unwrap_or(ANY_NAME))
        }
    }
}
