//! A manifest of any bytes: read the same way twice, complained of in single lines that point into it, and
//! leaving nothing behind in the mesh once it is gone.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::mesh::{Change, Compiler, Layer4, MeshOptions, PodNetns};
use agent::sources::read_bytes;
use libfuzzer_sys::fuzz_target;
use userspace_l7::model::{MeshSettings, TrustDomain};

fn compiler() -> Compiler {
    Compiler::new(MeshOptions {
        mesh: MeshSettings {
            trust_domain: TrustDomain::new("cluster.local").expect("a trust domain"),
            cluster_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            network: Arc::default(),
        },
        node: "a".into(),
        root_namespace: "istio-system".into(),
        pod_netns: PodNetns::Annotated,
        layer4: Layer4::Compiled,
        mesh_config: "istio".into(),
        revisions: ["default".to_owned()].into(),
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (objects, problems) = read_bytes(bytes);
    assert_eq!(
        (&objects, &problems),
        (&read_bytes(bytes).0, &read_bytes(bytes).1)
    );

    // YAML breaks lines at LF, CR and both.
    let lines = bytes.iter().filter(|byte| b"\n\r".contains(byte)).count() + 1;
    for problem in &problems {
        let text = problem.to_string();
        assert!(!text.contains(['\n', '\r', '\x1b']), "{text:?}");
        if let Some(position) = problem.place.position {
            assert!(position.line >= 1 && position.column >= 1, "{text}");
            assert!(position.line as usize <= lines + 1, "{text}: of {lines}");
        }
    }

    let by_key: BTreeMap<_, _> = objects
        .into_iter()
        .map(|object| (object.key(), object))
        .collect();
    let upserts = || by_key.values().cloned().map(Change::Upsert);
    let mut compiler = compiler();
    let there = compiler.apply(upserts());
    assert!(
        Arc::ptr_eq(&there, &compiler.apply(upserts())),
        "the same again is a change"
    );
    let gone = compiler.apply(by_key.keys().cloned().map(Change::Remove));
    assert!(gone.workloads.is_empty() && gone.workloads_by_address.is_empty());
    assert!(gone.services.is_empty() && gone.services_by_vip.is_empty());
    assert!(gone.services_by_hostname.is_empty() && gone.services_with_ranges.is_empty());
    assert!(gone.endpoints.is_empty() && gone.policies.is_empty());
    assert!(gone.namespace_policies.is_empty() && gone.global_policies.is_empty());
    assert!(gone.services_layer7.is_empty() && gone.workloads_layer7.is_empty());
    assert!(gone.traffic.is_empty());
    assert!(compiler.local_pods().is_empty() && compiler.policy_statuses().next().is_none());
    assert!(compiler.notices().next().is_none(), "a notice of nothing");
});
