//! DestinationRules and VirtualServices.

use std::sync::Arc;
use std::time::Duration;

use userspace_l7::model::{
    AbortAnswer, BackendTarget, Balance, ComparedLabel, HashAlgorithm, HashKey, HttpAction,
    HttpRouteTable, LocalityPattern, LocalityShares, NamespacedHostname, Nearness, PathMatch,
    PortRoutes, PriorityLabel, Propagation, RateLimiter, ServiceTraffic, Snapshot, SpanTransport,
    Telemetry, Tiering,
};

use super::{compile, compiler, pod_yaml, upserts};

const MESH: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a}\nspec: {gatewayClassName: istio-waypoint}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, selector: {app: x}, ports: [{name: http, port: 80}, {name: tcp, port: 90}]}\n";

fn object(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn key() -> NamespacedHostname {
    NamespacedHostname {
        namespace: "a".into(),
        hostname: "s.a.svc.cluster.local".into(),
    }
}

#[track_caller]
fn traffic(snapshot: &Snapshot) -> ServiceTraffic {
    ServiceTraffic::clone(&snapshot.traffic[&key()])
}

#[track_caller]
fn rule(spec: &str) -> ServiceTraffic {
    traffic(&compile(&format!(
        "{MESH}{}",
        object("DestinationRule", "a/r", &format!("host: s, {spec}"))
    )))
}

#[test]
fn hosts_are_names_of_the_namespace_or_full_ones() {
    for (rule, host, found) in [
        ("a/r", "s", true),
        ("a/r", "s.a.svc.cluster.local", true),
        ("b/r", "s", false),
        ("b/r", "s.a.svc.cluster.local", false),
        ("istio-system/r", "s.a.svc.cluster.local", true),
    ] {
        let yaml = object("DestinationRule", rule, &format!("host: {host}"));
        let snapshot = compile(&format!("{MESH}{yaml}"));
        assert_eq!(
            snapshot.traffic.contains_key(&key()),
            found,
            "{rule} {host}"
        );
    }
}

#[test]
fn a_retry_budget_is_a_group_of_its_own() {
    let budget = |found: &ServiceTraffic, subset: Option<&str>| {
        let policy = found.policy_for(80, subset);
        let budget = policy.limits.retry_budget;
        budget.map(|budget| (budget.per_million, budget.minimum))
    };
    let found = rule(
        "trafficPolicy: {retryBudget: {percent: 12.5, minRetryConcurrency: 1}, connectionPool: {http: {maxRetries: 9}}}, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {retryBudget: {}}}]",
    );
    assert_eq!(budget(&found, None), Some((125_000, 1)));
    // Istio's defaults.
    assert_eq!(budget(&found, Some("v1")), Some((200_000, 3)));
    assert_eq!(budget(&rule("trafficPolicy: {}"), None), None);
}

#[test]
fn groups_replace_groups_and_ports_inherit_nothing() {
    let found = rule(
        "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {maxConnections: 5, connectTimeout: 2s}}, portLevelSettings: [{port: {number: 90}, loadBalancer: {simple: RANDOM}}]}, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}, {name: v2, labels: {version: v2}}]",
    );
    let whole = found.policy_for(80, None);
    assert_eq!(whole.balance, Balance::RoundRobin);
    assert_eq!(whole.limits.connections, Some(5));
    assert_eq!(whole.connect_timeout, Some(Duration::from_secs(2)));
    let port = found.policy_for(90, None);
    assert_eq!(
        (&port.balance, port.limits.connections),
        (&Balance::Random, None)
    );
    let subset = found.policy_for(80, Some("v1"));
    assert_eq!(
        subset.balance,
        Balance::ConsistentHash {
            key: HashKey::Header(http::HeaderName::from_static("x-user")),
            algorithm: HashAlgorithm::Ring { minimum_size: 1024 },
        }
    );
    assert_eq!(subset.limits.connections, Some(5), "the rule's group stays");
    assert_eq!(
        found.policy_for(80, Some("v2")).balance,
        Balance::RoundRobin
    );
}

#[test]
fn outlier_detection_has_istios_defaults() {
    let found = rule("trafficPolicy: {outlierDetection: {}}");
    let outliers = found.policy.outliers.clone().unwrap();
    assert_eq!(outliers.consecutive_5xx, Some(5));
    assert_eq!(outliers.consecutive_gateway_errors, None);
    assert_eq!(outliers.interval, Duration::from_secs(10));
    assert_eq!(outliers.base_ejection, Duration::from_secs(30));
    assert_eq!(outliers.max_ejection_percent, 10);
    let found = rule(
        "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 2}}",
    );
    let outliers = found.policy.outliers.clone().unwrap();
    assert_eq!(outliers.consecutive_5xx, None);
    assert_eq!(outliers.consecutive_gateway_errors, Some(2));
}

#[test]
fn nearness_comes_with_outlier_detection_or_with_shares() {
    let nearness = |policy: &str| {
        let found = rule(&format!("trafficPolicy: {{{policy}}}"));
        let policy = Arc::clone(found.policy_for(80, None));
        policy.nearness.clone()
    };
    let locality = |failover: &[(&str, &str)], is_explicit| {
        let ways = failover.iter();
        Some(Nearness::Tiers {
            by: Tiering::Locality {
                failover: ways
                    .map(|(from, to)| ((*from).into(), (*to).into()))
                    .collect(),
            },
            is_explicit,
        })
    };
    let setting = |setting: &str| format!("loadBalancer: {{localityLbSetting: {{{setting}}}}}");
    let watched = |text: &str| format!("{}, outlierDetection: {{}}", setting(text));
    let failover = "failover: [{from: r1, to: r2}]";
    assert_eq!(nearness(""), None);
    assert_eq!(nearness("outlierDetection: {}"), locality(&[], false));
    assert_eq!(nearness(&watched("enabled: false")), None);
    assert_eq!(nearness(&setting(failover)), None);
    assert_eq!(
        nearness(&watched(failover)),
        locality(&[("r1", "r2")], true)
    );
    let label = |label, value: Option<&str>| PriorityLabel {
        label,
        value: value.map(Into::into),
    };
    let labels =
        "failoverPriority: [topology.istio.io/network, topology.kubernetes.io/zone=z2, app]";
    assert_eq!(
        nearness(&watched(labels)),
        Some(Nearness::Tiers {
            by: Tiering::Labels(vec![
                label(ComparedLabel::Network, None),
                label(ComparedLabel::Zone, Some("z2")),
                label(ComparedLabel::Own("app".into()), None),
            ]),
            is_explicit: true,
        })
    );
    let pattern = |text: &str| LocalityPattern(text.into());
    assert_eq!(
        nearness(&setting(
            "distribute: [{from: r1/z1/*, to: {r1/z1/*: 80, r2: 20}}]"
        )),
        Some(Nearness::Shares(vec![LocalityShares {
            from: pattern("r1/z1/*"),
            to: vec![(pattern("r1/z1/*"), 80), (pattern("r2"), 20)],
        }]))
    );
}

#[test]
fn a_subset_follows_the_labels_of_endpoints() {
    let labelled = |version: &str| {
        let labels = format!("app: x, version: {version}");
        pod_yaml("a/p", "n1", "10.0.0.1", &labels, "")
    };
    let subsets = "host: s, subsets: [{name: v1, labels: {version: v1}}]";
    let rule = object("DestinationRule", "a/r", subsets);
    let mut compiler = compiler(&format!("{MESH}{rule}{}", labelled("v2")));
    let members = |snapshot: &Snapshot| traffic(snapshot).subsets["v1"].members.len();
    assert_eq!(members(&compiler.snapshot()), 0);
    let relabelled = compiler.apply(upserts(&labelled("v1")));
    assert_eq!(members(&relabelled), 1);
}

#[track_caller]
fn table(snapshot: &Snapshot) -> HttpRouteTable {
    match &snapshot.services_layer7[&key()].ports[&80].routes {
        PortRoutes::Http(table) => HttpRouteTable::clone(table),
        other => panic!("{other:?}"),
    }
}

fn virtual_service(http: &str) -> String {
    object(
        "VirtualService",
        "a/v",
        &format!("hosts: [s], http: [{http}]"),
    )
}

#[test]
fn a_virtual_service_keeps_its_own_order() {
    let yaml = virtual_service(
        "{match: [{uri: {prefix: /a}}], route: [{destination: {host: s}}]}, {name: two, match: [{uri: {exact: /a}, headers: {x: {}}}], route: [{destination: {host: s, subset: v1, port: {number: 80}}, weight: 1}, {destination: {host: gone}, weight: 3}]}, {match: [{port: 90}], route: [{destination: {host: s}}]}",
    );
    let found = table(&compile(&format!("{MESH}{yaml}")));
    assert_eq!(found.entries().len(), 2, "the third is another port's");
    assert_eq!(
        found.entries()[0].matches.path,
        PathMatch::TextPrefix("/a".into())
    );
    assert_eq!(&*found.entries()[0].rule.name, "a.v.0");
    assert_eq!(&*found.entries()[1].rule.name, "two");
    let HttpAction::Forward(backends) = &found.entries()[1].rule.action else {
        panic!("no backends")
    };
    assert_eq!(
        backends[0].target,
        BackendTarget::Service {
            service: key(),
            port: 80,
            subset: Some("v1".into())
        }
    );
    assert_eq!(
        backends[1].target,
        BackendTarget::Invalid {
            why: "destination gone.a.svc.cluster.local:80 not found".into()
        }
    );
}

#[test]
fn a_match_about_certain_clients_or_gateways_holds_for_nobody() {
    for (about, holds) in [
        ("uri: {prefix: /}", true),
        ("sourceLabels: {app: a}", false),
        ("sourceNamespace: a", false),
        ("gateways: [ingress]", false),
        ("gateways: [ingress, mesh]", true),
    ] {
        let yaml = virtual_service(&format!(
            "{{name: certain, match: [{{{about}}}], route: [{{destination: {{host: s}}}}]}}, {{name: all, route: [{{destination: {{host: s}}}}]}}"
        ));
        let found = table(&compile(&format!("{MESH}{yaml}")));
        let first = &*found.entries()[0].rule.name;
        assert_eq!(first == "certain", holds, "{about}: {first}");
    }
}

#[test]
fn faults_are_injected_as_they_are_written() {
    let yaml = virtual_service(
        "{fault: {delay: {fixedDelay: 2s, percentage: {value: 50}}, abort: {httpStatus: 503}}, retries: {attempts: 0}, timeout: 3s, route: [{destination: {host: s}}]}",
    );
    let found = table(&compile(&format!("{MESH}{yaml}")));
    let rule = &found.entries()[0].rule;
    let fault = rule.fault.clone().unwrap();
    let delay = fault.delay.unwrap();
    assert_eq!(
        (delay.duration, delay.per_million),
        (Duration::from_secs(2), 500_000)
    );
    let abort = fault.abort.unwrap();
    assert_eq!(
        abort.answer,
        AbortAnswer::Http(http::StatusCode::SERVICE_UNAVAILABLE)
    );
    assert_eq!(abort.per_million, 1_000_000);
    assert_eq!(
        (rule.retry.attempts, rule.timeout),
        (0, Some(Duration::from_secs(3)))
    );
}

#[test]
fn limits_follow_their_targets() {
    let limits =
        "limits: [{requests: 5, period: 1m, per: [clientIdentity, {header: X-Key}, path]}]";
    let policy = |target: &str| {
        format!(
            "---\napiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: l, namespace: a}}\nspec: {{targetRefs: [{target}], {limits}}}\n"
        )
    };
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: s, port: 80}], rules: [{name: one}, {name: two}]}\n";
    let found = |target: &str, port: u16| {
        let snapshot = compile(&format!("{MESH}{route}{}", policy(target)));
        snapshot.services_layer7[&key()].ports[&port]
            .rate_limits
            .to_vec()
    };
    let gateway_api = "group: gateway.networking.k8s.io";
    let of_service = found("{kind: Service, name: s}", 80);
    assert_eq!(&*of_service[0].key, "a/l[0]");
    assert_eq!((of_service[0].per.len(), &of_service[0].route), (3, &None));
    assert_eq!(
        of_service[0].by,
        RateLimiter::Local {
            requests: 5,
            period: Duration::from_secs(60),
            burst: 5
        }
    );
    let of_gateway = found(&format!("{{{gateway_api}, kind: Gateway, name: w}}"), 90);
    assert_eq!(of_gateway.len(), 1);
    let of_route = format!("{{{gateway_api}, kind: HTTPRoute, name: r}}");
    let names: Vec<_> = found(&of_route, 80)
        .iter()
        .filter_map(|one| one.route.clone())
        .collect();
    assert_eq!(names, ["one".into(), "two".into()]);
    assert!(found(&of_route, 90).is_empty());
    assert!(found("{kind: Service, name: t}", 80).is_empty());
}

