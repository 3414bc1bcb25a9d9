//! Rollout: each node's agent is replaced while pods open connections and hold others. What `docs/operations.md` promises of
//! an upgrade, counted.

use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::lab::{Lab, Pod, eventually};
use e2e::net::serve::{Server, echo};
use e2e::net::{self, sys};
use e2e::scenario::echoes;

const PORTS: [u16; 2] = [7000, 7001];
const SECRET: &str = "nobody on the link may read this";
/// New connections of each kind, between nodes and within one, that have to be made while agents are replaced.
const CONNECTIONS: usize = 10_000;
/// Replacements there are at least, and at most.
const REPLACEMENTS: std::ops::RangeInclusive<usize> = 6..=14;
const CALLERS_BETWEEN: usize = 12;
const CALLERS_WITHIN: usize = 6;
/// What a caller does between two connections. It keeps ports in `TIME_WAIT` from running out, too.
const THINKING: Duration = Duration::from_millis(10);
/// What agents are given for their end.
const DRAIN: Duration = Duration::from_secs(6);
/// Before the end of that, new connections are not taken any more, and what is under way is asked to end.
const CLOSING: Duration = Duration::from_secs(2);
/// Connections of each kind that are held.
const HELD: usize = 8;
/// How long those last that end by themselves.
const HELD_FOR: Duration = Duration::from_secs(3);
/// From this on a connection has waited for its SYN to be sent again.
const WAITED: Duration = Duration::from_millis(900);
/// What two busy cores may add to any of these times.
const SLACK: Duration = Duration::from_secs(2);

/// What became of the connections of some callers.
#[derive(Debug, Default)]
struct Tally {
    took: Vec<Duration>,
    failed: Vec<Failure>,
}

/// A connection that failed: whose, and how.
#[derive(Debug)]
struct Failure {
    from: Option<SocketAddr>,
    how: String,
}

impl Tally {
    fn call(&mut self, to: SocketAddr) {
        let begun = Instant::now();
        let mut from = None;
        let called = net::connect(to).map_err(anyhow::Error::from);
        let called = called.and_then(|stream| {
            from = stream.local_addr().ok();
            echoes(&stream, SECRET)
        });
        match called {
            Ok(()) => self.took.push(begun.elapsed()),
            Err(error) => {
                let (now, after) = (jiff::Timestamp::now(), begun.elapsed());
                let how = format!("at {now}, to {to}, after {after:.1?}: {error:#}");
                self.failed.push(Failure { from, how });
            }
        }
    }

    /// Connections in a figure for people.
    fn told(&self) -> String {
        let waited = self.took.iter().filter(|took| **took >= WAITED).count();
        format!(
            "{} connections, {} failed, {waited} waited for the next agent, the longest took {:.1?}",
            self.took.len() + self.failed.len(),
            self.failed.len(),
            self.took.iter().max().copied().unwrap_or_default(),
        )
    }
}

/// Callers that open one connection after the other until they are told to end.
struct Callers {
    is_over: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Callers {
    fn start(client: &Pod, targets: [SocketAddr; 4], count: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicUsize::new(0));
        let threads = (0..count).map(|number| {
            let to = targets[number % targets.len()];
            let (client, is_over, made) = (client.clone(), Arc::clone(&is_over), Arc::clone(&made));
            thread::spawn(move || {
                let mut tally = Tally::default();
                let calling = client.run(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        tally.call(to);
                        made.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(THINKING);
                    }
                    Ok(())
                });
                tally.failed.extend(calling.err().map(|error| Failure {
                    from: None,
                    how: format!("{error:#}"),
                }));
                tally
            })
        });
        let threads = threads.collect();
        Self {
            is_over,
            made,
            threads,
        }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    fn end(self) -> Result<Tally> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for thread in self.threads {
            let one = thread
                .join()
                .map_err(|_panic| anyhow!("a caller panicked"))?;
            all.took.extend(one.took);
            all.failed.extend(one.failed);
        }
        Ok(all)
    }
}

