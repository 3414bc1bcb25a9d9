//! Rules of the house that clippy cannot see: layers, confined dependencies, file headers and sizes, words, and that
//! the table of what works names tests that exist.

mod compatibility;
mod layers;
mod source;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell;
use source::SourceFile;

/// Non-test lines at which a file has to be split.
const MAX_LINES: usize = 700;
/// Non-test lines above which a file is mentioned.
const LONG_LINES: usize = 400;
/// Directories that hold our Rust, seen from the root.
const SOURCE_DIRS: [&str; 5] = ["agent", "ebpf", "tests", "userspace-l7", "xtask"];

/// Checks every file and reports all that is wrong before failing.
pub(crate) fn run() -> Result<()> {
    shell::step("tidy");
    let root = shell::root()?;
    let mut files = Vec::new();
    for directory in SOURCE_DIRS {
        collect(&root.join(directory), &mut files)?;
    }
    files.sort();
    let mut complaints = Vec::new();
    let mut sources = Vec::new();
    for path in &files {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(&root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned();
        let file = SourceFile::new(name, &text);
        complaints.extend(header(&file));
        complaints.extend(size(&file));
        complaints.extend(layers::check(&file));
        complaints.extend(words::check(&file));
        sources.push(file);
    }
    let document = fs::read_to_string(root.join(compatibility::DOCUMENT))
        .with_context(|| format!("cannot read {}", compatibility::DOCUMENT))?;
    complaints.extend(compatibility::check(&document, &sources));
    complaints.extend(words::check_documents(&root)?);
    for complaint in &complaints {
        shell::note(complaint);
    }
    if !complaints.is_empty() {
        bail!("tidy found {} thing(s) to put right", complaints.len());
    }
    shell::note(&format!("{} files are in order", files.len()));
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let listing =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in listing {
        let path = entry.context("cannot list a directory")?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn header(file: &SourceFile) -> Option<String> {
    let has_header = file
        .code
        .first()
        .is_some_and(|line| line.starts_with("//! "));
    (!has_header).then(|| {
        format!(
            "{}: its first line does not say what it owns (`//! …`)",
            file.name
        )
    })
}

fn size(file: &SourceFile) -> Option<String> {
    if file.is_test() {
        return None;
    }
    let lines = file.code.len();
    if lines > MAX_LINES {
        return Some(format!(
            "{}: {lines} lines without its tests, {MAX_LINES} is the limit",
            file.name
        ));
    }
    if lines > LONG_LINES {
        shell::note(&format!(
            "{}: {lines} lines without its tests, could be shorter",
            file.name
        ));
    }
    None
}
