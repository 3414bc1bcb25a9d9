//! `culvert waypoint` as people type it: in the directory that an agent reads, and against a real API server with the
//! controller that answers for waypoints.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::kubernetes::{ApiServer, Controller, Definitions};
use e2e::lab::{Lab, Node, culvert};
use serde_json::Value;

/// `culvert waypoint` with these words, separated by blanks, on a node whose user has no cluster of their own but what
/// `kubeconfig` names.
fn waypoint(node: &Node, kubeconfig: Option<&Path>, words: &str) -> Result<Output> {
    let mut command = Command::new(culvert()?);
    command
        .arg("waypoint")
        .args(words.split_whitespace())
        .env("HOME", "/nonexistent")
        .env_remove("KUBECONFIG");
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    let output = node.netns().enter(&mut command)?.output();
    output.context("culvert cannot be started")
}

/// What it prints, if it succeeds.
fn prints(node: &Node, kubeconfig: Option<&Path>, words: &str) -> Result<String> {
    let output = waypoint(node, kubeconfig, words)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "waypoint {words}: {}\n{told}{complained}",
        output.status
    );
    Ok(told)
}

/// The one sentence with which it fails.
fn complains(node: &Node, kubeconfig: Option<&Path>, words: &str) -> Result<String> {
    let output = waypoint(node, kubeconfig, words)?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(1),
        "waypoint {words}: {}\n{told}",
        output.status
    );
    let sentence = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(
        sentence.starts_with("culvert: ") && sentence.lines().count() == 1,
        "waypoint {words}: {sentence}"
    );
    Ok(sentence)
}

/// The cells of each line, headings first. Columns are five blanks apart.
fn cells(table: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    for line in table.lines() {
        let cells = line.split("     ").map(str::trim);
        rows.push(cells.filter(|cell| !cell.is_empty()).collect());
    }
    rows
}

#[test]
fn a_directory_has_its_waypoints_applied_listed_and_deleted() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let node = mesh.lab.node("a")?;
    let says = |words: &str| prints(node, None, words);
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;

    ensure!(says("delete -n shop waypoint")? == "waypoint shop/waypoint deleted\n");
    mesh.soon_at_layer7("client", to, false)?;
    ensure!(says("list -n shop")? == "No waypoints found.\n");

    // What `generate` prints is what `apply` writes, and it writes nothing itself.
    let generated = says("generate -n shop --for service")?;
    ensure!(says("list -A")? == "No waypoints found.\n");
    let applied = says("apply -n shop --for service --wait")?;
    ensure!(
        applied == "✅ waypoint shop/waypoint applied\n✅ waypoint shop/waypoint is ready!\n",
        "{applied}"
    );
    let written = mesh.lab.manifests().directory();
    let written = fs::read_to_string(written.join("waypoint-shop-waypoint.yaml"))?;
    ensure!(written == generated, "{written}");
    // The namespace is labelled still.
    mesh.soon_at_layer7("client", to, true)?;
    let listed = says("list -A")?;
    ensure!(
        cells(&listed)
            == [
                [
                    "NAMESPACE",
                    "NAME",
                    "REVISION",
                    "TRAFFIC TYPE",
                    "PROGRAMMED"
                ],
                ["shop", "waypoint", "default", "service", "True"]
            ],
        "{listed}"
    );

    let refused = says("apply -n shop --name second --enroll-namespace")?;
    ensure!(
        refused.contains("already uses waypoint waypoint") && !refused.contains("applied\n✅"),
        "{refused}"
    );
    ensure!(!says("list -n shop")?.contains("second"));
    let enrolled = says("apply -n shop --name second --enroll-namespace --overwrite --wait")?;
    ensure!(
        enrolled.ends_with("✅ namespace shop labeled with \"istio.io/use-waypoint: second\"\n"),
        "{enrolled}"
    );
    says("delete -n shop waypoint")?;
    mesh.soon_at_layer7("client", to, true)?;

    // Another control plane's is listed, and never ready.
    says("apply -n shop --name other --revision canary")?;
    let listed = says("list -n shop")?;
    let other = ["other", "canary", "none", "False"];
    ensure!(cells(&listed).contains(&other.to_vec()), "{listed}");
    let late = waypoint(node, None, "status other -n shop --waypoint-timeout 0")?;
    let table = String::from_utf8_lossy(&late.stdout);
    ensure!(
        late.status.code() == Some(1) && table.contains("revision canary is another control plane"),
        "{table}"
    );
    let gone = says("delete -n shop --revision canary")?;
    ensure!(gone == "waypoint shop/other deleted\n", "{gone}");
    let missing = complains(node, None, "delete -n shop other")?;
    ensure!(
        missing.contains("there is no waypoint shop/other"),
        "{missing}"
    );
    says("delete -n shop --all")?;
    mesh.soon_at_layer7("client", to, false)
}

