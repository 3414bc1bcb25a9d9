//! What the demo shows.

use std::io::IsTerminal as _;
use std::time::Instant;

use anyhow::{Context as _, Result};

fn paint(text: &str, code: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Begins a step.
pub(crate) fn step(what: &str) {
    println!("\n{}", paint(&format!("==> {what}"), "1"));
}

/// Shows a fact.
pub(crate) fn note(what: &str) {
    println!("    {what}");
}

/// Runs a check and shows that it holds; what it returns is what it found.
pub(crate) fn check(claim: &str, body: impl FnOnce() -> Result<String>) -> Result<()> {
    let begun = Instant::now();
    let found = body().with_context(|| format!("this does not hold: {claim}"))?;
    let milliseconds = begun.elapsed().as_millis();
    println!("  {} {claim} ({milliseconds} ms)", paint("✓", "32"));
    for line in found.lines() {
        note(line);
    }
    Ok(())
}
