//! DestinationRule as Istio defines it.

mod locality;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::duration::IstioDuration;
use super::field::{Faults, FieldPath, at};
use super::meta::Meta;
use super::selector::WorkloadSelector;
use super::syntax::read_port;
use super::upstream_tls::{ClientTls, ProxyProtocol};
pub use locality::{Distribute, Failover, LocalityLbSetting};

/// A DestinationRule.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// Name, labels, annotations, age.
    pub meta: Meta,
    /// What it says.
    pub spec: DestinationRuleSpec,
}

/// `spec` of a DestinationRule.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// The service: a host, or a Service of the rule's namespace.
    pub host: String,
    /// For all of it.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Parts of it.
    pub subsets: Vec<Subset>,
    /// Who sees it; means nothing where rules belong to the service's side.
    pub export_to: Vec<String>,
    /// Whose sidecars use it: of no meaning without sidecars.
    pub workload_selector: Option<WorkloadSelector>,
}

/// One of `subsets`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Name.
    pub name: String,
    /// Labels of its endpoints.
    pub labels: BTreeMap<String, String>,
    /// What differs for them.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Which endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// How much at once.
    pub connection_pool: Option<ConnectionPool>,
    /// Which endpoints are left alone.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the application's own, inside the tunnel.
    pub tls: Option<ClientTls>,
    /// Ports that differ.
    pub port_level_settings: Vec<PortPolicy>,
    /// A tunnel of Envoy's.
    pub tunnel: Option<Value>,
    /// PROXY protocol towards the application.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Retries as a part of what is under way.
    pub retry_budget: Option<RetryBudget>,
}

/// `retryBudget`.
#[derive(Clone, Copy, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// 0 to 100; 20 if it says nothing.
    pub percent: Option<f64>,
    /// So many in any case; 3 if it says nothing.
    pub min_retry_concurrency: Option<u32>,
}

/// One of `portLevelSettings`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "as in `TrafficPolicy`")]
pub struct PortPolicy {
    pub port: PortSelector,
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
    pub tls: Option<ClientTls>,
}

/// `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PortSelector {
    /// A service port.
    pub number: u32,
}

/// `loadBalancer`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct LoadBalancer {
    pub simple: Option<SimpleBalancer>,
    pub consistent_hash: Option<ConsistentHash>,
    pub locality_lb_setting: Option<LocalityLbSetting>,
    pub warmup_duration_secs: Option<IstioDuration>,
    pub warmup: Option<Warmup>,
}

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum SimpleBalancer {
    Unspecified,
    LeastConn,
    LeastRequest,
    Random,
    Passthrough,
    RoundRobin,
}

/// `loadBalancer.consistentHash`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct ConsistentHash {
    pub http_header_name: Option<String>,
    pub http_cookie: Option<HashCookie>,
    pub use_source_ip: bool,
    pub http_query_parameter_name: Option<String>,
    pub ring_hash: Option<RingHash>,
    pub maglev: Option<Maglev>,
    /// Old place of the ring's.
    pub minimum_ring_size: Option<u32>,
}

/// `consistentHash.httpCookie`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct HashCookie {
    pub name: String,
    pub path: Option<String>,
    pub ttl: Option<IstioDuration>,
    pub attributes: Vec<Value>,
}

/// `consistentHash.ringHash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Least number of points.
    pub minimum_ring_size: Option<u32>,
}

/// `consistentHash.maglev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Slots.
    pub table_size: Option<u32>,
}

/// `loadBalancer.warmup`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct Warmup {
    pub duration: IstioDuration,
    pub minimum_percent: Option<f64>,
    pub aggression: Option<f64>,
}

/// `connectionPool`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Connections.
    pub tcp: TcpSettings,
    /// Requests.
    pub http: HttpSettings,
}

/// `connectionPool.tcp`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct TcpSettings {
    pub max_connections: Option<i64>,
    pub connect_timeout: Option<IstioDuration>,
    pub tcp_keepalive: Option<Value>,
    pub max_connection_duration: Option<IstioDuration>,
    pub idle_timeout: Option<IstioDuration>,
}

/// `connectionPool.http`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct HttpSettings {
    pub http1_max_pending_requests: Option<i64>,
    pub http2_max_requests: Option<i64>,
    pub max_requests_per_connection: Option<i64>,
    pub max_retries: Option<i64>,
    pub idle_timeout: Option<IstioDuration>,
    pub h2_upgrade_policy: UpgradePolicy,
    pub use_client_protocol: bool,
    pub max_concurrent_streams: Option<i64>,
}

