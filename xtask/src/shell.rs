//! Running other programs, with what they do on the screen.

use std::env;
use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// The repository's root directory.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let root = Path::new(&manifest)
        .parent()
        .context("xtask has no parent directory")?;
    Ok(root.to_owned())
}

/// Announces a step.
pub(crate) fn step(what: &str) {
    if std::io::stdout().is_terminal() {
        println!("\x1b[1m==> {what}\x1b[0m");
    } else {
        println!("==> {what}");
    }
}

/// Reports what a step found or did.
pub(crate) fn note(what: &str) {
    println!("    {what}");
}

/// The cargo that runs us, in the repository's root.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?);
    // What cargo told *us* about our own package must not reach the build scripts of others.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    Ok(command)
}

/// A program that must see nothing of the toolchain that compiled us.
pub(crate) fn foreign(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let ours = [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
        ];
        // CARGO_HOME and CARGO_HTTP_* say where crates are kept and how they are reached: those stay.
        let keep = name == "CARGO_HOME"
            || name.starts_with("CARGO_HTTP_")
            || name.starts_with("CARGO_NET_");
        if ours.iter().any(|prefix| name.starts_with(prefix)) && !keep {
            command.env_remove(&*name);
        }
    }
    command
}

/// Runs a command to its end, its output on the screen.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    note(&format!("$ {line}"));
    let begun = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("`{line}` could not be started"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    note(&format!("done in {:.1} s", begun.elapsed().as_secs_f32()));
    Ok(())
}

/// What a command prints, or `None` if it fails or does not exist.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is, on PATH or where cargo installs programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = cargo_home().map(|home| home.join("bin"));
    env::split_paths(&path)
        .chain(cargo_bin)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn cargo_home() -> Option<PathBuf> {
    let given = env::var_os("CARGO_HOME").map(PathBuf::from);
    given.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_else(|| command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
