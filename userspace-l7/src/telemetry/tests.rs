//! What is scraped and what is logged, as text.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use smallvec::smallvec;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::{Flow, Metrics, Outcome, Reporter, ResponseFlags, Security};
use crate::model::{
    Health, IpFamilies, LoadBalancer, Locality, NamespacedHostname, NetworkMode, Peer, Service,
    SpiffeId, TrustDomain, TunnelProtocol, Workload, WorkloadLabels, WorkloadUid,
};

pub(super) fn workload(name: &str, region: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: WorkloadUid::new(format!("Kubernetes//Pod/shop/{name}-1")),
        name: format!("{name}-1").into(),
        namespace: "shop".into(),
        service_account: name.into(),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        addresses: smallvec!["10.0.0.1".parse().unwrap()],
        hostname: "".into(),
        node: "n1".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::Culvert,
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        workload_name: name.into(),
        workload_type: "deployment".into(),
        locality: Locality {
            region: region.into(),
            zone: "".into(),
            subzone: "".into(),
        },
        health: Health::Healthy,
        capacity: 1,
        services: Vec::new(),
        labels: WorkloadLabels::default(),
        authorization_policies: Vec::new(),
        application_tunnel: None,
        waypoint: None,
    })
}

pub(super) fn service() -> Arc<Service> {
    Arc::new(Service {
        name: "cart".into(),
        key: NamespacedHostname {
            namespace: "shop".into(),
            hostname: "cart.shop.svc.cluster.local".into(),
        },
        vips: smallvec!["10.96.0.9".parse().unwrap()],
        cidr_vips: Vec::new(),
        ports: BTreeMap::new(),
        load_balancer: LoadBalancer::default(),
        ip_families: IpFamilies::default(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        canonical: true,
        namespace_private: false,
        alias: None,
    })
}

pub(super) fn identity(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
        .parse()
        .unwrap()
}

fn encrypted(reporter: Reporter) -> Flow {
    Flow {
        reporter,
        source: Some(workload("web", "eu")),
        source_identity: Some(identity("web")),
        destination: Some(workload("cart", "")),
        destination_identity: Some(identity("cart")),
        service: Some(service()),
        source_address: "10.0.0.1:40000".parse().unwrap(),
        destination_address: "10.0.0.2:15008".parse().unwrap(),
        hbone_target: Some("10.0.0.2:8080".to_owned()),
        security: Security::MutualTls,
    }
}

fn stranger() -> Flow {
    Flow {
        reporter: Reporter::Destination,
        source: None,
        source_identity: None,
        destination: None,
        destination_identity: None,
        service: None,
        source_address: "[2001:db8::1]:4000".parse().unwrap(),
        destination_address: "[2001:db8::2]:80".parse().unwrap(),
        hbone_target: None,
        security: Security::Unknown,
    }
}

/// Sample lines of one metric, without comments.
pub(super) fn scrape(metrics: &Metrics, name: &str) -> Vec<String> {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let samples = text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")));
    samples.map(str::to_owned).collect()
}

#[test]
fn an_authenticated_connection_carries_every_label_of_istio() {
    let metrics = Metrics::new();
    metrics
        .open(encrypted(Reporter::Source))
        .close(Outcome::Complete);
    let expected = "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"web\",\
        source_canonical_service=\"web\",source_canonical_revision=\"v1\",\
        source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_app=\"web\",\
        source_version=\"v1\",source_cluster=\"Kubernetes\",\
        destination_service=\"cart.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
        destination_service_name=\"cart\",destination_workload=\"cart\",\
        destination_canonical_service=\"cart\",destination_canonical_revision=\"v1\",\
        destination_workload_namespace=\"shop\",\
        destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",\
        destination_app=\"cart\",destination_version=\"v1\",destination_cluster=\"Kubernetes\",\
        request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",\
        source_region=\"eu\"} 1";
    assert_eq!(
        scrape(&metrics, "istio_tcp_connections_opened_total"),
        [expected]
    );
}

#[test]
fn what_is_not_known_is_called_unknown() {
    let metrics = Metrics::new();
    let open = metrics.open(stranger());
    let line = scrape(&metrics, "istio_tcp_connections_opened_total").remove(0);
    for label in [
        "source_principal",
        "source_workload",
        "destination_service",
        "destination_cluster",
    ] {
        assert!(
            line.contains(&format!("{label}=\"unknown\"")),
            "{label} in {line}"
        );
    }
    assert!(
        line.contains("connection_security_policy=\"unknown\""),
        "{line}"
    );
    assert!(
        !line.contains("region"),
        "unknown locality is no label: {line}"
    );
    drop(open);
}

#[test]
fn both_reporters_count_request_bytes_as_received() {
    for reporter in [Reporter::Source, Reporter::Destination] {
        let metrics = Metrics::new();
        let open = metrics.open(encrypted(reporter));
        open.to_server(7);
        open.to_client(20);
        open.to_client(22);
        let value = |name| {
            scrape(&metrics, name)
                .remove(0)
                .rsplit(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            value("istio_tcp_received_bytes_total"),
            "7",
            "counted before the end"
        );
        assert_eq!(value("istio_tcp_sent_bytes_total"), "42");
        open.close(Outcome::Complete);
    }
}

#[test]
fn open_sockets_rise_and_fall_with_connections() {
    let metrics = Metrics::new();
    let first = metrics.open(encrypted(Reporter::Source));
    let second = metrics.open(encrypted(Reporter::Source));
    let sockets = || scrape(&metrics, "istio_tcp_sockets_open");
    assert_eq!(sockets(), ["istio_tcp_sockets_open{reporter=\"source\"} 2"]);
    first.close(Outcome::Complete);
    drop(second);
    assert_eq!(sockets(), ["istio_tcp_sockets_open{reporter=\"source\"} 0"]);
}

#[test]
fn a_failure_counts_as_closed_and_as_failed_with_its_flag() {
    let metrics = Metrics::new();
    let open = metrics.open(encrypted(Reporter::Source));
    open.close(Outcome::Failed {
        flags: ResponseFlags::TlsFailure,
        error: &"bad certificate",
    });
    let failed = scrape(&metrics, "istio_tcp_connections_failed_total");
    assert_eq!(failed.len(), 1);
    assert!(failed[0].contains("response_flags=\"TLS_FAILURE\"") && failed[0].ends_with(" 1"));
    let closed = scrape(&metrics, "istio_tcp_connections_closed_total");
    assert_eq!(closed.len(), 1);
    assert!(closed[0].contains("response_flags=\"-\"") && closed[0].ends_with(" 1"));
}

#[test]
fn an_abandoned_connection_still_counts_as_closed_once() {
    let metrics = Metrics::new();
    drop(metrics.open(encrypted(Reporter::Source)));
    let closed = scrape(&metrics, "istio_tcp_connections_closed_total");
    assert!(closed.len() == 1 && closed[0].ends_with(" 1"), "{closed:?}");
    assert!(scrape(&metrics, "istio_tcp_connections_failed_total").is_empty());
}

#[test]
fn equal_labels_share_a_series_even_when_the_snapshot_was_rebuilt() {
    let metrics = Metrics::new();
    metrics
        .open(encrypted(Reporter::Source))
        .close(Outcome::Complete);
    metrics
        .open(encrypted(Reporter::Source))
        .close(Outcome::Complete);
    let opened = scrape(&metrics, "istio_tcp_connections_opened_total");
    assert!(opened.len() == 1 && opened[0].ends_with(" 2"), "{opened:?}");
}

#[test]
fn the_series_cache_is_bounded() {
    let metrics = Metrics::new();
    for _ in 0..=super::CACHED_SERIES {
        drop(metrics.open(encrypted(Reporter::Source)));
    }
    assert_eq!(
        metrics.series.read().unwrap().len(),
        1,
        "it started anew when it was full"
    );
}

#[test]
fn the_access_log_has_ztunnels_fields_in_ztunnels_order() {
    let lines = logged(|| {
        let open = Metrics::new().open(encrypted(Reporter::Source));
        open.to_server(11);
        open.to_client(22);
        open.close(Outcome::Complete);
    });
    let (opened, complete) = (&lines[0], &lines[1]);
    assert!(
        opened.starts_with("DEBUG access message=connection opened src.addr="),
        "{opened}"
    );
    assert_eq!(
        without_duration(complete),
        "INFO access message=connection complete src.addr=10.0.0.1:40000 src.workload=web-1 \
         src.namespace=shop src.identity=spiffe://cluster.local/ns/shop/sa/web \
         src.cluster=Kubernetes dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 \
         dst.service=cart.shop.svc.cluster.local dst.workload=cart-1 dst.namespace=shop \
         dst.identity=spiffe://cluster.local/ns/shop/sa/cart dst.cluster=Kubernetes \
         direction=outbound bytes_sent=11 bytes_recv=22 duration=?"
    );
    assert_eq!(lines.len(), 2);
}

#[test]
fn the_servers_node_logs_bytes_as_the_server_sees_them() {
    let lines = logged(|| {
        let open = Metrics::new().open(encrypted(Reporter::Destination));
        open.to_server(11);
        open.to_client(22);
        open.close(Outcome::Failed {
            flags: ResponseFlags::None,
            error: &"connection reset",
        });
    });
    assert!(
        lines[1].starts_with("ERROR access message=connection complete "),
        "{}",
        lines[1]
    );
    assert!(
        lines[1].contains("direction=inbound bytes_sent=22 bytes_recv=11"),
        "{}",
        lines[1]
    );
    assert!(lines[1].ends_with("error=connection reset"), "{}", lines[1]);
}

#[test]
fn an_unproven_identity_and_unknown_fields_stay_out_of_the_log() {
    let lines = logged(|| {
        let claimed = Flow {
            source_identity: Some(identity("web")),
            ..stranger()
        };
        drop(Metrics::new().open(claimed));
    });
    assert_eq!(
        without_duration(&lines[1]),
        "INFO access message=connection complete src.addr=[2001:db8::1]:4000 \
         dst.addr=[2001:db8::2]:80 direction=inbound bytes_sent=0 bytes_recv=0 duration=? \
         error=closed by the agent: it is stopping, or the pod left the mesh"
    );
}

#[test]
fn a_refusal_is_logged_and_counted_apart_from_traffic() {
    let metrics = Metrics::new();
    let lines = logged(|| {
        let (from, to) = (
            "10.0.0.9:1".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
        );
        metrics.refused(
            Reporter::Destination,
            from,
            to,
            ResponseFlags::Deny,
            &"policy shop/deny",
        );
    });
    assert_eq!(
        lines,
        [
            "WARN access message=connection failed src.addr=10.0.0.9:1 dst.addr=10.0.0.2:80 \
          direction=inbound error=policy shop/deny"
        ]
    );
    assert_eq!(
        scrape(&metrics, "culvert_connections_refused_total"),
        ["culvert_connections_refused_total{reporter=\"destination\",response_flags=\"DENY\"} 1"]
    );
    assert!(scrape(&metrics, "istio_tcp_connections_opened_total").is_empty());
}

#[test]
fn questions_without_an_answer_are_counted_by_what_became_of_the_request() {
    let metrics = Metrics::new();
    for admitted in [true, false, false] {
        metrics.unanswered(&"shop/limiter", admitted);
    }
    let mut found = scrape(&metrics, "culvert_questions_unanswered_total");
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "culvert_questions_unanswered_total{service=\"shop/limiter\",outcome=\"admitted\"} 1",
            "culvert_questions_unanswered_total{service=\"shop/limiter\",outcome=\"refused\"} 2",
        ]
    );
}

fn without_duration(line: &str) -> String {
    let words = line
        .split(' ')
        .map(|word| match word.strip_prefix("duration=") {
            Some(value) => {
                let digits = value.strip_suffix("ms").expect("in milliseconds");
                assert!(digits.parse::<u64>().is_ok(), "{value}");
                "duration=?"
            }
            None => word,
        });
    words.collect::<Vec<_>>().join(" ")
}

/// The events that `act` causes on this thread, one line each.
pub(super) fn logged(act: impl FnOnce()) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Recorder(Arc::clone(&lines)), act);
    lines.lock().unwrap().clone()
}

struct Recorder(Arc<Mutex<Vec<String>>>);

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!(
            "{} {}",
            event.metadata().level(),
            event.metadata().target()
        ));
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.0, " {field}={value}").unwrap();
    }
}