#[test]
fn a_cluster_has_its_waypoints_applied_listed_and_deleted() -> Result<()> {
    let lab = Lab::two_nodes()?;
    let api = ApiServer::on_node(&lab, "a")?;
    let node = lab.node("a")?;
    let admin = api.admin_kubeconfig();
    let flag = |words: &str| format!("{words} --kubeconfig {}", admin.display());
    let says = |words: &str| prints(node, None, &flag(words));
    let bare = complains(node, None, &flag("list"))?;
    ensure!(bare.contains("install its CRDs"), "{bare}");

    for group in Definitions::ALL {
        api.install(group)?;
    }
    api.deploy()?;
    let account = api.account_kubeconfig("culvert-system", "culvert-controller")?;
    let controller = Controller::start(&lab, "b", &account, &["--lease", "6"])?;
    controller.wait_ready()?;
    api.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;

    ensure!(says("list -A")? == "No waypoints found.\n");
    let missing = complains(node, None, &flag("apply -n nowhere"))?;
    ensure!(
        missing.contains("there is no namespace nowhere in the cluster at https://"),
        "{missing}"
    );
    let applied = says("apply -n shop --for service --enroll-namespace --wait")?;
    let lines: Vec<&str> = applied.lines().collect();
    ensure!(
        lines
            .first()
            .is_some_and(|line| line
                .contains("kubectl label namespace shop istio.io/dataplane-mode=ambient"))
            && lines[1..]
                == [
                    "✅ waypoint shop/waypoint applied",
                    "✅ waypoint shop/waypoint is ready!",
                    "✅ namespace shop labeled with \"istio.io/use-waypoint: waypoint\""
                ],
        "{applied}"
    );
    is_written(&api)?;
    // A second time changes nothing, and is no conflict.
    says("apply -n shop --for service")?;

    let listed = says("list -n shop")?;
    ensure!(
        cells(&listed)
            == [
                ["NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"],
                ["waypoint", "default", "service", "True"]
            ],
        "{listed}"
    );
    let told = says("status -n shop")?;
    let programmed = ["waypoint", "True", "Programmed", "Programmed"];
    ensure!(
        cells(&told).iter().any(|row| row.starts_with(&programmed)),
        "{told}"
    );

    takes_the_place_of_another(&api, &says)?;
    refusals(&api, node)?;

    ensure!(says("delete -n shop --revision canary")? == "waypoint shop/second deleted\n");
    let missing = complains(node, None, &flag("delete -n shop second"))?;
    ensure!(
        missing.contains("there is no waypoint shop/second"),
        "{missing}"
    );
    let gone = says("delete -n shop waypoint theirs")?;
    ensure!(
        gone.contains("waypoint shop/waypoint deleted\n")
            && gone.contains("waypoint shop/theirs deleted\n"),
        "{gone}"
    );
    ensure!(says("list -A")? == "No waypoints found.\n");
    controller.stop()
}

/// The waypoint is in the cluster as it was asked for, and the command's own.
fn is_written(api: &ApiServer) -> Result<()> {
    let namespace = object(api, "namespace shop")?;
    ensure!(
        namespace["metadata"]["labels"]["istio.io/use-waypoint"] == "waypoint",
        "{namespace}"
    );
    let gateway = object(api, "gateway waypoint -n shop --show-managed-fields")?;
    ensure!(
        gateway["spec"]["gatewayClassName"] == "istio-waypoint"
            && gateway["spec"]["listeners"][0]["protocol"] == "HBONE"
            && gateway["metadata"]["labels"]["istio.io/waypoint-for"] == "service",
        "{gateway}"
    );
    let managers = gateway["metadata"]["managedFields"].as_array();
    let is_ours = |one: &Value| one["manager"] == "culvert-waypoint" && one["operation"] == "Apply";
    ensure!(
        managers.is_some_and(|all| all.iter().any(is_ours)),
        "{gateway}"
    );
    Ok(())
}

