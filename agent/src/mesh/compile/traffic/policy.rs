//! One `trafficPolicy`, its groups merged as Istio merges them. Pure.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use userspace_l7::model::{
    Balance, ComparedLabel, ConnectionLimits, HashAlgorithm, HashKey, LocalityPattern,
    LocalityShares, Nearness, Opening, OutlierDetection, PriorityLabel, RetryBudget, Tiering,
    TrafficPolicy, Warmup,
};

use crate::mesh::compile::opening::OfRule;
use crate::mesh::destination_rule::{self as istio, SimpleBalancer, UpgradePolicy};
use crate::mesh::meta::ObjectName;
use crate::mesh::upstream_tls::ProxyProtocol;

/// Istio's defaults for outlier detection.
const CONSECUTIVE_5XX: u32 = 5;
const CONSECUTIVE_LOCAL: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
const BASE_EJECTION: Duration = Duration::from_secs(30);
const MAX_EJECTION_PERCENT: u8 = 10;
/// Istio's defaults for a retry budget.
const RETRY_PERCENT: f64 = 20.0;
const RETRY_MINIMUM: u32 = 3;
/// Istio's default for a ring.
const RING_SIZE: u32 = 1024;
/// Envoy's default for Maglev.
const MAGLEV_SIZE: u32 = 65_537;
/// Envoy's defaults for slow start.
const WARMUP_PERCENT: f64 = 10.0;
const WARMUP_AGGRESSION: f64 = 1.0;

/// The groups of a policy: a wider one is replaced group by group, never field by field (Istio).
#[derive(Clone, Copy, Default)]
pub(super) struct Groups<'a> {
    balancer: Option<&'a istio::LoadBalancer>,
    pool: Option<&'a istio::ConnectionPool>,
    outliers: Option<&'a istio::OutlierDetection>,
    budget: Option<&'a istio::RetryBudget>,
    pub(super) tls: Option<OfRule<'a>>,
    pub(super) proxy: Option<&'a ProxyProtocol>,
}

/// Ports with settings of their own. They inherit nothing but what ports cannot have (Istio).
pub(super) fn ports<'a>(
    (rule, policy): (&'a ObjectName, &'a istio::TrafficPolicy),
) -> impl Iterator<Item = (u16, Groups<'a>)> {
    policy.port_level_settings.iter().filter_map(move |port| {
        let groups = Groups {
            balancer: port.load_balancer.as_ref(),
            pool: port.connection_pool.as_ref(),
            outliers: port.outlier_detection.as_ref(),
            budget: None,
            tls: port.tls.as_ref().map(|tls| (rule, tls)),
            proxy: policy.proxy_protocol.as_ref(),
        };
        Some((u16::try_from(port.port.number).ok()?, groups))
    })
}

impl<'a> Groups<'a> {
    pub(super) fn of((rule, policy): (&'a ObjectName, &'a istio::TrafficPolicy)) -> Self {
        Self {
            balancer: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outliers: policy.outlier_detection.as_ref(),
            budget: policy.retry_budget.as_ref(),
            tls: policy.tls.as_ref().map(|tls| (rule, tls)),
            proxy: policy.proxy_protocol.as_ref(),
        }
    }

    /// This, with the groups of a narrower policy in place of its own.
    pub(super) fn overlaid(self, narrower: Self) -> Self {
        Self {
            balancer: narrower.balancer.or(self.balancer),
            pool: narrower.pool.or(self.pool),
            outliers: narrower.outliers.or(self.outliers),
            budget: narrower.budget.or(self.budget),
            tls: narrower.tls.or(self.tls),
            proxy: narrower.proxy.or(self.proxy),
        }
    }

    /// `mesh` is what the mesh's configuration says of localities, for policies that do not; `opening` what connections
    /// begin with.
    pub(super) fn compile(
        self,
        mesh: Option<&istio::LocalityLbSetting>,
        opening: Opening,
    ) -> TrafficPolicy {
        let pool = self.pool;
        let connect_timeout = pool.and_then(|pool| pool.tcp.connect_timeout);
        let idle = pool.and_then(|pool| pool.http.idle_timeout.or(pool.tcp.idle_timeout));
        TrafficPolicy {
            balance: self.balancer.map(balance).unwrap_or_default(),
            limits: ConnectionLimits {
                retry_budget: self.budget.map(budget),
                ..pool.map(limits).unwrap_or_default()
            },
            outliers: self.outliers.map(outliers),
            connect_timeout: connect_timeout.map(|one| one.0),
            idle_timeout: idle.map(|one| one.0),
            upgrade_to_http2: pool
                .is_some_and(|pool| pool.http.h2_upgrade_policy == UpgradePolicy::Upgrade),
            warmup: self.balancer.and_then(warmup),
            nearness: self.nearness(mesh),
            opening,
        }
    }
}

impl Groups<'_> {
    /// Near endpoints come first once there is outlier detection, which tells when they are not enough (Istio); shares
    /// hold in any case.
    fn nearness(self, mesh: Option<&istio::LocalityLbSetting>) -> Option<Nearness> {
        let own = self
            .balancer
            .and_then(|balancer| balancer.locality_lb_setting.as_ref());
        let Some(setting) = own.or(mesh) else {
            let by = Tiering::Locality { failover: vec![] };
            return self.outliers.map(|_| Nearness::Tiers {
                by,
                is_explicit: false,
            });
        };
        if setting.enabled == Some(false) {
            return None;
        }
        if !setting.distribute.is_empty() {
            let shares = setting.distribute.iter().map(|one| LocalityShares {
                from: pattern(&one.from),
                to: one
                    .to
                    .iter()
                    .map(|(to, share)| (pattern(to), *share))
                    .collect(),
            });
            return Some(Nearness::Shares(shares.collect()));
        }
        self.outliers?;
        let by = if setting.failover_priority.is_empty() {
            let ways = setting.failover.iter();
            let failover = ways.map(|way| (way.from.as_str().into(), way.to.as_str().into()));
            Tiering::Locality {
                failover: failover.collect(),
            }
        } else {
            let labels = setting.failover_priority.iter();
            Tiering::Labels(labels.map(|text| priority_label(text)).collect())
        };
        Some(Nearness::Tiers {
            by,
            is_explicit: own.is_some(),
        })
    }
}

