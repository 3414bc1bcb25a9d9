//! Words that do not belong in the repository, and paths that only exist on somebody's machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::source::SourceFile;

/// Written in halves, so that this file does not name what it forbids.
const UNFINISHED: [(&str, &str); 4] = [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK")];
const MACHINE_PATHS: [(&str, &str); 3] = [("/ho", "me/"), ("/ro", "ot/"), ("/Us", "ers/")];
/// The field says "capture"; one thing has one name.
const SYNONYMS: [(&str, &str); 2] = [("hi", "jack"), ("inter", "cept")];
/// Names that say nothing about what a module owns.
const EMPTY_NAMES: [&str; 8] = [
    "util", "utils", "helper", "helpers", "common", "misc", "types", "mod",
];

/// Complaints about one source file.
pub(crate) fn check(file: &SourceFile) -> Vec<String> {
    let mut complaints = Vec::new();
    let stem = Path::new(&file.name)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        complaints.push(format!(
            "{}: `{stem}` does not say what the file owns",
            file.name
        ));
    }
    for (index, line) in file.all.iter().enumerate() {
        complaints.extend(check_line(&file.name, index, line));
        let lower = line.to_lowercase();
        for (head, tail) in SYNONYMS {
            if lower.contains(&format!("{head}{tail}")) {
                complaints.push(format!(
                    "{}:{}: say `capture`, not `{head}{tail}`",
                    file.name,
                    index + 1
                ));
            }
        }
    }
    complaints
}

/// Complaints about everything that is not Rust.
pub(crate) fn check_documents(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for place in ["README.md", "Cargo.toml", ".ci", "deploy", "docs"] {
        let path = root.join(place);
        if path.exists() {
            visit(root, &path, &mut complaints)?;
        }
    }
    Ok(complaints)
}

fn visit(root: &Path, path: &Path, complaints: &mut Vec<String>) -> Result<()> {
    if path.is_dir() {
        let listing =
            fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
        for entry in listing {
            visit(
                root,
                &entry.context("cannot list a directory")?.path(),
                complaints,
            )?;
        }
        return Ok(());
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
    for (index, line) in text.lines().enumerate() {
        complaints.extend(check_line(&name, index, line));
    }
    Ok(())
}

fn check_line(name: &str, index: usize, line: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (head, tail) in UNFINISHED {
        let word = format!("{head}{tail}");
        let appears = line
            .split(|c: char| !c.is_alphanumeric())
            .any(|part| part == word);
        if appears {
            complaints.push(format!("{name}:{}: {word} belongs in an issue", index + 1));
        }
    }
    for (head, tail) in MACHINE_PATHS {
        if line.contains(&format!("{head}{tail}")) {
            complaints.push(format!(
                "{name}:{}: a path of somebody's machine",
                index + 1
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::{SourceFile, check};

    #[track_caller]
    fn complaints(name: &str, text: &str, expected: usize) {
        assert_eq!(
            check(&SourceFile::new(name.to_owned(), text)).len(),
            expected,
            "{name}: {text}"
        );
    }

    #[test]
    fn unfinished_work_and_foreign_paths_are_named() {
        complaints("agent/src/app.rs", "//! The composition root.", 0);
        complaints("agent/src/app.rs", concat!("// TO", "DO: later"), 1);
        complaints("agent/src/app.rs", concat!("let x = \"/ho", "me/me\";"), 1);
        complaints("agent/src/app.rs", concat!("// we inter", "cept it"), 1);
        complaints("agent/src/util.rs", "//! Things.", 1);
    }
}
