//! The CNI plugin, run as a container runtime runs it: a pod starts once it is captured, and not at all without an agent.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::kubelet::{Nodes, SOON};
use e2e::lab::{Driver, Pod, PodSpec, culvert, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::net::sys;
use e2e::runtime::{KINDNET, Runtime, Sandbox};
use e2e::scenario::echoes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";
/// Nobody who starts pods notices.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Nodes, of which node a has a runtime whose plugin its agent keeps.
struct Installed {
    runtime: Runtime,
    nodes: Nodes,
}

impl Installed {
    fn new() -> Result<Self> {
        let mut nodes = Nodes::new()?;
        let runtime = Runtime::new(nodes.lab.directory().join("runtime"))?;
        let (conf, bin) = (runtime.conf_dir(), runtime.bin_dir());
        let (conf, bin) = (conf.to_string_lossy(), bin.to_string_lossy());
        nodes
            .lab
            .agent_options(&["--cni-conf-dir", &conf, "--cni-bin-dir", &bin]);
        nodes.lab.start_agent("a")?;
        nodes.lab.agent("a")?.wait_ready()?;
        let installed = Self { runtime, nodes };
        installed.chained()?;
        Ok(installed)
    }

    /// Waits until the plugin is in the chain.
    fn chained(&self) -> Result<()> {
        eventually("the plugin is in the chain", SOON, || {
            let configured = self.runtime.configured()?;
            self.runtime.entry()?.context(configured).map(drop)
        })
    }

    fn sandbox(&self, pod: &Pod) -> Result<Sandbox> {
        Ok(Sandbox::of(pod, &self.nodes.uid(pod)?))
    }

    /// A pod that is to start on node a.
    fn scheduled(&mut self, spec: PodSpec) -> Result<(Pod, Sandbox)> {
        let pod = self.nodes.schedule(spec)?;
        let sandbox = self.sandbox(&pod)?;
        Ok((pod, sandbox))
    }

    fn is_up(&self, pod: &Pod) -> Result<bool> {
        let state = self.nodes.state(pod)?;
        Ok(state.is_some_and(|(state, _)| state == "Up"))
    }
}

#[test]
fn a_pod_starts_once_it_is_captured() -> Result<()> {
    let mut installed = Installed::new()?;
    let server = installed.nodes.create(PodSpec::new("b", "server"))?;
    installed.nodes.run(&server, Driver::Systemd)?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    installed.nodes.lab.agent_options(&[]);
    installed.nodes.lab.start_agent("b")?;
    installed.nodes.lab.agent("b")?.wait_ready()?;

    // The API server shows no address of it, and nothing of it runs.
    let (client, sandbox) = installed.scheduled(PodSpec::new("a", "client"))?;
    installed.runtime.add(&sandbox)?;
    ensure!(
        installed.is_up(&client)?,
        "it started before it was captured"
    );
    let sniffer = installed.nodes.lab.sniff()?;
    let to = SocketAddr::new(server.v4(), PORT);
    client.run(|| echoes(&net::connect(to)?, SECRET))?;
    ensure!(
        !sniffer.stop()?.contains(SECRET.as_bytes()),
        "its first connection went around the mesh"
    );

    let check = installed.runtime.run("CHECK", &sandbox)?;
    ensure!(check.good && check.printed == Value::Null, "{check:?}");
    installed.nodes.api.apply(&client.manifest())?;
    installed.nodes.captured(&client)?;
    client.run(|| echoes(&net::connect(to)?, SECRET))?;

    // The runtime ends the sandbox, and makes another one for the same pod.
    let ended = installed.runtime.run("DEL", &sandbox)?;
    ensure!(ended.good && ended.printed == Value::Null, "{ended:?}");
    eventually("the sandbox is let go", SOON, || {
        ensure!(!installed.is_up(&client)?, "it is still captured");
        Ok(())
    })?;
    let again = Sandbox {
        container: "container-2".to_owned(),
        ..sandbox
    };
    installed.runtime.add(&again)?;
    ensure!(
        installed.is_up(&client)?,
        "it started before it was captured"
    );
    Ok(())
}

#[test]
fn nothing_leads_to_a_sandbox_that_has_ended() -> Result<()> {
    let mut installed = Installed::new()?;
    let mut pods = Vec::new();
    for name in ["client", "server"] {
        let (pod, sandbox) = installed.scheduled(PodSpec::new("a", name))?;
        installed.runtime.add(&sandbox)?;
        installed.nodes.api.apply(&pod.manifest())?;
        pods.push((pod, sandbox));
    }
    let [(client, _), (server, sandbox)] = &pods[..] else {
        bail!("two pods");
    };
    let _echo = Server::start(server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let to = SocketAddr::new(server.v4(), PORT);
    let verdicts = installed.nodes.lab.agent("a")?.pins().join("maps/VERDICTS");
    let verdicts = || sys::map_keys(&verdicts)?.context("a map with keys");
    eventually("the kernel knows the way", SOON, || {
        client.run(|| echoes(&net::connect(to)?, SECRET))?;
        ensure!(verdicts()? > 0, "the proxy carries it");
        Ok(())
    })?;
    // Its address is another pod's from now on.
    let ended = installed.runtime.run("DEL", sandbox)?;
    ensure!(verdicts()? == 0, "{} verdicts are left", verdicts()?);
    ensure!(ended.good, "{ended:?}");
    Ok(())
}

#[test]
fn who_is_not_for_the_mesh_starts_at_once() -> Result<()> {
    let mut installed = Installed::new()?;
    let outsider = PodSpec::new("a", "outsider").with_label("istio.io/dataplane-mode", "none");
    let outsider = installed.nodes.create(outsider)?;
    let sandbox = installed.sandbox(&outsider)?;
    let begun = Instant::now();
    installed.runtime.add(&sandbox)?;
    ensure!(begun.elapsed() < AT_ONCE, "after {:?}", begun.elapsed());
    ensure!(
        installed.nodes.state(&outsider)?.is_none(),
        "it is captured"
    );
    let check = installed.runtime.run("CHECK", &sandbox)?;
    ensure!(check.good, "{check:?}");
    // Live, while it runs.
    installed.nodes.api.kubectl(&[
        "label",
        "pod",
        "outsider",
        "-n",
        "app",
        "--overwrite",
        "istio.io/dataplane-mode=ambient",
    ])?;
    installed.nodes.run(&outsider, Driver::Cgroupfs)?;
    installed.nodes.captured(&outsider)
}

#[test]
fn a_pod_that_the_api_server_does_not_know_waits_and_may_not_start() -> Result<()> {
    let mut installed = Installed::new()?;
    let (_, mut sandbox) = installed.scheduled(PodSpec::new("a", "client"))?;
    // An older pod of the same name: what is known of the present one says nothing of it.
    sandbox.pod[2] = "00000000-0000-0000-0000-000000000000".to_owned();
    let refused = installed.runtime.run("ADD", &sandbox)?;
    refused.failed(11, "the API server has not told the agent of this pod")?;
    let check = installed.runtime.run("CHECK", &sandbox)?;
    check.failed(11, "the agent knows no such pod")?;
    let mut elsewhere = sandbox.clone();
    elsewhere.netns = "/run/netns/not-there".into();
    let refused = installed.runtime.run("ADD", &elsewhere)?;
    refused.failed(11, "cannot open the network namespace")
}

#[test]
fn without_an_agent_no_pod_starts_but_those_that_the_cluster_needs() -> Result<()> {
    let mut installed = Installed::new()?;
    let (_, sandbox) = installed.scheduled(PodSpec::new("a", "client"))?;
    let status = installed.runtime.run("STATUS", &sandbox)?;
    ensure!(status.good && status.printed == Value::Null, "{status:?}");
    installed.nodes.lab.agent("a")?.pause()?;
    let late = installed.runtime.run("ADD", &sandbox)?;
    late.failed(11, "does not answer")?;
    late.failed(11, "not within 25 s")?;
    installed.nodes.lab.agent("a")?.go_on()?;

    installed.nodes.lab.take_agent("a")?.stop()?;
    let begun = Instant::now();
    installed
        .runtime
        .run("ADD", &sandbox)?
        .failed(11, "no pod starts without it")?;
    installed
        .runtime
        .run("STATUS", &sandbox)?
        .failed(50, "does not answer")?;
    let mut of_the_cluster = sandbox.clone();
    "kube-system".clone_into(&mut of_the_cluster.pod[0]);
    installed.runtime.add(&of_the_cluster)?;
    let ended = installed.runtime.run("DEL", &sandbox)?;
    ensure!(ended.good, "{ended:?}");
    ensure!(begun.elapsed() < AT_ONCE, "after {:?}", begun.elapsed());
    let versions = installed.runtime.run("VERSION", &sandbox)?;
    ensure!(
        versions.good
            && versions.printed["supportedVersions"]
                .to_string()
                .contains("1.1.0"),
        "{versions:?}"
    );

    // The next agent lets it in.
    installed.nodes.lab.start_agent("a")?;
    installed.nodes.lab.agent("a")?.wait_ready()?;
    installed.runtime.add(&sandbox)
}

#[test]
fn the_plugin_stays_in_place_until_it_is_taken_out() -> Result<()> {
    let mut installed = Installed::new()?;
    // The network's own agent writes its configuration anew.
    installed.runtime.configure(KINDNET)?;
    installed.chained()?;
    eventually("the repair is counted", SOON, || {
        let answer = installed.nodes.lab.agent("a")?.get(15000, "/status")?;
        let status: Value = serde_json::from_slice(&answer.body)?;
        ensure!(status["repairs"]["cni"] == 1, "{}", status["repairs"]);
        Ok(())
    })?;
    // An agent that only stops, or dies, leaves it in place: pods wait for the next one.
    installed.nodes.lab.take_agent("a")?.stop()?;
    installed.runtime.entry()?.context("the plugin is gone")?;
    installed.nodes.lab.start_agent("a")?;
    installed.nodes.lab.agent("a")?.wait_ready()?;

    let agent = installed.nodes.lab.agent("a")?;
    let stopped = agent.command(&["stop", "--unenrol"])?;
    ensure!(stopped.status.success(), "{stopped:?}");
    installed.nodes.lab.take_agent("a")?.ended()?;
    let configured = installed.runtime.configured()?;
    ensure!(configured == KINDNET, "{configured}");
    let files = installed.runtime.files()?;
    // The network's configuration and its two plugins.
    ensure!(files.len() == 3, "{files:?}");
    Ok(())
}

/// With the wrong directory of plugins the runtime would not find ours, and start no pod at all.
#[test]
fn a_chain_whose_plugins_are_elsewhere_is_left_alone() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let runtime = Runtime::new(nodes.lab.directory().join("runtime"))?;
    let portmap = runtime.bin_dir().join("portmap");
    std::fs::remove_file(&portmap)?;
    let (conf, bin) = (runtime.conf_dir(), runtime.bin_dir());
    let (conf, bin) = (conf.to_string_lossy(), bin.to_string_lossy());
    let options = ["--cni-conf-dir", &*conf, "--cni-bin-dir", &*bin];
    nodes.lab.agent_options(&options);
    nodes.lab.start_agent("a")?;
    let agent = nodes.lab.agent("a")?;
    eventually("the agent says why it is not ready", SOON, || {
        let answer = agent.get(15021, "/healthz/ready")?;
        let said = answer.text();
        let why = "the CNI plugin: plugin `portmap` of 10-kindnet.conflist is not in";
        ensure!(answer.status == 500 && said.contains(why), "{said}");
        Ok(())
    })?;
    let in_place = || agent.metric("culvert_cni_plugin_in_place", &[]);
    ensure!(in_place()? < 0.5, "it is counted as in place");
    ensure!(runtime.configured()? == KINDNET, "something is chained");
    std::fs::write(portmap, "")?;
    agent.wait_ready()?;
    ensure!(runtime.entry()?.is_some(), "nothing is chained");
    ensure!(in_place()? > 0.5, "it is not counted as in place");
    Ok(())
}

/// `deploy/uninstall`: once it is ready, nothing is left, and it ends when it is told to.
#[test]
fn what_takes_the_agents_place_removes_every_trace() -> Result<()> {
    let mut installed = Installed::new()?;
    let (client, sandbox) = installed.scheduled(PodSpec::new("a", "client"))?;
    let rules = client.netns().ip(&["rule", "show"])?;
    installed.runtime.add(&sandbox)?;
    ensure!(
        client.netns().ip(&["rule", "show"])? != rules,
        "no rule of ours"
    );
    let agent = installed.nodes.lab.take_agent("a")?;
    let (run, pins) = (agent.run_directory().to_owned(), agent.pins());
    agent.stop()?;
    ensure!(pins.exists(), "an agent that stops leaves its pods closed");

    let mut command = Command::new(culvert()?);
    command.args(["uninstall", "--stay", "--run-dir"]).arg(run);
    command
        .arg("--cni-conf-dir")
        .arg(installed.runtime.conf_dir());
    command
        .arg("--cni-bin-dir")
        .arg(installed.runtime.bin_dir());
    let node = installed.nodes.lab.node("a")?.netns();
    let mut remover = node.enter(&mut command)?.spawn()?;
    eventually("it is ready", SOON, || {
        let answer = node.run(|| {
            net::http::get(
                ([127, 0, 0, 1], 15021).into(),
                "localhost",
                "/healthz/ready",
            )
        })?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })?;
    ensure!(
        client.netns().ip(&["rule", "show"])? == rules,
        "a rule is left"
    );
    ensure!(!pins.exists(), "{} is left", pins.display());
    ensure!(
        installed.runtime.configured()? == KINDNET,
        "the entry is left"
    );
    let files = installed.runtime.files()?;
    // The network's configuration and its two plugins.
    ensure!(files.len() == 3, "{files:?}");
    let pid = Pid::from_raw(i32::try_from(remover.id())?);
    kill(pid, Signal::SIGTERM)?;
    let ended = remover.wait()?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
