//! A real Kubernetes API server with its store, and the real `kubectl` to speak with it. Certificates, a service account
//! issuer and RBAC as in any cluster; no scheduler, and of Kubernetes' controllers only those that a scenario starts, so
//! nothing happens that is not written here.

mod agents;
mod controller;
mod controllers;
mod credentials;
mod istiod;
mod process;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::bookinfo::cluster::repository;
use crate::lab::{Lab, Netns, Node, ServiceAccount, eventually, tool};
use crate::net::http;
pub use agents::TokenSpec;
pub use controller::Controller;
pub use controllers::Controllers;
use credentials::Credentials;
pub use istiod::{Istiod, istioctl};
use process::Process;

/// How long the server may take until it is ready: two cores may be building something else.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How long a definition may take until objects of it can be created.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);
/// Between the documents of a manifest.
const SEPARATOR: &str = "\n---\n";
/// What etcd takes in one transaction.
const MOST_PUTS: usize = 128;
/// The network of the services of `deploy/demo`.
const SERVICES: &str = "172.30.0.0/16";

/// An API server and its store. Ended when dropped.
pub struct ApiServer {
    // In this order: the store last.
    server: Option<Process>,
    store: Process,
    place: Place,
    directory: PathBuf,
    credentials: Credentials,
    /// Where the store listens, on loopback.
    store_at: SocketAddr,
}

/// Where the server listens.
#[derive(Clone, Debug)]
struct Place {
    /// `None`: the namespace that we are in.
    netns: Option<Arc<Netns>>,
    address: SocketAddr,
}

impl Place {
    /// Does something there.
    fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.netns {
            Some(netns) => netns.run(body),
            None => body(),
        }
    }
}

impl ApiServer {
    /// Starts one on a node of a lab, where every node reaches it.
    ///
    /// # Errors
    /// If it is not installed or does not become ready; says what it logged.
    pub fn on_node(lab: &Lab, node: &str) -> Result<Self> {
        let node: &Node = lab.node(node)?;
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let place = Place {
            netns: Some(Arc::clone(node.netns())),
            address: SocketAddr::new(node.v4(), 6443),
        };
        Self::start(
            lab.directory().join("kubernetes"),
            place,
            [loopback(2379), loopback(2380)],
        )
    }

    /// Starts one on loopback, in a directory of its own.
    ///
    /// # Errors
    /// As [`ApiServer::on_node`].
    pub fn on_loopback(directory: &Path, port: u16) -> Result<Self> {
        let place = Place {
            netns: None,
            address: (Ipv4Addr::LOCALHOST, port).into(),
        };
        // Both at once, so that they differ.
        let free = [free_port()?, free_port()?];
        let ports = [free[0].local_addr()?, free[1].local_addr()?];
        drop(free);
        Self::start(directory.to_owned(), place, ports)
    }

