//! How long many routes of one Service take to become a table: all of them at once, and one that changes among
//! the others.

#![expect(
    clippy::expect_used,
    reason = "a benchmark without its input has nothing to do"
)]

use std::hint::black_box;

use agent::mesh::{Change, Compiler, Interner, Layer4, MeshOptions, PodNetns, decode};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use userspace_l7::model::{MeshSettings, TrustDomain};

/// Rules in all: a small mesh, and the one that the budget of 100 ms is for.
const SIZES: [usize; 2] = [1_000, 10_000];
/// Rules of one HTTPRoute: the fewest, and the most that Gateway API allows.
const RULES: [usize; 2] = [1, 16];

fn change(value: Value, texts: &mut Interner) -> Change {
    Change::Upsert(decode(value, texts).expect("a valid object").object)
}

/// A mesh with one Service, bound to a waypoint.
fn compiler(texts: &mut Interner) -> Compiler {
    let mut compiler = Compiler::new(MeshOptions {
        mesh: MeshSettings {
            trust_domain: TrustDomain::new("cluster.local").expect("a trust domain"),
            cluster_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            network: "".into(),
        },
        node: "node0".into(),
        root_namespace: "istio-system".into(),
        pod_netns: PodNetns::Annotated,
        layer4: Layer4::Compiled,
    });
    let gateway = "gateway.networking.k8s.io/v1";
    let listener = json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
    compiler.apply(
        [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "app", "labels": {
                "istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "waypoint"}}}),
            json!({"apiVersion": gateway, "kind": "Gateway", "metadata": {"name": "waypoint", "namespace": "app"},
                "spec": {"gatewayClassName": "istio-waypoint", "listeners": [listener]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop", "namespace": "app"},
                "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "shop"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        ]
        .map(|object| change(object, texts)),
    );
    compiler
}

/// One HTTPRoute with rules for paths of their own, and a header that tells `turn`s apart.
fn route(number: usize, rules: usize, turn: usize, texts: &mut Interner) -> Change {
    let rule = |rule: usize| {
        json!({
            "matches": [{"path": {"type": "PathPrefix", "value": format!("/api/{number}/{rule}")},
                "headers": [{"name": "x-turn", "value": turn.to_string()}]}],
            "backendRefs": [{"name": "shop", "port": 80}],
        })
    };
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": format!("r{number}"), "namespace": "app"},
        "spec": {
            "parentRefs": [{"kind": "Service", "group": "", "name": "shop"}],
            "rules": (0..rules).map(rule).collect::<Vec<_>>(),
        },
    });
    change(object, texts)
}

fn many_routes_of_one_service(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    // One for all objects, as each source of them has.
    let mut texts = Interner::default();
    for (size, rules) in SIZES
        .iter()
        .flat_map(|size| RULES.map(|rules| (*size, rules)))
    {
        let name = format!("{rules} of a route");
        let routes: Vec<Change> = (0..size / rules)
            .map(|number| route(number, rules, 0, &mut texts))
            .collect();
        group.bench_with_input(BenchmarkId::new(&name, size), &routes, |bencher, routes| {
            bencher.iter_batched(
                || (compiler(&mut texts), routes.clone()),
                // The compiler comes back, so that its end is not timed.
                |(mut compiler, routes)| (black_box(compiler.apply(routes)), compiler),
                BatchSize::LargeInput,
            );
        });
        let mut compiler = compiler(&mut texts);
        compiler.apply(routes);
        let states = [1, 2].map(|turn| route(0, rules, turn, &mut texts));
        let mut turns = states.iter().cycle();
        group.bench_function(
            BenchmarkId::new(format!("one changes, {name}"), size),
            |bencher| {
                bencher.iter(|| black_box(compiler.apply(turns.next().cloned())));
            },
        );
    }
    group.finish();
}

criterion_group!(benches, many_routes_of_one_service);
criterion_main!(benches);
