//! VirtualServices → matches and rules, in the order in which they are written: that is their precedence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use regex::Regex;
use userspace_l7::model::{
    AbortAnswer, BackendTarget, Cors, Fault, FaultAbort, FaultDelay, FullRegex, HeaderMatch,
    HeaderModifier, HttpAction, HttpMatch, HttpRouteEntry, HttpRouteTable, HttpRule, Mirror,
    NamespacedHostname, OriginMatch, PathChange, PathMatch, PortRoutes, QueryMatch, Redirect,
    RedirectPort, Rewrite, SearchRegex, TextMatch, WeightedBackend, grpc_status,
};

use super::delegation::VirtualRule;
use super::{RouteFaults, filters};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::backends::Unresolved;
use crate::mesh::meta::ObjectName;
use crate::mesh::route::{Header, HeaderFilter};
use crate::mesh::virtual_service::{
    DerivePort, DestinationReference, HeaderOperations, Percent, TextPattern, UnmatchedPreflights,
    VirtualCors, VirtualDestination, VirtualFault, VirtualHttpRoute, VirtualMatch, VirtualRedirect,
    VirtualRewrite, VirtualService, VirtualTcpMatch,
};

/// Istio's default for a redirect.
const DEFAULT_REDIRECT: StatusCode = StatusCode::MOVED_PERMANENTLY;

/// The table of each service port that a VirtualService is about.
pub(in crate::mesh::compile) type VirtualTables = BTreeMap<(NamespacedHostname, u16), PortRoutes>;

/// Every host that a VirtualService names: those that it is about, and its destinations.
pub(super) fn hosts(route: &VirtualService) -> impl Iterator<Item = &str> {
    let spec = &route.spec;
    let http = spec.http.iter().flat_map(|route| {
        let mirrors = route.mirrors.iter().map(|one| &one.destination);
        let routes = route.route.iter().map(|one| &one.destination);
        routes.chain(mirrors).chain(&route.mirror)
    });
    let tcp = spec.tcp.iter().flat_map(|route| &route.route);
    let destinations = http.chain(tcp.map(|one| &one.destination));
    let own = spec.hosts.iter().map(String::as_str);
    own.chain(destinations.map(|one| one.host.as_str()))
}

impl Compiler {
    pub(super) fn virtual_tables(
        &self,
        route: &VirtualService,
        faults: &mut RouteFaults,
    ) -> VirtualTables {
        let mut tables = VirtualTables::new();
        if !route.spec.is_for_mesh() {
            return tables;
        }
        let name = &route.meta.name;
        let rules = self.http_rules(route, faults);
        for host in &route.spec.hosts {
            let key = NamespacedHostname {
                namespace: Arc::clone(&name.namespace),
                hostname: self.host_of(name, host),
            };
            let service = self.current.services.get(&key);
            for port in service.into_iter().flat_map(|service| service.ports.keys()) {
                let found = self.virtual_routes((route, &rules), *port, faults);
                if found != PortRoutes::None {
                    tables.insert((key.clone(), *port), found);
                }
            }
        }
        tables
    }

