//! Istio's Telemetry: what is recorded of requests.

use std::collections::BTreeMap;

use serde::Deserialize;
use userspace_l7::model::CelExpression;

use super::field::{Faults, at};
use super::meta::Meta;
use super::selector::{TargetReference, WorkloadSelector, check_targets};

/// A Telemetry object.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: TelemetrySpec,
}

/// `spec` of a Telemetry object.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetrySpec {
    /// Workloads it is about: of sidecars only.
    pub selector: Option<WorkloadSelector>,
    /// Old form of `targetRefs`.
    pub target_ref: Option<TargetReference>,
    /// Objects it is about; none: its namespace, or the mesh.
    pub target_refs: Vec<TargetReference>,
    /// Traces; of several entries that say something, the last one counts.
    pub tracing: Vec<Tracing>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Access logs.
    pub access_logging: Vec<AccessLogging>,
}

/// A named extension provider.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ProviderName {
    /// Its name.
    pub name: String,
}

/// One of `tracing`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct Tracing {
    #[serde(rename = "match")]
    pub matches: Option<LogSelector>,
    pub providers: Vec<ProviderName>,
    pub random_sampling_percentage: Option<f64>,
    pub disable_span_reporting: Option<bool>,
    pub custom_tags: BTreeMap<String, CustomTag>,
    pub use_request_id_for_trace_sampling: Option<bool>,
    pub enable_istio_tags: Option<bool>,
}

/// One of `customTags`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct CustomTag {
    /// Always the same.
    pub literal: Option<LiteralTag>,
    /// A variable of a proxy's environment: there is none, its default counts.
    pub environment: Option<NamedTag>,
    /// A request header.
    pub header: Option<NamedTag>,
    /// A format of Envoy's.
    pub formatter: Option<LiteralTag>,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct LiteralTag {
    /// The text.
    pub value: String,
}

/// A name, and what stands in for it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamedTag {
    /// The name.
    pub name: String,
    /// If nothing has that name.
    pub default_value: Option<String>,
}

/// One of `metrics`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct Metrics {
    pub providers: Vec<ProviderName>,
    pub overrides: Vec<MetricOverride>,
    pub reporting_interval: Option<String>,
}

/// One of `metrics[].overrides`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct MetricOverride {
    #[serde(rename = "match")]
    pub matches: Option<MetricSelector>,
    pub disabled: Option<bool>,
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// `match` of a metric.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct MetricSelector {
    pub metric: Option<String>,
    pub custom_metric: Option<String>,
    pub mode: Mode,
}

/// On which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum Mode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

/// One of `tagOverrides`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct TagOverride {
    /// What happens to the label.
    pub operation: TagOperation,
    /// An expression; a quoted text is a constant.
    pub value: String,
}

/// `tagOverrides.operation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum TagOperation {
    #[default]
    Upsert,
    Remove,
}

/// One of `accessLogging`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct AccessLogging {
    #[serde(rename = "match")]
    pub matches: Option<LogSelector>,
    pub providers: Vec<ProviderName>,
    pub disabled: Option<bool>,
    pub filter: Option<LogFilter>,
}

/// `match` of an access log or of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct LogSelector {
    /// On which side.
    pub mode: Mode,
}

/// `filter` of an access log.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct LogFilter {
    /// CEL.
    pub expression: String,
}

impl TelemetrySpec {
    /// All targets, whichever field names them.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &TargetReference> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

impl Telemetry {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        let targets = (spec.target_ref.as_ref(), &spec.target_refs[..]);
        let namespace = &self.meta.name.namespace;
        check_targets(namespace, spec.selector.as_ref(), targets, faults);
        for (index, logging) in spec.access_logging.iter().enumerate() {
            if let Some(filter) = &logging.filter
                && let Err(why) = CelExpression::new(&filter.expression)
            {
                let place = at!["spec", "accessLogging", index, "filter", "expression"];
                faults.add(place, why.to_string().escape_debug().to_string());
            }
        }
        for (index, tracing) in spec.tracing.iter().enumerate() {
            let share = tracing.random_sampling_percentage;
            if share.is_some_and(|share| !(0.0..=100.0).contains(&share)) {
                let place = at!["spec", "tracing", index, "randomSamplingPercentage"];
                faults.add(place, "is not a percentage: use 0 to 100");
            }
        }
    }
}

/// The text of a quoted constant. What is computed from a request must not become a label: a peer could
/// make as many of them as it likes.
pub(super) fn constant(expression: &str) -> Option<&str> {
    let inner = |quote: char| expression.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"'))
}
