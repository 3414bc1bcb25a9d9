//! Embeds the eBPF object that `cargo xtask build` makes, and fails when it is missing or stale. Records
//! what the program was built from, for `culvert version`.
//!
//! Another toolchain compiles the programs, so this script cannot: it only refuses to embed an object
//! that does not match the sources beside it.
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

/// Where `cargo xtask build` puts the object, relative to this crate.
const OBJECT: &str = "../ebpf/target/bpfel-unknown-none/release/culvert-ebpf";
const SOURCES: &str = "../ebpf/src";
/// What the program is made of, relative to this crate.
const INGREDIENTS: [&str; 7] = [
    "../Cargo.lock",
    "../Cargo.toml",
    "../ebpf/src",
    "../userspace-l7/Cargo.toml",
    "../userspace-l7/src",
    "Cargo.toml",
    "src",
];

fn main() -> ExitCode {
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (object, sources) = (crate_dir.join(OBJECT), crate_dir.join(SOURCES));
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed={}", sources.display());
    record_origin(&crate_dir);
    match is_fresh(&object, &sources) {
        Ok(true) => {
            println!("cargo::rustc-env=CULVERT_EBPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("cargo::error=the eBPF programs are not built: run `cargo xtask build`");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("cargo::error=cannot read {}: {error}", sources.display());
            ExitCode::FAILURE
        }
    }
}

/// Tells the program its revision and compiler. What cannot be found out stays unset: sources may come
/// without their history.
fn record_origin(crate_dir: &Path) {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(crate_dir).args(arguments);
        output(&mut git)
    };
    if let Some(revision) = git(&["rev-parse", "--short", "HEAD"]) {
        println!("cargo::rustc-env=CULVERT_GIT_REVISION={revision}");
    }
    if let Some(changes) = git(&[&["status", "--porcelain", "--"], &INGREDIENTS[..]].concat()) {
        let status = if changes.is_empty() {
            "Clean"
        } else {
            "Modified"
        };
        println!("cargo::rustc-env=CULVERT_BUILD_STATUS={status}");
    }
    if let Some(version) =
        std::env::var_os("RUSTC").and_then(|rustc| output(Command::new(rustc).arg("--version")))
    {
        println!("cargo::rustc-env=CULVERT_RUST_VERSION={version}");
    }
    for ingredient in INGREDIENTS {
        println!("cargo::rerun-if-changed={ingredient}");
    }
    // Every commit and checkout adds to this log.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        let log = crate_dir.join(log);
        if log.exists() {
            println!("cargo::rerun-if-changed={}", log.display());
        }
    }
}

/// What a program prints, if it can be run and succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Whether the object exists and no source is younger.
fn is_fresh(object: &Path, sources: &Path) -> io::Result<bool> {
    let Ok(built) = fs::metadata(object).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    Ok(youngest(sources)? <= built)
}

/// When the last of the files below a directory was changed. The directories' own times tell of nothing that is compiled.
fn youngest(directory: &Path) -> io::Result<SystemTime> {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(directory)? {
        let (path, metadata) = {
            let entry = entry?;
            (entry.path(), entry.metadata()?)
        };
        let changed = if metadata.is_dir() {
            youngest(&path)?
        } else {
            metadata.modified()?
        };
        latest = latest.max(changed);
    }
    Ok(latest)
}