#[test]
fn telemetry_is_laid_over_from_the_mesh_to_the_service() {
    let telemetry = |name: &str, spec: &str| {
        let (namespace, name) = name.split_once('/').unwrap();
        format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    };
    let found = |objects: &[String]| {
        let snapshot = compile(&format!("{MESH}{}", objects.concat()));
        Telemetry::clone(&snapshot.services_layer7[&key()].telemetry)
    };
    assert_eq!(found(&[]), Telemetry::default());
    let mesh = telemetry(
        "istio-system/t",
        "accessLogging: [{filter: {expression: 'response.code >= 400'}}], tracing: [{randomSamplingPercentage: 5, customTags: {team: {literal: {value: x}}}}]",
    );
    let service = telemetry(
        "a/t",
        "targetRefs: [{kind: Service, name: s}], tracing: [{randomSamplingPercentage: 100}], metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {a: {value: \"'b'\"}, c: {operation: REMOVE}, d: {value: request.host}}}]}]",
    );
    let both = found(&[mesh, service]);
    let filter = both.access_logs[0].filter.as_ref().unwrap();
    assert_eq!(filter.as_str(), "response.code >= 400");
    assert_eq!(both.tracing.sampled_per_million, 1_000_000);
    assert_eq!(both.tracing.tags.len(), 1);
    let change = &both.metrics[0];
    assert_eq!(change.set, [("a".into(), "b".into())], "constants only");
    assert_eq!(change.remove, ["c".into()]);
}

