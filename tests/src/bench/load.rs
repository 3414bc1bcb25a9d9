//! Load on one path: what is run, and how its result is read.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::{Pod, eventually};
use crate::net;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// HTTP/1.1 over 64 connections that stay open.
    Keepalive,
    /// HTTP/1.1 over one connection that stays open: latency.
    Single,
    /// A new connection for each of 16 clients' requests.
    Churn,
    /// One TCP stream, as fast as it goes.
    Stream,
}

/// Every kind of load, in the order of the report.
pub const LOADS: [Load; 4] = [Load::Keepalive, Load::Single, Load::Churn, Load::Stream];

/// What one run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests a second; for a stream, Gbit/s.
    pub rate: f64,
    /// Units of work in the whole run: requests, or GB.
    pub work: f64,
    /// Median latency in microseconds, where the load has one.
    pub median_us: Option<f64>,
    /// The latency that one request in a hundred exceeds, in microseconds.
    pub p99_us: Option<f64>,
}

impl Load {
    /// Name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keepalive => "keepalive c=64",
            Self::Single => "keepalive c=1",
            Self::Churn => "new connections c=16",
            Self::Stream => "one stream",
        }
    }

    /// The command line, as a person would type it in the client's pod.
    pub fn command(self, server: IpAddr, time: Duration) -> Vec<String> {
        let seconds = time.as_secs().to_string();
        let url = format!("http://{server}:{HTTP_PORT}/");
        let words: Vec<&str> = match self {
            Self::Keepalive => vec!["wrk", "-t2", "-c64", "--latency", "-d", &seconds, &url],
            Self::Single => vec!["wrk", "-t1", "-c1", "--latency", "-d", &seconds, &url],
            Self::Churn => {
                let close = "Connection: close";
                vec![
                    "wrk",
                    "-t2",
                    "-c16",
                    "--latency",
                    "-H",
                    close,
                    "-d",
                    &seconds,
                    &url,
                ]
            }
            Self::Stream => {
                let address = server.to_string();
                let words = ["iperf3", "-J", "-t", &seconds, "-p", "5201", "-c", &address];
                return words.map(str::to_owned).into();
            }
        };
        words.into_iter().map(str::to_owned).collect()
    }

    /// Runs it from `client` to `server`.
    ///
    /// # Errors
    /// If the generator is missing, fails, or saw errors: a fast error is no result.
    pub fn run(self, client: &Pod, server: &Pod, time: Duration) -> Result<Measured> {
        // iperf3's server closes its listener between tests, so each test gets its own.
        let _stream_server = match self {
            Self::Stream => Some(Server::iperf(server)?),
            _ => None,
        };
        self.run_to(client, server.v4(), time)
    }

    /// Runs it from `client` to the benchmark's port of an address, behind which a server is that suits the load.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub fn run_to(self, client: &Pod, address: IpAddr, time: Duration) -> Result<Measured> {
        let words = self.command(address, time);
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let output = client
            .enter(&mut command)?
            .output()
            .with_context(|| format!("{program} is missing: run `cargo xtask setup`"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{} failed: {text}{}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        match self {
            Self::Stream => read_iperf(&text),
            _ => read_wrk(&text),
        }
    }
}

/// Where the benchmark's web server listens.
pub const HTTP_PORT: u16 = 8080;

/// A server program in a pod; ends with the value.
pub struct Server(Child);

