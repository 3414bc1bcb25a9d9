//! What makes an HTTPRoute invalid, as the rules in its CRD have it.

use std::collections::BTreeSet;

use super::{
    HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, PathMatchType, PathModifier,
    PathModifierType, RedirectFilter, ValueMatch, ValueMatchType,
};
use crate::mesh::field::{Faults, FieldPath, at};
use crate::mesh::route::{MAX_ITEMS, check_header_name, check_length, check_parents, check_regex};
use crate::mesh::syntax::read_port;

/// Gateway API's limit on the matches of one rule.
const MAX_MATCHES: usize = 64;
/// Its limit on the matches of all rules together.
const MAX_ALL_MATCHES: usize = 128;
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

impl HttpRoute {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        check_parents(&spec.parent_refs, &at!["spec", "parentRefs"], faults);
        let place = at!["spec", "rules"];
        check_length(spec.rules.len(), MAX_ITEMS, &place, faults);
        let matches = spec.rules.iter().map(|rule| rule.matches.len()).sum();
        check_length(matches, MAX_ALL_MATCHES, &place.join("matches"), faults);
        check_rule_names(
            spec.rules.iter().map(|rule| rule.name.as_deref()),
            &place,
            faults,
        );
        for (index, rule) in spec.rules.iter().enumerate() {
            rule.check(&place.join(index), faults);
        }
    }
}

/// Names of rules are unique in their route.
pub(crate) fn check_rule_names<'a>(
    names: impl Iterator<Item = Option<&'a str>>,
    place: &FieldPath,
    faults: &mut Faults,
) {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let Some(name) = name else { continue };
        let place = place.join(index).join("name");
        if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            faults.add(place, "is not a name: write one word, or leave it out");
        } else if !seen.insert(name) {
            faults.add(
                place,
                format!("`{name}` is another rule's name: give it one of its own"),
            );
        }
    }
}

impl HttpRouteRule {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        check_length(
            self.matches.len(),
            MAX_MATCHES,
            &place.join("matches"),
            faults,
        );
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&place.join("matches").join(index), faults);
        }
        let prefixes = self.matches.iter().all(HttpRouteMatch::is_prefix);
        check_filters(&self.filters, prefixes, &place.join("filters"), faults);
        let redirects = self
            .filters
            .iter()
            .any(|one| one.request_redirect.is_some());
        if redirects && !self.backend_refs.is_empty() {
            let rule = "a rule that redirects has no backends: remove them or the redirect";
            faults.add(place.join("backendRefs"), rule);
        }
        let backends = place.join("backendRefs");
        check_length(self.backend_refs.len(), MAX_ITEMS, &backends, faults);
        for (index, backend) in self.backend_refs.iter().enumerate() {
            let place = backends.join(index);
            backend.backend().check(&place, faults);
            check_filters(&backend.filters, prefixes, &place.join("filters"), faults);
        }
        self.check_times(place, faults);
    }

    fn check_times(&self, place: &FieldPath, faults: &mut Faults) {
        if let Some(timeouts) = &self.timeouts
            && let (Some(whole), Some(one)) = (timeouts.request, timeouts.backend_request)
            && !whole.0.is_zero()
            && one.0 > whole.0
        {
            let rule = "is longer than timeouts.request: one attempt cannot take longer than all";
            faults.add(place.join("timeouts").join("backendRequest"), rule);
        }
        if let Some(retry) = &self.retry {
            let place = place.join("retry").join("codes");
            for (index, code) in retry.codes.iter().enumerate() {
                if !(400..=599).contains(code) {
                    let problem = format!("{code} is not an error status: use 400 to 599");
                    faults.add(place.join(index), problem);
                }
            }
        }
        if let Some(session) = &self.session_persistence {
            session.check(&place.join("sessionPersistence"), faults);
        }
    }
}

