//! The demo: a two-node cluster on this machine, Bookinfo in it, the mesh between its pods, and each claim checked.
//!
//! `cargo xtask demo` builds and runs it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people at a terminal"
)]

mod screen;
mod story;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use e2e::bookinfo::cluster::Cluster;

const USAGE: &str = "usage: demo [--keep] [--shell [POD]]";

/// The pod whose shell is opened where none is named: it may call what it likes.
const CLIENT: &str = "curl";

/// What happens after the story.
enum Ending {
    CleanUp,
    Keep,
    Shell(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ending = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => Ending::CleanUp,
        ["--keep"] => Ending::Keep,
        ["--shell"] => Ending::Shell(CLIENT.to_owned()),
        ["--shell", pod] => Ending::Shell((*pod).to_owned()),
        _ => bail!(USAGE),
    };
    e2e::lab::remove_on_interrupt().context("cannot watch for Ctrl-C")?;
    let mut cluster = Cluster::build()?;
    if let Ending::Shell(pod) = &ending {
        // Better said now than after the whole story.
        cluster.pod(pod)?;
    }
    story::tell(&mut cluster)?;
    match ending {
        Ending::CleanUp => {}
        Ending::Keep => keep(&cluster)?,
        Ending::Shell(pod) => {
            screen::note(&format!("a shell in {pod}; leave it to end the demo"));
            cluster.shell(&pod)?;
        }
    }
    story::clean_up(cluster)
}

/// Prints what can be tried and waits for Ctrl-C, which removes everything.
fn keep(cluster: &Cluster) -> Result<()> {
    screen::step("the cluster keeps running; Ctrl-C removes it");
    for line in cluster.suggestions()? {
        screen::note(&line);
    }
    loop {
        std::thread::park();
    }
}