    fn virtual_routes(
        &self,
        (route, rules): (&VirtualService, &[VirtualRule<'_>]),
        port: u16,
        faults: &mut RouteFaults,
    ) -> PortRoutes {
        let name = &route.meta.name;
        let is_port = |one: Option<u32>| one.is_none_or(|own| own == u32::from(port));
        let mut entries = Vec::new();
        for VirtualRule { index, home, http } in rules {
            let mut matches = Vec::new();
            let mut is_readable = true;
            for one in http.matches.iter().filter(|one| is_port(one.port)) {
                match read_match(one) {
                    Ok(Some(read)) => matches.push(read),
                    // What asks for another scheme, or for certain clients, never matches.
                    Ok(None) => {}
                    Err(Unreadable) => {
                        is_readable = false;
                        matches.push(HttpMatch::default());
                    }
                }
            }
            if http.matches.is_empty() {
                matches.push(HttpMatch::default());
            }
            if matches.is_empty() {
                continue;
            }
            let mut rule = self.virtual_rule((name, home), (*index, http), port, faults);
            rule.is_usable &= is_readable;
            let whole = Arc::new(with_whole_path(&rule));
            let rule = Arc::new(rule);
            for matches in matches {
                let by_text = !matches!(matches.path, PathMatch::Any | PathMatch::Regex(_));
                let rule = Arc::clone(if by_text { &rule } else { &whole });
                let matches = Arc::new(matches);
                entries.push(HttpRouteEntry { matches, rule });
            }
        }
        if !entries.is_empty() {
            return PortRoutes::Http(Arc::new(HttpRouteTable::new(entries, false)));
        }
        let tcp = route.spec.tcp.iter().find(|route| {
            let holds = |one: &VirtualTcpMatch| is_port(one.port) && one.is_for_waypoints();
            route.matches.is_empty() || route.matches.iter().any(holds)
        });
        let Some(tcp) = tcp else {
            return PortRoutes::None;
        };
        let backends = tcp.route.iter();
        PortRoutes::Tcp(
            backends
                .map(|one| self.virtual_backend(name, one, tcp.route.len(), (port, faults)))
                .collect(),
        )
    }

    fn virtual_rule(
        &self,
        (name, home): (&ObjectName, &ObjectName),
        (index, route): (usize, &VirtualHttpRoute),
        port: u16,
        faults: &mut RouteFaults,
    ) -> HttpRule {
        let own = Some(route.name.as_str()).filter(|own| !own.is_empty());
        let mut rule = self.blank_rule(("VirtualService", name), (index, own));
        let count = route.route.len();
        rule.action = if let Some(redirect) = &route.redirect {
            HttpAction::Redirect(read_redirect(redirect))
        } else if let Some(response) = &route.direct_response {
            let status = StatusCode::from_u16(response.status);
            let body = response.body.as_ref().and_then(|one| one.string.as_deref());
            HttpAction::Respond {
                status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                body: body.unwrap_or_default().into(),
            }
        } else {
            let mut backends = Vec::new();
            for one in &route.route {
                backends.push(self.virtual_backend(home, one, count, (port, faults)));
            }
            HttpAction::Forward(backends)
        };
        rule.mirrors = self.virtual_mirrors(home, route, (port, faults));
        rule.rewrite = route.rewrite.as_ref().map(read_rewrite);
        rule.cors = route.cors_policy.as_ref().map(read_cors).map(Arc::new);
        rule.fault = route.fault.as_ref().map(read_fault);
        let timeout = route.timeout.map(|one| one.0);
        rule.timeout = timeout.filter(|one| !one.is_zero());
        if let Some(retries) = &route.retries {
            rule.retry = retries.compile();
        }
        let headers = (
            read_headers(&route.headers.request),
            read_headers(&route.headers.response),
        );
        match headers {
            (Some(request), Some(response)) => {
                rule.request_headers = request;
                rule.response_headers = response;
            }
            _ => rule.is_usable = false,
        }
        rule
    }

    fn virtual_mirrors(
        &self,
        name: &ObjectName,
        route: &VirtualHttpRoute,
        (port, faults): (u16, &mut RouteFaults),
    ) -> Vec<Mirror> {
        let old = route.mirror_percent.map(|percent| Percent {
            value: f64::from(percent),
        });
        let share = route.mirror_percentage.or(old);
        let one = route.mirror.iter().map(|one| (one, share));
        let several = route.mirrors.iter();
        let several = several.map(|one| (&one.destination, one.percentage));
        let mut mirrors = Vec::new();
        for (destination, share) in one.chain(several) {
            mirrors.push(Mirror {
                target: self.destination(name, destination, port, faults),
                per_million: per_million(share),
                shadow_host: true,
            });
        }
        mirrors
    }

    fn virtual_backend(
        &self,
        name: &ObjectName,
        one: &VirtualDestination,
        count: usize,
        (port, faults): (u16, &mut RouteFaults),
    ) -> WeightedBackend {
        let weight = one.weight.map(|weight| u32::try_from(weight).unwrap_or(0));
        WeightedBackend {
            // A single destination takes everything, whatever its weight says (Istio).
            weight: if count == 1 { 1 } else { weight.unwrap_or(0) },
            target: self.destination(name, &one.destination, port, faults),
            request_headers: read_headers(&one.headers.request).unwrap_or_default(),
            response_headers: read_headers(&one.headers.response).unwrap_or_default(),
        }
    }

    /// A destination. Without a port it is the service's only one, or the one that was dialled.
    fn destination(
        &self,
        name: &ObjectName,
        destination: &DestinationReference,
        dialled: u16,
        faults: &mut RouteFaults,
    ) -> BackendTarget {
        let hostname = self.host_of(name, &destination.host);
        let service = self.current.service_named(&hostname, &name.namespace);
        let own = destination.port.map(|port| port.number);
        let own = own.and_then(|port| u16::try_from(port).ok());
        let only = service
            .filter(|service| service.ports.len() == 1)
            .and_then(|service| service.ports.keys().next().copied());
        let port = own.or(only).unwrap_or(dialled);
        let found = service.filter(|service| service.ports.contains_key(&port));
        let Some(found) = found else {
            let why = Unresolved {
                reason: "BackendNotFound",
                message: format!("destination {hostname}:{port} not found"),
            };
            let target = why.target();
            faults.unresolved.get_or_insert(why);
            return target;
        };
        let subset = Some(&destination.subset).filter(|subset| !subset.is_empty());
        BackendTarget::Service {
            service: found.key.clone(),
            port,
            subset: subset.map(|subset| subset.as_str().into()),
        }
    }
}

/// A pattern that cannot be read: checked when the object was.
struct Unreadable;

/// A match in our form; `None`: it holds for no request.
fn read_match(one: &VirtualMatch) -> Result<Option<HttpMatch>, Unreadable> {
    if !one.is_for_waypoints() {
        return Ok(None);
    }
    // Requests within a mesh are sent in plain text by the application.
    if let Some(scheme) = &one.scheme
        && !matches_plain(&text_match(scheme)?)
    {
        return Ok(None);
    }
    let mut query = Vec::new();
    for (name, pattern) in &one.query_params {
        query.push(QueryMatch {
            name: name.as_str().into(),
            value: text_match(pattern)?,
        });
    }
    Ok(Some(HttpMatch {
        path: one.uri.as_ref().map_or(Ok(PathMatch::Any), path_match)?,
        ignore_path_case: one.ignore_uri_case,
        method: one.method.as_ref().map(text_match).transpose()?,
        authority: one.authority.as_ref().map(text_match).transpose()?,
        headers: header_matches(&one.headers)?,
        without_headers: header_matches(&one.without_headers)?,
        query,
    }))
}

fn matches_plain(scheme: &TextMatch) -> bool {
    match scheme {
        TextMatch::Exact(text) => &**text == "http",
        TextMatch::Prefix(text) => "http".starts_with(&**text),
        TextMatch::Regex(regex) => regex.is_match("http"),
        TextMatch::Present => true,
    }
}

fn path_match(pattern: &TextPattern) -> Result<PathMatch, Unreadable> {
    Ok(match text_match(pattern)? {
        TextMatch::Exact(path) => PathMatch::Exact(path),
        TextMatch::Prefix(path) => PathMatch::TextPrefix(path),
        TextMatch::Regex(regex) => PathMatch::Regex(regex),
        TextMatch::Present => PathMatch::Any,
    })
}

fn text_match(pattern: &TextPattern) -> Result<TextMatch, Unreadable> {
    Ok(match (&pattern.exact, &pattern.prefix, &pattern.regex) {
        (Some(text), _, _) => TextMatch::Exact(text.as_str().into()),
        (None, Some(text), _) => TextMatch::Prefix(text.as_str().into()),
        (None, None, Some(regex)) => {
            TextMatch::Regex(FullRegex::new(regex).map_err(|_invalid| Unreadable)?)
        }
        (None, None, None) => TextMatch::Present,
    })
}

fn header_matches(list: &BTreeMap<String, TextPattern>) -> Result<Vec<HeaderMatch>, Unreadable> {
    let mut read = Vec::new();
    for (name, pattern) in list {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_invalid| Unreadable)?;
        let value = text_match(pattern)?;
        read.push(HeaderMatch { name, value });
    }
    Ok(read)
}

fn read_headers(operations: &HeaderOperations) -> Option<HeaderModifier> {
    let list = |map: &BTreeMap<String, String>| {
        let pairs = map.iter();
        let headers = pairs.map(|(name, value)| Header {
            name: name.clone(),
            value: value.clone(),
        });
        headers.collect()
    };
    let filter = HeaderFilter {
        set: list(&operations.set),
        add: list(&operations.add),
        remove: operations.remove.clone(),
    };
    let mut modifier = HeaderModifier::default();
    filters::modify(&mut modifier, &filter)?;
    Some(modifier)
}

fn read_redirect(redirect: &VirtualRedirect) -> Redirect {
    let status = redirect
        .redirect_code
        .and_then(|code| StatusCode::from_u16(code).ok());
    Redirect {
        scheme: redirect.scheme.as_deref().map(Arc::from),
        hostname: redirect.authority.as_deref().map(Arc::from),
        path: redirect
            .uri
            .as_deref()
            .map(|uri| PathChange::Full(uri.into())),
        port: match redirect.port.map(u16::try_from) {
            Some(Ok(port)) => RedirectPort::Number(port),
            Some(Err(_)) | None if redirect.derive_port == Some(DerivePort::FromRequestPort) => {
                RedirectPort::Called
            }
            Some(Err(_)) | None => RedirectPort::OfAuthority,
        },
        status: status.unwrap_or(DEFAULT_REDIRECT),
    }
}

/// The rule for a match that says of no text that it is the path's beginning: the path is replaced whole.
fn with_whole_path(rule: &HttpRule) -> HttpRule {
    let mut whole = rule.clone();
    if let Some(rewrite) = &mut whole.rewrite
        && let Some(PathChange::Prefix(path)) = &rewrite.path
    {
        rewrite.path = Some(PathChange::Full(Arc::clone(path)));
    }
    whole
}

/// The text that was matched is replaced (Istio).
fn read_rewrite(rewrite: &VirtualRewrite) -> Rewrite {
    let regex = rewrite.uri_regex_rewrite.as_ref().and_then(|regex| {
        Some(PathChange::Regex {
            pattern: SearchRegex(Regex::new(&regex.pattern).ok()?),
            replacement: replacement(&regex.rewrite).into(),
        })
    });
    let plain = rewrite
        .uri
        .as_deref()
        .map(|uri| PathChange::Prefix(uri.into()));
    let authority = rewrite.authority.as_deref();
    Rewrite {
        hostname: authority.and_then(|name| HeaderValue::from_str(name).ok()),
        path: regex.or(plain),
    }
}

/// RE2's `\1` in the replacement syntax of the `regex` crate.
fn replacement(text: &str) -> String {
    let mut written = String::new();
    let mut characters = text.chars();
    while let Some(one) = characters.next() {
        match one {
            '\\' => match characters.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    written.push_str("${");
                    written.push(digit);
                    written.push('}');
                }
                Some(other) => written.push(other),
                None => {}
            },
            '$' => written.push_str("$$"),
            other => written.push(other),
        }
    }
    written
}

