//! The instruction budget: counts what the data plane's decisions and frames cost, and what many routes do to the compiler,
//! under callgrind, and fails where one costs more than the budget beside it allows.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{compile, setup, shell};

/// Starts valgrind for the benchmarks; as new as the crate `gungraun` that they are written with (`Cargo.toml`).
const RUNNER: &str = "gungraun-runner";
const RUNNER_VERSION: &str = "0.20.0";

/// What is counted, and how it is built: the data plane as it is released, the compiler as it is tested, which saves
/// another build of the agent.
const COUNTED: [(&str, &[&str]); 2] = [
    ("userspace-l7", &["--features", "measuring"]),
    ("agent", &["--profile", "dev"]),
];

/// Counts, and compares with each crate's `benches/budget.rs`.
pub(crate) fn run() -> Result<()> {
    shell::step("instruction budget");
    // The agent embeds the compiled programs.
    compile::ebpf(&setup::run()?)?;
    setup::programs(&[("valgrind", "valgrind")])?;
    let runner = runner()?;
    for (package, built) in COUNTED {
        let mut count = shell::cargo()?;
        count
            .env("GUNGRAUN_RUNNER", &runner)
            .args(["bench", "--package", package, "--bench", "budget"])
            .args(built);
        shell::run(&mut count).with_context(|| {
            format!(
                "something costs more instructions than {package}/benches/budget.rs allows: make it cheaper, or raise \
                 its budget and say why"
            )
        })?;
    }
    Ok(())
}

fn runner() -> Result<PathBuf> {
    let tools = setup::tools_directory()?;
    let program = tools.join("bin").join(RUNNER);
    let serves = |version: String| {
        version
            .split_whitespace()
            .any(|word| word == RUNNER_VERSION)
    };
    if shell::output(Command::new(&program).arg("--version")).is_some_and(serves) {
        shell::note(&format!("{RUNNER}: {RUNNER_VERSION} present"));
        return Ok(program);
    }
    shell::note(&format!(
        "{RUNNER}: building {RUNNER_VERSION}, once (a minute)"
    ));
    let mut install = shell::cargo()?;
    install
        .args([
            "install",
            RUNNER,
            "--version",
            RUNNER_VERSION,
            "--locked",
            "--force",
            "--root",
        ])
        .arg(&tools);
    shell::run(&mut install).with_context(|| format!("{RUNNER} could not be built"))?;
    Ok(program)
}
