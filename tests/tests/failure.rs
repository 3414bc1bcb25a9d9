//! Failure: what happens when the agent dies or somebody tampers with what it has set up. Never plaintext.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::lab::{Pod, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::scenario::{Pair, echoes};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";
/// What "at once" means to an application.
const AT_ONCE: Duration = Duration::from_millis(500);

fn try_to_reach(client: &Pod, to: SocketAddr) -> Result<()> {
    client.run(|| echoes(&net::connect(to)?, SECRET))
}

/// Waits until a dead agent's listeners have followed it. The kernel winds a ring up after its process has been reaped,
/// and a SYN that falls between is dropped and sent again a second later, by when somebody may answer.
fn nobody_listens_any_more(pair: &Pair) -> Result<()> {
    const LISTEN: &str = "0A";
    let is_agents = |line: &str| {
        let mut fields = line.split_whitespace();
        let port = fields.nth(1).and_then(|local| local.rsplit_once(':'));
        let state = fields.nth(1);
        state == Some(LISTEN) && port.is_some_and(|(_, port)| port != format!("{PORT:04X}"))
    };
    let listeners = |pod: &Pod| {
        pod.run(|| {
            let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
            let tables = tables.map(fs::read_to_string);
            let mut count = 0;
            for table in tables {
                count += table?.lines().filter(|line| is_agents(line)).count();
            }
            Ok(count)
        })
    };
    eventually(
        "one agent's listeners are gone",
        Duration::from_secs(5),
        || {
            let left = [listeners(&pair.client)?, listeners(&pair.server)?];
            let gone = left.iter().filter(|count| **count == 0).count();
            ensure!(gone == 1, "{left:?} listeners in client and server");
            Ok(())
        },
    )
}

/// Kills the agent of a node and checks that nothing gets through, or out, until it is back.
fn survives_the_death_of(node: &str) -> Result<()> {
    let mut pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let targets =
        [pair.server.v4(), pair.server.v6()].map(|address| SocketAddr::new(address, PORT));
    for to in targets {
        try_to_reach(&pair.client, to)?;
    }
    let live = pair.client.run(|| Ok(net::connect(targets[0])?))?;
    echoes(&live, "before")?;

    let sniffer = pair.lab.sniff()?;
    pair.lab.take_agent(node)?.kill()?;
    nobody_listens_any_more(&pair)?;
    ensure!(
        echoes(&live, SECRET).is_err(),
        "a connection outlived the agent that carried it"
    );
    for to in targets {
        let begun = Instant::now();
        ensure!(
            try_to_reach(&pair.client, to).is_err(),
            "{to} was reached without an agent"
        );
        let took = begun.elapsed();
        ensure!(took < AT_ONCE, "the refusal of {to} took {took:?}");
    }
    let traffic = sniffer.stop()?;
    ensure!(
        !traffic.contains(SECRET.as_bytes()),
        "with the agent dead, plaintext crossed the link"
    );

    pair.lab.start_agent(node)?;
    pair.lab.agent(node)?.wait_ready()?;
    for to in targets {
        eventually("connections work again", Duration::from_secs(5), || {
            pair.encrypted(SECRET, || try_to_reach(&pair.client, to))
        })?;
    }
    Ok(())
}

#[test]
fn the_death_of_the_clients_agent_fails_closed_and_a_restart_recovers() -> Result<()> {
    survives_the_death_of("a")
}

#[test]
fn the_death_of_the_servers_agent_fails_closed_and_a_restart_recovers() -> Result<()> {
    survives_the_death_of("b")
}

/// As when the `DaemonSet`'s pods are replaced one by one: each agent ends in good order, and the next one starts after it.
#[test]
fn no_connection_fails_while_agents_are_restarted() -> Result<()> {
    const CALLERS: usize = 8;
    let mut pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let targets = [pair.server.v4(), pair.server.v6()].map(|ip| SocketAddr::new(ip, PORT));
    let sniffer = pair.lab.sniff()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (client, is_over) = (pair.client.clone(), Arc::clone(&is_over));
            let to = targets[number % targets.len()];
            thread::spawn(move || {
                let mut made = 0;
                while !is_over.load(Ordering::Relaxed) {
                    try_to_reach(&client, to)
                        .with_context(|| format!("after {made} connections"))?;
                    made += 1;
                }
                Ok(made)
            })
        })
        .collect();
    for node in ["a", "b", "a"] {
        pair.lab.take_agent(node)?.stop()?;
        // Without any agent for a moment: an image takes time to start. Nothing tells that it is over.
        thread::sleep(Duration::from_millis(500));
        pair.lab.start_agent(node)?;
        pair.lab.agent(node)?.wait_ready()?;
        try_to_reach(&pair.client, targets[0])?;
    }
    is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        let made: Result<usize> = caller
            .join()
            .map_err(|_panic| anyhow!("a caller panicked"))?;
        ensure!(made? > 0, "a caller made no connection");
    }
    ensure!(
        !sniffer.stop()?.contains(SECRET.as_bytes()),
        "plaintext crossed the link"
    );
    Ok(())
}

