//! Telemetry objects and the mesh's configuration → what is recorded of requests to a service.

use std::collections::BTreeSet;
use std::sync::Arc;

use userspace_l7::model::{
    AccessLog, AccessLogFormat, CelExpression, HttpMetric, MetricOverride, Telemetry,
    TracingSettings,
};

use super::mark::Marks;
use super::store::Owner;
use super::targets::Target;
use super::tracing::{istio_tags, report_to, span_tag};
use super::{Compiler, Notices, Unit};
use crate::mesh::gateway::Gateway;
use crate::mesh::mesh_config::AccessLogEncoding;
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::telemetry::{self as istio, Mode, TagOperation};

/// Istio's built-in provider of access logs.
const ENVOY: &str = "envoy";
/// Istio's names of metrics.
const METRICS: [(&str, HttpMetric); 6] = [
    ("REQUEST_COUNT", HttpMetric::RequestCount),
    ("REQUEST_DURATION", HttpMetric::RequestDuration),
    ("REQUEST_SIZE", HttpMetric::RequestSize),
    ("RESPONSE_SIZE", HttpMetric::ResponseSize),
    ("GRPC_REQUEST_MESSAGES", HttpMetric::GrpcRequestMessages),
    ("GRPC_RESPONSE_MESSAGES", HttpMetric::GrpcResponseMessages),
];

impl Compiler {
    pub(super) fn set_telemetry(
        &mut self,
        key: &ObjectKey,
        object: Option<&Arc<istio::Telemetry>>,
        marks: &mut Marks,
    ) {
        let old = self.store.telemetries.set(&key.name, object.cloned());
        if old.as_ref() == object {
            return;
        }
        marks.telemetries.insert(key.name.clone());
        let targets =
            |one: &Arc<istio::Telemetry>| self.targets(&one.meta.name, one.spec.targets());
        let is_wide = |one: &Arc<istio::Telemetry>| one.spec.targets().next().is_none();
        if old.iter().chain(object).any(is_wide) {
            // Of a namespace or of the mesh: few, and rarely changed.
            let all = self.current.services_layer7.keys();
            marks.layer7.extend(all.cloned());
        }
        let targets = (
            old.as_ref().map(targets).unwrap_or_default(),
            object.map(targets).unwrap_or_default(),
        );
        self.index_targets(key, targets, marks);
    }

    /// Says of marked objects which of their providers are not there.
    pub(super) fn say_providers(&mut self, marks: &mut Marks) {
        for name in std::mem::take(&mut marks.telemetries) {
            let mut notices = Notices::default();
            let spec = self.store.telemetries.get(&name).map(|one| &one.spec);
            let named = |list: &[istio::ProviderName]| -> Vec<String> {
                let missing = list.iter().filter(|one| !self.has_provider(&one.name));
                missing.map(|one| one.name.clone()).collect()
            };
            let spans = spec.into_iter().flat_map(|spec| &spec.tracing);
            let logs = spec.into_iter().flat_map(|spec| &spec.access_logging);
            let spans: BTreeSet<_> = spans.flat_map(|one| named(&one.providers)).collect();
            let logs: BTreeSet<_> = logs.flat_map(|one| named(&one.providers)).collect();
            for (missing, instead) in [
                (spans, "no spans are reported by it"),
                (logs, "requests are logged in the mesh's own form"),
            ] {
                for provider in missing {
                    let provider = provider.escape_debug();
                    let what = format!(
                        "names provider {provider}, which is not among the extensionProviders of the mesh's configuration: {instead}"
                    );
                    notices.warn(Kind::Telemetry, &name, what);
                }
            }
            self.say(Unit::Telemetry(name), notices.0);
        }
    }

    fn has_provider(&self, name: &str) -> bool {
        let config = self.mesh_config();
        let mut all = config.iter().flat_map(|config| &config.extension_providers);
        name == ENVOY || all.any(|one| one.name == name)
    }

