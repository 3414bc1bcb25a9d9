//! What one changed Pod costs among 10,000 Services and 100,000 Pods, and what a workload weighs.

#![expect(
    clippy::print_stderr,
    reason = "the memory that was measured is for whoever runs this"
)]
#![expect(
    clippy::expect_used,
    reason = "a benchmark without its input has nothing to do"
)]

use std::hint::black_box;

use agent::mesh::{Change, Compiler, Interner, Layer4, MeshOptions, PodNetns, decode};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use userspace_l7::model::{MeshSettings, TrustDomain};

const NAMESPACES: usize = 100;
const SERVICES: usize = 10_000;
const PODS: usize = 100_000;
const NODES: usize = 1_000;

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{number}"), "namespace": format!("ns{}", number % NAMESPACES)},
        "spec": {
            "clusterIP": format!("10.96.{}.{}", number / 256, number % 256),
            "selector": {"app": format!("app{number}")},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
        },
    })
}

/// Ten pods serve each service; a pod is of its service's namespace.
fn pod(number: usize, ready: bool) -> Value {
    let app = number % SERVICES;
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("app{app}-5d8f7c9b4-{number:06}"),
            "namespace": format!("ns{}", app % NAMESPACES),
            "labels": {"app": format!("app{app}"), "version": "v1", "pod-template-hash": "5d8f7c9b4"},
            "annotations": {"culvert.dev/netns": format!("/run/netns/{number}")},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": format!("app{app}-5d8f7c9b4"), "uid": "u", "controller": true}],
        },
        "spec": {
            "nodeName": format!("node{}", number % NODES),
            "serviceAccountName": format!("app{app}"),
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}],
        },
        "status": {
            "podIPs": [{"ip": format!("10.{}.{}.{}", 128 + number / 65536, number / 256 % 256, number % 256)}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    })
}

fn change(value: Value, texts: &mut Interner) -> Change {
    Change::Upsert(decode(value, texts).expect("a valid object").object)
}

/// Resident memory of this process.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse::<usize>().ok());
    pages.expect("a number of pages") * 4096
}

fn one_pod_of_many(criterion: &mut Criterion) {
    let mesh = MeshSettings {
        trust_domain: TrustDomain::new("cluster.local").expect("a trust domain"),
        cluster_domain: "cluster.local".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
    };
    let mut compiler = Compiler::new(MeshOptions {
        mesh,
        node: "node0".into(),
        root_namespace: "istio-system".into(),
        pod_netns: PodNetns::Annotated,
        layer4: Layer4::Compiled,
        mesh_config: "istio".into(),
        revisions: ["default".to_owned()].into(),
    });
    let mut texts = Interner::default();
    let before = resident_bytes();
    for number in 0..NAMESPACES {
        let labels = json!({"istio.io/dataplane-mode": "ambient"});
        let metadata = json!({"name": format!("ns{number}"), "labels": labels});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        compiler.apply([change(namespace, &mut texts)]);
    }
    compiler.apply((0..SERVICES).map(|number| change(service(number), &mut texts)));
    compiler.apply((0..PODS).map(|number| change(pod(number, true), &mut texts)));
    let held = resident_bytes() - before;
    eprintln!(
        "{} bytes per workload, objects and snapshot together",
        held / PODS
    );
    let states = [false, true].map(|ready| change(pod(4711, ready), &mut texts));
    let mut turn = states.iter().cycle();
    criterion.bench_function("one pod of 100,000 changes", |bencher| {
        bencher.iter(|| black_box(compiler.apply(turn.next().cloned())));
    });
}

criterion_group!(benches, one_pod_of_many);
criterion_main!(benches);
