//! GRPCRoute as Gateway API defines it.

use serde::Deserialize;

use super::field::{Faults, FieldPath, at};
use super::http_route::{ValueMatch, ValueMatchType, check_filter_type, check_rule_names};
use super::meta::Meta;
use super::route::{
    FilteredBackend, ForeignReference, HeaderFilter, MAX_ITEMS, MirrorFilter, ParentReference,
    SessionPersistence, check_length, check_parents, check_regex,
};

/// Gateway API's limit on the matches of one rule.
const MAX_MATCHES: usize = 64;

/// A GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcRoute {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: GrpcRouteSpec,
}

/// `spec` of a GRPCRoute.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// Hosts; a mesh ignores them (GEP-1294).
    pub hostnames: Vec<String>,
    /// Whether default gateways take it.
    pub use_default_gateways: Option<String>,
    /// In order.
    pub rules: Vec<GrpcRouteRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteRule {
    /// Name, unique in the route.
    pub name: Option<String>,
    /// OR; none matches everything.
    pub matches: Vec<GrpcRouteMatch>,
    /// What is done to the request and its answer.
    pub filters: Vec<GrpcRouteFilter>,
    /// Where it goes.
    pub backend_refs: Vec<FilteredBackend<GrpcRouteFilter>>,
    /// Which endpoint later requests go to.
    pub session_persistence: Option<SessionPersistence>,
}

/// AND of its fields.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct GrpcRouteMatch {
    /// Service and method.
    pub method: Option<GrpcMethodMatch>,
    /// AND; of a repeated name the first counts.
    pub headers: Vec<ValueMatch>,
}

/// `method`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct GrpcMethodMatch {
    /// How.
    #[serde(rename = "type")]
    pub kind: ValueMatchType,
    /// Full name of a service; any if it says nothing.
    pub service: Option<String>,
    /// Name of a method; any if it says nothing.
    pub method: Option<String>,
}

/// A filter: its type, and the field of that name.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is Gateway API's own, by its own name"
)]
pub struct GrpcRouteFilter {
    /// Which of the others is meant.
    #[serde(rename = "type")]
    pub kind: String,
    pub request_header_modifier: Option<HeaderFilter>,
    pub response_header_modifier: Option<HeaderFilter>,
    pub request_mirror: Option<MirrorFilter>,
    pub extension_ref: Option<ForeignReference>,
}

impl GrpcRoute {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        check_parents(&spec.parent_refs, &at!["spec", "parentRefs"], faults);
        let place = at!["spec", "rules"];
        check_length(spec.rules.len(), MAX_ITEMS, &place, faults);
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

impl GrpcRouteRule {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let matches = place.join("matches");
        check_length(self.matches.len(), MAX_MATCHES, &matches, faults);
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&matches.join(index), faults);
        }
        let check = |filters: &[GrpcRouteFilter], place: &FieldPath, faults: &mut Faults| {
            check_length(filters.len(), MAX_ITEMS, place, faults);
            for (index, filter) in filters.iter().enumerate() {
                filter.check(&place.join(index), faults);
            }
        };
        check(&self.filters, &place.join("filters"), faults);
        let backends = place.join("backendRefs");
        check_length(self.backend_refs.len(), MAX_ITEMS, &backends, faults);
        for (index, backend) in self.backend_refs.iter().enumerate() {
            let place = backends.join(index);
            backend.backend().check(&place, faults);
            check(&backend.filters, &place.join("filters"), faults);
        }
        if let Some(session) = &self.session_persistence {
            session.check(&place.join("sessionPersistence"), faults);
        }
    }
}

impl GrpcRouteMatch {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        check_length(
            self.headers.len(),
            MAX_ITEMS,
            &place.join("headers"),
            faults,
        );
        for (index, header) in self.headers.iter().enumerate() {
            header.check(true, &place.join("headers").join(index), faults);
        }
        let Some(method) = &self.method else {
            return;
        };
        let place = place.join("method");
        if method.service.is_none() && method.method.is_none() {
            faults.add(place, "says nothing: set service, method or both");
            return;
        }
        for (name, text) in [("service", &method.service), ("method", &method.method)] {
            let Some(text) = text else { continue };
            let place = place.join(name);
            match method.kind {
                ValueMatchType::RegularExpression => check_regex(text, place, faults),
                ValueMatchType::Exact if !is_protobuf_name(text, name == "service") => {
                    let rule = "use letters, digits and `_`";
                    faults.add(
                        place,
                        format!("`{text}` is not the name of a {name}: {rule}"),
                    );
                }
                ValueMatchType::Exact => {}
            }
        }
    }
}

/// The name of a service, which may have dots, or of a method.
fn is_protobuf_name(text: &str, with_dots: bool) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if with_dots {
        text.split('.').all(is_part)
    } else {
        is_part(text)
    }
}

impl GrpcRouteFilter {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
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
    }
}
