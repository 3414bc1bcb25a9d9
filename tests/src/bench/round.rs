//! One run of one load on one plane, and all of them in turns.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, End};
use super::load::{Kind, Load};
use super::machine::{Account, cpu_time_us, resident};
use super::plane::Plane;
use super::read::Measured;
use super::servers::Program;
use crate::lab::culvert;

/// How long a generator may take beyond its time.
const GRACE: Duration = Duration::from_secs(60);
/// How often a running generator is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How often policies change where they do.
const POLICY_EVERY: Duration = Duration::from_millis(200);
/// Share of the machine that others may use before a run is made again.
const DISTURBED: f64 = 0.10;
/// How often a run is made at most.
const ATTEMPTS: usize = 3;

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Only runs of one invocation may be compared.
    pub invocation: String,
    /// Name of the plane.
    pub plane: String,
    /// Name of the load.
    pub load: String,
    /// From 0 on: those of one round were made right after each other.
    pub round: usize,
    /// In the load's unit.
    pub rate: f64,
    /// Requests, GB or connections.
    pub work: f64,
    /// Requests that failed.
    pub errors: u64,
    /// Median latency in microseconds.
    pub p50_us: Option<f64>,
    /// Of 99 in 100.
    pub p99_us: Option<f64>,
    /// Of 999 in 1,000.
    pub p999_us: Option<f64>,
    /// Share of requests and the latency that it does not exceed.
    pub curve: Vec<(f64, f64)>,
    /// CPU time of the plane's processes, in microseconds; 0 where there are none.
    pub proxy_cpu_us: f64,
    /// CPU time of the whole machine.
    pub machine_cpu_us: f64,
    /// Share of the machine that neither the benchmark nor interrupts used.
    pub others: f64,
    /// Share of the machine that was busy at all.
    pub busy: f64,
    /// Resident memory of the plane's processes after it, in bytes.
    pub resident: f64,
    /// What each held connection added to that, in bytes.
    pub bytes_per_connection: Option<f64>,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Turns {
    /// In the order of the report.
    pub loads: Vec<Load>,
    /// In turns.
    pub planes: Vec<Plane>,
    /// How often.
    pub rounds: usize,
    /// How long each.
    pub time: Duration,
    /// Name of this invocation.
    pub invocation: String,
}

impl Turns {
    /// Runs all of it: each load on plane after plane, round after round, what is held idle first and once, because
    /// memory that other loads made a heap grow to would hide what connections cost. `tell` hears of each run.
    ///
    /// # Errors
    /// If a run fails.
    pub fn run(&self, cluster: &Cluster, mut tell: impl FnMut(&Run)) -> Result<Vec<Run>> {
        let is_idle = |load: &&Load| matches!(load.kind, Kind::Idle { .. });
        let (idle, others): (Vec<&Load>, Vec<&Load>) = self.loads.iter().partition(is_idle);
        let mut runs = Vec::new();
        for load in idle.into_iter().chain(others) {
            let rounds = if is_idle(&load) { 1 } else { self.rounds };
            for round in 0..rounds {
                for plane in self.planes.iter().filter(|plane| load.suits(plane)) {
                    let run = self.undisturbed(cluster, load, plane, round);
                    let run = run.with_context(|| format!("{} on {plane}", load.name))?;
                    tell(&run);
                    runs.push(run);
                }
            }
        }
        Ok(runs)
    }

    /// Makes a run again if others used the machine meanwhile, and keeps the one that was disturbed least.
    fn undisturbed(
        &self,
        cluster: &Cluster,
        load: &Load,
        plane: &Plane,
        round: usize,
    ) -> Result<Run> {
        let end = cluster.end(plane)?;
        let mut best: Option<Run> = None;
        for _attempt in 0..ATTEMPTS {
            let mut run = once(cluster, load, end, self.time)?;
            run.invocation.clone_from(&self.invocation);
            run.round = round;
            let is_better = best.as_ref().is_none_or(|best| run.others < best.others);
            if is_better {
                best = Some(run);
            }
            // Connections that are held grow a heap: a second time would measure less.
            let is_final = matches!(load.kind, Kind::Idle { .. });
            if is_final || best.as_ref().is_some_and(|best| best.others < DISTURBED) {
                break;
            }
        }
        best.context("no run was made")
    }
}

