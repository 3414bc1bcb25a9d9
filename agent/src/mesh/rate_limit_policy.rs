//! RateLimitPolicy, our own kind (`culvert.dev/v1alpha1`): limits on requests, attached by `targetRefs`.

#[cfg(test)]
mod tests;

use serde::Deserialize;

use super::duration::GatewayDuration;
use super::field::{Faults, FieldPath, at};
use super::meta::Meta;
use super::route::check_header_name;
use super::selector::TargetReference;
use super::syntax::read_port;

/// A RateLimitPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitPolicy {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: RateLimitPolicySpec,
}

/// `spec` of a RateLimitPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimitPolicySpec {
    /// Services, waypoint Gateways or HTTPRoutes of its namespace.
    pub target_refs: Vec<TargetReference>,
    /// All of them hold.
    pub limits: Vec<Limit>,
    /// Who counts; each node for itself if it says nothing.
    pub global: Option<GlobalLimiter>,
}

/// One of `limits`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Only requests that a rule of this name took.
    pub route: Option<String>,
    /// What is counted apart; nothing: all requests together. A global limiter knows a limit by these.
    pub per: Vec<LimitKey>,
    /// How many in a period. A global limiter has its own numbers.
    pub requests: Option<u32>,
    /// The period; one second if it says nothing.
    pub period: Option<GatewayDuration>,
    /// How many may come at once; `requests` if it says nothing.
    pub burst: Option<u32>,
}

/// One of `per`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum LimitKey {
    /// By what every request has.
    Word(LimitWord),
    /// By a header's value.
    Header {
        /// Its name.
        header: String,
    },
    /// A text for a global limiter.
    Fixed {
        /// Descriptor key.
        key: String,
        /// Descriptor value.
        value: String,
    },
}

/// What every request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "their names say it")]
pub enum LimitWord {
    ClientIdentity,
    ClientAddress,
    Path,
    Method,
}

/// `global`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GlobalLimiter {
    /// A server that speaks `envoy.service.ratelimit.v3`.
    pub service: LimiterService,
    /// Descriptor domain; `culvert` if it says nothing.
    pub domain: Option<String>,
    /// How long it may take; 20 ms if it says nothing, as in Envoy.
    pub timeout: Option<GatewayDuration>,
    /// Whether requests are refused when it does not answer.
    #[serde(default)]
    pub fail_closed: bool,
}

/// `global.service`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LimiterService {
    /// A Service.
    pub name: String,
    /// Its namespace; the policy's own if it says nothing.
    pub namespace: Option<String>,
    /// Its port.
    pub port: u32,
}

/// The kinds that it may target.
const TARGETS: [(&str, &str); 3] = [
    ("", "Service"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "HTTPRoute"),
];

impl RateLimitPolicy {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        if spec.target_refs.is_empty() {
            let rule = "is missing: name the Service, Gateway or HTTPRoute that is limited";
            faults.add(at!["spec", "targetRefs"], rule);
        }
        for (index, target) in spec.target_refs.iter().enumerate() {
            let place = at!["spec", "targetRefs", index];
            target.check_among(&TARGETS, &self.meta.name.namespace, &place, faults);
        }
        if spec.limits.is_empty() {
            faults.add(at!["spec", "limits"], "is missing: set at least one limit");
        }
        for (index, limit) in spec.limits.iter().enumerate() {
            let place = at!["spec", "limits", index];
            limit.check(spec.global.is_some(), &place, faults);
        }
        if let Some(global) = &spec.global {
            let place = at!["spec", "global", "service", "port"];
            let _checked = read_port(global.service.port.into(), place, faults);
        }
    }
}

impl Limit {
    fn check(&self, is_global: bool, place: &FieldPath, faults: &mut Faults) {
        let has_numbers = self.requests.is_some() || self.period.is_some() || self.burst.is_some();
        if is_global && has_numbers {
            let rule = "a global limiter has its own numbers: remove requests, period and burst";
            faults.add(place.clone(), rule);
        }
        if !is_global && self.requests.is_none_or(|requests| requests == 0) {
            let rule = "is missing: say how many requests may come in a period";
            faults.add(place.join("requests"), rule);
        }
        if is_global && self.per.is_empty() {
            let rule = "is missing: a global limiter knows a limit by what it is asked about, so name at least one key";
            faults.add(place.join("per"), rule);
        }
        if self.burst == Some(0) {
            faults.add(place.join("burst"), "is nothing at all: use 1 or more");
        }
        if self.period.is_some_and(|period| period.0.is_zero()) {
            faults.add(place.join("period"), "is no time: use 1s or more");
        }
        for (index, key) in self.per.iter().enumerate() {
            let place = place.join("per").join(index);
            match key {
                LimitKey::Header { header } => {
                    check_header_name(header, place.join("header"), faults);
                }
                LimitKey::Fixed { .. } if !is_global => {
                    let rule = "a text of one's own is for a global limiter: remove it";
                    faults.add(place, rule);
                }
                LimitKey::Word(_) | LimitKey::Fixed { .. } => {}
            }
        }
    }
}