/// A connection that is used all the time, until it is over or breaks: how long it lasted, and why it ended if it broke.
fn hold(
    stream: TcpStream,
    is_over: impl Fn() -> bool + Send + 'static,
) -> JoinHandle<(Duration, Result<()>)> {
    thread::spawn(move || {
        let begun = Instant::now();
        let used = || -> Result<()> {
            while !is_over() {
                echoes(&stream, SECRET)?;
                thread::sleep(THINKING);
            }
            stream.shutdown(Shutdown::Write)?;
            ensure!(
                net::read_to_end(&stream)?.is_empty(),
                "more came than was sent"
            );
            Ok(())
        };
        let how = used();
        (begun.elapsed(), how)
    })
}

fn held<T>(thread: JoinHandle<T>) -> Result<T> {
    thread
        .join()
        .map_err(|_panic| anyhow!("who held a connection panicked"))
}

/// What became of connections through an agent that was told to end.
struct Ended {
    /// From being told to its end.
    agent: Duration,
    /// From being told until a connection was cut that would not end.
    endless: Duration,
}

/// Two nodes: a client with a neighbour on one, a server on the other.
struct Mesh {
    // Dropped before the lab, which removes their namespaces.
    _servers: Vec<Server>,
    client: Pod,
    neighbour: Pod,
    server: Pod,
    lab: Lab,
}

impl Mesh {
    fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        lab.agent_options(&["--drain", &DRAIN.as_secs().to_string()]);
        let (client, neighbour) = (lab.pod("a", "client")?, lab.pod("a", "neighbour")?);
        let server = lab.pod("b", "server")?;
        lab.start()?;
        let pods = [&neighbour, &server].into_iter();
        let places = pods.flat_map(|pod| PORTS.map(|port| (pod, port)));
        let servers = places
            .map(|(pod, port)| Server::start(pod, Ipv6Addr::UNSPECIFIED, port, echo))
            .collect::<Result<_>>()?;
        Ok(Self {
            _servers: servers,
            client,
            neighbour,
            server,
            lab,
        })
    }

    fn open(&self, to: SocketAddr) -> Result<TcpStream> {
        self.client.run(|| {
            let stream = net::connect(to)?;
            echoes(&stream, "hello")?;
            Ok(stream)
        })
    }

    /// Ends of connections that the kernel carries now.
    fn live(&self) -> Result<usize> {
        let flows = self.lab.agent("a")?.pins().join("maps").join("FLOWS");
        sys::map_keys(&flows)?.context("a map with keys")
    }

    /// A connection to the neighbour that the kernel carries: the first one asks the agent.
    fn straight(&self, to: SocketAddr) -> Result<TcpStream> {
        eventually("the kernel carries it", Duration::from_secs(5), || {
            let before = self.live()?;
            let stream = self.open(to)?;
            ensure!(self.live()? == before + 2, "the proxy carries it");
            Ok(stream)
        })
    }

    /// Ends the agent of a node as a `DaemonSet` does, with connections under way through it, and starts the next one.
    fn replace(&mut self, node: &str) -> Result<Ended> {
        let to = ways(&self.server)[0];
        let until = Instant::now() + HELD_FOR;
        let ending = (0..HELD).map(|_| Ok(hold(self.open(to)?, move || Instant::now() >= until)));
        let ending: Vec<_> = ending.collect::<Result<_>>()?;
        let endless = self.open(to)?;
        let agent = self.lab.take_agent(node)?;
        let told = Instant::now();
        let endless = hold(endless, || false);
        agent.stop()?;
        let ended = told.elapsed();
        for (number, one) in ending.into_iter().enumerate() {
            let (lasted, how) = held(one)?;
            how.with_context(|| format!("connection {number} was cut after {lasted:.1?}"))?;
        }
        let (lasted, how) = held(endless)?;
        ensure!(how.is_err(), "the endless one ended");
        // Without any agent for a moment: an image takes time to start. Nothing tells that it is over.
        thread::sleep(Duration::from_millis(500));
        self.lab.start_agent(node)?;
        self.lab.agent(node)?.wait_ready()?;
        Ok(Ended {
            agent: ended,
            endless: lasted,
        })
    }

    /// Enough connections were made, and none failed.
    fn bears(&self, what: &str, tally: &Tally) -> Result<()> {
        for Failure { from, how } in &tally.failed {
            tell(&format!("{what}, from {from:?}: {how}"));
        }
        for line in self.log_of(&tally.failed)? {
            tell(&format!("said of them: {line}"));
        }
        ensure!(tally.failed.is_empty(), "{what}: {}", tally.told());
        ensure!(tally.took.len() >= CONNECTIONS, "{what}: {}", tally.told());
        Ok(())
    }

    /// What the agents say of connections that failed.
    fn log_of(&self, failed: &[Failure]) -> Result<Vec<String>> {
        let sources = failed.iter().filter_map(|one| one.from);
        let sources: Vec<_> = sources.map(|one| format!("src.addr={one} ")).collect();
        let mut found = Vec::new();
        for node in ["a", "b"] {
            let log = self.lab.agent(node)?.log()?;
            let of_them = |line: &&str| sources.iter().any(|source| line.contains(source));
            let lines = log.lines().filter(of_them);
            found.extend(lines.map(|line| format!("{node}: {line}")));
        }
        Ok(found)
    }
}

