//! A Kubernetes API server with its store, its controllers and `kubectl`, built from the modules that
//! `xtask/cluster/go.mod` names, and the custom resources' definitions that Gateway API and Istio publish in theirs.
//!
//! Go's module proxy and checksum database vouch for the sources. Nothing is fetched or built again while `go.mod`
//! stays as it is.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::go::Module;
use super::programs;
use crate::shell;

/// Programs by the packages that they are; cheapest first, so that what is wrong with Go shows soon.
const PROGRAMS: [(&str, &str); 4] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
];
/// Modules that publish definitions, and where in them those are.
const DEFINITIONS: [(&str, &str, &str); 2] = [
    (
        "gateway-api",
        "sigs.k8s.io/gateway-api",
        "config/crd/standard",
    ),
    ("istio", "istio.io/api", "kubernetes"),
];
/// What its programs say their version is, and what clients decide by.
const VERSION_PACKAGE: &str = "k8s.io/component-base/version";

/// Builds what is missing into `kubernetes` among the tools.
pub(super) fn install(tools: &Path) -> Result<()> {
    let module = Module::open("xtask/cluster")?;
    let version = version(&module.text)?;
    let place = tools.join("kubernetes");
    let built_from = place.join("go.mod");
    let programs_there = PROGRAMS.iter().all(|(name, _)| place.join(name).is_file());
    if programs_there && module.is_built(&built_from) {
        shell::note(&format!("kubernetes: {version} present"));
        return Ok(());
    }
    shell::note(&format!(
        "kubernetes: building {version}, once (about ten minutes on two CPUs)"
    ));
    programs(&[("go", "golang-go")])?;
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    for (name, source, within) in DEFINITIONS {
        definitions(
            &module,
            source,
            within,
            &place.join("definitions").join(name),
        )?;
    }
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next(), numbers.next());
    let flags = format!(
        "-X {VERSION_PACKAGE}.gitVersion={version} -X {VERSION_PACKAGE}.gitMajor={} -X {VERSION_PACKAGE}.gitMinor={}",
        major.unwrap_or_default(),
        minor.unwrap_or_default()
    );
    for (name, package) in PROGRAMS {
        module.build(package, &flags, &place.join(name))?;
    }
    module.note_built(&built_from)
}

/// The version of Kubernetes that a go.mod requires.
fn version(go_mod: &str) -> Result<String> {
    let line = go_mod
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    let version = line.context("xtask/cluster/go.mod requires no k8s.io/kubernetes")?;
    Ok(version.trim().to_owned())
}

/// Copies the manifests that a module holds.
fn definitions(module: &Module, source: &str, within: &str, to: &Path) -> Result<()> {
    shell::run(module.go().args(["mod", "download", source]))
        .with_context(|| format!("{source} could not be fetched: is this machine offline?"))?;
    let directory = shell::output(module.go().args(["list", "-m", "-f", "{{.Dir}}", source]));
    let directory = directory.with_context(|| format!("Go does not say where {source} is"))?;
    let from = Path::new(directory.trim()).join(within);
    // Ours alone: what an older module had is not to stay.
    drop(fs::remove_dir_all(to));
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let listing = fs::read_dir(&from).with_context(|| format!("{source} has no {within}"))?;
    for entry in listing {
        let path = entry
            .context("a module's directory cannot be listed")?
            .path();
        let name = path.file_name().context("a file without a name")?;
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            // Not fs::copy: modules are read-only, and their copies would be.
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            fs::write(to.join(name), text)
                .with_context(|| format!("cannot fill {}", to.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_version_is_the_one_that_is_required() {
        let go_mod =
            "require (\n\tgo.etcd.io/etcd/server/v3 v3.6.16\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(version(go_mod).unwrap(), "v1.36.3");
        assert!(version("module x\n").is_err());
    }
}
