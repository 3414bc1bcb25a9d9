//! One node's agent: a real `culvert agent` process in the node's namespace.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::netns::MountPoint;
use super::{Netns, Node, eventually};
use crate::net::{http, sys};

/// How long an agent may take to arm a handful of pods.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long an orderly stop may take.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// What the kubelet gives a pod for it to be known to the API server.
#[derive(Clone, Debug)]
pub struct ServiceAccount {
    /// With `token`, `ca.crt` and `namespace`.
    pub directory: PathBuf,
    /// Where the server is.
    pub server: SocketAddr,
}

/// What of the machine an agent sees otherwise.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The service account of the pod that it is.
    pub(super) account: Option<&'a ServiceAccount>,
    /// Where it finds its DNS server.
    pub(super) resolver: Option<&'a Path>,
}

/// A running agent. Killed when dropped.
pub struct Agent {
    node: String,
    netns: Arc<Netns>,
    child: std::sync::Mutex<Child>,
    pid: u32,
    log: PathBuf,
    run_directory: PathBuf,
    _account: Option<MountPoint>,
}

impl Agent {
    pub(super) fn start(
        node: &Node,
        directory: &Path,
        (source, place): (&[OsString], Place<'_>),
        options: &[String],
    ) -> Result<Self> {
        let log = directory.join(format!("agent-{}.log", node.name()));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .context("cannot create a log")?;
        let run_directory = run_directory(directory, node.name());
        let mut command = Command::new(culvert()?);
        command
            .args(["agent", "--node", node.name(), "--admin", "127.0.0.1:15000"])
            .args(source)
            .arg("--run-dir")
            .arg(&run_directory)
            .args(options)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // Unless somebody else is to be asked.
        if !options
            .iter()
            .any(|option| option.starts_with("--ca-address"))
        {
            command.arg("--ca-dir").arg(directory.join("ca"));
        }
        if let Some(resolver) = place.resolver {
            let _entered = node.netns().enter_with_resolver(&mut command, resolver)?;
        }
        let (command, place) = match place.account {
            Some(account) => {
                command
                    .env("KUBERNETES_SERVICE_HOST", account.server.ip().to_string())
                    .env("KUBERNETES_SERVICE_PORT", account.server.port().to_string());
                let entered = node.netns();
                let (command, place) =
                    entered.enter_with_service_account(&mut command, &account.directory)?;
                (command, Some(place))
            }
            None => (node.netns().enter(&mut command)?, None),
        };
        let child = command.spawn().context("the agent cannot be started")?;
        let pid = child.id();
        let child = std::sync::Mutex::new(child);
        let netns = Arc::clone(node.netns());
        Ok(Self {
            node: node.name().to_owned(),
            netns,
            child,
            pid,
            log,
            run_directory,
            _account: place,
        })
    }

    /// The node that it serves.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its pinned eBPF maps, programs and links.
    pub fn pins(&self) -> PathBuf {
        pins(&self.run_directory)
    }

    /// Entries in all its eBPF maps together.
    ///
    /// # Errors
    /// If its maps are not pinned.
    pub fn map_entries(&self) -> Result<usize> {
        let maps = self.pins().join("maps");
        let listing = fs::read_dir(&maps)
            .with_context(|| format!("nothing is pinned at {}", maps.display()))?;
        let counts = listing.map(|entry| Ok(sys::map_keys(&entry?.path())?.unwrap_or(0)));
        counts.sum()
    }

    /// Where it keeps state.
    pub fn run_directory(&self) -> &Path {
        &self.run_directory
    }

    /// Waits until it says that every pod of its node is armed.
    ///
    /// # Errors
    /// If it does not in time, or has ended; with the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let ready = eventually(
            &format!("agent {} is ready", self.node),
            READY_WITHIN,
            || {
                if let Some(status) = self.exited()? {
                    // No use in waiting; the log says why.
                    return Ok(Err(anyhow::anyhow!("agent {} ended: {status}", self.node)));
                }
                let answer = self.get(15021, "/healthz/ready")?;
                ensure!(
                    answer.status == 200,
                    "it answers {}: {}",
                    answer.status,
                    answer.text()
                );
                Ok(Ok(()))
            },
        );
        ready
            .and_then(|ended| ended)
            .with_context(|| format!("its log ends with\n{}", self.log_tail(40)))
    }

    /// Asks one of the agent's ports.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, port: u16, path: &str) -> Result<http::Response> {
        self.netns
            .run(|| http::get(([127, 0, 0, 1], port).into(), "localhost", path))
    }

    /// Runs one of the commands that change an agent, which they do over its socket.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(culvert()?);
        command
            .args(arguments)
            .arg("--run-dir")
            .arg(&self.run_directory);
        let output = self.netns.enter(&mut command)?.output();
        output.context("culvert cannot be started")
    }

    /// The agent's whole state, in ztunnel's shape.
    ///
    /// # Errors
    /// If there is no answer or it is not JSON.
    pub fn config_dump(&self) -> Result<Value> {
        let answer = self.get(15000, "/config_dump")?;
        ensure!(
            answer.status == 200,
            "/config_dump answers {}",
            answer.status
        );
        serde_json::from_slice(&answer.body).context("/config_dump is not JSON")
    }

    /// The sum of a metric over all label sets that contain each of `labels` (`name="value"`).
    ///
    /// # Errors
    /// If the metrics cannot be read.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let answer = self.get(15020, "/stats/prometheus")?;
        ensure!(
            answer.status == 200,
            "/stats/prometheus answers {}",
            answer.status
        );
        let text = answer.text();
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let named =
                rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label));
            if named {
                rest.rsplit(' ').next()?.parse::<f64>().ok()
            } else {
                None
            }
        });
        Ok(samples.sum())
    }

    /// Everything that it has logged.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).context("cannot read the agent's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Resident memory in KiB, from the kernel.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn rss_kib(&self) -> Result<u64> {
        self.status_field("VmRSS:")?
            .parse()
            .context("VmRSS is no number")
    }

    /// The first word of a field of `/proc/<pid>/status`.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn status_field(&self, field: &str) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .context("the agent is gone")?;
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let word = value.and_then(|value| value.split_whitespace().next());
        Ok(word.with_context(|| format!("no {field}"))?.to_owned())
    }

    /// Time that it has spent on a CPU, in ticks of 10 ms.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.pid)).context("the agent is gone")?;
        // The name in parentheses may hold spaces; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(11)
            .take(2);
        fields
            .map(|field| field.parse::<u64>().context("ticks"))
            .sum()
    }

    /// How many file descriptors it has open.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid))
            .context("the agent is gone")?
            .count())
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
    ///
    /// # Errors
    /// If it is gone already.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.wait()?;
        ensure!(status.signal() == Some(9), "it ended by itself: {status}");
        Ok(())
    }

    /// Asks it to stop and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time or not well.
    pub fn stop(self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.ended()
    }

    /// Waits for its end, which somebody else has asked it for.
    ///
    /// # Errors
    /// If it does not end in time or not well.
    pub fn ended(self) -> Result<()> {
        let status = eventually("the agent stops", STOP_WITHIN, || {
            self.exited()?.context("it still runs")
        })?;
        if !status.success() {
            bail!(
                "the agent ended with {status}; its log ends with\n{}",
                self.log_tail(20)
            );
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid).context("no such process number")?);
        kill(pid, signal).context("the agent cannot be signalled")
    }

    fn exited(&self) -> Result<Option<ExitStatus>> {
        let mut child = self
            .child
            .lock()
            .map_err(|_poisoned| anyhow::anyhow!("a test thread panicked"))?;
        child.try_wait().context("the agent cannot be waited for")
    }

    fn wait(&self) -> Result<ExitStatus> {
        let mut child = self
            .child
            .lock()
            .map_err(|_poisoned| anyhow::anyhow!("a test thread panicked"))?;
        child.wait().context("the agent cannot be waited for")
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log().unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Shows the end of the log, for a test that failed.
    #[expect(
        clippy::print_stderr,
        reason = "the test harness shows it beside the failure"
    )]
    pub(crate) fn print_log(&self) {
        eprintln!(
            "---- log of agent {} ends with\n{}\n----",
            self.node,
            self.log_tail(60)
        );
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            // It may have ended already; then there is nothing to end.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The directory of one node's agent in a lab's directory.
pub(crate) fn run_directory(lab: &Path, node: &str) -> PathBuf {
    lab.join(format!("run-{node}"))
}

/// Where an agent with this run directory pins: below the kernel's bpffs, under the FNV-1a hash of the path.
pub(crate) fn pins(run_directory: &Path) -> PathBuf {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = run_directory
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, mix);
    Path::new("/sys/fs/bpf").join(format!("culvert-{hash:016x}"))
}

/// The program under test: beside the test program, in cargo's target directory.
///
/// # Errors
/// If it has not been built.
pub fn culvert() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let candidates = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("culvert"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.context("the culvert program is not built: run `cargo xtask build`")
}

/// Helm, as set-up has built it.
///
/// # Errors
/// If it is not there.
pub fn helm() -> Result<PathBuf> {
    tool("helm")
}

/// A server of others that set-up has fetched or built: in cargo's target directory.
///
/// # Errors
/// If it is not there.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    let culvert = culvert()?;
    let target = culvert.ancestors().nth(2);
    let tool = target
        .context("cargo's target directory")?
        .join("tools")
        .join(name);
    ensure!(
        tool.is_file(),
        "`{name}` is not installed: run `cargo xtask setup`"
    );
    Ok(tool)
}
