//! Bookinfo in a lab: its pods on two nodes, clients, a resolver, and the manifests of `deploy/demo`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::load::{Load, Tally};
use crate::kubectl::Kubectl;
use crate::kubernetes::{ApiServer, Definitions, Istiod};
use crate::lab::{Lab, Pod, PodSpec, ServicePort, eventually};
use crate::net::dns;
use crate::net::serve::UdpEcho;

/// What the story applies when its time has come; the other files are there from the beginning.
const LATER: [&str; 5] = [
    "authorization-policy.yaml",
    "authorization-policy-waypoint.yaml",
    "http-route.yaml",
    "waypoint.yaml",
    "waypoint-foo.yaml",
];

/// Where each pod runs. Every call of Bookinfo has a chance to cross the link.
const PLACES: [(&str, &str); 6] = [
    ("productpage-v1", "a"),
    ("reviews-v1", "a"),
    ("details-v1", "b"),
    ("reviews-v2", "b"),
    ("reviews-v3", "b"),
    ("ratings-v1", "a"),
];

/// Callers, in namespace `default`, each under its own service account.
const CLIENTS: [(&str, &str); 2] = [("curl", "b"), ("visitor", "b")];

/// The page that people look at, as a client in another namespace names it.
pub const PAGE: &str = "http://productpage.bookinfo:9080/productpage";

/// A running cluster.
pub struct Cluster {
    applications: Vec<Child>,
    _resolver: UdpEcho,
    resolv_conf: PathBuf,
    demo_directory: PathBuf,
    kubectl: Kubectl,
    api: Option<ApiServer>,
    /// The nodes, pods and agents.
    pub lab: Lab,
}