fn read_cors(cors: &VirtualCors) -> Cors {
    let texts = |list: &[String]| list.iter().map(|one| one.as_str().into()).collect();
    let exact = cors
        .allow_origin
        .iter()
        .map(|origin| match origin.as_str() {
            "*" => OriginMatch::Any,
            origin => OriginMatch::Exact(origin.into()),
        });
    let patterns = cors.allow_origins.iter().filter_map(|pattern| {
        Some(match text_match(pattern).ok()? {
            TextMatch::Exact(text) if &*text == "*" => OriginMatch::Any,
            TextMatch::Exact(text) => OriginMatch::Exact(text),
            TextMatch::Prefix(text) => OriginMatch::Prefix(text),
            TextMatch::Regex(regex) => OriginMatch::Regex(regex),
            TextMatch::Present => OriginMatch::Any,
        })
    });
    Cors {
        allow_origins: exact.chain(patterns).collect(),
        allow_methods: texts(&cors.allow_methods),
        allow_headers: texts(&cors.allow_headers),
        expose_headers: texts(&cors.expose_headers),
        allow_credentials: cors.allow_credentials,
        max_age: cors.max_age.map(|one| one.0),
        forward_unmatched: cors.unmatched_preflights != UnmatchedPreflights::Ignore,
    }
}

