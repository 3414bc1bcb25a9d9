//! What is installed: kustomize and Helm make the same of it, an API server takes it, and the program knows what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::repository;
use e2e::kubelet::Nodes;
use e2e::kubernetes::ApiServer;
use e2e::lab::{Driver, Lab, PodSpec, culvert, helm};
use serde_json::{Value, json};

fn deploy(part: &str) -> Result<PathBuf> {
    Ok(repository()?.join("deploy").join(part))
}

/// What Helm renders with the values of the chart.
fn chart(values: &[&str]) -> Result<String> {
    let mut command = Command::new(helm()?);
    // What an official build of Helm takes from the cluster, or knows.
    command.args(["template", "culvert", "--kube-version", "1.30.0"]);
    command.args(["--namespace", "culvert-system"]);
    command.arg(deploy("helm")?);
    for value in values {
        command.args(["--set", value]);
    }
    // Nothing of whoever runs the tests.
    let home = std::env::temp_dir().join(format!("culvert-helm-{}", std::process::id()));
    let output = command.env("HELM_CACHE_HOME", &home).output();
    let output = output.context("helm cannot be started")?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm template: {why}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An API server with the agent's namespace and nothing else, and the directory whose life is its own.
fn server() -> Result<(ApiServer, Lab)> {
    let lab = Lab::two_nodes()?;
    let api = ApiServer::on_node(&lab, "a")?;
    api.kubectl(&["create", "namespace", "culvert-system"])?;
    Ok((api, lab))
}

fn kustomized(api: &ApiServer, part: &str) -> Result<String> {
    api.kubectl(&["kustomize", &deploy(part)?.to_string_lossy()])
}

/// What a server would store of these manifests, by kind and name: it validates them and fills in what they leave out.
fn stored(api: &ApiServer, manifests: &str) -> Result<BTreeMap<String, Value>> {
    let dry = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-o",
        "json",
        "-f",
        "-",
    ];
    let text = api.kubectl_fed(&dry, manifests)?;
    let list: Value = serde_json::from_str(&text).context("kubectl does not print JSON")?;
    let items = list["items"].as_array().context("no list")?;
    let mut objects = BTreeMap::new();
    for item in items {
        let mut object = item.clone();
        let metadata = object["metadata"].as_object_mut().context("no metadata")?;
        for own in [
            "uid",
            "creationTimestamp",
            "resourceVersion",
            "managedFields",
            "generation",
        ] {
            metadata.remove(own);
        }
        let name = format!("{} {}", item["kind"], item["metadata"]["name"]);
        objects.insert(name, object);
    }
    Ok(objects)
}

