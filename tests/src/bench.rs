//! Measuring the mesh against no mesh: the same load, the same nodes, in turns.
//!
//! Rates on a shared machine say little by themselves; what is reported are ratios between runs that follow
//! each other, their medians and their spread, and the proxies' own CPU time.

mod layer7;
mod load;

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::{Lab, Pod, PodSpec};
pub use layer7::{Layer7Bench, Layer7Comparison};
pub use load::{HTTP_PORT, LOADS, Load, Measured, Server};

/// Two pairs of pods across two nodes, one pair in the mesh.
pub struct Bench {
    lab: Lab,
    direct: [Pod; 2],
    mesh: [Pod; 2],
    _servers: [Server; 2],
}

/// What one kind of load did on both paths.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The load.
    pub load: Load,
    /// Without a mesh, run by run.
    pub direct: Vec<Measured>,
    /// Through two agents, run by run.
    pub mesh: Vec<Measured>,
    /// CPU microseconds of both agents per unit of work (request, GB), run by run.
    pub cpu_us: Vec<f64>,
}

impl Bench {
    /// Builds the lab and starts the agents.
    ///
    /// # Errors
    /// If the lab, a server or an agent does not come up.
    pub fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let direct = [
            lab.add(&PodSpec::new("a", "direct-client").uncaptured())?,
            lab.add(&PodSpec::new("b", "direct-server").uncaptured())?,
        ];
        let mesh = [lab.pod("a", "mesh-client")?, lab.pod("b", "mesh-server")?];
        for pod in direct.iter().chain(&mesh) {
            // Else the generator's own port reuse is charged to the data plane.
            pod.netns().sysctl(&[
                ("net/ipv4/tcp_max_tw_buckets", "0"),
                ("net/ipv4/ip_local_port_range", "1024 65535"),
            ])?;
        }
        let servers = [
            Server::nginx(&direct[1], lab.directory())?,
            Server::nginx(&mesh[1], lab.directory())?,
        ];
        lab.start()?;
        Ok(Self {
            lab,
            direct,
            mesh,
            _servers: servers,
        })
    }

    /// Runs `load` in turns, `rounds` times on each path, for `time` each.
    ///
    /// # Errors
    /// If a run fails or an agent is gone.
    pub fn compare(&self, load: Load, rounds: usize, time: Duration) -> Result<Comparison> {
        let mut comparison = Comparison {
            load,
            direct: Vec::new(),
            mesh: Vec::new(),
            cpu_us: Vec::new(),
        };
        for _round in 0..rounds {
            let [client, server] = &self.direct;
            comparison.direct.push(load.run(client, server, time)?);
            let [client, server] = &self.mesh;
            let before = self.cpu_time_us()?;
            let measured = load.run(client, server, time)?;
            comparison
                .cpu_us
                .push((self.cpu_time_us()? - before) / measured.work);
            comparison.mesh.push(measured);
        }
        Ok(comparison)
    }

    /// CPU time that both agents have used, all their threads together.
    ///
    /// # Errors
    /// If an agent is gone.
    pub fn cpu_time_us(&self) -> Result<f64> {
        ["a", "b"]
            .into_iter()
            .map(|node| cpu_time_us(self.lab.agent(node)?.pid()))
            .sum()
    }

    /// Resident memory of one agent in KiB.
    ///
    /// # Errors
    /// If the agent is gone.
    pub fn rss_kib(&self, node: &str) -> Result<u64> {
        self.lab.agent(node)?.rss_kib()
    }
}

/// What an agent takes that has nothing to do.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Pods that it has captured.
    pub pods: usize,
    /// Resident memory in KiB, its program's text included.
    pub rss_kib: u64,
    /// CPU time in microseconds for each second.
    pub cpu_us: f64,
}

impl Idle {
    /// Captures `pods` pods on one node and watches their agent for `time`.
    ///
    /// # Errors
    /// If the lab or an agent does not come up, or the agent is gone.
    pub fn measure(pods: usize, time: Duration) -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        for number in 0..pods {
            drop(lab.pod("a", &format!("idle{number}"))?);
        }
        lab.start()?;
        let agent = lab.agent("a")?;
        let before = cpu_time_us(agent.pid())?;
        // There is nothing to wait for but time itself.
        std::thread::sleep(time);
        let used = cpu_time_us(agent.pid())? - before;
        Ok(Self {
            pods,
            rss_kib: agent.rss_kib()?,
            cpu_us: used / time.as_secs_f64(),
        })
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "idle with {} pods: {} KiB resident, {:.0} us of CPU a second",
            self.pods, self.rss_kib, self.cpu_us
        )
    }
}

/// CPU time of a process in microseconds, from the scheduler's own account of each thread.
///
/// # Errors
/// If the process is gone.
pub fn cpu_time_us(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let path = thread
            .context("the process is gone")?
            .path()
            .join("schedstat");
        // A thread may end while we look at it; what it used then no longer matters.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        let on_cpu = text
            .split_whitespace()
            .next()
            .context("schedstat is empty")?;
        nanoseconds += on_cpu.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e3)
}

impl Comparison {
    /// Mesh rate to direct rate of each round: lowest, median, highest.
    pub fn ratio(&self) -> [f64; 3] {
        let rounds = self.mesh.iter().zip(&self.direct);
        spread(rounds.map(|(mesh, direct)| mesh.rate / direct.rate))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, median, high] = self.ratio();
        let rate = |runs: &[Measured]| spread(runs.iter().map(|run| run.rate))[1];
        let p50 = |runs: &[Measured]| spread(runs.iter().filter_map(|run| run.median_us))[1];
        write!(
            f,
            "{:<21} direct {:>9.1} mesh {:>9.1}  ratio {median:.2} ({low:.2}-{high:.2})  cpu {:>9.1} us",
            self.load.name(),
            rate(&self.direct),
            rate(&self.mesh),
            spread(self.cpu_us.iter().copied())[1],
        )?;
        if self.load != Load::Stream {
            write!(
                f,
                "  p50 {:.0} -> {:.0} us",
                p50(&self.direct),
                p50(&self.mesh)
            )?;
        }
        Ok(())
    }
}

/// Lowest, median and highest; zeros of nothing.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(low), Some(median), Some(high)) => [*low, *median, *high],
        _ => [0.0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are picked, not computed")]
    fn the_spread_has_its_median_in_the_middle() {
        assert_eq!(spread([3.0, 1.0, 2.0].into_iter()), [1.0, 2.0, 3.0]);
        assert_eq!(spread([].into_iter()), [0.0; 3]);
    }
}
