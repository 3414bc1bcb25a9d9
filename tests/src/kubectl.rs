//! As much of `kubectl` as the seed's text uses, done to a lab's directory: apply, label, delete.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::Manifests;

/// What names an object: kind in lower case, namespace (empty for a Namespace), name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: String,
    namespace: String,
    name: String,
}

impl Key {
    /// Reads it from a manifest in block style, as people write them.
    fn of(manifest: &str) -> Result<Self> {
        let top = |key: &str| {
            let value = manifest.lines().find_map(|line| line.strip_prefix(key));
            value.map(|value| value.trim().to_owned())
        };
        let metadata = manifest
            .lines()
            .skip_while(|line| line.trim_end() != "metadata:")
            .skip(1)
            .take_while(|line| line.starts_with(' ') || line.trim().is_empty());
        let names = metadata.filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
        let field = |key: &str| {
            let found = names.clone().find(|(name, _)| *name == key);
            found.map(|(_, value)| value.trim().trim_matches('"').to_owned())
        };
        let kind = top("kind:").context("an object without a kind")?;
        Ok(Self {
            kind: kind.to_lowercase(),
            namespace: field("namespace").unwrap_or_default(),
            name: field("name").context("an object without a name")?,
        })
    }

    fn file(&self) -> String {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        format!("{kind}-{namespace}-{name}.yaml")
    }
}

/// Objects that were applied, and the directory in which they are.
#[derive(Debug, Default)]
pub struct Kubectl {
    objects: BTreeMap<Key, String>,
}

impl Kubectl {
    /// Applies the documents of a text, unchanged.
    ///
    /// # Errors
    /// If a document has no kind or name, or cannot be written.
    pub fn apply(&mut self, manifests: &Manifests, text: &str) -> Result<()> {
        for document in text.split("\n---\n") {
            let key = Key::of(document)?;
            manifests.apply(&key.file(), document)?;
            self.objects.insert(key, document.to_owned());
        }
        Ok(())
    }

    /// Runs a command line that begins behind the word `kubectl`; not `apply`, whose text comes from elsewhere.
    ///
    /// # Errors
    /// If it is none of the few that are known, or names what was not applied.
    pub fn run(&mut self, manifests: &Manifests, words: &[&str]) -> Result<()> {
        match words {
            ["label", "ns" | "namespace", namespace, labels @ ..] => {
                for label in labels {
                    self.label(manifests, namespace, label)?;
                }
                Ok(())
            }
            ["delete", "-n", namespace, kind, name] => {
                self.delete(manifests, kind, namespace, name)
            }
            _ => bail!("kubectl {}: not known here", words.join(" ")),
        }
    }

    /// `key=value`, or `key-` to take it away.
    fn label(&mut self, manifests: &Manifests, namespace: &str, label: &str) -> Result<()> {
        let key = Key {
            kind: "namespace".to_owned(),
            namespace: String::new(),
            name: namespace.to_owned(),
        };
        let object = self.objects.get_mut(&key);
        let object = object.with_context(|| format!("no namespace {namespace} was applied"))?;
        let (name, value) = match label.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (label.trim_end_matches('-'), None),
        };
        let prefix = format!("    {name}: ");
        let mut lines: Vec<String> = object
            .lines()
            .filter(|line| !line.starts_with(&prefix))
            .map(str::to_owned)
            .collect();
        let labels = lines.iter().position(|line| line == "  labels:");
        let labels = labels.with_context(|| format!("namespace {namespace} has no labels"))?;
        if let Some(value) = value {
            lines.insert(labels + 1, format!("{prefix}\"{value}\""));
        }
        *object = lines.join("\n") + "\n";
        manifests.apply(&key.file(), object)
    }

    fn delete(
        &mut self,
        manifests: &Manifests,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<()> {
        let key = Key {
            kind: kind.to_lowercase(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        ensure!(
            self.objects.remove(&key).is_some(),
            "no {kind} {namespace}/{name} was applied"
        );
        manifests.delete(&key.file())
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn an_object_is_named_by_its_metadata() {
        let text = "kind: Gateway\nmetadata:\n  labels:\n    name: x\n  name: waypoint\n  namespace: bookinfo\nspec:\n  \
                    name: not this\n";
        let key = Key::of(text).unwrap();
        assert_eq!(key.file(), "gateway-bookinfo-waypoint.yaml");
        assert!(Key::of("kind: Gateway\nmetadata:\n  namespace: x\n").is_err());
    }
}
