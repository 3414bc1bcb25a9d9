//! How long an agent takes to know a large cluster, and what that costs.
//!
//! A measurement and no test, for it takes the whole machine: `cargo bench --workspace --bench cluster`, after `cargo
//! xtask bench --list` has made the release build of the agent and `cargo xtask setup` the API server. `-- PODS` takes
//! another number than 100,000, and a tenth of it of services.

#![expect(clippy::print_stderr, reason = "what a person at the terminal is told")]

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::bench::{cpu_time_us, resident};
use e2e::kubernetes::{ApiServer, Definitions};
use e2e::lab::{Lab, eventually};
use serde_json::{Value, json};

const PODS: u32 = 100_000;
/// Pods for each service, and nodes' worth of them.
const PODS_PER_SERVICE: u32 = 10;
const PODS_PER_NODE: u32 = 100;
const SERVICES_PER_NAMESPACE: u32 = 100;
/// The goals, for 100,000 pods.
const GOAL: Duration = Duration::from_secs(20);
const GOAL_MEMORY: f64 = 1e9;

fn main() -> Result<()> {
    // `cargo bench` adds an option of its own, `--bench`.
    let wanted = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let pods = wanted
        .map_or(Ok(PODS), |number| number.parse())
        .context("a number of pods")?;
    let mut lab = Lab::two_nodes()?;
    let api = ApiServer::on_node(&lab, "a")?;
    Definitions::ALL
        .into_iter()
        .try_for_each(|group| api.install(group))?;
    api.deploy()?;
    fill(&api, pods)?;
    let kubeconfig = api.account_kubeconfig("culvert-system", "culvert-agent")?;
    lab.follow_cluster(&kubeconfig);
    let begun = Instant::now();
    lab.start_agent("b")?;
    let agent = lab.agent("b")?;
    eventually("the agent is ready", Duration::from_secs(300), || {
        let answer = agent.get(15021, "/healthz/ready")?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    })?;
    let took = begun.elapsed();
    let (memory, peak) = (resident(agent.pid())?, peak(agent.pid())?);
    let cpu = cpu_time_us(agent.pid())? / 1e6;
    eprintln!(
        "known in {took:.1?} with {cpu:.1} s of CPU; {:.0} MB resident, {:.0} MB at most",
        memory / 1e6,
        peak / 1e6
    );
    let before = cpu_time_us(agent.pid())?;
    // There is nothing to wait for but time itself.
    std::thread::sleep(Duration::from_secs(10));
    let idle = (cpu_time_us(agent.pid())? - before) / 10.0;
    eprintln!("then {idle:.0} us of CPU a second");
    let begun = Instant::now();
    api.kubectl(&[
        "label",
        "pod",
        "-n",
        "load-0",
        "pod-0",
        "--overwrite",
        "app=none",
    ])?;
    eventually("a change arrives", Duration::from_secs(10), || {
        let generation = agent.metric("culvert_snapshot_generation", &[])?;
        ensure!(generation > 1.0, "generation {generation}");
        Ok(())
    })?;
    eprintln!(
        "a change arrives in {:.0?}, kubectl's own start included",
        begun.elapsed()
    );
    if pods == PODS {
        ensure!(took < GOAL, "it took {took:.1?}");
        ensure!(peak < GOAL_MEMORY, "it took {:.0} MB", peak / 1e6);
    }
    Ok(())
}

/// Puts the objects into the store, and waits until the server knows them.
fn fill(api: &ApiServer, pods: u32) -> Result<()> {
    let services = pods / PODS_PER_SERVICE;
    let begun = Instant::now();
    api.put((0..=services / SERVICES_PER_NAMESPACE).map(namespace))?;
    api.put((0..services).map(service))?;
    api.put((0..pods).map(pod))?;
    eprintln!(
        "{services} services and {pods} pods stored in {:.1?}",
        begun.elapsed()
    );
    eventually("the server knows them", Duration::from_secs(300), || {
        let list: Value =
            serde_json::from_str(&api.kubectl(&["get", "--raw", "/api/v1/pods?limit=1"])?)?;
        let count = list["metadata"]["remainingItemCount"].as_u64();
        ensure!(count == Some(u64::from(pods) - 1), "{count:?} remain");
        Ok(())
    })
}

/// Most that was ever resident, in bytes.
fn peak(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}

fn metadata(name: &str, namespace: u32, number: u32, labels: &Value) -> Value {
    json!({
        "name": name,
        "namespace": format!("load-{namespace}"),
        "uid": format!("00000000-0000-4000-8000-{number:012x}"),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
        "managedFields": [{
            "manager": "kube-controller-manager",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {}, "f:version": {} } }, "f:spec": { "f:containers": {
                "k:{\"name\":\"app\"}": { ".": {}, "f:image": {}, "f:name": {}, "f:ports": {}, "f:resources": {} } } } },
        }],
    })
}

fn address(network: u8, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(network, 64, 0, 0)) + number)
}

fn namespace(number: u32) -> (String, Value) {
    let name = format!("load-{number}");
    let object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": format!("00000000-0000-4000-8000-{number:012x}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "kubernetes.io/metadata.name": name, "istio.io/dataplane-mode": "ambient" },
        },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    });
    (format!("/registry/namespaces/{name}"), object)
}

fn service(number: u32) -> (String, Value) {
    let (name, namespace) = (format!("service-{number}"), number / SERVICES_PER_NAMESPACE);
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 30, 16, 0)) + number);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&name, namespace, number, &json!({ "app": name })),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    });
    (
        format!("/registry/services/specs/load-{namespace}/{name}"),
        object,
    )
}

fn pod(number: u32) -> (String, Value) {
    let owner = number / PODS_PER_SERVICE;
    let (name, namespace) = (format!("pod-{number}"), owner / SERVICES_PER_NAMESPACE);
    let address = address(100, number);
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080, "scheme": "HTTP" }, "periodSeconds": 10 });
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(&name, namespace, number, &json!({
            "app": format!("service-{owner}"),
            "version": "v1",
            "pod-template-hash": "5d8f7c9b6",
        })),
        "spec": {
            "nodeName": format!("node-{}", number / PODS_PER_NODE),
            "serviceAccountName": format!("service-{owner}"),
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30,
            "volumes": [{ "name": "token", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } }],
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "containers": [{
                "name": "app",
                "image": "registry.example/load/app:1.0",
                "imagePullPolicy": "IfNotPresent",
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
                "env": [
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "LEVEL", "value": "info" },
                ],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
                "livenessProbe": probe,
                "readinessProbe": probe,
                "volumeMounts": [{ "name": "token", "mountPath": "/var/run/secrets/tokens" }],
            }],
        },
        "status": {
            "phase": "Running",
            "hostIP": "10.0.0.1",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "startTime": "2026-01-01T00:00:00Z",
            "qosClass": "Burstable",
            "conditions": [
                { "type": "Initialized", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                { "type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                { "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            ],
            "containerStatuses": [{
                "name": "app",
                "image": "registry.example/load/app:1.0",
                "imageID": "registry.example/load/app@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "containerID": "containerd://0000000000000000000000000000000000000000000000000000000000000000",
                "ready": true,
                "restartCount": 0,
                "started": true,
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
            }],
        },
    });
    (format!("/registry/pods/load-{namespace}/{name}"), object)
}
