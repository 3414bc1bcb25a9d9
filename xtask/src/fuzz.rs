//! Runs the fuzz targets: each parser of untrusted bytes, from its committed seeds, for a bounded time.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{compile, setup, shell};

/// How long each target runs if nothing else is said.
pub(crate) const DEFAULT_SECONDS: u32 = 10;

/// Where cargo puts programs that it builds for a named target, below `fuzz/`.
const BUILT: &str = "target/x86_64-unknown-linux-gnu/release";

/// What `libFuzzer` needs of the compiler: edge counters, a table of program points, and operands of comparisons.
/// These are flags of LLVM's pass, so a stable compiler takes them; naming a target keeps them away from build
/// scripts, which would not link.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Builds and runs every target for `seconds` each. Inputs that break one stay in `fuzz/artifacts/<target>/`.
pub(crate) fn run(seconds: u32) -> Result<()> {
    // The agent, whose parsers are among the targets, embeds the compiled programs.
    compile::ebpf(&setup::run()?)?;
    shell::step("fuzz targets");
    let directory = shell::root()?.join("fuzz");
    let mut build = shell::cargo()?;
    build
        .current_dir(&directory)
        .env("RUSTFLAGS", INSTRUMENTATION)
        .args([
            "build",
            "--release",
            "--bins",
            "--target",
            "x86_64-unknown-linux-gnu",
        ]);
    shell::run(&mut build).context("the fuzz targets do not build")?;
    let targets = targets(&directory)?;
    let mut broken = Vec::new();
    for target in &targets {
        if let Err(error) = run_one(&directory, target, seconds) {
            shell::note(&format!("{target}: {error:#}"));
            broken.push(target.as_str());
        }
    }
    if !broken.is_empty() {
        bail!(
            "{} found inputs that break it: see fuzz/artifacts",
            broken.join(", ")
        );
    }
    shell::note(&format!(
        "{} targets ran for {seconds} s each",
        targets.len()
    ));
    Ok(())
}

/// Every target has a file of its own, and seeds.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory.join("targets")).context("cannot list fuzz/targets")? {
        let path = entry.context("cannot list fuzz/targets")?.path();
        let name = path
            .file_stem()
            .context("a fuzz target without a name")?
            .to_string_lossy();
        ensure!(
            directory.join("seeds").join(&*name).is_dir(),
            "the fuzz target {name} has no seeds: put inputs into fuzz/seeds/{name}/"
        );
        names.push(name.into_owned());
    }
    names.sort();
    Ok(names)
}

fn run_one(directory: &Path, target: &str, seconds: u32) -> Result<()> {
    let (corpus, artifacts) = (format!("corpus/{target}"), format!("artifacts/{target}/"));
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(directory.join(made))
            .with_context(|| format!("cannot create fuzz/{made}"))?;
    }
    let mut program = std::process::Command::new(directory.join(BUILT).join(target));
    program.current_dir(directory).args([
        &format!("-max_total_time={seconds}"),
        "-timeout=5",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=0",
        &format!("-artifact_prefix={artifacts}"),
        &corpus,
        &format!("seeds/{target}"),
    ]);
    shell::run(&mut program)
}
