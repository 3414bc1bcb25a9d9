//! Helm, built from the module that `xtask/helm/go.mod` names: it renders `deploy/helm` in the tests.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::go::Module;
use crate::shell;

/// Builds it into the tools, once for each state of its go.mod.
pub(super) fn install(tools: &Path) -> Result<()> {
    let module = Module::open("xtask/helm")?;
    let (program, built_from) = (tools.join("helm"), tools.join("helm.mod"));
    if program.is_file() && module.is_built(&built_from) {
        shell::note("helm: present");
        return Ok(());
    }
    shell::note("helm: building, once (a few minutes)");
    fs::create_dir_all(tools).with_context(|| format!("cannot create {}", tools.display()))?;
    module.build("helm.sh/helm/v3/cmd/helm", "", &program)?;
    module.note_built(&built_from)
}