#[test]
fn the_meshs_localities_hold_where_a_rule_says_nothing_of_them() {
    let config = |setting: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: {{localityLbSetting: {{{setting}}}}}}}\n"
        )
    };
    let watched = object(
        "DestinationRule",
        "a/r",
        "host: s, trafficPolicy: {outlierDetection: {}}",
    );
    let own = object(
        "DestinationRule",
        "a/r",
        "host: s, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r3}]}}}",
    );
    let tiers = |to: &str, is_explicit| {
        Some(Nearness::Tiers {
            by: Tiering::Locality {
                failover: vec![("r1".into(), to.into())],
            },
            is_explicit,
        })
    };
    let shares = "distribute: [{from: r1, to: {r1: 100}}]";
    let failover = "failover: [{from: r1, to: r2}]";
    let mut compiler = compiler(&format!("{MESH}{watched}"));
    let mut check = |yaml: &str, expected: Option<Nearness>| {
        let snapshot = compiler.apply(upserts(yaml));
        let found = snapshot.traffic.get(&key());
        let found = found.and_then(|found| found.policy_for(80, None).nearness.clone());
        assert_eq!(found, expected, "{yaml}");
    };
    check(&config(failover), tiers("r2", false));
    check(&config("enabled: false"), None);
    check(&own, tiers("r3", true));
    check(&config(failover), tiers("r3", true));
    // Shares need no rule at all.
    let alone = |yaml: &str| {
        let snapshot = compile(yaml);
        let found = snapshot.traffic.get(&key());
        found.and_then(|found| found.policy_for(80, None).nearness.clone())
    };
    let found = alone(&format!("{MESH}{}", config(shares)));
    assert!(matches!(found, Some(Nearness::Shares(_))), "{found:?}");
    assert_eq!(alone(&format!("{MESH}{}", config(failover))), None);
    // What the Service says of distances itself comes before the mesh's word.
    let near = MESH.replace(
        "spec: {clusterIP",
        "spec: {trafficDistribution: PreferClose, clusterIP",
    );
    assert_eq!(alone(&format!("{near}{}", config(shares))), None);
}

