//! Builds the eBPF programs, then everything else.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::{self, EbpfCompiler, Tools};
use crate::shell;

/// Which of cargo's profiles userspace is built with; the eBPF programs are always optimised, because the
/// verifier sees what the optimiser leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Sets up and builds all of it.
pub(crate) fn run(profile: Profile) -> Result<()> {
    ebpf(&setup::run()?)?;
    userspace(profile)
}

/// Compiles the programs to `ebpf/target/bpfel-unknown-none/release/culvert-ebpf`, which the agent embeds.
pub(crate) fn ebpf(tools: &Tools) -> Result<()> {
    shell::step("eBPF programs");
    let mut cargo = match tools.compiler {
        EbpfCompiler::Nightly => {
            let mut command = shell::foreign("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
        EbpfCompiler::System => {
            let mut command = shell::foreign("/usr/bin/cargo");
            // Lets a stable compiler accept -Z build-std; nothing else of nightly is used.
            command
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", "/usr/bin/rustc");
            command
        }
    };
    let inherited = env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(tools.linker_dir.clone()).chain(env::split_paths(&inherited));
    let path = env::join_paths(directories).context("PATH cannot be extended")?;
    cargo
        .current_dir(shell::root()?.join("ebpf"))
        .env("PATH", path)
        .env(
            "RUSTFLAGS",
            "-C linker=bpf-linker -C link-arg=--btf -C debuginfo=2",
        )
        .env("CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS", "fallback")
        .args([
            "build",
            "--release",
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
        ]);
    shell::run(&mut cargo).context("the eBPF programs do not build")
}

/// Compiles the agent and the end-to-end crate's programs.
pub(crate) fn userspace(profile: Profile) -> Result<()> {
    shell::step("userspace");
    let mut cargo = shell::cargo()?;
    // All crates at once, here as in the tests and the lints: another choice would resolve other features and
    // compile the dependencies once more.
    cargo.args(["build", "--workspace"]);
    release_if(profile, &mut cargo);
    shell::run(&mut cargo)
}

fn release_if(profile: Profile, cargo: &mut Command) {
    if profile == Profile::Release {
        cargo.arg("--release");
    }
}
