//! A mesh of two nodes in which istio-cni names the pods.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{IstioCni, Tables, put_into};
use crate::lab::{Lab, Pod, PodSpec, eventually};

/// How soon a change of the objects holds.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Two nodes, each with an istio-cni, and pods that it knows. No agent runs yet.
pub struct Mesh {
    /// Its nodes and pods.
    pub lab: Lab,
    nodes: [IstioCni; 2],
}

impl Mesh {
    /// Without pods.
    ///
    /// # Errors
    /// If the lab cannot be made.
    pub fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let mut node = |name: &str| {
            let path = lab.directory().join(format!("ztunnel-{name}.sock"));
            let words = path.to_str().context("a path of letters")?;
            lab.own_options(name, &["--zds-socket", words]);
            IstioCni::listen(&path)
        };
        let nodes = [node("a")?, node("b")?];
        Ok(Self { lab, nodes })
    }

    /// A pod of the mesh, with the rules in it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn pod(&mut self, node: &str, name: &str, tables: Tables) -> Result<Pod> {
        let spec = PodSpec::new(node, name).with_uid(&uid(name));
        let pod = self.lab.add(&spec)?;
        put_into(&pod, tables)?;
        Ok(pod)
    }

    /// A pod that istio-cni has nothing to do with.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn outsider(&mut self, node: &str, name: &str) -> Result<Pod> {
        let spec = PodSpec::new(node, name).in_namespace("outside");
        let spec = spec.with_label("istio.io/dataplane-mode", "none");
        self.lab.add(&spec.uncaptured())
    }

    /// Starts a node's agent, and names its pods.
    ///
    /// # Errors
    /// If it does not take them, or is not ready then.
    pub fn start(&mut self, node: &str) -> Result<()> {
        self.lab.start_agent(node)?;
        self.cni_mut(node).meet()?;
        let pods = self.lab.pods().iter();
        let own = pods.filter(|pod| pod.spec().node == node && pod.spec().uid.is_some());
        for pod in own {
            self.cni(node).take(pod, &uid(&pod.spec().name))?;
        }
        self.cni(node).end_list()?;
        self.lab.agent(node)?.wait_ready()
    }

    /// A node's istio-cni.
    pub fn cni(&self, node: &str) -> &IstioCni {
        &self.nodes[usize::from(node != "a")]
    }

    /// A node's istio-cni, to meet an agent.
    pub fn cni_mut(&mut self, node: &str) -> &mut IstioCni {
        &mut self.nodes[usize::from(node != "a")]
    }

    /// Says which connections pods of namespace `app` take.
    ///
    /// # Errors
    /// If node b does not follow.
    pub fn demand(&self, mode: &str) -> Result<()> {
        self.decree(
            "PeerAuthentication",
            &format!("mtls:\n    mode: {mode}"),
            "app",
        )
    }

    /// Puts a policy of namespace `app` in force on node b.
    ///
    /// # Errors
    /// If node b does not follow.
    pub fn decree(&self, kind: &str, spec: &str, name: &str) -> Result<()> {
        let before = self.generation()?;
        self.lab.manifests().apply(
            &format!("{kind}.yaml"),
            &format!(
                "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: app\nspec:\n  \
                 {spec}\n"
            ),
        )?;
        eventually("the policy is in force", AT_ONCE, || {
            ensure!(self.generation()? > before, "it is not");
            Ok(())
        })
    }

    fn generation(&self) -> Result<f64> {
        self.lab
            .agent("b")?
            .metric("culvert_snapshot_generation", &[])
    }
}

/// The UID of a pod with this name.
pub fn uid(name: &str) -> String {
    format!("uid-of-{name}")
}

/// A client and a server on the two nodes, captured.
pub struct Pair {
    /// On node a.
    pub client: Pod,
    /// On node b.
    pub server: Pod,
    /// On node a, and not in the mesh.
    pub outside: Pod,
    /// Everything else.
    pub mesh: Mesh,
}

impl Pair {
    /// Builds it.
    ///
    /// # Errors
    /// If the mesh cannot be built, or an agent does not become ready.
    pub fn new(tables: Tables) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let client = mesh.pod("a", "client", tables)?;
        let server = mesh.pod("b", "server", tables)?;
        let outside = mesh.outsider("a", "outside")?;
        mesh.start("a")?;
        mesh.start("b")?;
        Ok(Self {
            client,
            server,
            outside,
            mesh,
        })
    }
}
