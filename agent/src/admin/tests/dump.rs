//! The dump, word for word, and as `istioctl ztunnel-config` would decode it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use userspace_l7::telemetry::Reporter;

use crate::admin::config_dump::{Sources, write};
use crate::admin::{
    Carriage, CertificateEntry, CertificateState, CertificateStatus, ConfigDump, LiveConnection,
    PodState, PodStatus, fixture,
};

pub(super) fn sources() -> Sources {
    let entry = |serial: &str| CertificateEntry {
        pem: "PEM".to_owned(),
        serial: serial.to_owned(),
        not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
        not_after: "2026-01-02T00:00:00Z".parse().unwrap(),
    };
    let uid = "Kubernetes//Pod/bookinfo/reviews-v1-abc".to_owned();
    let connection = |reporter, service: Option<&str>| LiveConnection {
        workload_uid: uid.clone(),
        reporter,
        source: "10.1.0.5:40000".parse().unwrap(),
        original_destination: "172.30.1.1:9080".parse().unwrap(),
        service: service.map(str::to_owned),
        actual_destination: "10.1.0.9:15008".parse().unwrap(),
        carriage: if reporter == Reporter::Source {
            Carriage::Hbone
        } else {
            Carriage::Tcp
        },
    };
    Sources {
        snapshot: Arc::new(fixture::bookinfo()),
        certificates: vec![
            CertificateStatus {
                identity: "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews".to_owned(),
                state: CertificateState::Available,
                chain: vec![entry("255"), entry("256")],
                roots: vec![entry("1")],
            },
            CertificateStatus {
                identity: "spiffe://cluster.local/ns/default/sa/default".to_owned(),
                state: CertificateState::Unavailable("the CA is gone".to_owned()),
                chain: Vec::new(),
                roots: Vec::new(),
            },
        ],
        connections: vec![
            connection(Reporter::Source, None),
            connection(
                Reporter::Destination,
                Some("reviews.bookinfo.svc.cluster.local"),
            ),
        ],
        pods: vec![PodStatus {
            uid: uid.clone(),
            name: "reviews-v1-abc".to_owned(),
            namespace: "bookinfo".to_owned(),
            service_account: "bookinfo-reviews".to_owned(),
            state: PodState::Up,
            reason: None,
            encrypted_within_node: false,
        }],
        config: json!({"node": "node-a"}),
    }
}

fn dump() -> Value {
    serde_json::from_slice(&write(&sources()).unwrap()).unwrap()
}