#[test]
fn a_provider_that_is_not_there_is_noticed_until_it_is() {
    let config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: {extensionProviders: [{name: otel, opentelemetry: {service: otel.b.svc.cluster.local, port: 4317}}, {name: file, envoyFileAccessLog: {path: /dev/stdout}}]}}\n";
    let telemetry = "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t, namespace: a}\nspec: {tracing: [{providers: [{name: otel}]}], accessLogging: [{providers: [{name: envoy}, {name: file}]}]}\n";
    let mut compiler = compiler(&format!("{MESH}{telemetry}"));
    let said = |compiler: &super::Compiler| -> Vec<String> {
        let notices = compiler.notices().filter(|one| one.warning);
        notices
            .map(|one| format!("{} {}", one.object, one.message))
            .collect()
    };
    let notices = said(&compiler);
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(
        notices[0].contains("a/t names provider otel, which is not among")
            && notices[0].ends_with("no spans are reported by it"),
        "{notices:?}"
    );
    compiler.apply(upserts(config));
    assert_eq!(said(&compiler), Vec::<String>::new());
}

#[test]
fn spans_go_to_the_provider_that_telemetry_or_the_mesh_names() {
    let config = |more: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: {{{more}extensionProviders: [{{name: zip, zipkin: {{service: z.b.svc.cluster.local, port: 9411}}}}, {{name: grpc, opentelemetry: {{service: otel.b.svc.cluster.local, port: 4317, maxTagLength: 9, resourceDetectors: {{environment: {{}}}}}}}}, {{name: http, opentelemetry: {{service: b/otel.example, port: 4318, http: {{path: /v1/traces, timeout: 1s, headers: [{{name: x-a, value: b}}]}}}}}}]}}}}\n"
        )
    };
    let traced = |config: &str, tracing: &str| {
        let telemetry = format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: istio-system}}\nspec: {{tracing: {tracing}}}\n"
        );
        let snapshot = compile(&format!("{MESH}{config}{telemetry}"));
        let telemetry = Arc::clone(&snapshot.services_layer7[&key()].telemetry);
        telemetry.tracing.clone()
    };
    let found = traced(&config(""), "[{providers: [{name: grpc}]}]");
    let collector = found.collector.as_ref().unwrap();
    assert_eq!(collector.service.to_string(), "b/otel.b.svc.cluster.local");
    assert_eq!(
        (collector.port, &collector.transport),
        (4317, &SpanTransport::Grpc)
    );
    assert!(collector.detects_environment);
    assert_eq!(found.longest_path, 9);
    let own: Vec<_> = found.tags.iter().map(|tag| &*tag.name).collect();
    assert_eq!(
        own,
        [
            "istio.canonical_revision",
            "istio.canonical_service",
            "istio.cluster_id",
            "istio.mesh_id",
            "istio.namespace",
        ]
    );
    let found = traced(
        &config(""),
        "[{providers: [{name: http}], enableIstioTags: false, useRequestIdForTraceSampling: false}]",
    );
    let collector = found.collector.as_ref().unwrap();
    assert_eq!(collector.service.to_string(), "b/otel.example");
    assert_eq!(
        collector.transport,
        SpanTransport::Http("/v1/traces".into())
    );
    assert_eq!(
        (collector.timeout.as_secs(), collector.headers.len()),
        (1, 1)
    );
    assert!(found.tags.is_empty() && !found.by_request_id);
    // A default; one of another kind; one that is not there; an entry that is about clients.
    let default = config("defaultProviders: {tracing: [grpc]}, ");
    assert!(traced(&default, "[]").collector.is_some());
    let zipkin = traced(&default, "[{providers: [{name: zip}]}]");
    assert_eq!(
        (zipkin.collector, zipkin.propagation),
        (None, Propagation::B3)
    );
    assert!(
        traced(&default, "[{providers: [{name: nobody}]}]")
            .collector
            .is_none()
    );
    let of_clients = "[{match: {mode: CLIENT}, providers: [{name: zip}]}]";
    assert!(traced(&default, of_clients).collector.is_some());
}

#[test]
fn routes_of_gateway_api_come_before_a_virtual_service() {
    let yaml = virtual_service("{route: [{destination: {host: s}}]}");
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: s}]}\n";
    let found = table(&compile(&format!("{MESH}{yaml}{route}")));
    assert_eq!(&*found.entries()[0].rule.origin, "HTTPRoute a/r");
    let for_gateways = yaml.replace("hosts: [s]", "hosts: [s], gateways: [ingress]");
    let snapshot = compile(&format!("{MESH}{for_gateways}"));
    let routes = &snapshot.services_layer7[&key()].ports[&80].routes;
    assert_eq!(*routes, PortRoutes::None);
}