fn once(cluster: &Cluster, load: &Load, end: &End, time: Duration) -> Result<Run> {
    let _stream_server = match load.kind {
        Kind::Stream { .. } => Some(Program::iperf(&end.server)?),
        _ => None,
    };
    let proxies = cluster.proxies(end)?;
    let spent = || {
        proxies
            .iter()
            .map(|pid| cpu_time_us(*pid))
            .sum::<Result<f64>>()
    };
    let memory = || {
        proxies
            .iter()
            .map(|pid| resident(*pid))
            .sum::<Result<f64>>()
    };
    let (memory_before, spent_before) = (memory()?, spent()?);
    let (account_before, begin) = (Account::now()?, Instant::now());
    let mut generator = Generator::start(load, end, time)?;
    let mut held = None;
    match load.kind {
        Kind::Idle { .. } => {
            generator.wait_open()?;
            held = Some(memory()? - memory_before);
        }
        Kind::Paced {
            policies_change: true,
            ..
        } => {
            let mut turn = 0;
            while !generator.ended_within(POLICY_EVERY)? {
                cluster.change_policy(end, turn)?;
                turn += 1;
            }
            cluster.drop_policy(end)?;
        }
        _ => {}
    }
    let measured = generator.finish(time + GRACE)?;
    let used = Account::now()?.since(account_before);
    let available = begin.elapsed().as_secs_f64() * 1e6 * cpus();
    Ok(Run {
        plane: end.plane.name().to_owned(),
        load: load.name.to_owned(),
        rate: measured.rate,
        work: measured.work,
        errors: measured.errors,
        p50_us: measured.p50_us,
        p99_us: measured.p99_us,
        p999_us: measured.p999_us,
        curve: measured.curve,
        proxy_cpu_us: spent()? - spent_before,
        machine_cpu_us: used.all,
        others: used.others() / available,
        busy: used.all / available,
        resident: memory()?,
        bytes_per_connection: held
            .filter(|_| !proxies.is_empty() && measured.work > 0.0)
            .map(|held| held / measured.work),
        ..Run::default()
    })
}

#[expect(clippy::cast_precision_loss, reason = "no machine has that many")]
fn cpus() -> f64 {
    thread::available_parallelism().map_or(1, usize::from) as f64
}

/// A load generator that runs.
struct Generator {
    child: Child,
    line: String,
    output: super::load::Output,
    reading: Option<thread::JoinHandle<String>>,
}

impl Generator {
    fn start(load: &Load, end: &End, time: Duration) -> Result<Self> {
        let path = culvert()?.display().to_string();
        let (words, output) = load.command(&path, &end.address.to_string(), time);
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = end.client.enter(&mut command)?.spawn();
        let missing = || format!("{program} is missing: see `cargo xtask bench --help`");
        let mut child = child.with_context(missing)?;
        // Read while it runs, so that it never waits for a reader.
        let stdout = child.stdout.take().context("no output")?;
        let reading = thread::spawn(move || {
            let mut text = String::new();
            // What is cut off is no report, and is refused as such.
            drop(BufReader::new(stdout).read_to_string(&mut text));
            text
        });
        Ok(Self {
            child,
            line: words.join(" "),
            output,
            reading: Some(reading),
        })
    }

    /// Waits until it says that all its connections are open.
    fn wait_open(&mut self) -> Result<()> {
        let stderr = self.child.stderr.take().context("no messages")?;
        let mut heard = String::new();
        let mut lines = BufReader::new(stderr);
        while lines.read_line(&mut heard)? > 0 {
            if heard.contains("all connections are open") {
                self.child.stderr = Some(lines.into_inner());
                return Ok(());
            }
        }
        bail!("{} failed: {heard}", self.line)
    }

    /// Whether it has ended, looked at for as long as `time`.
    fn ended_within(&mut self, time: Duration) -> Result<bool> {
        let deadline = Instant::now() + time;
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for its end and reads what it printed.
    fn finish(mut self, limit: Duration) -> Result<Measured> {
        ensure!(self.ended_within(limit)?, "{} does not end", self.line);
        let status = self.child.wait()?;
        let reading = self.reading.take().context("read already")?;
        let text = reading
            .join()
            .map_err(|_panic| anyhow::anyhow!("the reader panicked"))?;
        let measured = Measured::read(&text, self.output);
        if let Ok(measured) = measured
            && (status.success() || measured.errors > 0)
        {
            return Ok(measured);
        }
        let mut complaint = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut complaint)?;
        }
        bail!("{} failed ({status}): {text}{complaint}", self.line)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