#[test]
fn the_dump_has_ztunnels_sections() {
    let dump = dump();
    let mut keys: Vec<&str> = dump
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "certificates",
            "config",
            "policies",
            "services",
            "stagedServices",
            "staticConfig",
            "version",
            "workloadState",
            "workloads"
        ]
    );
    assert_eq!(dump["version"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(dump["config"], json!({"node": "node-a"}));
}

#[test]
fn a_workload_is_written_word_for_word() {
    assert_eq!(
        dump()["workloads"][0],
        json!({
            "uid": "Kubernetes//Pod/bookinfo/reviews-v1-abc",
            "workloadIps": ["10.1.0.5", "fd00::5"],
            "protocol": "HBONE",
            "networkMode": "Standard",
            "name": "reviews-v1-abc",
            "namespace": "bookinfo",
            "trustDomain": "cluster.local",
            "serviceAccount": "bookinfo-reviews",
            "network": "",
            "workloadName": "reviews-v1-abc",
            "workloadType": "deployment",
            "canonicalName": "reviews-v1-abc",
            "canonicalRevision": "latest",
            "hostname": "",
            "node": "node-a",
            "nativeTunnel": false,
            "authorizationPolicies": ["bookinfo/callers"],
            "status": "Healthy",
            "clusterId": "Kubernetes",
            "locality": {"region": "eu"},
            "services": ["bookinfo/reviews.bookinfo.svc.cluster.local"],
            "capacity": 1
        })
    );
}

#[test]
fn a_service_is_written_word_for_word() {
    assert_eq!(
        dump()["services"][0],
        json!({
            "name": "reviews",
            "namespace": "bookinfo",
            "hostname": "reviews.bookinfo.svc.cluster.local",
            "vips": ["/172.30.48.169", "/fd00:1::9"],
            "cidrVips": [],
            "ports": {"80": 8080},
            "endpoints": {
                "Kubernetes//Pod/bookinfo/reviews-v1-abc": {
                    "workloadUid": "Kubernetes//Pod/bookinfo/reviews-v1-abc",
                    "port": {"80": 9080},
                    "status": "Healthy"
                },
                "Kubernetes//Pod/bookinfo/reviews-v2-def": {
                    "workloadUid": "Kubernetes//Pod/bookinfo/reviews-v2-def",
                    "port": {"80": 8080},
                    "status": "Unhealthy"
                }
            },
            "subjectAltNames": [],
            "waypoint": {
                "destination": "bookinfo/waypoint.bookinfo.svc.cluster.local",
                "hboneMtlsPort": 15008
            },
            "loadBalancer": {
                "mode": "Failover",
                "routingPreferences": ["Region", "Zone"],
                "healthPolicy": "OnlyHealthy"
            },
            "ipFamilies": "Dual",
            "canonical": true,
            "visibility": "Public"
        })
    );
}

#[test]
fn a_policy_is_written_word_for_word() {
    assert_eq!(
        dump()["policies"],
        json!([{
            "name": "callers",
            "namespace": "bookinfo",
            "scope": "WorkloadSelector",
            "action": "Deny",
            "dryRun": false,
            "rules": [[[{
                "namespaces": [{"Exact": "default"}, {"Presence": []}],
                "notPrincipals": [{"Prefix": "cluster.local/"}, {"Suffix": "/sa/curl"}],
                "serviceAccounts": [{"namespace": "default", "serviceAccount": "curl"}],
                "sourceIps": ["10.0.0.0/8"],
                "destinationPorts": [8080]
            }]]]
        }])
    );
}

#[test]
fn certificates_and_connections_are_written_word_for_word() {
    let dump = dump();
    let times = |serial: &str| {
        json!({
            "pem": "UEVN", "serialNumber": serial,
            "validFrom": "2026-01-01T00:00:00Z", "expirationTime": "2026-01-02T00:00:00Z"
        })
    };
    assert_eq!(
        dump["certificates"],
        json!([
            {
                "identity": "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews",
                "state": "Available",
                "certChain": [times("255"), times("256")],
                "rootCerts": [times("1")]
            },
            {
                "identity": "spiffe://cluster.local/ns/default/sa/default",
                "state": "Unavailable: the CA is gone",
                "certChain": [], "rootCerts": []
            }
        ])
    );
    assert_eq!(
        dump["workloadState"],
        json!({"Kubernetes//Pod/bookinfo/reviews-v1-abc": {
            "state": "Up",
            "info": {
                "name": "reviews-v1-abc", "namespace": "bookinfo", "trustDomain": "cluster.local",
                "serviceAccount": "bookinfo-reviews"
            },
            "connections": {
                "inbound": [{
                    "src": "10.1.0.5:40000", "originalDst": "reviews.bookinfo.svc.cluster.local",
                    "actualDst": "10.1.0.9:15008", "protocol": "TCP"
                }],
                "outbound": [{
                    "src": "10.1.0.5:40000", "originalDst": "172.30.1.1:9080",
                    "actualDst": "10.1.0.9:15008", "protocol": "HBONE"
                }]
            }
        }})
    );
}

#[test]
fn what_the_server_writes_the_command_line_reads() {
    let read: ConfigDump = serde_json::from_slice(&write(&sources()).unwrap()).unwrap();
    assert_eq!(
        (
            read.workloads.len(),
            read.services.len(),
            read.policies.len()
        ),
        (3, 3, 1)
    );
    let again = serde_json::to_value(&read).unwrap();
    let written = dump();
    for section in [
        "workloads",
        "services",
        "policies",
        "certificates",
        "workloadState",
        "version",
    ] {
        assert_eq!(again[section], written[section], "{section}");
    }
}

/// The fields of `istioctl`'s own decoder, each required: a missing or misspelt key fails here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlDump {
    workloads: Vec<IstioctlWorkload>,
    services: Vec<IstioctlService>,
    policies: Vec<IstioctlPolicy>,
    certificates: Vec<IstioctlCertificate>,
    workload_state: BTreeMap<String, IstioctlState>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlWorkload {
    uid: String,
    workload_ips: Vec<String>,
    protocol: String,
    name: String,
    namespace: String,
    service_account: String,
    workload_name: String,
    workload_type: String,
    canonical_name: String,
    canonical_revision: String,
    cluster_id: String,
    trust_domain: String,
    locality: BTreeMap<String, String>,
    node: String,
    network: String,
    status: String,
    hostname: String,
    capacity: u32,
    authorization_policies: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlService {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    ports: BTreeMap<String, u16>,
    waypoint: Option<IstioctlWaypoint>,
    endpoints: BTreeMap<String, IstioctlEndpoint>,
    subject_alt_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlWaypoint {
    destination: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlEndpoint {
    workload_uid: String,
    port: BTreeMap<String, u16>,
}

#[derive(Deserialize)]
struct IstioctlPolicy {
    name: String,
    namespace: String,
    scope: String,
    action: String,
    rules: Vec<Vec<Vec<Value>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlCertificate {
    identity: String,
    state: String,
    cert_chain: Vec<IstioctlCertificateEntry>,
    root_certs: Vec<IstioctlCertificateEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlCertificateEntry {
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

#[derive(Deserialize)]
struct IstioctlState {
    state: String,
    connections: IstioctlConnections,
    info: IstioctlInfo,
}

#[derive(Deserialize)]
struct IstioctlConnections {
    inbound: Vec<IstioctlConnection>,
    outbound: Vec<IstioctlConnection>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlConnection {
    src: String,
    original_dst: Option<String>,
    actual_dst: String,
    protocol: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IstioctlInfo {
    name: String,
    namespace: String,
    trust_domain: String,
    service_account: String,
}

fn as_istioctl() -> IstioctlDump {
    serde_json::from_slice(&write(&sources()).unwrap()).unwrap()
}

#[test]
fn istioctl_decodes_workloads() {
    let dump = as_istioctl();
    let workload = &dump.workloads[0];
    assert_eq!(workload.uid.rsplit('/').next(), Some(&*workload.name));
    assert_eq!(
        (&*workload.namespace, &*workload.protocol),
        ("bookinfo", "HBONE")
    );
    assert_eq!(
        (&*workload.service_account, &*workload.node),
        ("bookinfo-reviews", "node-a")
    );
    assert_eq!(
        (&*workload.trust_domain, &*workload.cluster_id),
        ("cluster.local", "Kubernetes")
    );
    assert_eq!(
        (&*workload.workload_type, &*workload.status),
        ("deployment", "Healthy")
    );
    assert_eq!(workload.workload_name, workload.canonical_name);
    assert_eq!(
        (&*workload.canonical_revision, workload.capacity),
        ("latest", 1)
    );
    assert_eq!((&*workload.network, &*workload.hostname), ("", ""));
    assert_eq!(workload.workload_ips[0], "10.1.0.5");
    assert_eq!(workload.locality["region"], "eu");
    assert_eq!(workload.authorization_policies, ["bookinfo/callers"]);
}

#[test]
fn istioctl_decodes_services_and_their_references() {
    let dump = as_istioctl();
    let service = &dump.services[0];
    assert_eq!(
        (&*service.name, &*service.namespace),
        ("reviews", "bookinfo")
    );
    // It prints what follows the slash.
    assert_eq!(service.vips[0].split_once('/').unwrap().1, "172.30.48.169");
    assert_eq!(service.ports["80"], 8080);
    assert!(service.hostname.starts_with("reviews.") && service.subject_alt_names.is_empty());
    let waypoint = service.waypoint.as_ref().unwrap();
    let (namespace, host) = waypoint.destination.split_once('/').unwrap();
    assert!(
        dump.services
            .iter()
            .any(|s| s.namespace == namespace && s.hostname == host)
    );
    for (uid, endpoint) in &service.endpoints {
        assert_eq!(&endpoint.workload_uid, uid);
        assert!(dump.workloads.iter().any(|found| found.uid == *uid));
        assert_eq!(endpoint.port.len(), 1);
    }
}

#[test]
fn istioctl_decodes_policies_certificates_and_connections() {
    let dump = as_istioctl();
    let policy = &dump.policies[0];
    assert_eq!((&*policy.namespace, &*policy.name), ("bookinfo", "callers"));
    assert_eq!(
        (&*policy.action, &*policy.scope),
        ("Deny", "WorkloadSelector")
    );
    assert_eq!(policy.rules[0][0][0]["destinationPorts"][0], 8080);

    let certificate = &dump.certificates[0];
    assert!(certificate.identity.starts_with("spiffe://") && certificate.state == "Available");
    assert_eq!(
        (certificate.cert_chain.len(), certificate.root_certs.len()),
        (2, 1)
    );
    let leaf = &certificate.cert_chain[0];
    assert_eq!((&*leaf.serial_number, &*leaf.pem), ("255", "UEVN"));
    assert!(leaf.valid_from < leaf.expiration_time);

    let state = &dump.workload_state["Kubernetes//Pod/bookinfo/reviews-v1-abc"];
    assert_eq!((&*state.state, &*state.info.name), ("Up", "reviews-v1-abc"));
    assert_eq!(
        (&*state.info.namespace, &*state.info.trust_domain),
        ("bookinfo", "cluster.local")
    );
    assert_eq!(state.info.service_account, "bookinfo-reviews");
    let (inbound, outbound) = (
        &state.connections.inbound[0],
        &state.connections.outbound[0],
    );
    assert_eq!(
        inbound.original_dst.as_deref(),
        Some("reviews.bookinfo.svc.cluster.local")
    );
    assert_eq!(
        (&*outbound.src, &*outbound.actual_dst),
        ("10.1.0.5:40000", "10.1.0.9:15008")
    );
    assert_eq!((&*inbound.protocol, &*outbound.protocol), ("TCP", "HBONE"));
}
