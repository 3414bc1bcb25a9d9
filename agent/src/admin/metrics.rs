//! What is scraped besides the proxy's own counters: gauges of the agent's condition, read when a scraper
//! asks. Names that Istio has are Istio's.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::config_dump::VersionDump;
use super::{
    AdminState, AgentStatus, CertificateState, CertificateStatus, ClusterStatus, IstiodStatus,
    PodState,
};

/// Adds the agent's own gauges and counters to what is scraped.
pub fn register(registry: &mut Registry, state: Arc<dyn AdminState>) {
    registry.register_collector(Box::new(Condition(state)));
}

/// Reads the agent's status at each scrape, so that no figure is kept twice.
struct Condition(Arc<dyn AdminState>);

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition").finish_non_exhaustive()
    }
}

impl Collector for Condition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.status();
        builds(&mut encoder)?;
        pods(&mut encoder, &status)?;
        certificates(&mut encoder, &self.0.certificates())?;
        gauge(
            &mut encoder,
            "culvert_manifest_problems",
            "The number of manifests that could not be taken over",
            status.problems.len(),
        )?;
        gauge(
            &mut encoder,
            "culvert_manifest_warnings",
            "The number of manifests that are in force and probably not meant so",
            status.warnings.len(),
        )?;
        gauge(
            &mut encoder,
            "culvert_jwks_missing",
            "The number of key sets for tokens that could not be fetched yet",
            status
                .key_sets
                .iter()
                .filter(|set| set.keys.is_none())
                .count(),
        )?;
        gauge(
            &mut encoder,
            "culvert_snapshot_generation",
            "The generation of the mesh snapshot in force",
            usize::try_from(status.generation).unwrap_or(usize::MAX),
        )?;
        if let Some(plugin) = &status.cni_plugin {
            gauge(
                &mut encoder,
                "culvert_cni_plugin_in_place",
                "1 if the CNI plugin is chained to the node's network, so that no pod starts before it is captured",
                usize::from(plugin.reason.is_none()),
            )?;
        }
        if let Some(istio_cni) = &status.istio_cni {
            gauge(
                &mut encoder,
                "culvert_istio_cni_followed",
                "1 if istio-cni has named the node's pods that are in the mesh, and tells of others",
                usize::from(istio_cni.reason.is_none()),
            )?;
        }
        if let Some(cluster) = &status.cluster {
            self::cluster(&mut encoder, cluster)?;
        }
        if let Some(istiod) = &status.istiod {
            self::istiod(&mut encoder, istiod)?;
        }
        repairs(&mut encoder, &status)?;
        process(&mut encoder)
    }
}

fn builds(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let version = VersionDump::current();
    // Dashboards find the versions of a mesh's node proxies under this component.
    let istio = [("component", "ztunnel"), ("tag", version.version.as_str())];
    labelled(
        encoder,
        "istio_build",
        "Istio's build gauge; always 1",
        &istio,
    )?;
    let own = [
        ("version", version.version.as_str()),
        ("revision", version.git_revision.as_str()),
    ];
    labelled(
        encoder,
        "culvert_build",
        "Culvert's version; always 1",
        &own,
    )
}

fn labelled<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[(&str, &str); N],
) -> fmt::Result {
    let one = ConstGauge::new(1_i64);
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    one.encode(family.encode_family(labels)?)
}

fn pods(encoder: &mut DescriptorEncoder<'_>, status: &AgentStatus) -> fmt::Result {
    let in_state = |state| status.pods.iter().filter(|pod| pod.state == state).count();
    gauge(
        encoder,
        "workload_manager_active_proxy_count",
        "The number of pods whose traffic is captured",
        in_state(PodState::Up),
    )?;
    gauge(
        encoder,
        "workload_manager_pending_proxy_count",
        "The number of pods of this node that are not captured yet",
        in_state(PodState::Pending),
    )?;
    gauge(
        encoder,
        "culvert_pods_hindered",
        "The number of pods that run outside of the mesh, because something is in the way of their capture",
        status.pods_hindered,
    )?;
    counter(
        encoder,
        "workload_manager_proxies_started",
        "The total number of pods that were captured",
        status.pods_started,
    )?;
    counter(
        encoder,
        "workload_manager_proxies_stopped",
        "The total number of pods that were released",
        status.pods_stopped,
    )
}

