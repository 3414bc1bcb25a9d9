//! `cargo xtask bench`: Culvert beside no mesh and beside others, in turns.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for people at a terminal"
)]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use e2e::bench::{Cluster, Idle, LOADS, Options, Report, Run, Selection, Turns, markdown};
use e2e::lab::remove_on_interrupt;

/// Pods of the agent that has nothing to do.
const IDLE_PODS: usize = 10;
/// Where the report goes, seen from the repository's root.
const DIRECTORY: &str = "target/bench";

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        list(&options);
        return ExitCode::SUCCESS;
    }
    let selection = match options.select() {
        Ok(selection) => selection,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    match run(&options, selection) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list(options: &Options) {
    println!("planes:");
    for plane in options.planes() {
        println!("  {:<29} {}", plane.name(), plane.description());
    }
    println!("loads:\n  idle");
    for load in LOADS {
        println!("  {}", load.name);
    }
}

fn run(options: &Options, selection: Selection) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let invocation = format!("{}-{}", now.as_secs(), std::process::id());
    let seconds = selection.seconds.into();
    let mut report = Report::new(&invocation, &selection.planes, seconds);
    for file in &options.beside {
        report.beside(file)?;
    }
    remove_on_interrupt()?;
    if selection.idle {
        let idle = Idle::measure(IDLE_PODS, Duration::from_secs(seconds.max(2)))?;
        println!("{idle}");
        report.idle = Some(idle);
    }
    let turns = Turns {
        loads: selection.loads,
        planes: selection.planes,
        rounds: usize::try_from(selection.rounds)?,
        time: Duration::from_secs(seconds),
        invocation,
    };
    let cluster = Cluster::new(&turns.planes)?;
    let runs = turns.run(&cluster, |run| println!("{}", line(run)));
    drop(cluster);
    report.runs.extend(runs?);
    let directory = Path::new(DIRECTORY);
    report.write(directory).context("the report")?;
    println!("\n{}", markdown(&report));
    println!("{DIRECTORY}/report.html has the plots");
    Ok(())
}

/// One run, as it ends.
fn line(run: &Run) -> String {
    let p99 = run
        .p99_us
        .map_or_else(String::new, |us| format!("  p99 {us:.0} us"));
    let errors = if run.errors > 0 {
        format!("  {} errors", run.errors)
    } else {
        String::new()
    };
    let disturbed = if run.others > 0.1 {
        format!("  others used {:.0} % of the machine", run.others * 100.0)
    } else {
        String::new()
    };
    format!(
        "{:<24} {:<29} {:>10.1}{p99}{errors}{disturbed}",
        run.load, run.plane, run.rate
    )
}
