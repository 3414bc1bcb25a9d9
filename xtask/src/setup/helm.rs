//! Helm, built from the module that `xtask/helm/go.mod` names: it renders `deploy/helm` in the tests.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::programs;
use crate::shell;

/// Builds it into the tools, once for each state of its go.mod.
pub(super) fn install(tools: &Path) -> Result<()> {
    let module = shell::root()?.join("xtask/helm");
    let path = module.join("go.mod");
    let wanted =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (program, built_from) = (tools.join("helm"), tools.join("helm.mod"));
    let is_current = fs::read_to_string(&built_from).is_ok_and(|text| text == wanted);
    if is_current && program.is_file() {
        shell::note("helm: present");
        return Ok(());
    }
    shell::note("helm: building, once (a few minutes)");
    programs(&[("go", "golang-go")])?;
    fs::create_dir_all(tools).with_context(|| format!("cannot create {}", tools.display()))?;
    let mut go = shell::foreign("go");
    go.current_dir(&module)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "auto")
        .args([
            "build",
            "-mod=readonly",
            "-buildvcs=false",
            "-trimpath",
            "-ldflags",
            "-s -w",
            "-o",
        ])
        .arg(&program)
        .arg("helm.sh/helm/v3/cmd/helm");
    shell::run(&mut go)
        .context("helm could not be built: it needs Go 1.26 or later and Go's module proxy")?;
    fs::write(&built_from, wanted).with_context(|| format!("cannot write {}", built_from.display()))
}
