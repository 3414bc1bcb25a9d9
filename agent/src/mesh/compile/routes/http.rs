//! HTTPRoutes → matches and rules.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use userspace_l7::model::{
    FullRegex, HeaderMatch, HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRule,
    Mirror, PathMatch, QueryMatch, RetryPolicy, TextMatch, WeightedBackend,
};

use super::{RouteFaults, filters};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::precedence::Precedence;
use crate::mesh::duration::GatewayDuration;
use crate::mesh::http_route::{
    HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, PathMatchType,
    ValueMatch, ValueMatchType,
};
use crate::mesh::meta::ObjectName;
use crate::mesh::route::{Backend, FilteredBackend};

/// Every backend that a route names, mirrors included.
pub(super) fn backends(route: &HttpRoute) -> Vec<Backend<'_>> {
    let mut all = Vec::new();
    for rule in &route.spec.rules {
        all.extend(rule.backend_refs.iter().map(FilteredBackend::backend));
        let filters = rule.filters.iter();
        let mirrors = filters.filter_map(|one| one.request_mirror.as_ref());
        all.extend(mirrors.map(|one| one.backend_ref.backend()));
    }
    all
}

/// What the filters of a rule, or of one of its backends, come to.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) request: HeaderModifier,
    pub(super) response: HeaderModifier,
    /// Whether one of them cannot be applied.
    pub(super) unusable: bool,
}

impl Compiler {
    /// One entry for each match of each rule of a route.
    pub(super) fn http_entries(
        &self,
        route: &HttpRoute,
        faults: &mut RouteFaults,
    ) -> Vec<(Precedence, HttpRouteEntry)> {
        // The CRD's default: one rule that matches everything.
        let default = [HttpRouteRule::default()];
        let rules = if route.spec.rules.is_empty() {
            &default[..]
        } else {
            &route.spec.rules
        };
        let mut entries = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let (matches, is_valid) = read_matches(rule, faults);
            let mut compiled = self.http_rule(route, (index, rule), faults);
            compiled.is_usable &= is_valid;
            let compiled = Arc::new(compiled);
            for (place, one) in matches.into_iter().enumerate() {
                let precedence = Precedence::of_http(&one, (index, place));
                let matches = Arc::new(one);
                let rule = Arc::clone(&compiled);
                entries.push((precedence, HttpRouteEntry { matches, rule }));
            }
        }
        entries
    }

    fn http_rule(
        &self,
        route: &HttpRoute,
        (index, rule): (usize, &HttpRouteRule),
        faults: &mut RouteFaults,
    ) -> HttpRule {
        let name = &route.meta.name;
        let mut read = Filters::default();
        let mut compiled = self.blank_rule(("HTTPRoute", name), (index, rule.name.as_deref()));
        compiled.retry = self.retry_policy(rule.retry.as_ref());
        compiled.session = rule.session_persistence.as_ref().map(filters::session);
        let mut redirect = None;
        for filter in &rule.filters {
            read.read(filter, faults);
            redirect = redirect.or_else(|| filter.request_redirect.as_ref().map(filters::redirect));
            let rewrite = filter.url_rewrite.as_ref().map(filters::rewrite);
            compiled.rewrite = compiled.rewrite.or(rewrite);
            let cors = filter.cors.as_ref().map(filters::cors).map(Arc::new);
            compiled.cors = compiled.cors.or(cors);
            compiled
                .mirrors
                .extend(self.mirror(&name.namespace, filter, faults));
        }
        compiled.action = if let Some(redirect) = redirect {
            HttpAction::Redirect(redirect)
        } else {
            let mut backends = Vec::with_capacity(rule.backend_refs.len());
            for backend in &rule.backend_refs {
                let reference = (backend.backend(), &backend.filters[..]);
                let one = self.http_backend(&name.namespace, reference, &mut read, faults);
                backends.push(one);
            }
            HttpAction::Forward(backends)
        };
        set_timeouts(&mut compiled, rule);
        read.finish(&mut compiled);
        compiled
    }

    /// A rule of a route of some kind that does nothing yet.
    pub(super) fn blank_rule(
        &self,
        (kind, route): (&str, &ObjectName),
        (index, name): (usize, Option<&str>),
    ) -> HttpRule {
        let own = name.map(Arc::from);
        let ObjectName {
            namespace,
            name: object,
        } = route;
        let generic = || [&**namespace, ".", object, ".", &index.to_string()].concat();
        HttpRule {
            name: own.unwrap_or_else(|| generic().into()),
            origin: [kind, " ", namespace, "/", object].concat().into(),
            action: HttpAction::Forward(Vec::new()),
            request_headers: HeaderModifier::default(),
            response_headers: HeaderModifier::default(),
            rewrite: None,
            mirrors: Vec::new(),
            cors: None,
            fault: None,
            timeout: None,
            retry: self.default_retry(),
            session: None,
            is_usable: true,
        }
    }

    /// The copy that a filter asks for.
    pub(super) fn mirror(
        &self,
        namespace: &Arc<str>,
        filter: &HttpRouteFilter,
        faults: &mut RouteFaults,
    ) -> Option<Mirror> {
        let mirror = filter.request_mirror.as_ref()?;
        Some(Mirror {
            target: self.target(namespace, mirror.backend_ref.backend(), faults),
            per_million: mirror.per_million(),
            shadow_host: true,
        })
    }

    pub(super) fn http_backend(
        &self,
        namespace: &Arc<str>,
        (backend, changes): (Backend<'_>, &[HttpRouteFilter]),
        rule: &mut Filters,
        faults: &mut RouteFaults,
    ) -> WeightedBackend {
        let mut own = Filters::default();
        for filter in changes {
            own.read(filter, faults);
            // As in Istio: on the way to one backend only headers are changed.
            let known = ["RequestHeaderModifier", "ResponseHeaderModifier"];
            if !known.contains(&filter.kind.as_str()) {
                let message = format!("filter {} is not supported on a backend", filter.kind);
                faults.refuse("InvalidFilter", message);
                own.unusable = true;
            }
        }
        rule.unusable |= own.unusable;
        WeightedBackend {
            weight: backend.weight(),
            target: self.target(namespace, backend, faults),
            request_headers: own.request,
            response_headers: own.response,
        }
    }

    /// A rule's own policy, else the mesh's.
    fn retry_policy(&self, retry: Option<&HttpRouteRetry>) -> RetryPolicy {
        let Some(retry) = retry else {
            return self.default_retry();
        };
        let default = RetryPolicy::default();
        let codes = retry.codes.iter();
        RetryPolicy {
            attempts: retry.attempts.unwrap_or(default.attempts),
            statuses: codes
                .filter_map(|code| StatusCode::from_u16(*code).ok())
                .collect(),
            backoff: retry.backoff.map_or(default.backoff, |one| one.0),
            ..default
        }
    }
}

