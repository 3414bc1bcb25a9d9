//! Istio's mesh configuration (`MeshConfig`), as far as a node agent depends on it. It is the text under
//! `mesh` of a `ConfigMap`; whoever read the `ConfigMap` has made a value of that text.

use serde::Deserialize;

use super::destination_rule::LocalityLbSetting;
use super::ext_authz::ExtAuthz;
use super::field::{Faults, at};
use super::meta::Meta;
use super::open_telemetry::OpenTelemetry;
use super::retries::HttpRetry;

/// Whether a `ConfigMap` of this name holds one: `istio`, or of a revision of Istio's control plane `istio-<revision>`. Which
/// of them counts, in the mesh's root namespace, is the compiler's to know.
pub(crate) fn is_config_map(name: &str) -> bool {
    let revision = name.strip_prefix("istio");
    revision.is_some_and(|revision| revision.is_empty() || revision.starts_with('-'))
}

/// A `ConfigMap` with a mesh configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: MeshConfigSpec,
}

impl MeshConfig {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let place = at!["data", "mesh"];
        if let Some(retry) = &self.spec.default_http_retry_policy {
            retry.check(&place.join("defaultHttpRetryPolicy"), faults);
        }
        if let Some(setting) = &self.spec.locality_lb_setting {
            setting.check(&place.join("localityLbSetting"), faults);
        }
        for (index, provider) in self.spec.extension_providers.iter().enumerate() {
            let place = place.join("extensionProviders").join(index);
            if let Some(grpc) = &provider.envoy_ext_authz_grpc {
                grpc.check(&place.join("envoyExtAuthzGrpc"), faults);
            }
            if let Some(http) = &provider.envoy_ext_authz_http {
                http.check(&place.join("envoyExtAuthzHttp"), faults);
            }
            if let Some(collector) = &provider.opentelemetry {
                collector.check(&place.join("opentelemetry"), faults);
            }
        }
    }
}

/// The configuration. It has many more fields, which are about proxies that are not there.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfigSpec {
    /// Services that policies and telemetry may name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// What they use where they name none.
    pub default_providers: DefaultProviders,
    /// How requests are retried that no route speaks about.
    pub default_http_retry_policy: Option<HttpRetry>,
    /// Where access logs go; empty: nowhere.
    pub access_log_file: String,
    /// Their form.
    pub access_log_encoding: AccessLogEncoding,
    /// How paths are brought to one spelling.
    pub path_normalization: NormalizationSetting,
    /// The mesh's trust domain; empty: `cluster.local`.
    pub trust_domain: String,
    /// Other names of it.
    pub trust_domain_aliases: Vec<String>,
    /// Settings of proxies.
    pub default_config: ProxyConfig,
    /// Which endpoints are near, for services whose DestinationRule does not say.
    pub locality_lb_setting: Option<LocalityLbSetting>,
}

/// `defaultProviders`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct DefaultProviders {
    pub access_logging: Vec<String>,
    pub tracing: Vec<String>,
}

/// `pathNormalization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct NormalizationSetting {
    /// Which.
    pub normalization: Normalization,
}

/// `pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum Normalization {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// `accessLogEncoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

/// `defaultConfig`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ProxyConfig {
    /// Traces.
    pub tracing: Option<ProxyTracing>,
    /// What spans call the mesh; empty: its trust domain.
    #[serde(rename = "meshId")]
    pub mesh_id: String,
}

/// `defaultConfig.tracing`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ProxyTracing {
    /// Of a hundred requests, how many.
    pub sampling: Option<f64>,
}

/// One of `extensionProviders`: exactly one of its kinds is set. Those that are not here are none of an
/// agent's business.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct ExtensionProvider {
    pub name: String,
    pub envoy_ext_authz_grpc: Option<ExtAuthz>,
    pub envoy_ext_authz_http: Option<ExtAuthz>,
    pub envoy_file_access_log: Option<FileAccessLog>,
    pub zipkin: Option<serde_json::Value>,
    pub opentelemetry: Option<OpenTelemetry>,
}

/// `envoyFileAccessLog`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileAccessLog {
    /// Where to.
    pub path: String,
    /// In which form.
    pub log_format: Option<LogFormat>,
}

/// `envoyFileAccessLog.logFormat`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct LogFormat {
    /// Text.
    pub text: Option<String>,
    /// JSON.
    pub labels: Option<serde_json::Value>,
}
