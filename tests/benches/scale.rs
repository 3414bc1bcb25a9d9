//! Many of everything: connections that stay, pods on a node, neighbours that make noise.
//!
//! Measurements and no tests, for they take the whole machine: `cargo bench --workspace --bench scale` runs one after the
//! other with the release build of the agent (`cargo xtask bench --list` makes it), `-- pods` those that are called so. Each
//! prints what is reached and fails if that is far more than on the day it was written; the goals stand in
//! `docs/performance.md`.

#![expect(clippy::print_stderr, reason = "what a person at the terminal is told")]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::bench::generator::{LoadServer, client, generate};
use e2e::bench::{cpu_time_us, resident};
use e2e::lab::{Lab, Pod, PodSpec, eventually};
use e2e::scenario::Pair;
use serde_json::Value;

type Measurement = fn() -> Result<()>;

/// What is measured, by name.
const ALL: [(&str, Measurement); 3] = [
    (
        "ten_thousand_idle_connections_cost_little",
        ten_thousand_idle_connections_cost_little,
    ),
    ("a_node_of_500_pods_is_armed", a_node_of_500_pods_is_armed),
    (
        "a_neighbour_does_not_make_others_slow",
        a_neighbour_does_not_make_others_slow,
    ),
];

fn main() -> Result<()> {
    // `cargo bench` adds an option of its own, `--bench`.
    let wanted = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| wanted.as_deref().is_none_or(|part| name.contains(part));
    for (name, measure) in ALL.into_iter().filter(|(name, _)| is_wanted(name)) {
        measure().with_context(|| name.replace('_', " "))?;
    }
    Ok(())
}

/// Resident memory of both agents, in bytes.
fn memory(lab: &Lab) -> Result<f64> {
    let agents = [lab.agent("a")?, lab.agent("b")?];
    agents.iter().map(|agent| resident(agent.pid())).sum()
}

/// A generator that runs in the background until it is dropped.
struct Noise(Child);

impl Noise {
    fn start(from: &Pod, to: &Pod, options: &[&str]) -> Result<Self> {
        let long = ["--warmup", "0s", "--duration", "10m"];
        let mut command = client(to.v4(), &[options, &long].concat())?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(from.enter(&mut command)?.spawn()?))
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn ten_thousand_idle_connections_cost_little() -> Result<()> {
    const CONNECTIONS: u32 = 10_000;
    let pair = Pair::new()?;
    for pod in [&pair.client, &pair.server] {
        let wide = ("net/ipv4/ip_local_port_range", "1024 65535");
        pod.netns().sysctl(&[wide])?;
    }
    let server = LoadServer::start(&pair.server)?;
    let warm = ["-p", "tcp", "-n", "100", "-c", "1"];
    generate(&pair.client, pair.server.v4(), &warm)?;
    let before = memory(&pair.lab)?;
    let held = Noise::start(
        &pair.client,
        &pair.server,
        &["-p", "idle", "-c", &CONNECTIONS.to_string()],
    )?;
    eventually("all connections are held", Duration::from_secs(60), || {
        let open = server.count("tcp", "open")?;
        ensure!(open >= CONNECTIONS.into(), "{open} are open");
        Ok(())
    })?;
    let each = (memory(&pair.lab)? - before) / f64::from(CONNECTIONS);
    drop(held);
    eprintln!("an idle connection costs {each:.0} bytes over both agents");
    ensure!(each < 32_000.0, "{each:.0} bytes for each over both agents");
    Ok(())
}

fn a_node_of_500_pods_is_armed() -> Result<()> {
    const PODS: usize = 500;
    let mut lab = Lab::two_nodes()?;
    for number in 0..PODS {
        drop(lab.pod("a", &format!("pod{number}"))?);
    }
    let begin = Instant::now();
    lab.start_agent("a")?;
    let agent = lab.agent("a")?;
    eventually("all pods are armed", Duration::from_secs(300), || {
        let answer = agent.get(15021, "/healthz/ready")?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    })?;
    let took = begin.elapsed();
    let before = cpu_time_us(agent.pid())?;
    // There is nothing to wait for but time itself.
    std::thread::sleep(Duration::from_secs(5));
    let used = (cpu_time_us(agent.pid())? - before) / 5.0;
    let memory = resident(agent.pid())? / 1e6;
    eprintln!("{PODS} pods armed in {took:?}, then {used:.0} us of CPU a second, {memory:.1} MB");
    ensure!(took < Duration::from_secs(150), "{took:?}");
    ensure!(used < 600_000.0, "{used:.0} us of CPU a second");
    Ok(())
}

/// What the probe sees in microseconds, of 99 in 100.
fn p99(from: &Pod, to: &Pod) -> Result<f64> {
    let options = [
        "-p",
        "tcp",
        "-c",
        "4",
        "--rate",
        "200",
        "--warmup",
        "1s",
        "--duration",
        "5s",
    ];
    let report: Value = generate(from, to.v4(), &options)?;
    report["latency_us"]["p99"].as_f64().context("no p99")
}

fn a_neighbour_does_not_make_others_slow() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let noisy = [lab.pod("a", "noisy-client")?, lab.pod("b", "noisy-server")?];
    let quiet = [lab.pod("a", "quiet-client")?, lab.pod("b", "quiet-server")?];
    let outside = |node: &str, name: &str| PodSpec::new(node, name).uncaptured();
    let plain = [
        lab.add(&outside("a", "plain-client"))?,
        lab.add(&outside("b", "plain-server"))?,
    ];
    lab.start()?;
    let mut servers = Vec::new();
    for pod in [&noisy[1], &quiet[1], &plain[1]] {
        servers.push(LoadServer::start(pod)?);
    }
    let probe = |pods: &[Pod; 2]| p99(&pods[0], &pods[1]);
    let alone = probe(&quiet)?;
    let make_noise = || -> Result<[Noise; 2]> {
        let [from, to] = &noisy;
        Ok([
            Noise::start(from, to, &["-p", "bulk", "-c", "1"])?,
            Noise::start(from, to, &["-p", "connect", "-c", "16"])?,
        ])
    };
    let loud = make_noise()?;
    let beside = probe(&quiet)?;
    // The same noise, and a probe that no agent touches: what the machine's own CPUs make of it.
    let control = probe(&plain)?;
    drop(loud);
    eprintln!(
        "p99 alone {alone:.0} us, beside noise {beside:.0} us, beside noise without the mesh {control:.0} us"
    );
    ensure!(
        beside < 5.0 * alone.max(control),
        "{beside:.0} us, {alone:.0} us alone, {control:.0} us without the mesh"
    );
    Ok(())
}