impl Filters {
    /// Gives a rule what was read.
    pub(super) fn finish(self, rule: &mut HttpRule) {
        rule.request_headers = self.request;
        rule.response_headers = self.response;
        rule.is_usable &= !self.unusable;
    }

    pub(super) fn read(&mut self, filter: &HttpRouteFilter, faults: &mut RouteFaults) {
        let changes = [
            (&mut self.request, &filter.request_header_modifier),
            (&mut self.response, &filter.response_header_modifier),
        ];
        for (modifier, change) in changes {
            if let Some(change) = change
                && filters::modify(modifier, change).is_none()
            {
                faults.refuse("InvalidFilter", "a header cannot be set".to_owned());
                self.unusable = true;
            }
        }
        if filter.extension_ref.is_some() || filter.external_auth.is_some() {
            let message = format!("unsupported filter type {}", filter.kind);
            faults.refuse("InvalidFilter", message);
            self.unusable = true;
        }
    }
}

/// Istio's reading: one attempt's time limits an attempt only if there may be several, else the whole.
fn set_timeouts(compiled: &mut HttpRule, rule: &HttpRouteRule) {
    let Some(timeouts) = rule.timeouts else {
        return;
    };
    let some = |one: Option<GatewayDuration>| one.map(|one| one.0);
    // `0s` is no limit.
    let limit = |one: Option<Duration>| one.filter(|one| !one.is_zero());
    compiled.timeout = limit(some(timeouts.request));
    if let Some(one) = some(timeouts.backend_request) {
        if rule.retry.is_some() {
            compiled.retry.per_try_timeout = limit(Some(one));
        } else {
            compiled.timeout = limit(Some(one));
        }
    }
}

/// The matches of a rule, and whether all of them could be read.
fn read_matches(rule: &HttpRouteRule, faults: &mut RouteFaults) -> (Vec<HttpMatch>, bool) {
    let default = [HttpRouteMatch::default()];
    let matches = if rule.matches.is_empty() {
        &default[..]
    } else {
        &rule.matches
    };
    let read: Option<Vec<_>> = matches.iter().map(read_match).collect();
    if let Some(read) = read {
        return (read, true);
    }
    // A rule that cannot be read must not be skipped in favour of a less specific one.
    let message = "a match of a rule cannot be read".to_owned();
    faults.refuse("UnsupportedValue", message);
    (vec![HttpMatch::default()], false)
}

fn read_match(one: &HttpRouteMatch) -> Option<HttpMatch> {
    let path = match &one.path {
        // The default: a prefix of nothing.
        None => PathMatch::Prefix("".into()),
        Some(path) => {
            let value = path.value.as_deref().unwrap_or("/");
            match path.kind {
                PathMatchType::Exact => PathMatch::Exact(value.into()),
                PathMatchType::PathPrefix => PathMatch::Prefix(value.trim_end_matches('/').into()),
                PathMatchType::RegularExpression => PathMatch::Regex(FullRegex::new(value).ok()?),
            }
        }
    };
    let method = one.method.as_deref();
    Some(HttpMatch {
        path,
        method: method.map(|method| TextMatch::Exact(method.into())),
        headers: header_matches(&one.headers)?,
        query: query_matches(&one.query_params)?,
        ..HttpMatch::default()
    })
}

/// Of several entries for one name the first counts (Gateway API).
pub(super) fn header_matches(list: &[ValueMatch]) -> Option<Vec<HeaderMatch>> {
    let mut read: Vec<HeaderMatch> = Vec::new();
    for one in list {
        let name = HeaderName::from_bytes(one.name.as_bytes()).ok()?;
        if !read.iter().any(|other| other.name == name) {
            let value = text_match(one)?;
            read.push(HeaderMatch { name, value });
        }
    }
    Some(read)
}

fn query_matches(list: &[ValueMatch]) -> Option<Vec<QueryMatch>> {
    let mut read: Vec<QueryMatch> = Vec::new();
    for one in list {
        if !read.iter().any(|other| *other.name == *one.name) {
            read.push(QueryMatch {
                name: one.name.as_str().into(),
                value: text_match(one)?,
            });
        }
    }
    Some(read)
}

fn text_match(one: &ValueMatch) -> Option<TextMatch> {
    Some(match one.kind {
        ValueMatchType::Exact => TextMatch::Exact(one.value.as_str().into()),
        ValueMatchType::RegularExpression => TextMatch::Regex(FullRegex::new(&one.value).ok()?),
    })
}
