//! `cargo xtask`: set up, build, try, test and check Culvert.
//!
//! Knows no other crate of the workspace, because it must build when they do not.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for people at a terminal"
)]

mod bench;
mod budget;
mod ci;
mod cluster;
mod compile;
mod demo;
mod fuzz;
mod image;
mod setup;
mod shell;
mod suite;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask <command>

  setup              install what building and testing need; says what it does, may be repeated
  build [--release]  compile the eBPF programs, then the workspace
  demo [--keep] [--shell [POD]]
                     two nodes, Bookinfo and the mesh between them, on this machine
  cluster            a Kubernetes API server, its controllers and an istiod, on loopback, until interrupted
  test [FILTER]      unit tests, then every end-to-end scenario (whose name contains FILTER)
  fuzz [SECONDS]     every fuzz target, 10 seconds each unless told otherwise
  image              the container image, from scratch, as target/image/culvert-VERSION.tar
  bench [ROUNDS [SECONDS [NAME]]] [--quick] [--load NAME] [--plane NAME] [--peer NAME=COMMAND] [--help]
                     rates, latencies, CPU and memory beside no mesh and beside others, in turns, and a report of it
  budget             instructions that policy, routes and tunnels cost, against their budgets
  tidy               layers, file headers, file sizes, words
  check              formatting, tidy and lints
  ci                 check, fuzz, budget and test: what .ci/run does

Every command does the set-up that it needs.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    match words {
        ["setup"] => {
            setup::run()?;
            setup::for_tests()?;
        }
        ["build"] => compile::run(compile::Profile::Dev).map(drop)?,
        ["build", "--release"] => compile::run(compile::Profile::Release).map(drop)?,
        ["demo", options @ ..] => return demo::run(options),
        ["cluster"] => return cluster::run(),
        ["test"] => suite::run(None)?,
        ["test", filter] if !filter.starts_with('-') => suite::run(Some(filter))?,
        ["fuzz"] => fuzz::run(fuzz::DEFAULT_SECONDS)?,
        ["fuzz", seconds] if seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0) => {
            fuzz::run(seconds.parse()?)?;
        }
        ["bench", options @ ..] => return bench::run(options),
        ["image"] => image::run()?,
        ["budget"] => budget::run()?,
        ["tidy"] => tidy::run()?,
        ["check"] => ci::check()?,
        ["ci"] => ci::run()?,
        ["help" | "--help" | "-h"] => println!("{USAGE}"),
        [] => return Ok(refuse("no command given")),
        [command, ..] => {
            return Ok(refuse(&format!(
                "`{command}` is no command, or has no such option"
            )));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Wrong usage is exit code 2, as in the culvert program itself.
fn refuse(why: &str) -> ExitCode {
    eprintln!("error: {why}\n\n{USAGE}");
    ExitCode::from(2)
}

/// Refuses to go on without root, which network namespaces and eBPF need.
fn require_root(what: &str) -> Result<()> {
    if !setup::is_root()? {
        bail!("{what} makes network namespaces and loads eBPF: run it as root");
    }
    Ok(())
}
