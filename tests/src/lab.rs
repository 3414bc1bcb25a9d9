//! The lab: two nodes, pods on them, one agent per node, all in network namespaces of this machine.
//!
//! ```text
//!   pod client            pod server
//!   eth0 10.244.1.2       eth0 10.244.2.2
//!     |                     |
//!   cbr0 10.244.1.1       cbr0 10.244.2.1
//!   node a  --- link ---  node b
//!   172.18.0.1            172.18.0.2
//! ```
//!
//! Pods reach each other's addresses by plain routing. Service addresses (10.96.0.0/16, `fd00:96::/112`) are
//! routed nowhere: only a data plane answers for them.
//!
//! Everything is removed when the [`Lab`] is dropped; what a killed test run left is removed by the next one.

mod agent;
mod kube_proxy;
mod manifests;
mod netns;
mod node;
mod pod;
mod sandbox;
mod sniffer;
mod sweep;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use agent::Place;
pub(crate) use agent::tool;
pub use agent::{Agent, ServiceAccount, culvert, helm};
pub use kube_proxy::ServicePort;
pub use manifests::Manifests;
pub use netns::Netns;
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use sandbox::{Driver, Sandbox};
pub use sniffer::{Flow, Sniffer, Traffic};
pub use sweep::remove_on_interrupt;

static LABS: AtomicU32 = AtomicU32::new(0);

/// How soon a changed manifest has to be in force.
const SOON: Duration = Duration::from_secs(2);

/// What the names of all our namespaces begin with, followed by our process and the lab's number in it.
const PREFIX: &str = "cvlab";

/// Two nodes and what runs on them.
pub struct Lab {
    // Agents go first, so that they see no namespace vanish.
    agents: Vec<Agent>,
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    manifests: Manifests,
    directory: PathBuf,
    name: String,
    agent_options: Vec<String>,
    /// What the agent of one node gets besides.
    own_options: BTreeMap<String, Vec<String>>,
    /// Where agents get the mesh's objects from.
    agent_source: Vec<OsString>,
    service_account: Option<ServiceAccount>,
    /// The resolver configuration of agents, if it is not the machine's.
    resolver: Option<PathBuf>,
}

