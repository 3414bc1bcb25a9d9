//! A controller: a real `culvert controller` process in a node's namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::Process;
use crate::lab::{Lab, Netns, Pod, culvert, eventually};
use crate::net::http;

/// How long it may take to list a small cluster.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long an orderly stop may take.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A running controller. Killed when dropped.
pub struct Controller {
    process: Process,
    netns: Arc<Netns>,
    log: PathBuf,
}

impl Controller {
    /// Starts one on a node, where no agent may run, as whom this kubeconfig says.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(lab: &Lab, node: &str, kubeconfig: &Path, options: &[&str]) -> Result<Self> {
        let netns = lab.node(node)?.netns();
        Self::run(lab, (node, netns), kubeconfig, options)
    }

    /// Starts one in a pod, under the pod's name.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn in_pod(lab: &Lab, pod: &Pod, kubeconfig: &Path, options: &[&str]) -> Result<Self> {
        Self::run(lab, (&pod.spec().name, pod.netns()), kubeconfig, options)
    }

    fn run(
        lab: &Lab,
        (name, netns): (&str, &Arc<Netns>),
        kubeconfig: &Path,
        options: &[&str],
    ) -> Result<Self> {
        let netns = Arc::clone(netns);
        let log = lab.directory().join(format!("controller-{name}.log"));
        let mut command = Command::new(culvert()?);
        command
            .args(["controller", "--identity", name, "--kubeconfig"])
            .arg(kubeconfig)
            .args(options);
        let process = Process::start(&mut command, Some(&netns), log.clone())?;
        Ok(Self {
            process,
            netns,
            log,
        })
    }

    /// Waits until it has listed the cluster.
    ///
    /// # Errors
    /// If it does not in time; with the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let ready = eventually("the controller is ready", READY_WITHIN, || {
            let answer = self.get(15021, "/healthz/ready")?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        });
        ready.with_context(|| format!("its log ends with\n{}", self.process.log_tail()))
    }

    /// Asks one of its ports.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, port: u16, path: &str) -> Result<http::Response> {
        self.netns
            .run(|| http::get(([127, 0, 0, 1], port).into(), "localhost", path))
    }

    /// The sum of a metric over all label sets that contain each of `labels` (`name="value"`).
    ///
    /// # Errors
    /// If the metrics cannot be read.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.get(15020, "/metrics")?.text();
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_it =
                rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label));
            is_it
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())
                .flatten()
        });
        Ok(samples.sum())
    }

    /// Whether it is the one that writes.
    ///
    /// # Errors
    /// If the metrics cannot be read.
    pub fn leads(&self) -> Result<bool> {
        Ok(self.metric("culvert_controller_leader", &[])? > 0.5)
    }

    /// How many statuses it has written.
    ///
    /// # Errors
    /// If the metrics cannot be read.
    pub fn written(&self) -> Result<f64> {
        let labels = ["outcome=\"written\"", "what=\"status\""];
        self.metric("culvert_controller_writes_total", &labels)
    }

    /// Everything that it has logged.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).context("cannot read the controller's log")
    }

    /// Holds it, as a node does that has no time for it.
    ///
    /// # Errors
    /// If it is gone.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it is gone.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Ends it at once, as a crash would.
    pub fn kill(self) {
        drop(self);
    }

    /// Asks it to stop and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time or not well; with the end of its log.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let how = eventually("the controller stops", STOP_WITHIN, || {
            self.process.ended().context("it still runs")
        })?;
        let how = how.to_string();
        ensure!(
            how.contains("exit status: 0"),
            "{how}\n{}",
            self.process.log_tail()
        );
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.process.pid()).context("no such process number")?;
        kill(Pid::from_raw(pid), signal).context("the controller cannot be signalled")
    }
}
