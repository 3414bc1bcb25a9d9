//! The whole test suite: unit tests, then the scenarios in network namespaces.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::compile::{self, Profile};
use crate::{require_root, setup, shell};

/// Runs every test, or those whose name contains `filter`.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    require_root("testing")?;
    compile::run(Profile::Dev)?;
    setup::for_tests()?;
    let mut total = Tally::default();

    shell::step("unit tests");
    let units = ["test", "--workspace", "--lib", "--bins", "--no-fail-fast"];
    total.add(shell::cargo()?.args(units).args(filter))?;

    shell::step("end-to-end scenarios");
    // Each scenario has a lab, and agents, of its own: two at a time keep two cores busy without making
    // deadlines meaningless.
    let scenarios = ["test", "--workspace", "--test", "*", "--no-fail-fast"];
    let threads = ["--", "--test-threads", "2"];
    total.add(
        shell::cargo()?
            .env("RUST_LIB_BACKTRACE", "0")
            .args(scenarios)
            .args(filter)
            .args(threads),
    )?;
    total.conclude()
}

/// The sum over all test programs.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    broken_commands: u32,
}

impl Tally {
    /// Runs `cargo test`, its output on the screen, and adds up what its programs report.
    fn add(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("cargo could not be started")?;
        let stdout = child.stdout.take().context("cargo has no output")?;
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cargo's output cannot be read")?;
            self.count(&line);
            println!("{line}");
        }
        if !child.wait().context("cargo vanished")?.success() {
            self.broken_commands += 1;
        }
        Ok(())
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn count(&mut self, line: &str) {
        let Some(report) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in report.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn conclude(&self) -> Result<()> {
        let good = self.failed == 0 && self.ignored == 0 && self.broken_commands == 0;
        let Self {
            passed,
            failed,
            ignored,
            ..
        } = self;
        let verdict = if good { "ok" } else { "FAILED" };
        shell::step("summary");
        println!("test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored");
        if !good {
            bail!("the suite did not pass (an ignored test counts as a failure)");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_all_test_programs_add_up() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s");
        tally.count("test some::name ... ok");
        tally.count(
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!((tally.passed, tally.failed, tally.ignored), (7, 2, 1));
        assert!(tally.conclude().is_err(), "a failure is a failure");
    }
}
