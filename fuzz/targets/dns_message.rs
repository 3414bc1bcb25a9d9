//! What a pod or a resolver sends to the DNS proxy: answers repeat the question, are messages themselves, and
//! never answer an answer.

#![no_main]

use std::sync::{Arc, LazyLock};

use agent::dns::{Answer, Received, fuzzing, receive, resolve};
use agent::mesh::{Change, Compiler, Layer4, MeshOptions, PodNetns};
use agent::sources::read_bytes;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use libfuzzer_sys::fuzz_target;
use userspace_l7::model::{MeshSettings, Snapshot, TrustDomain, Workload};

const MESH: &[u8] = b"
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: web}
spec: {nodeName: a}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: web}
spec: {clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: web}
spec:
  hosts: [a.example, '*.wild.example']
  addresses: [192.0.2.1]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: NONE
";

static SNAPSHOT: LazyLock<(Arc<Snapshot>, Arc<Workload>)> = LazyLock::new(|| {
    let (objects, problems) = read_bytes(MESH);
    assert_eq!(problems, []);
    let mut compiler = Compiler::new(MeshOptions {
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
    });
    let snapshot = compiler.apply(objects.into_iter().map(Change::Upsert));
    let client = snapshot.workloads.values().next().expect("the pod");
    let client = Arc::clone(client);
    (snapshot, client)
});

/// A reply that leaves for whoever sent `query`.
fn check_reply(query: &Message, reply: &Message) {
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert_eq!(reply.metadata.id, query.metadata.id);
    assert_eq!(reply.queries, query.queries);
    let bytes = reply.to_vec().expect("a reply can be sent");
    assert_eq!(receive(&bytes), Received::Nothing, "an answer is answered");
    let read = Message::from_vec(&bytes).expect("a reply can be read");
    assert_eq!(read.answers.len(), reply.answers.len());
}

fuzz_target!(|bytes: &[u8]| {
    match receive(bytes) {
        Received::Query(query) => {
            let (snapshot, client) = &*SNAPSHOT;
            match resolve(snapshot, client, &query, &mut |_| {}) {
                Answer::Local(reply) | Answer::Follow { reply, .. } => check_reply(&query, &reply),
                Answer::Forward => {}
            }
            if let (Some(refusal), limit) = fuzzing::refusal(&query) {
                assert!((512..=4096).contains(&limit) && refusal.len() <= limit);
            }
        }
        Received::Malformed(reply) => {
            assert!(transaction(bytes) == transaction(&reply), "whose is it?");
            let reply = Message::from_vec(&reply).expect("a reply can be read");
            assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        }
        Received::Nothing => {}
    }

    // A reply to exactly this query, as a resolver would send it: the same with the direction turned.
    let mut reply = bytes.to_vec();
    if let Some(flags) = reply.get_mut(2) {
        *flags |= 0x80;
    }
    if fuzzing::is_reply(bytes, &reply) {
        for place in [0, 1] {
            let mut other = reply.clone();
            other[place] ^= 1;
            assert!(!fuzzing::is_reply(bytes, &other), "another transaction's");
        }
        reply[2] &= !0x80;
        assert!(!fuzzing::is_reply(bytes, &reply), "a query answers nothing");
    }
});

fn transaction(message: &[u8]) -> Option<&[u8]> {
    message.get(..2)
}
