//! A cluster whose identities a controller issues, and a pod on each of its nodes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Answer, Ask, ask};
use crate::kubelet::{Nodes, SOON};
use crate::kubernetes::Controller;
use crate::lab::{Driver, Pod, PodSpec, eventually};

/// A lease that does not make tests wait for long.
const LEASE: [&str; 2] = ["--lease", "6"];

/// The cluster. Agents are told where the authority is, and do not run yet.
pub struct Mesh {
    // In this order: what runs in the lab's namespaces goes before them.
    controller: Option<Controller>,
    /// The nodes, their API server and their agents.
    pub nodes: Nodes,
    account: PathBuf,
    roots: PathBuf,
    home: Pod,
    /// Runs on node a.
    pub client: Pod,
    /// Runs on node b.
    pub server: Pod,
}

impl Mesh {
    /// With a controller that issues certificates of so many seconds.
    ///
    /// # Errors
    /// If a part of it cannot be started.
    pub fn new(seconds: u32) -> Result<Self> {
        let mut nodes = Nodes::new()?;
        let account = nodes
            .api
            .account_kubeconfig("culvert-system", "culvert-controller")?;
        let home = place_controller(&mut nodes, "b", "controller")?;
        let client = nodes.create(PodSpec::new("a", "client"))?;
        let server = nodes.create(PodSpec::new("b", "server"))?;
        nodes.run(&client, Driver::Systemd)?;
        nodes.run(&server, Driver::Cgroupfs)?;
        let roots = nodes.lab.directory().join("roots.pem");
        let mut mesh = Self {
            controller: None,
            nodes,
            account,
            roots,
            home,
            client,
            server,
        };
        mesh.start_controller(seconds)?;
        mesh.mount_roots()?;
        hand_out_tokens(&mut mesh.nodes)?;
        let seconds = seconds.to_string();
        let roots = mesh.roots.to_string_lossy().into_owned();
        mesh.nodes.lab.agent_options(&[
            "--ca-address",
            "https://culvert-ca.culvert-system.svc:15012",
            "--ca-root",
            &roots,
            "--svid-ttl",
            &seconds,
        ]);
        Ok(mesh)
    }

    /// Starts the controller, which was taken out, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_controller(&mut self, seconds: u32) -> Result<()> {
        let started = self.run_controller(&self.home, seconds)?;
        self.controller = Some(started);
        Ok(())
    }

    /// Starts a second controller in a pod of its own, on node a.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn second_controller(&mut self, seconds: u32) -> Result<(Pod, Controller)> {
        let home = place_controller(&mut self.nodes, "a", "controller-2")?;
        let started = self.run_controller(&home, seconds)?;
        Ok((home, started))
    }

    fn run_controller(&self, home: &Pod, seconds: u32) -> Result<Controller> {
        let seconds = seconds.to_string();
        let options = ["--ca-port", "15012", "--ca-svid-ttl", &seconds];
        let options = [&LEASE[..], &options].concat();
        let started = Controller::in_pod(&self.nodes.lab, home, &self.account, &options)?;
        started.wait_ready()?;
        Ok(started)
    }

    /// The controller.
    ///
    /// # Errors
    /// If it was taken out.
    pub fn controller(&self) -> Result<&Controller> {
        self.controller.as_ref().context("no controller runs")
    }

    /// Takes the controller out, to stop or kill it.
    ///
    /// # Errors
    /// If it was taken out already.
    pub fn take_controller(&mut self) -> Result<Controller> {
        self.controller.take().context("no controller runs")
    }

    /// The pod that the controller runs in.
    pub fn home(&self) -> &Pod {
        &self.home
    }

    /// The roots that the controllers publish, in PEM.
    ///
    /// # Errors
    /// If they do not.
    pub fn published(&self) -> Result<String> {
        let path = "jsonpath={.data.root-cert\\.pem}";
        let words = ["get", "configmap", "culvert-ca-root-cert"];
        let words = [&words[..], &["-n", "culvert-system", "-o", path]].concat();
        let roots = self.nodes.api.kubectl(&words)?;
        ensure!(roots.contains("BEGIN CERTIFICATE"), "{roots}");
        Ok(roots)
    }

    /// Does for the agents what kubelets do with a `ConfigMap` that is mounted.
    ///
    /// # Errors
    /// If no roots are published.
    pub fn mount_roots(&self) -> Result<()> {
        let roots = eventually("the roots are published", SOON, || self.published())?;
        let draft = self.roots.with_extension("draft");
        std::fs::write(&draft, roots)?;
        std::fs::rename(&draft, &self.roots).context("the roots cannot be mounted")
    }

    /// Serial numbers of an agent's leaf certificates, by identity.
    ///
    /// # Errors
    /// If the agent does not say them.
    pub fn serials(&self, node: &str) -> Result<Vec<(String, String)>> {
        let dump = self.nodes.lab.agent(node)?.config_dump()?;
        let all = dump["certificates"].as_array().context("no certificates")?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let serials = all.iter().map(|one| {
            let serial = text(&one["certChain"][0]["serialNumber"]);
            (text(&one["identity"]), serial)
        });
        Ok(serials.collect())
    }

    /// Waits until the agent of a node has other certificates than these.
    ///
    /// # Errors
    /// If it has not in time.
    pub fn renewed(&self, node: &str, before: &[(String, String)], within: Duration) -> Result<()> {
        eventually("certificates are renewed", within, || {
            let now = self.serials(node)?;
            let is_other = !now.is_empty() && now.iter().all(|one| !before.contains(one));
            ensure!(is_other, "{now:?}");
            Ok(())
        })
    }

    /// Asks the controller from node a.
    ///
    /// # Errors
    /// As [`ask`].
    pub fn ask(&self, question: &Ask<'_>) -> Result<Answer> {
        let from = self.nodes.lab.node("a")?.netns();
        let roots = std::fs::read_to_string(&self.roots)?;
        ask(from, self.home.v4(), &roots, question)
    }
}

fn place_controller(nodes: &mut Nodes, node: &str, name: &str) -> Result<Pod> {
    let home = PodSpec::new(node, name)
        .in_namespace("culvert-system")
        .with_label("app.kubernetes.io/name", "culvert-controller")
        .with_port("ca", 15012)
        .uncaptured();
    let home = nodes.lab.place(&home)?;
    nodes.api.apply(&home.manifest())?;
    Ok(home)
}

/// Gives every node's agent a pod, and a token that is bound to it.
///
/// # Errors
/// If the API server refuses them.
pub fn hand_out_tokens(nodes: &mut Nodes) -> Result<()> {
    for node in ["a", "b"] {
        let address = nodes.lab.node(node)?.v4().to_string();
        nodes
            .api
            .agent_pod(&format!("culvert-agent-{node}"), node, &address)?;
        let directory = nodes.lab.directory().to_owned();
        let token = nodes.api.agent_token(&directory, node)?;
        let options = ["--ca-token", &token.to_string_lossy()];
        nodes.lab.own_options(node, &options);
    }
    Ok(())
}