/// Nothing where there is no identity to certify: a controller has none.
fn certificates(
    encoder: &mut DescriptorEncoder<'_>,
    certificates: &[CertificateStatus],
) -> fmt::Result {
    if certificates.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "culvert_certificates",
        "The number of identities of this node's pods, by whether they have a certificate",
        None,
        MetricType::Gauge,
    )?;
    let states = certificates.iter().map(|one| match &one.state {
        CertificateState::Available => "available",
        CertificateState::Initializing => "initializing",
        CertificateState::Unavailable(_) => "unavailable",
    });
    let states: Vec<_> = states.collect();
    for state in ["available", "initializing", "unavailable"] {
        let count = states.iter().filter(|known| **known == state).count();
        let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&[("state", state)])?)?;
    }
    let leaves = certificates.iter().filter_map(|one| one.chain.first());
    let Some(earliest) = leaves.map(|leaf| leaf.not_after.as_second()).min() else {
        return Ok(());
    };
    ConstGauge::new(earliest).encode(encoder.encode_descriptor(
        "culvert_certificate_expiry_seconds",
        "When the first of the node's certificates is over, in seconds since 1970",
        None,
        MetricType::Gauge,
    )?)
}

fn cluster(encoder: &mut DescriptorEncoder<'_>, cluster: &ClusterStatus) -> fmt::Result {
    gauge(
        encoder,
        "culvert_kubernetes_reachable",
        "Whether the API server answers; the last state stays in force while it does not",
        cluster.reachable.into(),
    )?;
    gauge(
        encoder,
        "culvert_kubernetes_waiting",
        "The number of collections that have not been listed yet",
        cluster.waiting.len(),
    )?;
    let in_the_way = cluster.troubles.iter().map(|one| one.resources.len());
    gauge(
        encoder,
        "culvert_kubernetes_failing",
        "The number of collections that cannot be followed now",
        in_the_way.sum(),
    )?;
    counter(
        encoder,
        "culvert_kubernetes_failures",
        "The total number of lists and watches that failed",
        cluster.refusals,
    )?;
    let mut family = encoder.encode_descriptor(
        "culvert_kubernetes_objects",
        "The number of objects in use",
        None,
        MetricType::Gauge,
    )?;
    for (resource, count) in &cluster.objects {
        let labels = [("resource", resource.as_str())];
        let gauge = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn istiod(encoder: &mut DescriptorEncoder<'_>, istiod: &IstiodStatus) -> fmt::Result {
    gauge(
        encoder,
        "culvert_istiod_connected",
        "Whether there is a connection to istiod; the last state stays in force while there is none",
        istiod.connected.into(),
    )?;
    gauge(
        encoder,
        "culvert_istiod_waiting",
        "The number of resource types of which istiod has told nothing yet",
        istiod.waiting.len(),
    )?;
    gauge(
        encoder,
        "culvert_istiod_refused",
        "The number of resources of istiod that are not taken over now, as far as they are listed",
        istiod.refused.len(),
    )?;
    counter(
        encoder,
        "culvert_istiod_refusals",
        "The total number of resources of istiod that were refused",
        istiod.refusals,
    )?;
    counter(
        encoder,
        "culvert_istiod_failures",
        "The total number of connections to istiod that failed",
        istiod.failures,
    )?;
    let mut family = encoder.encode_descriptor(
        "culvert_istiod_resources",
        "The number of resources of istiod in use",
        None,
        MetricType::Gauge,
    )?;
    for (name, count) in &istiod.resources {
        let labels = [("type", name.as_str())];
        let gauge = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn repairs(encoder: &mut DescriptorEncoder<'_>, status: &AgentStatus) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "culvert_capture_repairs",
        "The total number of repairs of a rule, route, link or listener that was gone",
        None,
        MetricType::Counter,
    )?;
    for (kind, count) in &status.repairs {
        let labels = [("kind", kind.as_str())];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn process(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    // Both are left out where the kernel does not say: a wrong zero would look like news.
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // The listing itself holds one.
        let open = entries.count().saturating_sub(1);
        gauge(
            encoder,
            "process_open_fds",
            "The number of open file descriptors",
            open,
        )?;
    }
    if let Ok((soft, _hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let limit = usize::try_from(soft).unwrap_or(usize::MAX);
        gauge(
            encoder,
            "process_max_fds",
            "The limit of open file descriptors",
            limit,
        )?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

/// The encoder's text as the older Prometheus format has it: there a counter is described under the name that
/// its samples have, and nothing marks the end.
pub(super) fn prometheus_text(open_metrics: &str) -> String {
    let counters: Vec<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let described = ["# HELP ", "# TYPE "].iter().find_map(|kind| {
            let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
            counters.contains(&name).then_some((kind, name, rest))
        });
        // Writing to a String cannot fail.
        let _infallible = match described {
            Some((kind, name, rest)) => writeln!(text, "{kind}{name}_total {rest}"),
            None => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::prometheus_text;

    #[test]
    fn counters_are_described_by_the_name_of_their_samples() {
        let open_metrics = "# HELP a Things.\n# TYPE a counter\na_total{x=\"# EOF\"} 1\n\
            # HELP b Level.\n# TYPE b gauge\nb 2\n# EOF\n";
        assert_eq!(
            prometheus_text(open_metrics),
            "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"# EOF\"} 1\n\
             # HELP b Level.\n# TYPE b gauge\nb 2\n"
        );
    }
}