impl Cluster {
    /// Nodes, pods and Kubernetes objects; nothing runs yet.
    ///
    /// # Errors
    /// If the lab cannot be built or `deploy/demo` cannot be read.
    pub fn build() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let demo_directory = repository()?.join("deploy/demo");
        let mut kubectl = Kubectl::default();
        for entry in fs::read_dir(&demo_directory).context("deploy/demo cannot be listed")? {
            let name = entry.context("deploy/demo cannot be listed")?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".yaml") && !LATER.contains(&&*name) {
                let text = fs::read_to_string(demo_directory.join(&*name))?;
                kubectl.apply(lab.manifests(), &text)?;
            }
        }
        for (deployment, node) in PLACES {
            let account = super::deployments()[deployment];
            let (app, version) = deployment.split_once('-').context("app-version")?;
            let spec = PodSpec::new(node, deployment)
                .in_namespace("bookinfo")
                .as_account(account);
            let spec = spec.with_label("app", app).with_label("version", version);
            lab.place(&spec.with_port("http", super::PORT))?;
        }
        for (client, node) in CLIENTS {
            lab.place(&PodSpec::new(node, client).in_namespace("default"))?;
        }
        // Agents answer for the mesh's names; whoever is outside of the mesh asks the cluster's resolver.
        let resolver = lab.place(
            &PodSpec::new("a", "kube-dns")
                .in_namespace("kube-system")
                .uncaptured(),
        )?;
        let resolver_address = SocketAddr::new(resolver.v4(), 53);
        let services = services(&demo_directory)?;
        let resolver = UdpEcho::answer(&resolver, resolver_address, move |query| {
            dns::answer_by(query, |name| {
                let service = name.strip_suffix(".bookinfo.svc.cluster.local");
                let found = service.and_then(|service| services.get(service));
                found.copied().into_iter().collect()
            })
        })?;
        // What the kubelet writes for a pod of namespace bookinfo.
        let resolv_conf = lab.directory().join("resolv.conf");
        fs::write(
            &resolv_conf,
            format!(
                "nameserver {}\nsearch bookinfo.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
                resolver_address.ip()
            ),
        )?;
        Ok(Self {
            applications: Vec::new(),
            _resolver: resolver,
            resolv_conf,
            demo_directory,
            kubectl,
            api: None,
            lab,
        })
    }

    /// Moves everything into a real API server on node a, with these definitions of custom resources and the agents'
    /// account; agents started from now on follow it, and what is applied from now on is applied there.
    ///
    /// # Errors
    /// If the server does not come up or refuses something.
    pub fn register(&mut self, definitions: &[Definitions]) -> Result<()> {
        let api = ApiServer::on_node(&self.lab, "a")?;
        definitions
            .iter()
            .try_for_each(|group| api.install(*group))?;
        api.apply_directory(self.lab.manifests().directory(), definitions)?;
        api.deploy()?;
        let kubeconfig = api.account_kubeconfig("culvert-system", "culvert-agent")?;
        self.lab.follow_cluster(&kubeconfig);
        self.api = Some(api);
        Ok(())
    }

    /// The API server that everything was moved into.
    ///
    /// # Errors
    /// If it was not.
    pub fn api(&mut self) -> Result<&mut ApiServer> {
        self.api.as_mut().context("this cluster is a directory")
    }

    /// Starts an istiod beside the API server, which it follows; agents know nothing of it.
    ///
    /// # Errors
    /// If there is no API server, or istiod does not come up.
    pub fn start_istiod(&self) -> Result<Istiod> {
        let api = self.api.as_ref().context("this cluster is a directory")?;
        Istiod::beside(api)
    }

    /// A pod by name.
    ///
    /// # Errors
    /// If there is none; says which there are.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let pods = self.lab.pods();
        pods.iter()
            .find(|pod| pod.spec().name == name)
            .with_context(|| {
                let names: Vec<&str> = pods.iter().map(|pod| pod.spec().name.as_str()).collect();
                format!("no pod `{name}`; there are {}", names.join(", "))
            })
    }

    /// Starts Bookinfo's services and waits until each listens.
    ///
    /// # Errors
    /// If a program cannot be started or does not listen.
    pub fn start_bookinfo(&mut self) -> Result<()> {
        let program = sibling("bookinfo")?;
        for (deployment, _) in PLACES {
            let pod = self.pod(deployment)?;
            let mut command = Command::new(&program);
            command
                .args(["serve", deployment])
                .env("HOSTNAME", deployment)
                .stdin(Stdio::null());
            let child = pod
                .netns()
                .enter_with_resolver(&mut command, &self.resolv_conf)?
                .spawn();
            self.applications
                .push(child.with_context(|| format!("{deployment} cannot be started"))?);
        }
        for (deployment, _) in PLACES {
            let local = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), super::PORT);
            eventually(
                &format!("{deployment} listens"),
                Duration::from_secs(10),
                || {
                    self.pod(deployment)?
                        .run(|| Ok(TcpStream::connect(local)?))
                        .map(drop)
                },
            )?;
        }
        Ok(())
    }

    /// Has both nodes lead Bookinfo's service addresses to its pods, as kube-proxy does: pods outside of the mesh need that.
    ///
    /// # Errors
    /// If a node refuses.
    pub fn start_kube_proxy(&self) -> Result<()> {
        let pods = self.lab.pods().iter();
        let pods = pods.filter(|pod| pod.spec().namespace == "bookinfo");
        let services = services(&self.demo_directory)?.into_iter();
        let services = services.map(|(service, address)| ServicePort {
            address: SocketAddr::new(address, super::PORT),
            endpoints: pods
                .clone()
                .filter(|pod| selects(&service, &pod.spec().name))
                .map(|pod| SocketAddr::new(pod.v4(), super::PORT))
                .collect(),
        });
        let services: Vec<ServicePort> = services.collect();
        for node in ["a", "b"] {
            self.lab.node(node)?.proxy_services(&services)?;
        }
        Ok(())
    }

    /// Fetches a page as a program in a pod would.
    ///
    /// # Errors
    /// If there is no answer or it is an error; says what was answered.
    pub fn fetch(&self, pod: &str, url: &str) -> Result<String> {
        self.client(pod, &["get", url])
    }

    /// Posts an empty body as a program in a pod would.
    ///
    /// # Errors
    /// If there is no answer or it is an error; says what was answered.
    pub fn post(&self, pod: &str, url: &str) -> Result<String> {
        self.client(pod, &["post", url])
    }

    /// Loads a page so often from a pod, and counts what it showed.
    ///
    /// # Errors
    /// If the client fails; not if a page does.
    pub fn count(&self, pod: &str, url: &str, times: usize) -> Result<Tally> {
        self.client(pod, &["count", &times.to_string(), url])?
            .parse()
    }

    /// Begins to load a page over and over from a pod, until the load is ended.
    ///
    /// # Errors
    /// If the client cannot be started.
    pub fn load(&self, pod: &str, url: &str) -> Result<Load> {
        let mut command = Command::new(sibling("bookinfo")?);
        command.args(["load", url]);
        let command = self
            .pod(pod)?
            .netns()
            .enter_with_resolver(&mut command, &self.resolv_conf)?;
        Load::start(command)
    }

    fn client(&self, pod: &str, words: &[&str]) -> Result<String> {
        let mut command = Command::new(sibling("bookinfo")?);
        command.args(words).stdin(Stdio::null());
        let command = self
            .pod(pod)?
            .netns()
            .enter_with_resolver(&mut command, &self.resolv_conf)?;
        let output = command.output().context("the client cannot be started")?;
        if !output.status.success() {
            bail!(
                "{}: {}",
                String::from_utf8_lossy(&output.stderr).trim(),
                String::from_utf8_lossy(&output.stdout).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The text of a file of `deploy/demo`.
    ///
    /// # Errors
    /// If there is none.
    pub fn manifest(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.demo_directory.join(file)).with_context(|| format!("no {file}"))
    }

    /// Applies manifests, unchanged.
    ///
    /// # Errors
    /// If one has no kind or name, or cannot be written.
    pub fn apply(&mut self, text: &str) -> Result<()> {
        if let Some(api) = &self.api {
            if !text.lines().any(|line| line.starts_with("apiVersion:")) {
                // The seed shows one Gateway without it. The agent would take that, a real kubectl does not.
                return api.apply(&format!("apiVersion: gateway.networking.k8s.io/v1\n{text}"));
            }
            return api.apply(text);
        }
        self.kubectl.apply(self.lab.manifests(), text)
    }

    /// Does what a `kubectl` command says: `label ns bookinfo istio.io/use-waypoint=waypoint`.
    ///
    /// # Errors
    /// If the command is not known, or names what was not applied.
    pub fn kubectl(&mut self, words: &str) -> Result<()> {
        let mut words: Vec<&str> = words.split_whitespace().collect();
        if let Some(api) = &self.api {
            if words.first() == Some(&"label") {
                // The seed's reader labels once what its text labels twice.
                words.push("--overwrite");
            }
            return api.kubectl(&words).map(drop);
        }
        self.kubectl.run(self.lab.manifests(), &words)
    }

    /// Runs `culvert` on a node and returns what it prints.
    ///
    /// # Errors
    /// If it fails; says why.
    pub fn culvert(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let output = self.lab.node(node)?.culvert(arguments)?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("culvert {} fails: {}", arguments.join(" "), why.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a shell in a pod, with the pod's resolver, until its user leaves it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn shell(&self, pod: &str) -> Result<()> {
        let mut command = Command::new(env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
        let command = self
            .pod(pod)?
            .netns()
            .enter_with_resolver(&mut command, &self.resolv_conf)?;
        // How the shell ends is its user's business.
        command
            .status()
            .context("the shell cannot be started")
            .map(drop)
    }

    /// Commands that are worth trying while the cluster runs.
    ///
    /// # Errors
    /// If a pod or program of theirs is missing.
    pub fn suggestions(&self) -> Result<Vec<String>> {
        let node = self.lab.node("a")?.netns().name();
        let curl = self.pod("curl")?.netns().name();
        let page = self.pod("productpage-v1")?.v4();
        let (culvert, bookinfo) = (crate::lab::culvert()?, sibling("bookinfo")?);
        let manifests = self.lab.manifests().directory().display().to_string();
        let on_node = format!("ip netns exec {node}");
        let mut lines: Vec<String> = ["get services", "get workloads", "get connections", "status"]
            .iter()
            .map(|words| format!("{on_node} {} {words}", culvert.display()))
            .collect();
        lines.push(format!(
            "{on_node} {} get http://127.0.0.1:15020/metrics",
            bookinfo.display()
        ));
        lines.push(format!(
            "ip netns exec {curl} {} get http://{page}:9080/productpage",
            bookinfo.display()
        ));
        lines.push(format!(
            "rm {manifests}/authorizationpolicy-bookinfo-productpage-waypoint.yaml    # and everybody may see the page again"
        ));
        Ok(lines)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for application in &mut self.applications {
            drop(application.kill());
            drop(application.wait());
        }
    }
}

/// A program that cargo has put beside this one, or, for a test, one directory above.
fn sibling(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let directories = own.ancestors().skip(1).take(2);
    let found = directories
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("the {name} program is not built: run `cargo xtask build`"))
}

/// The repository, by way of cargo's target directory or of cargo itself.
///
/// # Errors
/// If neither is inside one.
pub fn repository() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let mut directories = own
        .ancestors()
        .map(Path::to_owned)
        .chain(env::current_dir());
    let found = directories.find(|directory| directory.join("deploy/demo").is_dir());
    found.context(
        "deploy/demo is not to be found: run this in the repository, as `cargo xtask demo`",
    )
}

/// Bookinfo's services by name, as `deploy/demo` has them, with their addresses.
fn services(demo: &Path) -> Result<BTreeMap<String, IpAddr>> {
    let mut found = BTreeMap::new();
    for file in ["services.yaml", "services-by-version.yaml"] {
        let text = fs::read_to_string(demo.join(file)).with_context(|| format!("no {file}"))?;
        for service in text.split("\n---\n") {
            let field = |field: &str| {
                let value = service.lines().find_map(|line| line.strip_prefix(field));
                value.with_context(|| format!("a service of {file} has no `{}`", field.trim()))
            };
            let address = field("  clusterIP: ")?.parse();
            found.insert(
                field("  name: ")?.to_owned(),
                address.context("an address")?,
            );
        }
    }
    Ok(found)
}

/// Whether a service of Bookinfo's stands for a pod: `reviews` for all versions, `reviews-v1` for one.
fn selects(service: &str, pod: &str) -> bool {
    let rest = pod.strip_prefix(service);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