/// A second waypoint of the namespace is not used in place of the first one unless that is wanted.
fn takes_the_place_of_another(
    api: &ApiServer,
    says: &impl Fn(&str) -> Result<String>,
) -> Result<()> {
    let refused = says("apply -n shop --name second --enroll-namespace")?;
    ensure!(
        refused.contains("already uses waypoint waypoint"),
        "{refused}"
    );
    says("apply -n shop --name second --revision canary --enroll-namespace --overwrite")?;
    let namespace = object(api, "namespace shop")?;
    ensure!(
        namespace["metadata"]["labels"]["istio.io/use-waypoint"] == "second",
        "{namespace}"
    );
    let listed = says("list -A")?;
    let second = ["shop", "second", "canary", "none", "False"];
    ensure!(cells(&listed).contains(&second.to_vec()), "{listed}");
    Ok(())
}

/// An object as `kubectl get` finds it.
fn object(api: &ApiServer, words: &str) -> Result<Value> {
    let mut all = vec!["get", "-o", "json"];
    all.extend(words.split_whitespace());
    serde_json::from_str(&api.kubectl(&all)?).context("kubectl does not print JSON")
}

/// What somebody else owns, who may nothing, and whom nobody knows; leaves a waypoint `theirs`.
fn refusals(api: &ApiServer, node: &Node) -> Result<()> {
    let admin = api.admin_kubeconfig();
    let theirs = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: theirs, namespace: shop}\n\
                  spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=theirs",
        "-f",
        "-",
    ];
    api.kubectl_fed(&apply, theirs)?;
    let conflict = complains(node, Some(&admin), "apply -n shop --name theirs")?;
    ensure!(
        conflict.contains("cannot apply waypoint shop/theirs")
            && conflict.contains("conflict with \"theirs\"")
            && conflict.contains(".spec.gatewayClassName")
            && conflict.contains("--force-conflicts"),
        "{conflict}"
    );

    api.kubectl(&["create", "serviceaccount", "nobody", "-n", "shop"])?;
    let nobody = api.account_kubeconfig("shop", "nobody")?;
    let forbidden = complains(node, Some(&nobody), "list -n shop")?;
    ensure!(
        forbidden.contains("cannot list waypoints: the API server at https://")
            && forbidden.contains("answers 403")
            && forbidden.contains("system:serviceaccount:shop:nobody"),
        "{forbidden}"
    );

    // Neither an agent nor a cluster of one's own.
    let nowhere = complains(node, None, "list")?;
    ensure!(
        nowhere.contains("no agent answers at 127.0.0.1:15000")
            && nowhere.contains("name a cluster with --kubeconfig"),
        "{nowhere}"
    );
    let context = complains(node, Some(&admin), "list --context nobodys")?;
    ensure!(context.contains("nobodys"), "{context}");
    Ok(())
}

#[test]
fn where_the_agent_follows_a_cluster_waypoints_are_the_clusters() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let api = ApiServer::on_node(&lab, "a")?;
    for group in Definitions::ALL {
        api.install(group)?;
    }
    api.deploy()?;
    api.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n")?;
    let account = api.account_kubeconfig("culvert-system", "culvert-agent")?;
    lab.follow_cluster(&account);
    lab.start_agent("a")?;
    lab.agent("a")?.wait_ready()?;
    let node = lab.node("a")?;
    let admin = api.admin_kubeconfig();
    let applied = prints(node, Some(&admin), "apply -n shop --enroll-namespace")?;
    ensure!(
        applied
            == "✅ waypoint shop/waypoint applied\n✅ namespace shop labeled with \"istio.io/use-waypoint: waypoint\"\n",
        "{applied}"
    );
    e2e::lab::eventually(
        "the agent knows it",
        std::time::Duration::from_secs(10),
        || {
            let told = lab.agent("a")?.get(15000, "/objects")?.text();
            let objects: Vec<Value> = serde_json::from_str(&told)?;
            let is_it =
                |one: &Value| one["kind"] == "Gateway" && one["metadata"]["name"] == "waypoint";
            ensure!(objects.iter().any(is_it), "{told}");
            Ok(())
        },
    )?;
    // No controller runs, and nobody else says that it stands.
    let listed = prints(node, Some(&admin), "list -n shop")?;
    let row = ["waypoint", "default", "none", "False"];
    ensure!(cells(&listed).contains(&row.to_vec()), "{listed}");
    // The agent's own account may read, and no more.
    let forbidden = complains(node, Some(&account), "delete -n shop waypoint")?;
    ensure!(
        forbidden.contains("cannot delete waypoint shop/waypoint")
            && forbidden.contains("answers 403"),
        "{forbidden}"
    );
    Ok(())
}
