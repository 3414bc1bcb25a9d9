//! `cargo xtask bench`: across nodes, L4 through two agents against no mesh at all, and L7 against two Envoys.

#![expect(clippy::print_stdout, reason = "a tool for people at a terminal")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::bench::{Bench, Idle, LOADS, Layer7Bench, Load};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| match arguments.next() {
        Some(text) => text
            .parse()
            .with_context(|| format!("`{text}` is no number")),
        None => Ok(default),
    };
    let rounds = usize::try_from(number(5)?)?;
    let time = Duration::from_secs(number(4)?);
    let only = arguments.next().unwrap_or_default();
    let is_wanted = |name: &str| name.contains(&*only);
    if is_wanted("idle") {
        println!("{}", Idle::measure(10, time)?);
    }
    let bench = Bench::new()?;
    println!(
        "{rounds} rounds of {time:?}, direct and mesh in turns; medians, ratio (lowest-highest)"
    );
    for load in LOADS.into_iter().filter(|load| is_wanted(load.name())) {
        println!("{}", bench.compare(load, rounds, time)?);
    }
    println!(
        "after load: agent a {} KiB, agent b {} KiB resident",
        bench.rss_kib("a")?,
        bench.rss_kib("b")?
    );
    drop(bench);
    if !is_wanted("L7") {
        return Ok(());
    }
    println!(
        "\nL7: route 90/10 and AuthorizationPolicy, {rounds} rounds of {time:?} in turns; medians"
    );
    let bench = Layer7Bench::new()?;
    for load in [Load::Keepalive, Load::Single] {
        println!("{}:\n{}", load.name(), bench.compare(load, rounds, time)?);
    }
    Ok(())
}