/// Both ports of a pod in both families.
fn ways(pod: &Pod) -> [SocketAddr; 4] {
    let [one, other] = PORTS;
    [
        SocketAddr::new(pod.v4(), one),
        SocketAddr::new(pod.v6(), one),
        SocketAddr::new(pod.v4(), other),
        SocketAddr::new(pod.v6(), other),
    ]
}

/// Tells a person the figures, with `--nocapture`.
#[expect(clippy::print_stderr, reason = "those of docs/operations.md")]
fn tell(line: &str) {
    eprintln!("{line}");
}

#[test]
fn twenty_thousand_connections_are_opened_while_agents_are_replaced() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let direct = (0..HELD).map(|number| {
        let stream = mesh.straight(ways(&mesh.neighbour)[number % 4])?;
        let is_over = Arc::clone(&is_over);
        Ok(hold(stream, move || is_over.load(Ordering::Relaxed)))
    });
    let direct: Vec<_> = direct.collect::<Result<_>>()?;
    let sniffer = mesh.lab.sniff()?;
    let between = Callers::start(&mesh.client, ways(&mesh.server), CALLERS_BETWEEN);
    let within = Callers::start(&mesh.client, ways(&mesh.neighbour), CALLERS_WITHIN);

    let mut ends = Vec::new();
    for node in ["a", "b"].into_iter().cycle().take(*REPLACEMENTS.end()) {
        let left = [&between, &within]
            .iter()
            .any(|one| one.made() < CONNECTIONS);
        if ends.len() >= *REPLACEMENTS.start() && !left {
            break;
        }
        ends.push(mesh.replace(node).with_context(|| format!("node {node}"))?);
    }

    let (between, within) = (between.end()?, within.end()?);
    is_over.store(true, Ordering::Relaxed);
    let traffic = sniffer.stop()?;
    let direct = direct.into_iter().map(held).collect::<Result<Vec<_>>>()?;
    let longest = |of: fn(&Ended) -> Duration| ends.iter().map(of).max().unwrap_or_default();
    let shortest = ends.iter().map(|one| one.endless).min().unwrap_or_default();
    tell(&format!(
        "{} agents were replaced, with --drain {}",
        ends.len(),
        DRAIN.as_secs()
    ));
    tell(&format!("between nodes: {}", between.told()));
    tell(&format!("within a node: {}", within.told()));
    let cut = direct.iter().filter(|(_, how)| how.is_err()).count();
    tell(&format!("held by the kernel: {HELD}, {cut} cut"));
    tell(&format!(
        "held by the proxy: {} of {HELD_FOR:?} ended by themselves; those that do not end were cut after {shortest:.1?} to {:.1?}; \
         the agents ended after {:.1?} at most",
        ends.len() * HELD,
        longest(|one| one.endless),
        longest(|one| one.agent),
    ));

    ensure!(
        !traffic.contains(SECRET.as_bytes()),
        "plaintext crossed the link"
    );
    mesh.bears("between nodes", &between)?;
    mesh.bears("within a node", &within)?;
    for (lasted, how) in direct {
        how.with_context(|| format!("the kernel's connection was cut after {lasted:.1?}"))?;
    }
    let grace = DRAIN.saturating_sub(CLOSING)..=DRAIN + SLACK;
    for one in &ends {
        ensure!(grace.contains(&one.endless), "cut after {:?}", one.endless);
        ensure!(one.agent <= *grace.end(), "ended after {:?}", one.agent);
    }
    ensure!(
        traffic.tls_records_to(15008) > CONNECTIONS,
        "nothing crossed it"
    );
    Ok(())
}