fn read_fault(fault: &VirtualFault) -> Fault {
    let delay = fault.delay.as_ref().map(|delay| {
        let old = delay.percent.map(|percent| Percent {
            value: f64::from(percent),
        });
        FaultDelay {
            duration: delay.fixed_delay.map_or(Duration::ZERO, |one| one.0),
            per_million: per_million(delay.percentage.or(old)),
        }
    });
    let abort = fault.abort.as_ref().and_then(|abort| {
        let http = abort
            .http_status
            .and_then(|status| StatusCode::from_u16(status).ok());
        let grpc = abort.grpc_status.as_deref().and_then(grpc_status::number);
        let answer = grpc.map(AbortAnswer::Grpc);
        let answer = answer.or_else(|| http.map(AbortAnswer::Http))?;
        Some(FaultAbort {
            answer,
            per_million: per_million(abort.percentage),
        })
    });
    Fault { delay, abort }
}

/// All of them if nothing is said.
fn per_million(percent: Option<Percent>) -> u32 {
    let share = percent.map_or(100.0, |percent| percent.value.clamp(0.0, 100.0));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=100 before"
    )]
    let share = (share * 10_000.0).round() as u32;
    share
}

#[cfg(test)]
mod tests {
    use super::{Percent, per_million, replacement};

    #[test]
    fn groups_are_written_as_the_regex_crate_has_them() {
        for (text, expected) in [
            (r"/x\1", "/x${1}"),
            (r"\0$", "${0}$$"),
            (r"\\", "\\"),
            ("plain", "plain"),
        ] {
            assert_eq!(replacement(text), expected, "{text}");
        }
    }

    #[test]
    fn shares_are_of_a_million() {
        assert_eq!(per_million(None), 1_000_000);
        assert_eq!(per_million(Some(Percent { value: 0.1 })), 1_000);
        assert_eq!(per_million(Some(Percent { value: 500.0 })), 1_000_000);
    }
}