fn pattern(text: &str) -> LocalityPattern {
    LocalityPattern(text.into())
}

/// `label` or `label=value`.
fn priority_label(text: &str) -> PriorityLabel {
    let (label, value) = match text.split_once('=') {
        Some((label, value)) => (label, Some(value.into())),
        None => (text, None),
    };
    PriorityLabel {
        label: ComparedLabel::named(label),
        value,
    }
}

fn balance(balancer: &istio::LoadBalancer) -> Balance {
    if let Some(hash) = &balancer.consistent_hash
        && let Some(key) = hash_key(hash)
    {
        let algorithm = match (&hash.maglev, &hash.ring_hash) {
            (Some(maglev), _) => HashAlgorithm::Maglev {
                table_size: maglev.table_size.unwrap_or(MAGLEV_SIZE),
            },
            (None, ring) => {
                let size = ring.and_then(|ring| ring.minimum_ring_size);
                HashAlgorithm::Ring {
                    minimum_size: size.or(hash.minimum_ring_size).unwrap_or(RING_SIZE),
                }
            }
        };
        return Balance::ConsistentHash { key, algorithm };
    }
    match balancer.simple {
        None
        | Some(
            SimpleBalancer::Unspecified | SimpleBalancer::LeastConn | SimpleBalancer::LeastRequest,
        ) => Balance::LeastRequest,
        Some(SimpleBalancer::Random) => Balance::Random,
        Some(SimpleBalancer::Passthrough) => Balance::Passthrough,
        Some(SimpleBalancer::RoundRobin) => Balance::RoundRobin,
    }
}

fn hash_key(hash: &istio::ConsistentHash) -> Option<HashKey> {
    if let Some(name) = &hash.http_header_name {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        return Some(HashKey::Header(name));
    }
    if let Some(cookie) = &hash.http_cookie {
        return Some(HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_deref().map(Arc::from),
            ttl: cookie.ttl.map(|one| one.0),
        });
    }
    if let Some(name) = &hash.http_query_parameter_name {
        return Some(HashKey::QueryParameter(name.as_str().into()));
    }
    hash.use_source_ip.then_some(HashKey::SourceIp)
}

fn limits(pool: &istio::ConnectionPool) -> ConnectionLimits {
    // Zero and less are no limit (Istio).
    let limit = |one: Option<i64>| u32::try_from(one?).ok().filter(|one| *one > 0);
    ConnectionLimits {
        connections: limit(pool.tcp.max_connections),
        pending_requests: limit(pool.http.http1_max_pending_requests),
        requests: limit(pool.http.http2_max_requests),
        retries: limit(pool.http.max_retries),
        requests_per_connection: limit(pool.http.max_requests_per_connection),
        connection_age: pool.tcp.max_connection_duration.map(|one| one.0),
        retry_budget: None,
    }
}

fn budget(budget: &istio::RetryBudget) -> RetryBudget {
    let percent = budget.percent.unwrap_or(RETRY_PERCENT).clamp(0.0, 100.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=100 before"
    )]
    let per_million = (percent * 10_000.0).round() as u32;
    RetryBudget {
        per_million,
        minimum: budget.min_retry_concurrency.unwrap_or(RETRY_MINIMUM),
    }
}

fn outliers(one: &istio::OutlierDetection) -> OutlierDetection {
    let counted = |count: u32| Some(count).filter(|count| *count > 0);
    let gateway = one.consecutive_gateway_errors.or(one.consecutive_errors);
    let local = one.consecutive_local_origin_failures;
    OutlierDetection {
        consecutive_5xx: counted(one.consecutive_5xx_errors.unwrap_or(CONSECUTIVE_5XX)),
        consecutive_gateway_errors: gateway.and_then(counted),
        consecutive_local_failures: one
            .split_external_local_origin_errors
            .then(|| counted(local.unwrap_or(CONSECUTIVE_LOCAL)))
            .flatten(),
        interval: one.interval.map_or(INTERVAL, |one| one.0),
        base_ejection: one.base_ejection_time.map_or(BASE_EJECTION, |one| one.0),
        max_ejection_percent: one.max_ejection_percent.unwrap_or(MAX_EJECTION_PERCENT),
        min_health_percent: one.min_health_percent.unwrap_or_default(),
    }
}

fn warmup(balancer: &istio::LoadBalancer) -> Option<Warmup> {
    let (duration, percent, aggression) = match (&balancer.warmup, balancer.warmup_duration_secs) {
        (Some(warmup), _) => (warmup.duration, warmup.minimum_percent, warmup.aggression),
        (None, Some(duration)) => (duration, None, None),
        (None, None) => return None,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=100 before"
    )]
    let minimum_percent = percent.unwrap_or(WARMUP_PERCENT).clamp(0.0, 100.0) as u8;
    Some(Warmup {
        duration: duration.0,
        minimum_percent,
        aggression: aggression.unwrap_or(WARMUP_AGGRESSION),
    })
}
