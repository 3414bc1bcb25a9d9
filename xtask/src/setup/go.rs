//! Programs of Go modules that a `go.mod` of ours pins. Go's module proxy and checksum database vouch for the sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::programs;
use crate::shell;

/// A directory of the repository with a `go.mod`.
pub(super) struct Module {
    directory: PathBuf,
    /// Its `go.mod`.
    pub(super) text: String,
}

impl Module {
    /// Reads the one in a directory, seen from the repository's root.
    pub(super) fn open(directory: &str) -> Result<Self> {
        let directory = shell::root()?.join(directory);
        let path = directory.join("go.mod");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { directory, text })
    }

    /// Whether what is there was built from this state of it, as the file `built_from` says.
    pub(super) fn is_built(&self, built_from: &Path) -> bool {
        fs::read_to_string(built_from).is_ok_and(|text| text == self.text)
    }

    /// Notes that all of it has been built. Last: what is half built is built again.
    pub(super) fn note_built(&self, built_from: &Path) -> Result<()> {
        fs::write(built_from, &self.text)
            .with_context(|| format!("cannot write {}", built_from.display()))
    }

    /// Go, at work in it.
    pub(super) fn go(&self) -> Command {
        let mut go = shell::foreign("go");
        go.current_dir(&self.directory)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "auto");
        go
    }

    /// Builds a package that is a program.
    pub(super) fn build(&self, package: &str, linker_flags: &str, to: &Path) -> Result<()> {
        programs(&[("go", "golang-go")])?;
        let mut go = self.go();
        go.args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath"])
            .args(["-ldflags", &format!("-s -w {linker_flags}"), "-o"])
            .arg(to)
            .arg(package);
        shell::run(&mut go).with_context(|| {
            format!("{package} could not be built: it needs Go 1.26 or later and Go's module proxy")
        })
    }
}
