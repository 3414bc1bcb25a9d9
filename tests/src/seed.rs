//! The seed's own text, where it lies beside the checkout: its commands and manifests in their order.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where the seed is, seen from a directory above the repository's root.
const PLACE: &str = "shared/seed.md";

/// One thing that the text tells its reader to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `kubectl apply` of a text, or a manifest that is shown.
    Apply(String),
    /// Another `kubectl` command: its words behind that one.
    Kubectl(Vec<String>),
}

/// The seed, if there is one.
///
/// # Errors
/// If it is there and cannot be read.
pub fn text(repository: &Path) -> Result<Option<String>> {
    let places = repository.ancestors().skip(1);
    let found = places
        .map(|place| place.join(PLACE))
        .find(|path| path.is_file());
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    found.as_deref().map(read).transpose()
}

/// Its steps: blocks marked `yaml`, texts that are fed to `kubectl apply -f -`, and `kubectl label` and `delete -n
/// … KIND NAME` lines. What fetches from elsewhere is not among them.
pub fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let until = |lines: &mut std::str::Lines<'_>, end: &str| {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != end).collect();
            block.join("\n") + "\n"
        };
        if line == "```yaml" {
            steps.push(Step::Apply(until(&mut lines, "```")));
        } else if line.starts_with("kubectl apply -f - <<") {
            let end = line.rsplit("<<").next().unwrap_or_default();
            steps.push(Step::Apply(until(&mut lines, end)));
        } else if let Some(command) = line.strip_prefix("kubectl ") {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            let fetches = words.iter().any(|word| word == "-f");
            let known = matches!(words.first().map(String::as_str), Some("label" | "delete"));
            if known && !fetches {
                steps.push(Step::Kubectl(words));
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::{Step, steps};

    #[test]
    fn a_texts_steps_are_read_in_their_order() {
        let text = "Words.\n```sh\nkubectl apply -f - <<EOF\nkind: A\nEOF\n```\nkubectl apply -f https://x\n```yaml\nkind: \
                    B\n```\nkubectl label ns x a=b\nkubectl delete -n x -f https://y\n";
        let expected = [
            Step::Apply("kind: A\n".to_owned()),
            Step::Apply("kind: B\n".to_owned()),
            Step::Kubectl(["label", "ns", "x", "a=b"].map(str::to_owned).to_vec()),
        ];
        assert_eq!(steps(text), expected);
    }
}