impl HttpRouteMatch {
    /// Whether a prefix is what it matches of the path.
    fn is_prefix(&self) -> bool {
        self.path
            .as_ref()
            .is_none_or(|path| path.kind == PathMatchType::PathPrefix)
    }

    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        if let Some(path) = &self.path {
            let value = path.value.as_deref().unwrap_or("/");
            let place = place.join("path").join("value");
            match path.kind {
                PathMatchType::RegularExpression => check_regex(value, place, faults),
                PathMatchType::Exact | PathMatchType::PathPrefix => {
                    check_path(value, &place, faults);
                }
            }
        }
        for (name, list) in [
            ("headers", &self.headers),
            ("queryParams", &self.query_params),
        ] {
            check_length(list.len(), MAX_ITEMS, &place.join(name), faults);
            for (index, one) in list.iter().enumerate() {
                one.check(name == "headers", &place.join(name).join(index), faults);
            }
        }
        if let Some(method) = &self.method
            && !METHODS.contains(&method.as_str())
        {
            let problem = format!("`{method}` is not a method: use {}", METHODS.join(", "));
            faults.add(place.join("method"), problem);
        }
    }
}

/// A path of a match: what no request could have is refused by the CRD.
fn check_path(path: &str, place: &FieldPath, faults: &mut Faults) {
    if !path.starts_with('/') {
        faults.add(place.clone(), "is not a path: begin it with /");
        return;
    }
    let parts = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let ends = ["/..", "/."];
    let wrong = parts.iter().find(|part| path.contains(**part));
    if let Some(wrong) = wrong.or_else(|| ends.iter().find(|end| path.ends_with(**end))) {
        faults.add(
            place.clone(),
            format!("has `{wrong}` in it, which no request's path has: remove it"),
        );
    }
}

impl ValueMatch {
    pub(crate) fn check(&self, is_header: bool, place: &FieldPath, faults: &mut Faults) {
        if is_header {
            check_header_name(&self.name, place.join("name"), faults);
        } else if self.name.is_empty() {
            faults.add(place.join("name"), "is missing: name the parameter");
        }
        if self.kind == ValueMatchType::RegularExpression {
            check_regex(&self.value, place.join("value"), faults);
        }
    }
}

fn check_filters(
    filters: &[HttpRouteFilter],
    prefixes: bool,
    place: &FieldPath,
    faults: &mut Faults,
) {
    check_length(filters.len(), MAX_ITEMS, place, faults);
    let mut seen = BTreeSet::new();
    for (index, filter) in filters.iter().enumerate() {
        let place = place.join(index);
        filter.check(prefixes, &place, faults);
        let repeatable = ["RequestMirror", "ExtensionRef"].contains(&filter.kind.as_str());
        if !repeatable && !seen.insert(filter.kind.as_str()) {
            let problem = format!("{} is here a second time: keep one", filter.kind);
            faults.add(place.join("type"), problem);
        }
    }
    if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
        let rule = "a rule redirects or rewrites, not both: remove one of the filters";
        faults.add(place.clone(), rule);
    }
}

impl HttpRouteFilter {
    fn check(&self, prefixes: bool, place: &FieldPath, faults: &mut Faults) {
        let fields = [
            (
                "RequestHeaderModifier",
                "requestHeaderModifier",
                self.request_header_modifier.is_some(),
            ),
            (
                "ResponseHeaderModifier",
                "responseHeaderModifier",
                self.response_header_modifier.is_some(),
            ),
            (
                "RequestMirror",
                "requestMirror",
                self.request_mirror.is_some(),
            ),
            (
                "RequestRedirect",
                "requestRedirect",
                self.request_redirect.is_some(),
            ),
            ("URLRewrite", "urlRewrite", self.url_rewrite.is_some()),
            ("CORS", "cors", self.cors.is_some()),
            ("ExternalAuth", "externalAuth", self.external_auth.is_some()),
            ("ExtensionRef", "extensionRef", self.extension_ref.is_some()),
        ];
        check_filter_type(&self.kind, &fields, place, faults);
        for (name, filter) in [
            ("requestHeaderModifier", &self.request_header_modifier),
            ("responseHeaderModifier", &self.response_header_modifier),
        ] {
            if let Some(filter) = filter {
                filter.check(&place.join(name), faults);
            }
        }
        if let Some(mirror) = &self.request_mirror {
            mirror.check(&place.join("requestMirror"), faults);
        }
        if let Some(redirect) = &self.request_redirect {
            redirect.check(prefixes, &place.join("requestRedirect"), faults);
        }
        if let Some(rewrite) = &self.url_rewrite {
            let place = place.join("urlRewrite");
            check_hostname(rewrite.hostname.as_deref(), &place, faults);
            if let Some(path) = &rewrite.path {
                path.check(prefixes, &place.join("path"), faults);
            }
        }
    }
}