    /// What is recorded of requests to an owner's services. From the widest to the narrowest: the mesh, the
    /// waypoint's namespace, its class, the waypoint, the service's namespace, the service.
    pub(super) fn telemetry(&self, gateway: &Gateway, owner: &Owner) -> Telemetry {
        let mut merged = Merged::new(self);
        let root = &self.options.root_namespace;
        let spaces = [&gateway.meta.name.namespace, &owner.name().namespace];
        let class = Target::Class(gateway.spec.gateway_class_name.as_str().into());
        let waypoint = Target::Gateway(gateway.meta.name.clone());
        let of_space = |space: &str| self.telemetry_of_space(space);
        let mut levels = vec![of_space(root)];
        if spaces[0] != root {
            levels.push(of_space(spaces[0]));
        }
        levels.push(self.telemetry_of(&class));
        levels.push(self.telemetry_of(&waypoint));
        if spaces[1] != root && spaces[1] != spaces[0] {
            levels.push(of_space(spaces[1]));
        }
        levels.push(self.telemetry_of(&Target::Owner(owner.clone())));
        for level in levels.into_iter().flatten() {
            merged.overlay(self, &level.spec);
        }
        merged.finish(self, gateway)
    }

    /// The oldest object about a namespace as a whole.
    fn telemetry_of_space(&self, space: &str) -> Option<&Arc<istio::Telemetry>> {
        let own = self.store.telemetries.in_namespace(space);
        let whole = |one: &&Arc<istio::Telemetry>| {
            one.spec.selector.is_none() && one.spec.targets().next().is_none()
        };
        own.filter(whole).min_by_key(|one| one.meta.age_order())
    }

    /// The oldest object about a target.
    fn telemetry_of(&self, target: &Target) -> Option<&Arc<istio::Telemetry>> {
        let keys = self.store.policies_of_target.get(target).iter();
        let keys = keys.filter(|key| key.kind == Kind::Telemetry);
        keys.filter_map(|key| self.store.telemetries.get(&key.name))
            .min_by_key(|one| one.meta.age_order())
    }

    fn log_format(&self, provider: &str) -> AccessLogFormat {
        let config = self.mesh_config();
        let providers = config.map(|config| &config.extension_providers);
        let named = providers
            .into_iter()
            .flatten()
            .find(|one| one.name == provider);
        let file = named.and_then(|one| one.envoy_file_access_log.as_ref());
        let format = file.and_then(|file| file.log_format.as_ref());
        match format {
            Some(format) if format.labels.is_some() => AccessLogFormat::Json,
            Some(_) => AccessLogFormat::Text,
            None => self.default_format(),
        }
    }

    fn default_format(&self) -> AccessLogFormat {
        match self.mesh_config().map(|config| config.access_log_encoding) {
            Some(AccessLogEncoding::Json) => AccessLogFormat::Json,
            Some(AccessLogEncoding::Text) | None => AccessLogFormat::Text,
        }
    }
}

/// What the levels come to so far.
struct Merged {
    logs: Vec<AccessLog>,
    tracing: TracingSettings,
    /// Whether spans say which waypoint they are from in tags of Istio's.
    has_istio_tags: bool,
    metrics: Vec<MetricOverride>,
}

impl Merged {
    /// What the mesh's configuration says.
    fn new(compiler: &Compiler) -> Self {
        let config = compiler.mesh_config();
        let logs = config.is_some_and(|config| !config.access_log_file.is_empty());
        let sampling = config
            .and_then(|config| config.default_config.tracing.as_ref()?.sampling)
            .map(per_million);
        let default = TracingSettings::default();
        let log = AccessLog {
            format: compiler.default_format(),
            filter: None,
        };
        let mut tracing = TracingSettings {
            sampled_per_million: sampling.unwrap_or(default.sampled_per_million),
            ..default
        };
        let provider = config.and_then(|config| config.default_providers.tracing.first());
        if let Some(provider) = provider {
            report_to(&mut tracing, compiler, provider);
        }
        Self {
            logs: if logs { vec![log] } else { Vec::new() },
            tracing,
            has_istio_tags: true,
            metrics: Vec::new(),
        }
    }

    fn overlay(&mut self, compiler: &Compiler, spec: &istio::TelemetrySpec) {
        if !spec.access_logging.is_empty() {
            self.logs = spec
                .access_logging
                .iter()
                .flat_map(|one| access_logs(compiler, one))
                .collect();
        }
        // A waypoint is a server.
        let is_client =
            |one: &&istio::Tracing| one.matches.is_some_and(|one| one.mode == Mode::Client);
        for tracing in spec.tracing.iter().filter(|one| !is_client(one)) {
            self.overlay_tracing(compiler, tracing);
        }
        for change in spec.metrics.iter().flat_map(|one| &one.overrides) {
            self.overlay_metric(change);
        }
    }