    fn start(directory: PathBuf, place: Place, store: [SocketAddr; 2]) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let credentials = Credentials::create(&directory, place.address.ip())?;
        let [store_at, store_peers] = store;
        let store = start_store(&directory, &place, store_at, store_peers)?;
        let mut api = Self {
            server: None,
            store,
            place,
            directory,
            credentials,
            store_at,
        };
        api.write_kubeconfig("admin", &api.credentials.admin_user())?;
        api.start_again()?;
        Ok(api)
    }

    /// Starts the server, which was stopped, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready; says what it logged.
    pub fn start_again(&mut self) -> Result<()> {
        let credentials = &self.credentials;
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let mut command = Command::new(tool("kubernetes/kube-apiserver")?);
        command.args([
            format!("--etcd-servers=http://{}", self.store_at),
            format!("--bind-address={}", self.place.address.ip()),
            format!("--advertise-address={}", self.place.address.ip()),
            format!("--secure-port={}", self.place.address.port()),
            format!("--service-cluster-ip-range={SERVICES}"),
            file("client-ca-file", &credentials.authority),
            file("tls-cert-file", &credentials.server.certificate),
            file("tls-private-key-file", &credentials.server.key),
            file(
                "service-account-signing-key-file",
                &credentials.token_keys[0],
            ),
            file("service-account-key-file", &credentials.token_keys[1]),
        ]);
        command.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            // It demands service accounts that a controller makes, and there is none.
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
        ]);
        let log = self.directory.join("kube-apiserver.log");
        self.server = Some(Process::start(
            &mut command,
            self.place.netns.as_deref(),
            log,
        )?);
        let ready = eventually("the API server is ready", READY_WITHIN, || {
            if let Some(ended) = self.server.as_mut().and_then(Process::ended) {
                return Ok(Err(ended));
            }
            self.kubectl(&["get", "--raw", "/readyz"])
                .map(|_ready| Ok(()))
        });
        ready.and_then(|ended| ended).with_context(|| {
            let log = self.server.as_ref().map(Process::log_tail);
            format!("its log ends with\n{}", log.unwrap_or_default())
        })
    }

    /// Ends the server as a crash would; the store stays.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop(&mut self) -> Result<()> {
        self.server
            .take()
            .context("the API server does not run")
            .map(drop)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.place.address)
    }

    /// The kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    /// Writes a kubeconfig for a service account, with a token of its own.
    ///
    /// # Errors
    /// If there is no such account.
    pub fn account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&[
            "create",
            "token",
            account,
            "-n",
            namespace,
            "--duration=24h",
        ])?;
        self.write_kubeconfig(account, &json!({ "token": token.trim() }))?;
        Ok(self.kubeconfig(account))
    }

    /// Writes what the kubelet mounts into pods of a service account.
    ///
    /// # Errors
    /// If there is no such account.
    pub fn service_account(&self, namespace: &str, account: &str) -> Result<ServiceAccount> {
        let token = self.kubectl(&["create", "token", account, "-n", namespace])?;
        let directory = self.directory.join(format!("account-{account}"));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        fs::write(directory.join("token"), token.trim()).context("cannot write a token")?;
        fs::write(directory.join("namespace"), namespace).context("cannot write a namespace")?;
        fs::copy(&self.credentials.authority, directory.join("ca.crt"))
            .context("cannot write an authority")?;
        Ok(ServiceAccount {
            directory,
            server: self.place.address,
        })
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.join(format!("{user}.kubeconfig"))
    }

    fn write_kubeconfig(&self, name: &str, user: &Value) -> Result<()> {
        let path = self.kubeconfig(name);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{ "name": name, "context": { "cluster": "test", "user": name } }],
            "users": [{ "name": name, "user": user }],
            "clusters": [{ "name": "test", "cluster": {
                "server": self.url(),
                "certificate-authority": self.credentials.authority,
            } }],
        });
        fs::write(&path, config.to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Applies definitions of custom resources, and waits until they are served.
    ///
    /// # Errors
    /// If one is refused.
    pub fn install(&self, definitions: Definitions) -> Result<()> {
        let path = definitions.path()?;
        // Gateway API's are longer than an annotation may be, which a client-side apply would make of them.
        self.kubectl(&["apply", "--server-side", "-f", &path.to_string_lossy()])?;
        let timeout = format!("--timeout={}s", ESTABLISHED_WITHIN.as_secs());
        let wait = [
            "wait",
            "--for=condition=Established",
            &timeout,
            "crd",
            "--all",
        ];
        self.kubectl(&wait).map(drop)
    }

    /// Applies what is deployed of the agent's own.
    ///
    /// # Errors
    /// If it is refused.
    pub fn deploy(&self) -> Result<()> {
        let base = repository()?.join("deploy/base");
        self.kubectl(&["apply", "-k", &base.to_string_lossy()])
            .map(drop)
    }

    /// Applies manifests as they are, and then the status that pods among them have: `kubectl apply` leaves that to the
    /// kubelet.
    ///
    /// # Errors
    /// If one is refused.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_fed(&["apply", "-f", "-"], manifests)?;
        let is_pod = |one: &&str| one.lines().any(|line| line == "kind: Pod");
        let pods: Vec<&str> = manifests.split(SEPARATOR).filter(is_pod).collect();
        if !pods.is_empty() {
            let words = ["apply", "--server-side", "--subresource=status", "-f", "-"];
            self.kubectl_fed(&words, &pods.join(SEPARATOR))?;
        }
        Ok(())
    }

    /// Applies the manifests of a directory, less those of custom kinds that are not among the installed ones.
    ///
    /// # Errors
    /// If one is refused.
    pub fn apply_directory(&self, directory: &Path, installed: &[Definitions]) -> Result<()> {
        let mut documents = Vec::new();
        let listing = fs::read_dir(directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in listing {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".yaml") && !name.starts_with('.') {
                let text = fs::read_to_string(&path)?;
                documents.extend(text.split(SEPARATOR).map(|one| one.trim_end().to_owned()));
            }
        }
        documents.retain(|one| Definitions::of(one).is_none_or(|kind| installed.contains(&kind)));
        // Namespaces first: what is in them needs them.
        documents.sort_by_key(|one| !one.lines().any(|line| line == "kind: Namespace"));
        self.apply(&documents.join(SEPARATOR))
    }

    /// Runs `kubectl` as the administrator and returns what it prints.
    ///
    /// # Errors
    /// If it fails; says why.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl_fed(words, "")
    }

    /// Runs `kubectl` as the administrator with something to read.
    ///
    /// # Errors
    /// If it fails; says why.
    pub fn kubectl_fed(&self, words: &[&str], input: &str) -> Result<String> {
        let output = self.run_kubectl(words, input)?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", words.join(" "), why.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn run_kubectl(&self, words: &[&str], input: &str) -> Result<Output> {
        let mut command = Command::new(tool("kubernetes/kubectl")?);
        command
            .arg("--kubeconfig")
            .arg(self.admin_kubeconfig())
            .arg("--cache-dir")
            .arg(self.directory.join("kubectl-cache"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let command = match &self.place.netns {
            Some(netns) => netns.enter(&mut command)?,
            None => &mut command,
        };
        let mut child = command.spawn().context("kubectl cannot be started")?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        std::thread::scope(|scope| {
            // Whatever becomes of the input shows in how kubectl ends.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            child.wait_with_output().context("kubectl vanished")
        })
    }

    /// Makes the store forget everything but the present, so that nobody can watch from an older version on.
    ///
    /// # Errors
    /// If the store refuses.
    pub fn forget_history(&self) -> Result<()> {
        let present = self.ask_store("/v3/kv/range", &json!({ "key": "AA==" }))?;
        let revision = present["header"]["revision"]
            .as_str()
            .context("no revision")?;
        let compaction = json!({ "revision": revision, "physical": true });
        self.ask_store("/v3/kv/compaction", &compaction).map(drop)
    }

    /// Puts many objects into the store by their keys, past the server: it would take minutes for what it sees at once.
    ///
    /// # Errors
    /// If the store refuses.
    pub fn put(&self, objects: impl IntoIterator<Item = (String, Value)>) -> Result<()> {
        let mut objects = objects.into_iter();
        loop {
            let some = objects.by_ref().take(MOST_PUTS);
            let puts: Vec<Value> = some
                .map(|(key, object)| {
                    let (key, value) = (BASE64.encode(key.as_bytes()), object.to_string());
                    json!({ "requestPut": { "key": key, "value": BASE64.encode(value.as_bytes()) } })
                })
                .collect();
            if puts.is_empty() {
                return Ok(());
            }
            self.ask_store("/v3/kv/txn", &json!({ "success": puts }))?;
        }
    }

    /// etcd's API as JSON; keys are in base64.
    fn ask_store(&self, path: &str, question: &Value) -> Result<Value> {
        let ask = http::Ask::new("POST", path)
            .host("localhost")
            .with("Connection", "close")
            .body(question.to_string());
        let answer = self.place.run(|| ask.send(self.store_at))?;
        ensure!(
            answer.status == 200,
            "{path}: {}: {}",
            answer.status,
            answer.text()
        );
        serde_json::from_slice(&answer.body).context("etcd does not answer JSON")
    }

    /// The processes, for measuring.
    pub fn pids(&self) -> Vec<u32> {
        let server = self.server.iter().map(Process::pid);
        server.chain([self.store.pid()]).collect()
    }
}

/// Definitions of custom resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definitions {
    /// Gateway API's standard channel, as it is published.
    GatewayApi,
    /// Istio's, as they are published.
    Istio,
    /// Our own.
    Culvert,
}

