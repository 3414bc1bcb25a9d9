//! Two nodes as they are in a cluster: a real API server knows the pods, and what runs of each is a process in a cgroup
//! that names it. Agents follow the server and are told nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::kubernetes::ApiServer;
use crate::lab::{Driver, Lab, Pod, PodSpec, Sandbox, eventually};

/// How soon a change has to be in force on a node.
pub const SOON: Duration = Duration::from_secs(5);

/// The nodes, and what runs on them.
pub struct Nodes {
    // In this order: what runs in the lab's namespaces goes before them.
    sandboxes: BTreeMap<String, Sandbox>,
    /// The API server.
    pub api: ApiServer,
    /// The nodes and their agents.
    pub lab: Lab,
    kubeconfig: PathBuf,
}

impl Nodes {
    /// Two nodes without pods, and an API server that knows what is deployed of the agent's.
    ///
    /// # Errors
    /// If the lab or the server cannot be started.
    pub fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let api = ApiServer::on_node(&lab, "a")?;
        api.deploy()?;
        let kubeconfig = api.account_kubeconfig("culvert-system", "culvert-agent")?;
        lab.follow_cluster_as_installed(&kubeconfig)?;
        api.apply_directory(lab.manifests().directory(), &[])?;
        Ok(Self {
            sandboxes: BTreeMap::new(),
            api,
            lab,
            kubeconfig,
        })
    }

    /// The kubeconfig of the agents' account.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// Creates a pod's object, and its namespace, labelled for the mesh; nothing of it runs yet. The server gives it
    /// a UID.
    ///
    /// # Errors
    /// If there is no such node, or the server refuses it.
    pub fn create(&mut self, spec: PodSpec) -> Result<Pod> {
        let pod = self.schedule(spec)?;
        self.api.apply(&pod.manifest())?;
        Ok(pod)
    }

    /// Creates a pod's object as the scheduler leaves it: with a node, and no status.
    ///
    /// # Errors
    /// As [`Nodes::create`].
    pub fn schedule(&mut self, spec: PodSpec) -> Result<Pod> {
        let namespace = spec.namespace.clone();
        let pod = self.lab.add(&spec.uncaptured())?;
        let file = format!("namespace-{namespace}.yaml");
        let directory = self.lab.manifests().directory().to_owned();
        self.api
            .apply(&std::fs::read_to_string(directory.join(file))?)?;
        self.api
            .kubectl_fed(&["apply", "-f", "-"], &pod.manifest())?;
        Ok(pod)
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// If it is not in the server, or no process can be started.
    pub fn run(&mut self, pod: &Pod, driver: Driver) -> Result<()> {
        let name = pod.spec().name.clone();
        let uid = self.uid(pod)?;
        let sandbox = Sandbox::start(&self.lab, pod.netns(), (&uid, "sandbox"), driver)?;
        self.sandboxes.insert(name, sandbox);
        Ok(())
    }

    /// What runs of a pod ends.
    ///
    /// # Errors
    /// If nothing runs of it.
    pub fn end(&mut self, pod: &Pod) -> Result<()> {
        let sandbox = self.sandboxes.remove(&pod.spec().name);
        sandbox.context("nothing of this pod runs").map(drop)
    }

    /// The UID that the server has given a pod.
    ///
    /// # Errors
    /// If it is not there.
    pub fn uid(&self, pod: &Pod) -> Result<String> {
        let spec = pod.spec();
        self.api.kubectl(&[
            "get",
            "pod",
            &spec.name,
            "-n",
            &spec.namespace,
            "-o",
            "jsonpath={.metadata.uid}",
        ])
    }

    /// What a node's agent says of a pod that is to be captured there; nothing if none is.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn state(&self, pod: &Pod) -> Result<Option<(String, String)>> {
        let spec = pod.spec();
        let agent = self.lab.agent(&spec.node)?;
        let answer = agent.get(15000, "/status")?;
        let status: Value = serde_json::from_slice(&answer.body).context("/status is not JSON")?;
        let pods = status["pods"].as_array().context("/status has no pods")?;
        let found = pods.iter().find(|one| {
            one["name"] == spec.name.as_str() && one["namespace"] == spec.namespace.as_str()
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(found.map(|one| (text(&one["state"]), text(&one["reason"]))))
    }

    /// Waits until a pod is captured.
    ///
    /// # Errors
    /// If it is not in time; says what the agent says of it.
    pub fn captured(&self, pod: &Pod) -> Result<()> {
        let what = format!("{} is captured", pod.spec().name);
        eventually(&what, SOON, || {
            let state = self.state(pod)?;
            let is_up = state.as_ref().is_some_and(|(state, _)| state == "Up");
            ensure!(is_up, "{state:?}");
            Ok(())
        })
    }

    /// Waits until a pod is none that its node's agent captures.
    ///
    /// # Errors
    /// If it is not in time; says what the agent says of it.
    pub fn released(&self, pod: &Pod) -> Result<()> {
        let what = format!("{} is released", pod.spec().name);
        eventually(&what, SOON, || {
            let state = self.state(pod)?;
            ensure!(state.is_none(), "{state:?}");
            Ok(())
        })
    }
}
