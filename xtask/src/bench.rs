//! Measures the mesh against no mesh, in the lab of the end-to-end tests.

use std::process::Command;

use anyhow::{Result, bail};

use crate::compile::{self, Profile};
use crate::{require_root, shell};

/// Load generators and the server that they load, with their Debian packages. They are not installed unasked:
/// nginx's package starts a web server on the machine itself.
const PROGRAMS: [(&str, &str); 3] = [
    ("wrk", "wrk"),
    ("iperf3", "iperf3"),
    ("nginx", "nginx-light"),
];

/// Builds in release and runs every load, `options` being the number of rounds, the seconds of each run, and a part of the loads' names.
pub(crate) fn run(options: &[&str]) -> Result<()> {
    require_root("the benchmark")?;
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
    compile::run(Profile::Release)?;
    shell::step("benchmark");
    shell::run(
        Command::new(shell::root()?.join("target/release/bench"))
            .args(options)
            .current_dir(shell::root()?),
    )
}