#[test]
fn plaintext_from_outside_is_refused_while_the_servers_agent_is_dead() -> Result<()> {
    let mut pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let to = SocketAddr::new(pair.server.v4(), PORT);
    let node = Arc::clone(pair.lab.node("a")?.netns());
    node.run(|| echoes(&net::connect(to)?, "permissive"))?;
    pair.lab.take_agent("b")?.kill()?;
    let passes = node.run(|| echoes(&net::connect(to)?, "nobody judges this"));
    ensure!(
        passes.is_err(),
        "a connection that no agent judged reached the application"
    );
    pair.lab.start_agent("b")?;
    pair.lab.agent("b")?.wait_ready()?;
    node.run(|| echoes(&net::connect(to)?, "permissive again"))
}

/// Damages the client's namespace and waits for the repair.
fn is_repaired(
    damage: impl Fn(&Pod) -> Result<usize>,
    intact: impl Fn(&Pod) -> Result<String>,
) -> Result<()> {
    let pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let to = SocketAddr::new(pair.server.v4(), PORT);
    try_to_reach(&pair.client, to)?;
    let before = intact(&pair.client)?;
    let repairs = || {
        pair.lab
            .agent("a")?
            .metric("culvert_capture_repairs_total", &[])
    };
    let counted = repairs()?;
    let sniffer = pair.lab.sniff()?;
    let damaged = damage(&pair.client)?;
    ensure!(damaged > 0, "there was nothing to damage");
    eventually("it is repaired", Duration::from_secs(10), || {
        // Whatever an attempt meets in the meantime, it must not be the open road.
        drop(try_to_reach(&pair.client, to));
        let now = intact(&pair.client)?;
        ensure!(now == before, "before:\n{before}\nnow:\n{now}");
        Ok(())
    })?;
    eventually("the repair is counted", Duration::from_secs(5), || {
        ensure!(repairs()? > counted, "{} repairs", repairs()?);
        Ok(())
    })?;
    try_to_reach(&pair.client, to)?;
    ensure!(
        !sniffer.stop()?.contains(SECRET.as_bytes()),
        "plaintext crossed the link during the repair"
    );
    Ok(())
}

/// Deletes the rules for captured packets whose line contains a word; there are others, and they fail closed.
fn deleted_rules_are_put_back(word: &str) -> Result<()> {
    let rules = |pod: &Pod| {
        Ok([
            pod.netns().ip(&["-4", "rule"])?,
            pod.netns().ip(&["-6", "rule"])?,
        ]
        .concat())
    };
    let damage = |pod: &Pod| {
        let mut deleted = 0;
        for family in ["-4", "-6"] {
            let listing = pod.netns().ip(&[family, "rule"])?;
            let ours = listing
                .lines()
                .filter(|line| line.contains("fwmark") && line.contains(word));
            for rule in ours {
                let preference = rule.split(':').next().context("a preference")?;
                pod.netns()
                    .ip(&[family, "rule", "del", "pref", preference])?;
                deleted += 1;
            }
        }
        Ok(deleted)
    };
    is_repaired(damage, rules)
}

#[test]
fn the_rules_of_capture_are_put_back() -> Result<()> {
    deleted_rules_are_put_back("lookup")
}

#[test]
fn the_rules_behind_capture_are_put_back() -> Result<()> {
    deleted_rules_are_put_back("unreachable")
}

/// The default routes of a namespace that lead to its loopback, by table.
fn loopback_routes(pod: &Pod) -> Result<Vec<(&'static str, String)>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let routes = pod
            .netns()
            .ip(&[family, "route", "show", "table", "all", "dev", "lo"])?;
        found.extend(
            routes
                .lines()
                .filter(|line| line.starts_with("local default"))
                .map(|line| (family, line.to_owned())),
        );
    }
    Ok(found)
}

#[test]
fn deleted_routes_are_put_back() -> Result<()> {
    let damage = |pod: &Pod| {
        let routes = loopback_routes(pod)?;
        for (family, line) in &routes {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| *word != "table")
                .skip(1);
            let table = words.next().context("a table")?;
            pod.netns().ip(&[
                family, "route", "del", "local", "default", "dev", "lo", "table", table,
            ])?;
        }
        Ok(routes.len())
    };
    is_repaired(damage, |pod| Ok(format!("{:?}", loopback_routes(pod)?)))
}

#[test]
fn a_wrong_route_in_the_captured_table_does_not_open_the_road() -> Result<()> {
    let damage = |pod: &Pod| {
        let routes = loopback_routes(pod)?;
        for (family, line) in &routes {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| *word != "table")
                .skip(1);
            let table = words.next().context("a table")?;
            let netns = pod.netns();
            // In one step: between two the agent may repair.
            netns.ip(&[
                family,
                "route",
                "replace",
                "blackhole",
                "default",
                "table",
                table,
            ])?;
        }
        Ok(routes.len())
    };
    is_repaired(damage, |pod| Ok(format!("{:?}", loopback_routes(pod)?)))
}