impl Definitions {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::GatewayApi, Self::Istio, Self::Culvert];

    /// Those that a manifest needs; `None` if it is of one of Kubernetes' own kinds.
    fn of(manifest: &str) -> Option<Self> {
        let version = manifest
            .lines()
            .find_map(|line| line.strip_prefix("apiVersion: "))?;
        let (group, _) = version.split_once('/')?;
        match group {
            "gateway.networking.k8s.io" => Some(Self::GatewayApi),
            "culvert.dev" => Some(Self::Culvert),
            group if group.ends_with(".istio.io") => Some(Self::Istio),
            _ => None,
        }
    }

    /// Where set-up has put them, or where they are in the repository.
    fn path(self) -> Result<PathBuf> {
        let published = |group: &str| -> Result<PathBuf> {
            Ok(tool("kubernetes/kubectl")?
                .with_file_name("definitions")
                .join(group))
        };
        let path = match self {
            Self::GatewayApi => published("gateway-api")?,
            Self::Istio => published("istio")?,
            Self::Culvert => repository()?.join("deploy/crds/ratelimitpolicies.yaml"),
        };
        ensure!(
            path.exists(),
            "{} is not there: run `cargo xtask setup`",
            path.display()
        );
        Ok(path)
    }
}

fn start_store(
    directory: &Path,
    place: &Place,
    clients: SocketAddr,
    peers: SocketAddr,
) -> Result<Process> {
    let mut command = Command::new(tool("kubernetes/etcd")?);
    command
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        .args([
            format!("--listen-client-urls=http://{clients}"),
            format!("--advertise-client-urls=http://{clients}"),
            format!("--listen-peer-urls=http://{peers}"),
            format!("--initial-advertise-peer-urls=http://{peers}"),
            format!("--initial-cluster=default=http://{peers}"),
        ])
        // Nobody reads it after a power failure.
        .args(["--unsafe-no-fsync", "--log-level=warn"]);
    Process::start(
        &mut command,
        place.netns.as_deref(),
        directory.join("etcd.log"),
    )
}

/// A port that is free now, for as long as the value lives.
fn free_port() -> Result<TcpListener> {
    let any: IpAddr = Ipv4Addr::LOCALHOST.into();
    TcpListener::bind((any, 0)).context("no port is free")
}
