//! Network namespaces: making them, and running code and programs inside.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io, panic, thread};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};

/// Where `ip netns` keeps its handles.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// Where a pod finds its service account's token and whom to trust.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A named network namespace that we made; it goes with the value.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// A directory for something to be mounted on. What had to be made for it goes with it.
pub(crate) struct MountPoint(Vec<PathBuf>);

impl MountPoint {
    fn make(path: &Path) -> Result<Self> {
        let missing = path.ancestors().take_while(|ancestor| !ancestor.exists());
        let made = Self(missing.map(Path::to_owned).collect());
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(made)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Somebody else may have put something there meanwhile.
            let _kept = fs::remove_dir(directory);
        }
    }
}

impl Netns {
    /// Makes a namespace with its loopback up, addresses usable at once and the kernel's plain congestion control.
    pub(crate) fn new(name: String) -> Result<Self> {
        ip(&["netns", "add", &name])?;
        let netns = Self { name };
        netns.ip_batch("link set lo up")?;
        netns.sysctl(&[
            // Duplicate address detection would hold an address back for a second.
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            // BBR's pacing timers blur every measurement.
            ("net/ipv4/tcp_congestion_control", "reno"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            // An address without a route is to be refused each time: a refusal that is held back looks like silence.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            // TCP Fast Open: data in the first SYN, without a cookie, which the agent's listeners would not hand out.
            ("net/ipv4/tcp_fastopen", "7"),
        ])?;
        Ok(netns)
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs a closure on a thread inside the namespace; sockets that it opens stay there.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or what the closure returns.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = self.open()?;
        let inside = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
            body()
        };
        let result = thread::scope(|scope| scope.spawn(inside).join());
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Makes a command start inside the namespace, and end when the thread that starts it ends.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn enter<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        let netns = self.open()?;
        let before_exec = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            set_pdeathsig(Signal::SIGKILL)?;
            // The demo blocks SIGINT for itself; what it starts shall hear it.
            SigSet::empty().thread_set_mask()?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes three system
        // calls and neither allocates nor locks.
        Ok(unsafe { command.pre_exec(before_exec) })
    }

    /// As [`Netns::enter`], with a resolver configuration of the command's own, as a pod has.
    ///
    /// # Errors
    /// If the namespace or the file is gone.
    pub fn enter_with_resolver<'a>(
        &self,
        command: &'a mut Command,
        resolv_conf: &Path,
    ) -> Result<&'a mut Command> {
        self.enter_with_bind(command, resolv_conf, c"/etc/resolv.conf".to_owned())
    }

    /// As [`Netns::enter`], with a file or directory of its own in the place of another one.
    fn enter_with_bind<'a>(
        &self,
        command: &'a mut Command,
        source: &Path,
        place: CString,
    ) -> Result<&'a mut Command> {
        let source =
            CString::new(source.as_os_str().as_bytes()).context("a path without zero bytes")?;
        let before_exec = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Nothing that is mounted here may show elsewhere.
            mount(
                None::<&CStr>,
                c"/",
                None::<&CStr>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&CStr>,
            )?;
            mount(
                Some(source.as_c_str()),
                place.as_c_str(),
                None::<&CStr>,
                MsFlags::MS_BIND,
                None::<&CStr>,
            )?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes three system
        // calls with strings made before the fork, and neither allocates nor locks.
        let command = unsafe { command.pre_exec(before_exec) };
        self.enter(command)
    }

    /// As [`Netns::enter`], with a directory in the place where a pod finds its service account's token. The place is
    /// to be kept for as long as the command runs.
    ///
    /// # Errors
    /// If the namespace is gone, or that place cannot be made.
    pub(crate) fn enter_with_service_account<'a>(
        &self,
        command: &'a mut Command,
        account: &Path,
    ) -> Result<(&'a mut Command, MountPoint)> {
        let made = MountPoint::make(Path::new(SERVICE_ACCOUNT))?;
        let place = CString::new(SERVICE_ACCOUNT).context("a path without zero bytes")?;
        let command = self.enter_with_bind(command, account, place)?;
        Ok((command, made))
    }

    /// Feeds commands to `ip` inside the namespace, one per line.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("`ip` is missing: run `cargo xtask setup`")?;
        child
            .stdin
            .take()
            .context("`ip` has no input")?
            .write_all(lines.as_bytes())?;
        let output = child.wait_with_output().context("`ip` vanished")?;
        if !output.status.success() {
            bail!(
                "ip in {}: {}\n{lines}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// What an `ip` command prints inside the namespace, such as `rule show`.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        let mut words = vec!["-n", &self.name];
        words.extend(arguments);
        ip(&words)
    }

    /// Writes sysctls of the namespace.
    ///
    /// # Errors
    /// If the kernel has no such name or does not take the value.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in values {
                write_sysctl(name, value)
                    .with_context(|| format!("cannot set {name} to {value}"))?;
            }
            Ok(())
        })
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("no network namespace {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run's sweep.
        drop(ip(&["netns", "del", &self.name]));
    }
}

fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    // /proc/sys/net shows the namespace of the thread that looks.
    fs::write(Path::new("/proc/sys").join(name), value)
}

/// Runs `ip` and returns what it prints.
pub(crate) fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("`ip` is missing: run `cargo xtask setup`")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
