//! TCPRoute and TLSRoute as Gateway API defines them: connections, spread by weight.

use serde::Deserialize;

use super::field::{Faults, at};
use super::http_route::check_rule_names;
use super::meta::Meta;
use super::route::{BackendReference, MAX_ITEMS, ParentReference, check_length, check_parents};

/// A TCPRoute or a TLSRoute: which of them is its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRoute {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: StreamRouteSpec,
}

/// `spec` of a TCPRoute or a TLSRoute.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// Server names, of a TLSRoute only; a mesh ignores them (GEP-1294).
    pub hostnames: Vec<String>,
    /// Whether default gateways take it.
    pub use_default_gateways: Option<String>,
    /// The first one counts: it has nothing to match.
    pub rules: Vec<StreamRouteRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRouteRule {
    /// Name, unique in the route.
    pub name: Option<String>,
    /// Where connections go.
    pub backend_refs: Vec<BackendReference>,
}

impl StreamRoute {
    /// `has_names`: whether its kind has hostnames.
    pub(crate) fn check(&self, has_names: bool, faults: &mut Faults) {
        let spec = &self.spec;
        check_parents(&spec.parent_refs, &at!["spec", "parentRefs"], faults);
        if !has_names && !spec.hostnames.is_empty() {
            faults.add(
                at!["spec", "hostnames"],
                "is not a field of this kind: a TCPRoute has no names, use a TLSRoute",
            );
        }
        let place = at!["spec", "rules"];
        check_length(spec.rules.len(), MAX_ITEMS, &place, faults);
        if spec.rules.is_empty() {
            faults.add(place.clone(), "is missing: say where connections go");
        }
        check_rule_names(
            spec.rules.iter().map(|rule| rule.name.as_deref()),
            &place,
            faults,
        );
        for (index, rule) in spec.rules.iter().enumerate() {
            let place = place.join(index).join("backendRefs");
            check_length(rule.backend_refs.len(), MAX_ITEMS, &place, faults);
            for (index, backend) in rule.backend_refs.iter().enumerate() {
                backend.backend().check(&place.join(index), faults);
            }
        }
    }
}
