//! A real rate limit service in a pod: Envoy's reference implementation (`github.com/envoyproxy/ratelimit`), which
//! counts in Redis.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Lab, Pod, eventually, tool};
use crate::net;

/// Debian's `redis-tools` holds the server's program under this name, and starts no daemon on the machine: what it is
/// called as says what it does.
const REDIS: &str = "redis-check-rdb";

/// How long it may take to come up.
const START: Duration = Duration::from_secs(20);

/// A running rate limit service; ends with the value.
pub struct RateLimiter {
    processes: Vec<Child>,
}

impl RateLimiter {
    /// Serves gRPC on a port of a pod, with a configuration of its own kind.
    ///
    /// # Errors
    /// If it is not installed or does not come up.
    pub fn start(lab: &Lab, pod: &Pod, port: u16, config: &str) -> Result<Self> {
        let program = tool("ratelimit")?;
        let directory = lab.directory().join("ratelimit");
        let configs = directory.join("runtime/limits/config");
        fs::create_dir_all(&configs).context("no directory for the rate limit service")?;
        fs::write(configs.join("limits.yaml"), config).context("cannot write its limits")?;
        let socket = directory.join("redis.sock");
        let mut limiter = Self {
            processes: Vec::new(),
        };
        let mut redis = Command::new(REDIS);
        redis
            .arg0("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"]);
        redis.arg(&socket);
        limiter.spawn(pod, &mut redis, &directory.join("redis.log"))?;
        eventually("Redis listens", START, || {
            ensure!(socket.exists(), "no socket yet");
            Ok(())
        })?;
        let mut service = Command::new(program);
        service
            .env("REDIS_SOCKET_TYPE", "unix")
            .env("REDIS_URL", &socket)
            .env("RUNTIME_ROOT", directory.join("runtime"))
            .env("RUNTIME_SUBDIRECTORY", "limits")
            .env("RUNTIME_WATCH_ROOT", "false")
            .env("USE_STATSD", "false")
            .env("GRPC_PORT", port.to_string())
            // `RateLimit-Limit`, `-Remaining` and `-Reset`, for the client.
            .env("LIMIT_RESPONSE_HEADERS_ENABLED", "true")
            .env("LOG_LEVEL", "warn");
        let log = directory.join("ratelimit.log");
        limiter.spawn(pod, &mut service, &log)?;
        let address = SocketAddr::new(pod.v4(), port);
        eventually("the rate limit service listens", START, || {
            pod.run(|| Ok(net::connect(address)?))
                .map(drop)
                .with_context(|| fs::read_to_string(&log).unwrap_or_default())
        })?;
        Ok(limiter)
    }

    fn spawn(&mut self, pod: &Pod, command: &mut Command, log: &Path) -> Result<()> {
        let output =
            File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let name = command.get_program().to_owned();
        let child = pod.enter(command)?.spawn();
        let child = child
            .with_context(|| format!("cannot start {}: run `cargo xtask setup`", name.display()))?;
        self.processes.push(child);
        Ok(())
    }
}

impl Drop for RateLimiter {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // It may have ended already; then there is nothing to end.
            drop(process.kill());
            drop(process.wait());
        }
    }
}