impl Lab {
    /// Two connected nodes, `a` and `b`, without pods or agents.
    ///
    /// # Errors
    /// If we are not root, or a namespace cannot be made.
    pub fn two_nodes() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces: run the tests as root (`cargo xtask test`)");
        }
        sweep::once();
        let name = format!(
            "{PREFIX}{}-{}",
            process::id(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        let directory = env::temp_dir().join(&name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let manifests = Manifests::new(directory.join("manifests"))?;
        let nodes = vec![Node::new(&name, "a", 1)?, Node::new(&name, "b", 2)?];
        Node::connect(&nodes[0], &nodes[1])?;
        for node in &nodes {
            manifests.apply(&format!("node-{}.yaml", node.name()), &node.manifest())?;
        }
        Ok(Self {
            agents: Vec::new(),
            pods: Vec::new(),
            nodes,
            agent_source: vec!["--manifests".into(), manifests.directory().into()],
            manifests,
            directory,
            name,
            agent_options: Vec::new(),
            own_options: BTreeMap::new(),
            service_account: None,
            resolver: None,
        })
    }

    /// Adds a captured pod of namespace `app` to a node; its service account and `app` label are its name.
    ///
    /// # Errors
    /// If its namespace cannot be made.
    pub fn pod(&mut self, node: &str, name: &str) -> Result<Pod> {
        self.add(&PodSpec::new(node, name))
    }

    /// Adds a pod, and its Kubernetes namespace if there is none.
    ///
    /// # Errors
    /// If there is no such node or its network namespace cannot be made.
    pub fn add(&mut self, spec: &PodSpec) -> Result<Pod> {
        self.manifests.namespace(&spec.namespace)?;
        self.place(spec)
    }

    /// Adds a pod to a Kubernetes namespace that a manifest declares already.
    ///
    /// # Errors
    /// If there is no such node or its network namespace cannot be made.
    pub fn place(&mut self, spec: &PodSpec) -> Result<Pod> {
        let node = self.node(&spec.node)?;
        let pod = Pod::new(&self.name, spec, node)?;
        self.manifests.apply(&pod.file(), &pod.manifest())?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// The directory that the agents watch.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Creates a Service as [`Manifests::service`] does, and waits until each running agent knows it.
    ///
    /// # Errors
    /// If it cannot be written or an agent does not take it over.
    pub fn service(&self, name: &str, addresses: &[&str], ports: &[(u16, &str)]) -> Result<()> {
        self.manifests.service(name, addresses, ports)?;
        self.agents.iter().try_for_each(|agent| {
            eventually(
                &format!("node {} knows service {name}", agent.node()),
                SOON,
                || {
                    let services = agent.config_dump()?["services"].to_string();
                    let known = addresses.iter().all(|address| services.contains(address));
                    if known { Ok(()) } else { bail!("{services}") }
                },
            )
        })
    }

    /// A node by name.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    /// The directory that holds the mesh's certificate authority.
    pub fn ca_directory(&self) -> PathBuf {
        self.directory.join("ca")
    }

    /// What names of its own begin with.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Everything of this lab that is a file.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Options that agents started from now on get besides those that the lab gives each.
    pub fn agent_options(&mut self, options: &[&str]) {
        self.agent_options = options.iter().map(|&option| option.to_owned()).collect();
    }

    /// Options that the agent of one node gets besides those of all.
    pub fn own_options(&mut self, node: &str, options: &[&str]) {
        let options = options.iter().map(|&option| option.to_owned());
        self.own_options.insert(node.to_owned(), options.collect());
    }

    /// Agents started from now on ask this DNS server, on port 53.
    ///
    /// # Errors
    /// If the file that says so cannot be written.
    pub fn resolve_at(&mut self, server: IpAddr) -> Result<()> {
        let file = self.directory.join("resolv.conf");
        let text = format!("nameserver {server}\noptions timeout:1 attempts:2\n");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        self.resolver = Some(file);
        Ok(())
    }

    /// Agents started from now on follow a cluster's API rather than the directory. They take pods' network namespaces
    /// from an annotation as ever: no runtime runs these pods.
    pub fn follow_cluster(&mut self, kubeconfig: &Path) {
        self.agent_source = follow(kubeconfig);
        self.agent_source.push("--trust-netns-annotation".into());
    }

    /// Agents started from now on follow a cluster's API and find their pods by themselves, as they are installed.
    ///
    /// # Errors
    /// If there is no cgroup2 hierarchy.
    pub fn follow_cluster_as_installed(&mut self, kubeconfig: &Path) -> Result<()> {
        self.agent_source = follow(kubeconfig);
        // Theirs rather than that of whichever lab is found first.
        let pods = sandbox::lab_cgroup(&self.name)?;
        self.agent_source
            .extend(["--pods-cgroup".into(), pods.into()]);
        Ok(())
    }

    /// Agents started from now on follow the cluster that they are pods of.
    ///
    /// # Errors
    /// If there is no cgroup2 hierarchy.
    pub fn follow_own_cluster(&mut self, account: ServiceAccount) -> Result<()> {
        let pods = sandbox::lab_cgroup(&self.name)?;
        self.agent_source = vec!["--kubernetes".into(), "--pods-cgroup".into(), pods.into()];
        self.service_account = Some(account);
        Ok(())
    }

    /// Starts one agent per node and waits until both have armed all their pods.
    ///
    /// # Errors
    /// If an agent cannot be started or is not ready in time; says what it logged.
    pub fn start(&mut self) -> Result<()> {
        for node in ["a", "b"] {
            self.start_agent(node)?;
        }
        self.agents.iter().try_for_each(Agent::wait_ready)
    }

    /// Starts the agent of one node, again if it has been started before.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let (source, options) = (&self.agent_source, &self.agent_options);
        let place = Place {
            account: self.service_account.as_ref(),
            resolver: self.resolver.as_deref(),
        };
        let source = (source.as_slice(), place);
        let own = self.own_options.get(node).into_iter().flatten().cloned();
        let options: Vec<String> = options.iter().cloned().chain(own).collect();
        let started = Agent::start(self.node(node)?, &self.directory, source, &options)?;
        self.agents.retain(|agent| agent.node() != node);
        self.agents.push(started);
        Ok(())
    }

    /// The running agent of a node.
    ///
    /// # Errors
    /// If it has not been started.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        let found = self.agents.iter().find(|agent| agent.node() == node);
        found.with_context(|| format!("no agent runs on node {node}"))
    }

    /// Takes the agent of a node out of the lab, to stop or kill it.
    ///
    /// # Errors
    /// If it has not been started.
    pub fn take_agent(&mut self, node: &str) -> Result<Agent> {
        let found = self.agents.iter().position(|agent| agent.node() == node);
        let at = found.with_context(|| format!("no agent runs on node {node}"))?;
        Ok(self.agents.remove(at))
    }

    /// All pods, in the order of their making.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Records what crosses the link between the nodes from now on.
    ///
    /// # Errors
    /// If the packet socket cannot be opened.
    pub fn sniff(&self) -> Result<Sniffer> {
        Sniffer::start(self.node("a")?.netns(), node::LINK)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // In a test's thread what is printed is shown if the test fails, and only then.
        if std::thread::current().name() != Some("main") {
            for agent in &self.agents {
                agent.print_log();
            }
        }
        self.agents.clear();
        sweep::remove_cgroup(&self.name);
        sweep::remove_directory(&self.directory);
    }
}

/// The arguments of an agent that follows a cluster.
fn follow(kubeconfig: &Path) -> Vec<OsString> {
    vec![
        "--kubernetes".into(),
        "--kubeconfig".into(),
        kubeconfig.into(),
    ]
}

/// Tries until it succeeds or the time is up, and then says what the last attempt said.
///
/// # Errors
/// If no attempt succeeded in time.
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {within:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