impl Server {
    /// nginx that answers every request with a short fixed body and never closes a connection first.
    ///
    /// # Errors
    /// If it is missing or does not answer.
    pub fn nginx(pod: &Pod, directory: &Path) -> Result<Self> {
        let file = directory.join(format!("nginx-{}.conf", pod.spec().name));
        let config = format!(
            "daemon off; master_process off; pid {0}.pid; error_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000;\n\
             server {{ listen {HTTP_PORT} reuseport; location / {{ return 200 \"a body of the size of a small answer\\n\"; }} }} }}\n",
            file.display()
        );
        std::fs::write(&file, config).context("cannot write nginx's configuration")?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file);
        Self::start(pod, command, HTTP_PORT)
    }

    fn iperf(pod: &Pod) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1", "-p", "5201"]);
        let child = pod
            .enter(command.stdin(Stdio::null()).stdout(Stdio::null()))?
            .spawn();
        let server = Self(child.context("iperf3 is missing: run `cargo xtask setup`")?);
        // A probing connection would use up the one test that it serves.
        eventually("iperf3 listens", Duration::from_secs(5), || {
            let listening =
                pod.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
            let port = format!(":{:04X} ", 5201);
            let listens = |line: &str| line.contains(&port) && line.contains(" 0A ");
            ensure!(listening.lines().any(listens), "it does not listen");
            Ok(())
        })?;
        Ok(server)
    }

    fn start(pod: &Pod, mut command: Command, port: u16) -> Result<Self> {
        let child = pod
            .enter(command.stdin(Stdio::null()).stdout(Stdio::null()))?
            .spawn();
        let name = command.get_program().to_string_lossy().into_owned();
        let child = child.with_context(|| format!("{name} is missing: run `cargo xtask setup`"))?;
        let server = Self(child);
        eventually(&format!("{name} answers"), Duration::from_secs(5), || {
            pod.run(|| Ok(net::connect((pod.v4(), port).into()).map(drop)?))
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Reads wrk's report.
fn read_wrk(text: &str) -> Result<Measured> {
    for bad in ["Socket errors:", "Non-2xx"] {
        if let Some(line) = text.lines().find(|line| line.contains(bad)) {
            bail!("wrk saw errors:{line}");
        }
    }
    let line = |prefix: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(prefix))
    };
    let rate = line("Requests/sec:")
        .context("wrk printed no rate")?
        .trim()
        .parse()?;
    let work = text
        .lines()
        .find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok())
        .context("wrk printed no number of requests")?;
    let latency = |share: &str| line(share).and_then(|text| microseconds(text.trim()));
    Ok(Measured {
        rate,
        work,
        median_us: latency("50%"),
        p99_us: latency("99%"),
    })
}

/// `812.00us`, `1.25ms`, `2.00s`.
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    units
        .into_iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

/// Reads iperf3's JSON: what the receiver got.
fn read_iperf(text: &str) -> Result<Measured> {
    let report: serde_json::Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &report["end"]["sum_received"];
    let bits = received["bits_per_second"]
        .as_f64()
        .context("iperf3 reports no rate")?;
    let bytes = received["bytes"]
        .as_f64()
        .context("iperf3 reports no bytes")?;
    Ok(Measured {
        rate: bits / 1e9,
        work: bytes / 1e9,
        median_us: None,
        p99_us: None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Measured, read_iperf, read_wrk};

    #[test]
    fn wrk_reports_are_read() {
        let report = "Running 2s test @ http://10.0.0.2/\n  2 threads and 64 connections\n  Latency Distribution\n     \
                      50%    1.25ms\n     99%    3.00ms\n  41234 requests in 2.00s, 5.00MB read\nRequests/sec:  20600.10\n";
        let expected = Measured {
            rate: 20600.1,
            work: 41234.0,
            median_us: Some(1250.0),
            p99_us: Some(3000.0),
        };
        assert_eq!(read_wrk(report).unwrap(), expected);
    }

    #[test]
    fn a_run_with_errors_is_no_result() {
        let report = "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 1.0\n";
        assert!(read_wrk(report).is_err());
        assert!(read_iperf(r#"{"error": "unable to connect"}"#).is_err());
    }

    #[test]
    fn iperf_reports_are_read() {
        let report =
            r#"{"end": {"sum_received": {"bits_per_second": 8.5e9, "bytes": 2125000000}}}"#;
        let expected = Measured {
            rate: 8.5,
            work: 2.125,
            median_us: None,
            p99_us: None,
        };
        assert_eq!(read_iperf(report).unwrap(), expected);
    }
}
