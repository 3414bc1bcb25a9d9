//! A mesh with one Service, and routes for it.

#![expect(
    clippy::expect_used,
    reason = "a benchmark without its input has nothing to do"
)]

use agent::mesh::{Change, Compiler, Interner, Layer4, MeshOptions, PodNetns, decode};
use serde_json::{Value, json};
use userspace_l7::model::{MeshSettings, TrustDomain};

fn change(value: Value, texts: &mut Interner) -> Change {
    Change::Upsert(decode(value, texts).expect("a valid object").object)
}

/// A mesh with one Service, bound to a waypoint.
pub(crate) fn compiler(texts: &mut Interner) -> Compiler {
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
        mesh_config: "istio".into(),
        revisions: ["default".to_owned()].into(),
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
pub(crate) fn route(number: usize, rules: usize, turn: usize, texts: &mut Interner) -> Change {
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
