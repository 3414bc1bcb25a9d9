//! Runs a cluster's own programs on loopback; what starts them is in the end-to-end crate, beside the tests that use it.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::compile::{self, Profile};
use crate::{setup, shell};

/// Runs the cluster until it is interrupted; its exit code is ours.
pub(crate) fn run() -> Result<ExitCode> {
    setup::for_clusters()?;
    compile::run(Profile::Dev)?;
    shell::step("cluster");
    let program = env::current_exe()
        .context("cannot tell where xtask is")?
        .with_file_name("cluster");
    // In our place rather than below us, so that Ctrl-C reaches the program that has to clean up, and nobody else.
    let failure = Command::new(&program).current_dir(shell::root()?).exec();
    Err(failure).with_context(|| format!("{} cannot be started", program.display()))
}
