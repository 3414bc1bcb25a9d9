//! A real istiod beside a real API server, in ambient mode, with a certificate authority of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::process::Process;
use super::{ApiServer, Place};
use crate::lab::{eventually, tool};
use crate::net::http;

/// How long it may take until it has listed a small cluster and made an authority: two cores may be building something
/// else.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// The namespace that Istio is installed in.
const NAMESPACE: &str = "istio-system";
/// What its certificate names.
const NAME: &str = "istiod.istio-system.svc";
/// Where it says whether it is ready.
const HTTP_PORT: u16 = 8080;

/// A running istiod. Killed when dropped.
pub struct Istiod {
    process: Option<Process>,
    /// Where the API server is.
    place: Place,
    address: SocketAddr,
    directory: PathBuf,
    kubeconfig: PathBuf,
}

impl Istiod {
    /// Starts one where an API server is, and waits until it is ready.
    ///
    /// # Errors
    /// If it is not installed or does not become ready; says what it logged.
    pub fn beside(api: &ApiServer) -> Result<Self> {
        api.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n"
        ))?;
        let directory = api.directory.join("istiod");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut istiod = Self {
            process: None,
            place: api.place.clone(),
            address: SocketAddr::new(api.place.address.ip(), 15012),
            directory,
            kubeconfig: api.admin_kubeconfig(),
        };
        istiod.start_again()?;
        istiod.write_credentials(api)?;
        Ok(istiod)
    }

    /// Starts it, which was stopped, and waits until it is ready. Its authority is the one that it had.
    ///
    /// # Errors
    /// If it does not become ready; says what it logged.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new(tool("istio/pilot-discovery")?);
        command
            // It writes certificates beside where it is.
            .current_dir(&self.directory)
            .args(["discovery", "--kubeconfig"])
            .arg(&self.kubeconfig)
            .args(["--secureGRPCAddr", &self.address.to_string()])
            .args(["--httpAddr", &format!("127.0.0.1:{HTTP_PORT}")])
            .args(["--monitoringAddr", "127.0.0.1:15014"])
            // Nobody asks those.
            .args(["--grpcAddr", "", "--httpsAddr", "", "--ctrlz_port", "0"])
            .env("POD_NAME", "istiod")
            .env("POD_NAMESPACE", NAMESPACE)
            .env("CLUSTER_ID", "Kubernetes")
            .env("PILOT_ENABLE_AMBIENT", "true")
            .env("CA_TRUSTED_NODE_ACCOUNTS", "culvert-system/culvert-agent")
            // No waypoints as pods, and no webhooks, for which there is nobody to call them.
            .env("PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER", "false")
            .env("INJECTION_WEBHOOK_CONFIG_NAME", "")
            .env("VALIDATION_WEBHOOK_CONFIG_NAME", "");
        let log = self.directory.join("istiod.log");
        self.process = Some(Process::start(
            &mut command,
            self.place.netns.as_deref(),
            log,
        )?);
        let ready = eventually("istiod is ready", READY_WITHIN, || {
            if let Some(ended) = self.process.as_mut().and_then(Process::ended) {
                return Ok(Err(ended));
            }
            let local = ([127, 0, 0, 1], HTTP_PORT).into();
            let answer = self.place.run(|| http::get(local, "localhost", "/ready"))?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(Ok(()))
        });
        ready.and_then(|ended| ended).with_context(|| {
            let log = self.process.as_ref().map(Process::log_tail);
            format!("its log ends with\n{}", log.unwrap_or_default())
        })
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process.take();
        process.context("istiod does not run").map(drop)
    }

    /// Options with which agents take layer 4 from it, as the account that `deploy/base` gives them.
    pub fn agent_options(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).to_string_lossy().into_owned();
        vec![
            format!("--xds-address=https://{}", self.address),
            format!("--xds-hostname={NAME}"),
            format!("--xds-root-ca={}", file("root-cert.pem")),
            format!("--xds-token={}", file("istio-token")),
        ]
    }

    /// Options with which agents ask it for identities; each has its own token.
    pub fn authority_options(&self) -> Vec<String> {
        let root = self.directory.join("root-cert.pem");
        vec![
            format!("--ca-address=https://{}", self.address),
            format!("--ca-hostname={NAME}"),
            format!("--ca-root={}", root.display()),
        ]
    }

    /// Everything that it has logged.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.directory.join("istiod.log")).context("cannot read istiod's log")
    }

    /// What the kubelet mounts into an agent: istiod's root, which it publishes itself, and a token for it.
    fn write_credentials(&self, api: &ApiServer) -> Result<()> {
        let words = [
            "get",
            "configmap",
            "istio-ca-root-cert",
            "-n",
            NAMESPACE,
            "-o",
            "jsonpath={.data.root-cert\\.pem}",
        ];
        let root = eventually("istiod publishes its root", READY_WITHIN, || {
            let root = api.kubectl(&words)?;
            ensure!(root.contains("BEGIN CERTIFICATE"), "it is `{root}`");
            Ok(root)
        })?;
        let token = api.kubectl(&[
            "create",
            "token",
            "culvert-agent",
            "-n",
            "culvert-system",
            "--audience=istio-ca",
            "--duration=24h",
        ])?;
        let write = |name: &str, text: &str| {
            fs::write(self.directory.join(name), text)
                .with_context(|| format!("cannot write {name}"))
        };
        write("root-cert.pem", &root)?;
        write("istio-token", token.trim())
    }
}

/// What `istioctl` prints.
///
/// # Errors
/// If it is not installed or fails; says why.
pub fn istioctl(kubeconfig: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new(tool("istio/istioctl")?)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(words)
        .output()
        .context("istioctl cannot be started")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("istioctl {}: {}", words.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