/// `connectionPool.http.h2UpgradePolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "Istio's own words")]
pub enum UpgradePolicy {
    #[default]
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// `outlierDetection`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct OutlierDetection {
    /// Old name of the gateway errors.
    pub consecutive_errors: Option<u32>,
    pub consecutive_gateway_errors: Option<u32>,
    #[serde(alias = "consecutive5XxErrors", rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    pub split_external_local_origin_errors: bool,
    pub consecutive_local_origin_failures: Option<u32>,
    pub interval: Option<IstioDuration>,
    pub base_ejection_time: Option<IstioDuration>,
    pub max_ejection_percent: Option<u8>,
    pub min_health_percent: Option<u8>,
}

impl DestinationRule {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        if spec.host.is_empty() {
            faults.add(at!["spec", "host"], "is missing: name the service");
        }
        if let Some(policy) = &spec.traffic_policy {
            policy.check(&at!["spec", "trafficPolicy"], faults);
        }
        let mut seen = std::collections::BTreeSet::new();
        for (index, subset) in spec.subsets.iter().enumerate() {
            let place = at!["spec", "subsets", index];
            if subset.name.is_empty() {
                faults.add(place.join("name"), "is missing: name the subset");
            } else if !seen.insert(subset.name.as_str()) {
                let problem = format!("`{}` is here a second time: keep one", subset.name);
                faults.add(place.join("name"), problem);
            }
            let labels = WorkloadSelector {
                match_labels: subset.labels.clone(),
            };
            labels.check(&place.join("labels"), faults);
            if let Some(policy) = &subset.traffic_policy {
                policy.check(&place.join("trafficPolicy"), faults);
            }
        }
    }
}

impl DestinationRuleSpec {
    /// The Secrets that it names, by how `credentialName` says it.
    pub(crate) fn credentials(&self) -> impl Iterator<Item = &str> {
        let subsets = self.subsets.iter();
        let policies = subsets.filter_map(|subset| subset.traffic_policy.as_ref());
        let policies = self.traffic_policy.iter().chain(policies);
        let all = policies.flat_map(|policy| {
            let ports = policy.port_level_settings.iter();
            let ports = ports.filter_map(|port| port.tls.as_ref());
            policy.tls.iter().chain(ports)
        });
        all.filter_map(ClientTls::credential)
    }
}

impl TrafficPolicy {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        check_groups(
            (self.load_balancer.as_ref(), self.outlier_detection.as_ref()),
            place,
            faults,
        );
        if let Some(tls) = &self.tls {
            tls.check(&place.join("tls"), faults);
        }
        let percent = self.retry_budget.and_then(|budget| budget.percent);
        if percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            let place = place.join("retryBudget").join("percent");
            faults.add(place, "is not a percentage: use 0 to 100");
        }
        for (index, port) in self.port_level_settings.iter().enumerate() {
            let place = place.join("portLevelSettings").join(index);
            let number = place.join("port").join("number");
            let _checked = read_port(port.port.number.into(), number, faults);
            if let Some(tls) = &port.tls {
                tls.check(&place.join("tls"), faults);
            }
            check_groups(
                (port.load_balancer.as_ref(), port.outlier_detection.as_ref()),
                &place,
                faults,
            );
        }
    }
}

fn check_groups(
    (balancer, outliers): (Option<&LoadBalancer>, Option<&OutlierDetection>),
    place: &FieldPath,
    faults: &mut Faults,
) {
    if let Some(setting) = balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref()) {
        let place = place.join("loadBalancer").join("localityLbSetting");
        setting.check(&place, faults);
    }
    if let Some(hash) = balancer.and_then(|balancer| balancer.consistent_hash.as_ref()) {
        let place = place.join("loadBalancer").join("consistentHash");
        let keys = [
            hash.http_header_name.is_some(),
            hash.http_cookie.is_some(),
            hash.use_source_ip,
            hash.http_query_parameter_name.is_some(),
        ];
        if keys.iter().filter(|key| **key).count() != 1 {
            let rule = "set exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
            faults.add(place.clone(), rule);
        }
        if let Some(name) = &hash.http_header_name {
            super::route::check_header_name(name, place.join("httpHeaderName"), faults);
        }
    }
    if let Some(outliers) = outliers {
        let place = place.join("outlierDetection");
        for (name, percent) in [
            ("maxEjectionPercent", outliers.max_ejection_percent),
            ("minHealthPercent", outliers.min_health_percent),
        ] {
            if percent.is_some_and(|percent| percent > 100) {
                faults.add(place.join(name), "is not a percentage: use 0 to 100");
            }
        }
    }
}
