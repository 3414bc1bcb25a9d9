//! Builds and runs the demo, which lives in the end-to-end crate beside the lab that it needs.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::compile::{self, Profile};
use crate::{refuse, require_root, shell};

/// Runs the demo; its exit code is ours.
pub(crate) fn run(options: &[&str]) -> Result<ExitCode> {
    let valid = match options {
        [] | ["--keep" | "--shell"] => true,
        ["--shell", pod] => !pod.starts_with('-'),
        _ => false,
    };
    if !valid {
        return Ok(refuse("demo takes --keep or --shell [POD]"));
    }
    require_root("the demo")?;
    compile::run(Profile::Dev)?;
    shell::step("demo");
    let program = env::current_exe()
        .context("cannot tell where xtask is")?
        .with_file_name("demo");
    // In our place rather than below us, so that Ctrl-C reaches the program that has to clean up, and nobody else.
    let failure = Command::new(&program)
        .args(options)
        .current_dir(shell::root()?)
        .exec();
    Err(failure).with_context(|| format!("{} cannot be started", program.display()))
}
