//! What is installed: kustomize and Helm make the same of it, an API server takes it, and the program knows what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::repository;
use e2e::kubelet::{Nodes, SOON};
use e2e::kubernetes::{ApiServer, Controller};
use e2e::lab::{Driver, Lab, PodSpec, culvert, eventually, helm};
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

/// That the chart makes what kustomize does, but for the namespace: Helm needs that before it makes anything.
fn same(kustomized: &BTreeMap<String, Value>, made: &BTreeMap<String, Value>) -> Result<()> {
    let namespace = r#""Namespace" "culvert-system""#;
    ensure!(kustomized.contains_key(namespace), "no namespace");
    let expected: BTreeMap<_, _> = kustomized
        .iter()
        .filter(|(name, _)| *name != namespace)
        .collect();
    ensure!(
        expected.keys().copied().eq(made.keys()),
        "{:?}",
        made.keys()
    );
    for (name, object) in expected {
        let by_chart = &made[name];
        ensure!(object == by_chart, "{name}: {object:#} and {by_chart:#}");
    }
    Ok(())
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
                r#""ClusterRole" "culvert-controller""#,
                r#""ClusterRoleBinding" "culvert-agent""#,
                r#""ClusterRoleBinding" "culvert-controller""#,
                r#""ClusterRoleBinding" "culvert-controller-reads""#,
                r#""DaemonSet" "culvert-agent""#,
                r#""Deployment" "culvert-controller""#,
                r#""Namespace" "culvert-system""#,
                r#""NetworkPolicy" "culvert-controller""#,
                r#""PodDisruptionBudget" "culvert-controller""#,
                r#""Role" "culvert-controller""#,
                r#""RoleBinding" "culvert-controller""#,
                r#""Service" "culvert-ca""#,
                r#""ServiceAccount" "culvert-agent""#,
                r#""ServiceAccount" "culvert-controller""#,
            ],
        "{names:?}"
    );
    same(&base, &chart_made)?;
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
    same(&removal, &stored(&api, &chart(&["uninstall=true"])?)?)?;
    known("agent", &arguments(&base))?;
    let controllers = &base[r#""Deployment" "culvert-controller""#]["spec"]["template"]["spec"];
    known("controller", &controllers["containers"][0]["args"])?;
    Ok(())
}

