//! Pods as a node of a cluster has them: an agent finds them by their processes, takes them into the mesh and lets them go
//! while they run, and leaves those alone that it cannot capture.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::kubelet::{Nodes, SOON};
use e2e::lab::{Driver, Pod, PodSpec, Sandbox, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::scenario::echoes;

const PORT: u16 = 7000;
/// How soon a pod is found of which nobody tells anything.
const LOOKED_FOR: Duration = Duration::from_secs(15);
const SECRET: &str = "nobody on the link may read this";

/// Sends the secret from one pod to another; whether it crossed the link in the clear.
fn is_plain(nodes: &Nodes, client: &Pod, server: &Pod) -> Result<bool> {
    let sniffer = nodes.lab.sniff()?;
    let to = SocketAddr::new(server.v4(), PORT);
    client.run(|| echoes(&net::connect(to)?, SECRET))?;
    Ok(sniffer.stop()?.contains(SECRET.as_bytes()))
}

/// Waits until pods speak through the mesh, or around it.
fn speak(nodes: &Nodes, client: &Pod, server: &Pod, plain: bool) -> Result<()> {
    eventually(&format!("plain text: {plain}"), SOON, || {
        ensure!(is_plain(nodes, client, server)? == plain, "it is not so");
        Ok(())
    })
}

/// A client on node a, a server on node b; both run, nobody has told the agents where.
fn pair(nodes: &mut Nodes) -> Result<(Pod, Pod)> {
    let client = nodes.create(PodSpec::new("a", "client"))?;
    let server = nodes.create(PodSpec::new("b", "server"))?;
    nodes.run(&client, Driver::Systemd)?;
    nodes.run(&server, Driver::Cgroupfs)?;
    Ok((client, server))
}

fn label(nodes: &Nodes, what: &str, label: &str) -> Result<()> {
    let words = ["label", "-n", "app", "--overwrite"].into_iter();
    let words: Vec<&str> = words.chain(what.split(' ')).chain([label]).collect();
    nodes.api.kubectl(&words).map(drop)
}

#[test]
fn pods_that_run_already_are_found_by_their_processes() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let (client, server) = pair(&mut nodes)?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    nodes.lab.start()?;
    ensure!(!is_plain(&nodes, &client, &server)?, "plain text");

    // What the pod starts itself may be anywhere; its sandbox is older.
    let uid = nodes.uid(&client)?;
    let elsewhere = std::sync::Arc::clone(nodes.lab.node("b")?.netns());
    let _younger = Sandbox::start(&nodes.lab, &elsewhere, (&uid, "younger"), Driver::Systemd)?;
    nodes.lab.take_agent("a")?.stop()?;
    nodes.lab.start_agent("a")?;
    nodes.lab.agent("a")?.wait_ready()?;
    ensure!(!is_plain(&nodes, &client, &server)?, "plain text");

    // CAP_SYS_PTRACE is 19.
    let held = nodes.lab.agent("a")?.status_field("CapEff:")?;
    let held = u64::from_str_radix(&held, 16).context("a capability set")?;
    ensure!(held >> 19 & 1 == 1 && held.count_ones() == 6, "{held:x}");
    Ok(())
}

#[test]
fn a_pod_is_captured_once_it_runs_and_no_agent_waits_for_one_that_does_not() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let client = nodes.create(PodSpec::new("a", "client"))?;
    nodes.lab.start()?;
    let state = nodes.state(&client)?;
    let pending = ("Pending", "it has not started on this node");
    ensure!(
        state == Some((pending.0.to_owned(), pending.1.to_owned())),
        "{state:?}"
    );
    nodes.run(&client, Driver::Cgroupfs)?;
    nodes.captured(&client)?;

    // The sandbox is made anew, in another network namespace.
    nodes.end(&client)?;
    eventually("the agent sees that it has ended", SOON, || {
        let state = nodes.state(&client)?;
        ensure!(
            state == Some((pending.0.to_owned(), pending.1.to_owned())),
            "{state:?}"
        );
        Ok(())
    })?;
    nodes.run(&client, Driver::Systemd)?;
    // Nobody tells: the agent looks for it, by now every ten seconds.
    eventually("the new sandbox is captured", LOOKED_FOR, || {
        nodes.captured(&client)
    })
}

