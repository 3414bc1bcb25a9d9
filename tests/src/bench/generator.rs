//! The load generator of the `culvert` program itself, and its server, in pods.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Pod, culvert, eventually};
use crate::net::http;

/// Where the server shows what it has counted.
const STATS_PORT: u16 = 8085;

/// A running `culvert bench server`; ends with the value.
pub struct LoadServer {
    child: Child,
    pod: Pod,
}

impl LoadServer {
    /// Serves every protocol on its default port of a pod.
    ///
    /// # Errors
    /// If it cannot be started or does not answer.
    pub fn start(pod: &Pod) -> Result<Self> {
        let mut command = Command::new(culvert()?);
        command
            .args(["bench", "server", "--output", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = pod.enter(&mut command)?.spawn();
        let server = Self {
            child: child.context("culvert cannot be started")?,
            pod: pod.clone(),
        };
        eventually("the load server answers", Duration::from_secs(10), || {
            server.stats()
        })?;
        Ok(server)
    }

    /// What it has counted: an object for each protocol.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn stats(&self) -> Result<Value> {
        let at = SocketAddr::new(self.pod.v4(), STATS_PORT);
        let answer = self.pod.run(|| http::get(at, "localhost", "/stats"))?;
        ensure!(answer.status == 200, "/stats answers {}", answer.status);
        serde_json::from_slice(&answer.body).context("/stats is not JSON")
    }

    /// One of its counters.
    ///
    /// # Errors
    /// If it does not answer, or has no such counter.
    pub fn count(&self, protocol: &str, counter: &str) -> Result<u64> {
        let stats = self.stats()?;
        let count = stats[protocol][counter].as_u64();
        count.with_context(|| format!("no {counter} of {protocol} in {stats}"))
    }
}

impl Drop for LoadServer {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Prepares `culvert bench client` in a pod, with JSON on standard output.
///
/// # Errors
/// If the program is not built.
pub fn client(to: IpAddr, options: &[&str]) -> Result<Command> {
    let mut command = Command::new(culvert()?);
    command
        .args(["bench", "client", "--quiet", "--output", "json"])
        .args(options)
        .arg(to.to_string())
        .stdin(Stdio::null());
    Ok(command)
}

/// Runs it to its end.
///
/// # Errors
/// If it cannot be started.
pub fn output(pod: &Pod, to: IpAddr, options: &[&str]) -> Result<Output> {
    let mut command = client(to, options)?;
    let output = pod.enter(&mut command)?.output();
    output.context("culvert cannot be started")
}

/// Runs it to its end, and returns the report.
///
/// # Errors
/// If a request failed or there is no report.
pub fn generate(pod: &Pod, to: IpAddr, options: &[&str]) -> Result<Value> {
    let output = output(pod, to, options)?;
    ensure!(
        output.status.success(),
        "culvert bench client {}: {}\n{}{}",
        options.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("the report is not JSON")
}