/// In the place of ztunnel, by one value of the chart or by the overlay.
#[test]
fn kustomize_and_helm_make_the_same_for_an_istiod() -> Result<()> {
    let (api, _lab) = server()?;
    let istiod = "https://istiod.istio-system.svc:15012";
    let overlay = stored(&api, &kustomized(&api, "istiod")?)?;
    let base = stored(&api, &kustomized(&api, "base")?)?;
    let by_value = stored(&api, &chart(&[&format!("xds.address={istiod}")])?)?;
    same(&overlay, &by_value)?;
    for (name, object) in &overlay {
        let is_set = name == r#""DaemonSet" "culvert-agent""#;
        ensure!((object != &base[name]) == is_set, "{name}: {object:#}");
    }
    // All of it from istiod, whatever that is called, and nothing of ours.
    let all = chart(&[
        &format!("xds.address={istiod}"),
        "xds.clusterId=east",
        "xds.rootConfigMap=roots",
        "xds.audience=east.example.com",
        &format!("ca.address={istiod}"),
        "ca.rootConfigMap=roots",
    ])?;
    let text = json!(stored(&api, &all)?).to_string();
    for part in [
        r#"{"name":"CLUSTER_ID","value":"east"}"#,
        r#""configMap":{"defaultMode":420,"name":"roots"}"#,
        r#""audience":"east.example.com""#,
        "--ca-address=https://istiod.istio-system.svc:15012",
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    for ours in ["--ca-port", "culvert-ca-root-cert"] {
        ensure!(!text.contains(ours), "{ours} in {text}");
    }
    Ok(())
}

/// In the place of ztunnel under istio-cni, too: nothing is mounted any more by which an agent finds pods itself.
#[test]
fn kustomize_and_helm_make_the_same_under_istio_cni() -> Result<()> {
    let (api, _lab) = server()?;
    let overlay = stored(&api, &kustomized(&api, "istio-cni")?)?;
    let by_value = chart(&[
        "xds.address=https://istiod.istio-system.svc:15012",
        "istioCni.enabled=true",
    ])?;
    same(&overlay, &stored(&api, &by_value)?)?;
    let template = &overlay[r#""DaemonSet" "culvert-agent""#]["spec"]["template"]["spec"];
    known("agent", &template["containers"][0]["args"])?;
    let text = template.to_string();
    for part in [
        r#"{"name":"INPOD_UDS","value":"/var/run/ztunnel/ztunnel.sock"}"#,
        r#""hostPath":{"path":"/var/run/ztunnel","type":"DirectoryOrCreate"}"#,
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    for own in ["cni-conf", "cni-bin", "/host/proc", "SYS_PTRACE"] {
        ensure!(!text.contains(own), "{own} in {text}");
    }
    let elsewhere = chart(&["istioCni.enabled=true", "istioCni.socketDir=/run/z"])?;
    ensure!(elsewhere.contains("path: /run/z"), "{elsewhere}");
    // What removes an agent looks for all that any agent leaves.
    let removal = chart(&["istioCni.enabled=true", "uninstall=true"])?;
    let as_ever = stored(&api, &chart(&["uninstall=true"])?)?;
    ensure!(stored(&api, &removal)? == as_ever, "{removal}");
    Ok(())
}

#[test]
fn values_of_the_chart_change_what_it_renders() -> Result<()> {
    let (api, _lab) = server()?;
    let base = stored(&api, &chart(&[])?)?;
    let changed = chart(&[
        "caSecret=cacerts",
        "cni.confDir=/var/lib/cni",
        "cni.startWithoutAgent={kube-system,storage}",
        "seLinuxOptions.type=spc_t",
        "extraArgs={--workers=2}",
        "controller.istiod=absent",
        "controller.replicas=3",
    ])?;
    let changed = stored(&api, &changed)?;
    // Not the authority's service.
    ensure!(changed.len() == base.len() - 1, "{:?}", changed.keys());
    // Agents that hold the CA have nobody to ask, and another authority is not ours.
    let elsewhere = chart(&[
        "ca.address=https://istiod.istio-system.svc:15012",
        "ca.rootConfigMap=istio-ca-root-cert",
    ])?;
    for (rendered, asks) in [(chart(&["caSecret=cacerts"])?, false), (elsewhere, true)] {
        let objects = stored(&api, &rendered)?;
        ensure!(objects.len() == base.len() - 1, "{:?}", objects.keys());
        let text = json!(objects).to_string();
        for part in ["--ca-port", "tokenreviews"] {
            ensure!(!text.contains(part), "{part} in {text}");
        }
        let asked = text.contains("--ca-address=https://istiod.istio-system.svc:15012")
            && text.contains(r#""name":"istio-ca-root-cert""#);
        ensure!(asked == asks, "{text}");
        ensure!(text.contains("--ca-dir=/etc/culvert/ca") != asks, "{text}");
    }
    let alone = ["controller.enabled=false", "caSecret=culvert-ca"];
    let alone = stored(&api, &chart(&alone)?)?;
    ensure!(
        alone.len() == 5 && alone.keys().all(|name| !name.contains("controller")),
        "{:?}",
        alone.keys()
    );
    let text = json!(changed).to_string();
    for part in [
        r#""secretName":"cacerts""#,
        r#""path":"/var/lib/cni""#,
        "--cni-start-without-agent=kube-system,storage",
        r#""type":"spc_t""#,
        "--workers=2",
        "--istiod=absent",
        r#""replicas":3"#,
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    Ok(())
}

/// What would be installed and not work.
#[test]
fn the_chart_refuses_values_that_cannot_work() -> Result<()> {
    for (values, why) in [
        (
            &["controller.enabled=false"][..],
            "nobody would issue identities",
        ),
        (
            &["caSecret=cacerts", "ca.address=https://x:1"],
            "exclude each other",
        ),
        (&["ca.address=https://x:1"], "set ca.rootConfigMap"),
        (
            &["drain=26"],
            "terminationGracePeriodSeconds has to be drain and 5 seconds",
        ),
    ] {
        let refused = chart(values).err().context("it is rendered")?;
        ensure!(format!("{refused:#}").contains(why), "{refused:#}");
    }
    Ok(())
}

/// What else a cluster may need of the agents' pods: where they run, and what they are given.
#[test]
fn the_agents_pods_take_what_a_cluster_wants_of_them() -> Result<()> {
    let (api, _lab) = server()?;
    let made = stored(
        &api,
        &chart(&[
            "nodeSelector.pool=apps",
            "agent.nodeSelector.mesh=culvert",
            "agent.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=rack",
            "agent.extraEnv[0].name=SSL_CERT_FILE",
            "agent.extraEnv[0].value=/etc/authorities/all.pem",
            "agent.extraVolumes[0].name=authorities",
            "agent.extraVolumes[0].configMap.name=corporate",
            "agent.extraVolumeMounts[0].name=authorities",
            "agent.extraVolumeMounts[0].mountPath=/etc/authorities",
        ])?,
    )?;
    let agents = &made[r#""DaemonSet" "culvert-agent""#]["spec"]["template"]["spec"];
    let controllers = &made[r#""Deployment" "culvert-controller""#]["spec"]["template"]["spec"];
    let linux = "kubernetes.io/os";
    ensure!(
        agents["nodeSelector"] == json!({ linux: "linux", "pool": "apps", "mesh": "culvert" }),
        "{agents:#}"
    );
    ensure!(
        controllers["nodeSelector"] == json!({ linux: "linux", "pool": "apps" }),
        "{controllers:#}"
    );
    ensure!(
        agents["affinity"].is_object() && controllers["affinity"].is_null(),
        "{agents:#}"
    );
    let has = |list: &Value, expected: Value| -> bool {
        list.as_array().is_some_and(|list| list.contains(&expected))
    };
    let container = &agents["containers"][0];
    let authorities = "/etc/authorities";
    ensure!(
        has(
            &container["env"],
            json!({ "name": "SSL_CERT_FILE", "value": format!("{authorities}/all.pem") })
        ) && has(
            &container["volumeMounts"],
            json!({ "name": "authorities", "mountPath": authorities })
        ) && has(
            &agents["volumes"],
            json!({ "name": "authorities", "configMap": { "name": "corporate", "defaultMode": 420 } })
        ),
        "{agents:#}"
    );
    // Nobody else is given them.
    let others = json!(controllers).to_string();
    ensure!(!others.contains("authorities"), "{others}");
    Ok(())
}

/// Whom tokens are for, what holds the roots, and which of Istio's revisions is meant, is told to all who have to know.
#[test]
fn both_sides_are_told_of_the_authority_and_of_istios_revision() -> Result<()> {
    let (api, _lab) = server()?;
    let made = stored(
        &api,
        &chart(&[
            "ca.audience=mesh.example.com",
            "ca.rootConfigMap=roots",
            "meshConfig=istio-canary",
            "revisions={default,canary}",
        ])?,
    )?;
    let text = |name: &str| -> Result<String> {
        Ok(made
            .get(name)
            .with_context(|| format!("no {name}"))?
            .to_string())
    };
    for (object, parts) in [
        (
            r#""DaemonSet" "culvert-agent""#,
            &[
                r#""audience":"mesh.example.com""#,
                r#""name":"roots""#,
                "--mesh-config=istio-canary",
                "--revision=default,canary",
            ][..],
        ),
        (
            r#""Deployment" "culvert-controller""#,
            &[
                "--ca-audience=mesh.example.com",
                "--ca-bundle=roots",
                "--mesh-config=istio-canary",
                "--revision=default,canary",
            ],
        ),
        (
            r#""Role" "culvert-controller""#,
            &[r#""resourceNames":["roots"]"#],
        ),
        (
            r#""ClusterRole" "culvert-agent""#,
            &[r#""resourceNames":["istio-canary"]"#],
        ),
    ] {
        let text = text(object)?;
        for part in parts {
            ensure!(text.contains(part), "no {part} in {text}");
        }
        ensure!(!text.contains("culvert-ca-root-cert"), "{text}");
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

/// In the place of ztunnel: the program reads each variable that it is given, and finds what it is asked for at its own
/// defaults' places.
#[test]
fn under_istiod_the_agent_has_what_ztunnel_would_have() -> Result<()> {
    let (api, _lab) = server()?;
    let set = stored(&api, &kustomized(&api, "istiod")?)?;
    let template = &set[r#""DaemonSet" "culvert-agent""#]["spec"]["template"]["spec"];
    let container = &template["containers"][0];
    let help = Command::new(culvert()?)
        .args(["agent", "--help"])
        .env_clear()
        .output()?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let variables = container["env"].as_array().context("no variables")?;
    ensure!(variables.len() == 6, "{variables:#?}");
    for variable in variables {
        let name = variable["name"].as_str().context("no name")?;
        ensure!(
            help.contains(&format!("[env: {name}=]")),
            "nobody reads {name}"
        );
    }
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let files = [
        ("istiod-root", "root-cert.pem"),
        ("istio-token", "istio-token"),
    ];
    for (name, file) in files {
        let mount = mounts.iter().find(|mount| mount["name"] == name);
        let path = mount.and_then(|mount| mount["mountPath"].as_str());
        let path = path.with_context(|| format!("{name} is not mounted"))?;
        ensure!(
            help.contains(&format!("[default: {path}/{file}]")),
            "{path}"
        );
        let volumes = template["volumes"].as_array().context("no volumes")?;
        ensure!(
            volumes.iter().any(|volume| volume["name"] == name),
            "no {name}"
        );
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

/// Being ready waits for every pod and certificate: what restarts an agent (or controller) that is not would close a whole
/// node for one tenant's pod.
#[test]
fn nobody_is_restarted_for_not_being_ready() -> Result<()> {
    let (api, _lab) = server()?;
    let base = stored(&api, &kustomized(&api, "base")?)?;
    for name in [
        r#""DaemonSet" "culvert-agent""#,
        r#""Deployment" "culvert-controller""#,
    ] {
        let container = &base[name]["spec"]["template"]["spec"]["containers"][0];
        ensure!(container["readinessProbe"].is_object(), "{container:#}");
        for restarts in ["startupProbe", "livenessProbe"] {
            ensure!(container[restarts].is_null(), "{name} has a {restarts}");
        }
    }
    Ok(())
}

/// The controller's container gets nothing of the node, as the strictest level of `PodSecurity` demands.
#[test]
fn the_controller_runs_where_only_the_restricted_may() -> Result<()> {
    let (api, _lab) = server()?;
    api.kubectl(&["create", "namespace", "strict"])?;
    api.kubectl(&[
        "label",
        "namespace",
        "strict",
        "pod-security.kubernetes.io/enforce=restricted",
    ])?;
    let base = stored(&api, &kustomized(&api, "base")?)?;
    let pod = |template: &Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "x", "namespace": "strict" },
            "spec": template["spec"]["template"]["spec"],
        })
    };
    let admit = |template: &Value| {
        let words = ["create", "--dry-run=server", "-f", "-"];
        api.kubectl_fed(&words, &pod(template).to_string())
    };
    // The server knows the label a moment later than kubectl does.
    let agent = &base[r#""DaemonSet" "culvert-agent""#];
    eventually("the agent is refused", SOON, || {
        let refused = admit(agent).err().context("it is admitted")?;
        let why = format!("{refused:#}");
        ensure!(why.contains("violates PodSecurity"), "{why}");
        Ok(())
    })?;
    let deployment = &base[r#""Deployment" "culvert-controller""#];
    admit(deployment).context("the controller")?;
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    ensure!(
        container["securityContext"]["readOnlyRootFilesystem"] == true,
        "{container}"
    );
    ensure!(container["volumeMounts"].is_null(), "{container}");
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

/// Words of a text that are names of metrics of ours.
fn metrics_named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = ["istio_", "culvert_", "workload_manager_", "process_"];
    let named = words.filter(|word| ours.iter().any(|start| word.starts_with(start)));
    named.map(str::to_owned).collect()
}

/// The names under which a program's metrics can be asked for.
fn metrics_there(exposition: &str) -> BTreeSet<String> {
    let described = exposition
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = described.flat_map(|(name, kind)| {
        let endings: &[&str] = match kind {
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        endings.iter().map(move |ending| format!("{name}{ending}"))
    });
    names.collect()
}

/// The names that the programs register. What has labels is not in an exposition before it has been counted once.
fn metrics_registered() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut directories = vec![
        repository()?.join("agent/src"),
        repository()?.join("userspace-l7/src"),
    ];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            // Registered once, or written at each scrape: some only by agents that follow an istiod.
            let calls = ["registry.register(", "encoder,", "encode_descriptor("];
            for call in calls.iter().flat_map(|call| text.split(call).skip(1)) {
                let literal = call.trim_start().strip_prefix('"');
                let name = literal.and_then(|rest| rest.split('"').next());
                let endings = ["", "_total", "_bucket", "_count", "_sum"];
                let all = name
                    .into_iter()
                    .flat_map(|name| endings.map(|ending| format!("{name}{ending}")));
                names.extend(all);
            }
        }
    }
    Ok(names)
}

/// What alerts and the dashboard ask for exists; a name that was changed would never alert anybody.
#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() -> Result<()> {
    let mut nodes = Nodes::new()?;
    nodes.lab.start_agent("a")?;
    nodes.lab.agent("a")?.wait_ready()?;
    let account = nodes
        .api
        .account_kubeconfig("culvert-system", "culvert-controller")?;
    let controller = Controller::start(&nodes.lab, "b", &account, &[])?;
    controller.wait_ready()?;
    let mut there = metrics_registered()?;
    ensure!(there.len() > 50, "{there:?}");
    for exposition in [
        nodes.lab.agent("a")?.get(15020, "/metrics")?,
        controller.get(15020, "/metrics")?,
    ] {
        there.extend(metrics_there(&exposition.text()));
    }
    let rendered = kustomized(&nodes.api, "monitoring")?;
    let asked = metrics_named(&rendered);
    ensure!(asked.len() > 20, "{asked:?}");
    let missing: Vec<_> = asked.difference(&there).collect();
    ensure!(missing.is_empty(), "{missing:?} are not among {there:?}");
    // And the table of docs/operations.md.
    let document = std::fs::read_to_string(repository()?.join("docs/operations.md"))?;
    let table = document.lines().filter(|line| line.starts_with("| `"));
    let first: Vec<_> = table.filter_map(|line| line.split(" | ").next()).collect();
    let documented = metrics_named(&first.join("\n"));
    let missing: Vec<_> = documented
        .iter()
        .filter(|name| !name.ends_with('_') && !there.contains(*name))
        .collect();
    ensure!(missing.is_empty(), "documented: {missing:?}");
    let dashboard = std::fs::read_to_string(deploy("monitoring/culvert.json")?)?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    ensure!(
        dashboard["panels"]
            .as_array()
            .is_some_and(|all| all.len() == 13)
    );
    controller.stop()
}
