//! Servers that are loaded, and other programs that run in pods; each ends with its value.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::{HTTP_PORT, OWN_PORT, STREAM_PORT};
use super::machine::family;
use crate::lab::{Pod, culvert, eventually};
use crate::net;

/// A program in a pod, and what it started.
pub(super) struct Program(Child);

impl Program {
    /// nginx that answers every request with a fixed body (short, of 16 kB, of 1 MB) and never closes a connection
    /// first.
    pub(super) fn nginx(pod: &Pod, directory: &Path) -> Result<Self> {
        let name = &pod.spec().name;
        let file = directory.join(format!("nginx-{name}.conf"));
        let bodies = directory.join("bodies");
        std::fs::create_dir_all(&bodies).context("cannot create a directory")?;
        for (body, length) in [("16k", 16 << 10), ("1m", 1 << 20)] {
            std::fs::write(bodies.join(body), vec![b'x'; length])
                .context("cannot write a response body")?;
        }
        let config = format!(
            "daemon off; master_process off; pid {0}.pid; error_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=10;\n\
             server {{ listen {HTTP_PORT} reuseport backlog=4096; root {1};\n\
             location = / {{ return 200 \"a body of the size of a small answer\\n\"; }} }} }}\n",
            file.display(),
            bodies.display()
        );
        std::fs::write(&file, config).context("cannot write nginx's configuration")?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file);
        Self::start(pod, command)?.listens(pod, HTTP_PORT)
    }

    /// `culvert bench server` on ports that nobody else has.
    pub(super) fn own(pod: &Pod) -> Result<Self> {
        let mut command = Command::new(culvert()?);
        let base = OWN_PORT.to_string();
        command
            .args(["bench", "server", "--base-port", &base])
            .stderr(Stdio::null());
        Self::start(pod, command)?.listens(pod, OWN_PORT)
    }

    /// iperf3's server for one test: between tests it closes its listener, so each test gets its own.
    pub(super) fn iperf(pod: &Pod) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1", "-p", &STREAM_PORT.to_string()]);
        let server = Self::start(pod, command)?;
        // A probing connection would use up the one test that it serves.
        eventually("iperf3 listens", Duration::from_secs(5), || {
            let listening =
                pod.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
            let port = format!(":{STREAM_PORT:04X} ");
            let listens = |line: &str| line.contains(&port) && line.contains(" 0A ");
            ensure!(listening.lines().any(listens), "it does not listen");
            Ok(())
        })?;
        Ok(server)
    }

    /// A command of the user's, by a shell.
    pub(super) fn shell(pod: &Pod, line: &str, variables: &[(&str, String)]) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        Self::start(pod, command)
    }

    fn start(pod: &Pod, mut command: Command) -> Result<Self> {
        let child = pod
            .enter(command.stdin(Stdio::null()).stdout(Stdio::null()))?
            .spawn();
        let name = command.get_program().to_string_lossy().into_owned();
        let child =
            child.with_context(|| format!("{name} is missing: see `cargo xtask bench --help`"))?;
        Ok(Self(child))
    }

    fn listens(self, pod: &Pod, port: u16) -> Result<Self> {
        eventually(
            &format!("port {port} of {} answers", pod.spec().name),
            Duration::from_secs(10),
            || pod.run(|| Ok(net::connect((pod.v4(), port).into()).map(drop)?)),
        )?;
        Ok(self)
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // What a shell started outlives the shell. They may have ended already; then there is nothing to end.
        for pid in family(self.0.id()).into_iter().skip(1) {
            if let Ok(pid) = i32::try_from(pid) {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