/// A filter says which it is, and has the field of that name and no other.
pub(crate) fn check_filter_type(
    kind: &str,
    fields: &[(&str, &str, bool)],
    place: &FieldPath,
    faults: &mut Faults,
) {
    if !fields.iter().any(|(known, _, _)| *known == kind) {
        let known: Vec<_> = fields.iter().map(|(known, _, _)| *known).collect();
        let problem = format!("`{kind}` is not a filter: use {}", known.join(", "));
        faults.add(place.join("type"), problem);
        return;
    }
    for (own, field, there) in fields {
        if *own == kind && !there {
            let problem = format!("is missing: type {kind} needs it");
            faults.add(place.join(*field), problem);
        } else if *own != kind && *there {
            let problem = format!("does not belong to type {kind}: remove it");
            faults.add(place.join(*field), problem);
        }
    }
}

impl RedirectFilter {
    fn check(&self, prefixes: bool, place: &FieldPath, faults: &mut Faults) {
        if let Some(scheme) = &self.scheme
            && !["http", "https"].contains(&scheme.as_str())
        {
            let problem = format!("`{scheme}` is not a scheme: use http or https");
            faults.add(place.join("scheme"), problem);
        }
        check_hostname(self.hostname.as_deref(), place, faults);
        if let Some(path) = &self.path {
            path.check(prefixes, &place.join("path"), faults);
        }
        if let Some(port) = self.port {
            let _checked = read_port(port, place.join("port"), faults);
        }
        if let Some(code) = self.status_code
            && !REDIRECTS.contains(&code)
        {
            let problem = format!("{code} is not a redirect: use 301, 302, 303, 307 or 308");
            faults.add(place.join("statusCode"), problem);
        }
    }
}

fn check_hostname(hostname: Option<&str>, place: &FieldPath, faults: &mut Faults) {
    if let Some(name) = hostname
        && !crate::mesh::syntax::is_dns_name(&name.to_ascii_lowercase())
    {
        let problem = format!("`{name}` is not a DNS name: write one like example.com");
        faults.add(place.join("hostname"), problem);
    }
}

impl PathModifier {
    fn check(&self, prefixes: bool, place: &FieldPath, faults: &mut Faults) {
        let (field, there, other, extra) = match self.kind {
            PathModifierType::ReplaceFullPath => (
                "replaceFullPath",
                self.replace_full_path.is_some(),
                "replacePrefixMatch",
                self.replace_prefix_match.is_some(),
            ),
            PathModifierType::ReplacePrefixMatch => (
                "replacePrefixMatch",
                self.replace_prefix_match.is_some(),
                "replaceFullPath",
                self.replace_full_path.is_some(),
            ),
        };
        if !there {
            faults.add(place.join(field), "is missing: its type needs it");
        }
        if extra {
            faults.add(place.join(other), "does not belong to its type: remove it");
        }
        if self.kind == PathModifierType::ReplacePrefixMatch && !prefixes {
            let rule = "ReplacePrefixMatch needs a rule that matches a PathPrefix";
            faults.add(place.join("type"), rule);
        }
    }
}
