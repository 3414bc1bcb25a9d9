//! Every gate that a change has to pass, cheapest first.

use anyhow::{Context as _, Result};

use crate::{budget, compile, fuzz, setup, shell, suite, tidy};

/// The static gates, the fuzz targets, the instruction budget, then the test suite.
pub(crate) fn run() -> Result<()> {
    check()?;
    fuzz::run(fuzz::DEFAULT_SECONDS)?;
    budget::run()?;
    suite::run(None)
}

/// Formatting, tidy and lints: what needs no running program.
pub(crate) fn check() -> Result<()> {
    shell::step("formatting");
    shell::run(shell::cargo()?.args(["fmt", "--all", "--check"]))
        .context("run `cargo fmt --all`")?;
    tidy::run()?;
    // The agent embeds the compiled programs, so even its lints need them.
    compile::ebpf(&setup::run()?)?;
    shell::step("lints");
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    shell::run(shell::cargo()?.args(clippy)).context("clippy complains")
}
