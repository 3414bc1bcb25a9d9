//! Builds and runs the benchmark, which lives in the end-to-end crate beside the lab that it needs.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::compile::{self, Profile};
use crate::{require_root, shell};

/// Load generators and the server that they load, with their Debian packages. They are not installed unasked:
/// nginx's package starts a web server on the machine itself.
const PROGRAMS: [(&str, &str); 4] = [
    ("wrk", "wrk"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("nginx", "nginx-light"),
];

/// Builds in release and runs the benchmark with options of its own (`--help`); its exit code is ours.
pub(crate) fn run(options: &[&str]) -> Result<ExitCode> {
    let asks_only = |option: &&str| matches!(*option, "--help" | "-h" | "--list");
    if !options.iter().any(asks_only) {
        require_root("the benchmark")?;
        programs()?;
    }
    compile::run(Profile::Release)?;
    shell::step("benchmark");
    let root = shell::root()?;
    let program = root.join("target/release/bench");
    // In our place rather than below us, so that Ctrl-C reaches the program that has to clean up, and nobody else.
    let failure = Command::new(&program)
        .args(options)
        .current_dir(root)
        .exec();
    Err(failure).with_context(|| format!("{} cannot be started", program.display()))
}

fn programs() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| shell::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "the benchmark needs programs that are not here: `apt-get install {}` (nginx's package starts a server \
             on port 80; stop it if you do not want it)",
            missing.join(" ")
        );
    }
    Ok(())
}
