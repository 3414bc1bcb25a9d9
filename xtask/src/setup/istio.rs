//! istiod and `istioctl`, built from the module that `xtask/istio/go.mod` names: the tests follow the one, and read the
//! agent with the other.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::go::Module;
use crate::shell;

/// Programs by the packages that they are.
const PROGRAMS: [(&str, &str); 2] = [
    (
        "pilot-discovery",
        "istio.io/istio/pilot/cmd/pilot-discovery",
    ),
    ("istioctl", "istio.io/istio/istioctl/cmd/istioctl"),
];

/// Builds what is missing into `istio` among the tools, once for each state of its go.mod.
pub(super) fn install(tools: &Path) -> Result<()> {
    let module = Module::open("xtask/istio")?;
    let place = tools.join("istio");
    let built_from = place.join("go.mod");
    let is_there = PROGRAMS.iter().all(|(name, _)| place.join(name).is_file());
    if is_there && module.is_built(&built_from) {
        shell::note("istio: present");
        return Ok(());
    }
    shell::note("istio: building, once (about seven minutes on two CPUs)");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    for (name, package) in PROGRAMS {
        module.build(package, "", &place.join(name))?;
    }
    module.note_built(&built_from)
}