#[test]
fn labels_take_running_pods_into_the_mesh_and_out_of_it() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let (client, server) = pair(&mut nodes)?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    nodes.lab.start()?;
    ensure!(!is_plain(&nodes, &client, &server)?, "plain text");

    let mode = "istio.io/dataplane-mode";
    label(&nodes, "ns app", &format!("{mode}-"))?;
    for pod in [&client, &server] {
        nodes.released(pod)?;
    }
    speak(&nodes, &client, &server, true)?;

    for pod in ["pod client", "pod server"] {
        label(&nodes, pod, &format!("{mode}=ambient"))?;
    }
    nodes.captured(&client)?;
    nodes.captured(&server)?;
    speak(&nodes, &client, &server, false)?;

    label(&nodes, "ns app", &format!("{mode}=ambient"))?;
    label(&nodes, "pod client", &format!("{mode}=none"))?;
    nodes.released(&client)?;
    speak(&nodes, &client, &server, true)?;

    nodes
        .api
        .kubectl(&["delete", "pod", "server", "-n", "app", "--force"])?;
    nodes.released(&server)
}

#[test]
fn what_cannot_be_captured_is_left_alone_and_said() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let mut specs = Vec::new();
    for (name, change) in [
        ("host", ("spec:\n", "spec:\n  hostNetwork: true\n")),
        (
            "sandboxed",
            ("spec:\n", "spec:\n  runtimeClassName: kata-qemu\n"),
        ),
        (
            "injected",
            (
                "metadata:\n",
                "metadata:\n  annotations: {sidecar.istio.io/status: \"{}\"}\n",
            ),
        ),
        (
            "confident",
            (
                "metadata:\n",
                "metadata:\n  annotations: {culvert.dev/netns: /proc/1/ns/net}\n",
            ),
        ),
    ] {
        specs.push((name, change));
    }
    nodes.api.apply(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: kata-qemu\nhandler: kata-qemu\n",
    )?;
    let mut pods = Vec::new();
    for (name, (from, to)) in specs {
        let pod = nodes.lab.add(&PodSpec::new("a", name).uncaptured())?;
        let namespace = nodes.lab.manifests().directory().join("namespace-app.yaml");
        nodes.api.apply(&std::fs::read_to_string(namespace)?)?;
        nodes.api.apply(&pod.manifest().replacen(from, to, 1))?;
        nodes.run(&pod, Driver::Systemd)?;
        pods.push(pod);
    }
    nodes.lab.start()?;
    for pod in &pods[..3] {
        let state = nodes.state(pod)?;
        ensure!(state.is_none(), "{}: {state:?}", pod.spec().name);
    }
    // Its annotation says nothing, its processes do.
    nodes.captured(&pods[3])?;
    let status = nodes.lab.node("a")?.culvert(&["status"])?;
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    for part in [
        "Pod app/host: is labelled for the mesh and left alone: it uses its node's network (hostNetwork)",
        "Pod app/sandboxed: is labelled for the mesh and left alone: its runtime puts it into a machine",
        "Pod app/injected: is labelled for the mesh and left alone: it has a sidecar",
        "Pod app/confident: names its network namespace by culvert.dev/netns",
    ] {
        ensure!(said.contains(part), "no `{part}` in {said}");
    }
    Ok(())
}

#[test]
fn an_agent_that_comes_back_keeps_what_it_has_not_found_yet_closed() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let (client, server) = pair(&mut nodes)?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    nodes.lab.start()?;
    ensure!(!is_plain(&nodes, &client, &server)?, "plain text");
    nodes.lab.take_agent("a")?.kill()?;
    // Nothing says any more which pod the namespace is.
    nodes.end(&client)?;
    nodes.lab.start_agent("a")?;
    nodes.lab.agent("a")?.wait_ready()?;
    let to = SocketAddr::new(server.v4(), PORT);
    let refused = client.run(|| Ok(net::connect(to).is_err()))?;
    ensure!(refused, "a pod that was captured speaks around the mesh");
    nodes.run(&client, Driver::Systemd)?;
    nodes.captured(&client)?;
    ensure!(!is_plain(&nodes, &client, &server)?, "plain text");
    Ok(())
}