#[test]
fn kustomize_and_helm_make_the_same_and_a_server_takes_it() -> Result<()> {
    let (api, _lab) = server()?;
    let base = stored(&api, &kustomized(&api, "base")?)?;
    let chart_made = stored(&api, &chart(&[])?)?;
    let names: Vec<_> = base.keys().collect();
    ensure!(
        names
            == [
                r#""ClusterRole" "culvert-agent""#,
                r#""ClusterRole" "culvert-agent-credentials""#,
                r#""ClusterRoleBinding" "culvert-agent""#,
                r#""DaemonSet" "culvert-agent""#,
                r#""Namespace" "culvert-system""#,
                r#""ServiceAccount" "culvert-agent""#,
            ],
        "{names:?}"
    );
    ensure!(base.keys().eq(chart_made.keys()), "{:?}", chart_made.keys());
    for (name, object) in &base {
        ensure!(
            object == &chart_made[name],
            "{name}: {object:#} and {:#}",
            chart_made[name]
        );
    }
    // What takes its place to remove it, too.
    let removal = stored(&api, &kustomized(&api, "uninstall")?)?;
    let arguments = |objects: &BTreeMap<String, Value>| {
        let set = &objects[r#""DaemonSet" "culvert-agent""#];
        set["spec"]["template"]["spec"]["containers"][0]["args"].clone()
    };
    ensure!(
        arguments(&removal)[0] == "uninstall",
        "{}",
        arguments(&removal)
    );
    known("uninstall", &arguments(&removal))?;
    known("agent", &arguments(&base))?;
    // Values that change something.
    let changed = chart(&[
        "caSecret=cacerts",
        "cni.confDir=/var/lib/cni",
        "cni.startWithoutAgent={kube-system,storage}",
        "seLinuxOptions.type=spc_t",
        "extraArgs={--workers=2}",
        "createNamespace=false",
    ])?;
    let changed = stored(&api, &changed)?;
    ensure!(changed.len() == base.len() - 1, "{:?}", changed.keys());
    let text = json!(changed).to_string();
    for part in [
        r#""secretName":"cacerts""#,
        r#""path":"/var/lib/cni""#,
        "--cni-start-without-agent=kube-system,storage",
        r#""type":"spc_t""#,
        "--workers=2",
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    Ok(())
}

/// That the program knows each flag that it is started with.
fn known(command: &str, arguments: &Value) -> Result<()> {
    let help = Command::new(culvert()?)
        .args([command, "--help"])
        .output()?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let arguments = arguments.as_array().context("no arguments")?;
    ensure!(arguments.first() == Some(&json!(command)), "{arguments:?}");
    for argument in arguments.iter().skip(1).filter_map(Value::as_str) {
        let flag = argument.split('=').next().unwrap_or_default();
        let is_known = help.lines().any(|line| {
            let mut words = line.split([' ', ',']);
            words.any(|word| word == flag)
        });
        ensure!(is_known, "culvert {command} knows no {flag}");
    }
    Ok(())
}

/// The container is given what the program keeps, and no more.
#[test]
fn the_daemon_set_grants_the_documented_capabilities() -> Result<()> {
    let (api, _lab) = server()?;
    let base = stored(&api, &kustomized(&api, "base")?)?;
    let template = &base[r#""DaemonSet" "culvert-agent""#]["spec"]["template"]["spec"];
    let container = &template["containers"][0];
    let granted = &container["securityContext"]["capabilities"];
    ensure!(granted["drop"] == json!(["ALL"]), "{granted}");
    let granted = granted["add"].as_array().context("no capabilities")?;
    let granted: BTreeSet<_> = granted.iter().filter_map(Value::as_str).collect();
    let readme = std::fs::read_to_string(repository()?.join("README.md"))?;
    let documented = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next());
    let mut documented: BTreeSet<_> = documented.collect();
    ensure!(
        readme.contains("`CAP_SYS_PTRACE`"),
        "the README does not name it"
    );
    documented.insert("SYS_PTRACE");
    ensure!(granted == documented, "{granted:?}, not {documented:?}");

    // Each mount has a volume, and each volume a mount.
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|one| one["name"].to_string()).collect()
    };
    ensure!(
        names(&container["volumeMounts"]) == names(&template["volumes"]),
        "{template:#}"
    );
    Ok(())
}

/// What the profile refuses is nothing that the agent, or whoever starts it, calls.
#[test]
fn the_seccomp_profile_lets_io_uring_and_capture_pass() -> Result<()> {
    let text = std::fs::read_to_string(deploy("seccomp/culvert-agent.json")?)?;
    let profile: Value = serde_json::from_str(&text)?;
    ensure!(profile["defaultAction"] == "SCMP_ACT_ALLOW", "{profile}");
    let refused: BTreeSet<String> = profile["syscalls"]
        .as_array()
        .context("no rules")?
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ERRNO")
        .flat_map(|rule| rule["names"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    ensure!(
        refused.contains("kexec_load") && refused.contains("ptrace"),
        "{refused:?}"
    );
    for needed in [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "bpf",
        "setns",
        "mount",
        "execve",
        "prctl",
        "capset",
        "socket",
        "inotify_add_watch",
        "clone3",
    ] {
        ensure!(!refused.contains(needed), "{needed} is refused");
    }
    Ok(())
}

/// As a pod of the cluster: the server's address in the environment, token and authority in the usual place.
#[test]
fn an_agent_is_known_by_its_pods_service_account() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let account = nodes
        .api
        .service_account("culvert-system", "culvert-agent")?;
    let server = nodes.api.url();
    nodes.lab.follow_own_cluster(account)?;
    let pod = nodes.create(PodSpec::new("a", "client"))?;
    nodes.run(&pod, Driver::Systemd)?;
    nodes.lab.start_agent("a")?;
    nodes.lab.agent("a")?.wait_ready()?;
    nodes.captured(&pod)?;
    let answer = nodes.lab.agent("a")?.get(15000, "/status")?;
    let status: Value = serde_json::from_slice(&answer.body)?;
    ensure!(
        status["cluster"]["server"] == server.as_str(),
        "{}",
        status["cluster"]
    );
    ensure!(
        status["cluster"]["reachable"] == true,
        "{}",
        status["cluster"]
    );
    Ok(())
}