    fn overlay_tracing(&mut self, compiler: &Compiler, tracing: &istio::Tracing) {
        let own = &mut self.tracing;
        if let Some(share) = tracing.random_sampling_percentage {
            own.sampled_per_million = per_million(share);
        }
        if let Some(disabled) = tracing.disable_span_reporting {
            own.is_reported = !disabled;
        }
        if !tracing.custom_tags.is_empty() {
            let tags = tracing.custom_tags.iter();
            own.tags = tags.filter_map(|(name, tag)| span_tag(name, tag)).collect();
        }
        if let Some(by_request_id) = tracing.use_request_id_for_trace_sampling {
            own.by_request_id = by_request_id;
        }
        if let Some(named) = tracing.enable_istio_tags {
            self.has_istio_tags = named;
        }
        if let Some(provider) = tracing.providers.first() {
            report_to(own, compiler, &provider.name);
        }
    }

    fn overlay_metric(&mut self, change: &istio::MetricOverride) {
        let selector = change.matches.as_ref();
        // A waypoint is a server.
        if selector.is_some_and(|one| one.mode == Mode::Client) {
            return;
        }
        let name = selector.and_then(|one| one.metric.as_deref());
        if selector.is_some_and(|one| one.custom_metric.is_some()) {
            return;
        }
        let name = name.unwrap_or("ALL_METRICS");
        for (own, metric) in METRICS {
            if name != "ALL_METRICS" && name != own {
                continue;
            }
            let entry = self.metric(metric);
            if let Some(disabled) = change.disabled {
                entry.is_disabled = disabled;
            }
            for (label, tag) in &change.tag_overrides {
                let label: Arc<str> = label.as_str().into();
                entry.set.retain(|(known, _)| *known != label);
                entry.remove.retain(|known| *known != label);
                match tag.operation {
                    TagOperation::Remove => entry.remove.push(label),
                    TagOperation::Upsert => {
                        let value = istio::constant(&tag.value);
                        entry.set.extend(value.map(|value| (label, value.into())));
                    }
                }
            }
        }
    }

    fn metric(&mut self, metric: HttpMetric) -> &mut MetricOverride {
        let place = self.metrics.iter().position(|one| one.metric == metric);
        let place = place.unwrap_or_else(|| {
            self.metrics.push(MetricOverride {
                metric,
                is_disabled: false,
                remove: Vec::new(),
                set: Vec::new(),
            });
            self.metrics.len() - 1
        });
        &mut self.metrics[place]
    }

    fn finish(mut self, compiler: &Compiler, gateway: &Gateway) -> Telemetry {
        if self.tracing.collector.is_some() {
            let name = &gateway.meta.name;
            self.tracing.reporter = format!("{}.{}", name.name, name.namespace).into();
            if self.has_istio_tags {
                self.tracing.tags.extend(istio_tags(compiler, gateway));
            }
        }
        Telemetry {
            access_logs: self.logs,
            tracing: self.tracing,
            metrics: self.metrics.into(),
        }
    }
}

fn access_logs(compiler: &Compiler, logging: &istio::AccessLogging) -> Vec<AccessLog> {
    let is_client = logging.matches.is_some_and(|one| one.mode == Mode::Client);
    if is_client || logging.disabled == Some(true) {
        return Vec::new();
    }
    let filter = logging
        .filter
        .as_ref()
        .and_then(|filter| CelExpression::new(&filter.expression).ok());
    let log = |format: AccessLogFormat| AccessLog {
        format,
        filter: filter.clone(),
    };
    if logging.providers.is_empty() {
        return vec![log(compiler.default_format())];
    }
    let providers = logging.providers.iter();
    let formats = providers.map(|one| match one.name.as_str() {
        ENVOY => compiler.default_format(),
        other => compiler.log_format(other),
    });
    formats.map(log).collect()
}

fn per_million(percent: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=100 before"
    )]
    let share = (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32;
    share
}
