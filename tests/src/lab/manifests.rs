//! The directory of Kubernetes objects that all agents of a lab watch.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A directory of YAML files, each replaced in one step, so that no reader sees half of one.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    pub(crate) fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates or replaces a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let draft = self.directory.join(format!(".{file}.draft"));
        fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
        let path = self.directory.join(file);
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete(&self, file: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))
    }

    /// Creates a captured Kubernetes namespace, unless it is there.
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        let file = format!("namespace-{name}.yaml");
        if self.directory.join(&file).exists() {
            return Ok(());
        }
        self.apply(&file, &Self::namespace_manifest(name, true))
    }

    /// A Namespace, captured or not.
    pub fn namespace_manifest(name: &str, captured: bool) -> String {
        let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
        if captured {
            text.push_str("  labels:\n    istio.io/dataplane-mode: ambient\n");
        }
        text
    }

    /// Creates a Service of namespace `app` that selects pods by their `app` label.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn service(&self, name: &str, addresses: &[&str], ports: &[(u16, &str)]) -> Result<()> {
        use std::fmt::Write as _;
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: app\nspec:\n  selector:\n    \
             app: {name}\n"
        );
        // Writing to a String cannot fail.
        if let [first, ..] = addresses {
            let _ = writeln!(text, "  clusterIP: \"{first}\"\n  clusterIPs:");
        }
        for address in addresses {
            let _ = writeln!(text, "  - \"{address}\"");
        }
        text.push_str("  ports:\n");
        for (port, target) in ports {
            let _ = writeln!(
                text,
                "  - name: p{port}\n    port: {port}\n    targetPort: {target}"
            );
        }
        self.apply(&format!("service-{name}.yaml"), &text)
    }
}
