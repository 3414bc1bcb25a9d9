//! The whole test suite: unit tests, then the scenarios in network namespaces.
//!
//! Scenarios run real kernels' networking against deadlines, two labs at a time. One that fails is run once more,
//! alone: what fails there too has failed, and what passes there is listed in the summary as unsteady, which is
//! a defect to look into. More than [`MOST_UNSTEADY`] of those are a failure.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::compile::{self, Profile};
use crate::{require_root, setup, shell};

/// Scenarios of one run that may pass at their second try only.
const MOST_UNSTEADY: usize = 2;

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
    let threads = ["--", "--test-threads", "2"];
    let mut scenarios = Tally::default();
    scenarios.add(self::scenarios()?.args(filter).args(threads))?;
    scenarios.try_again()?;
    total.merge(scenarios);
    total.conclude()
}

fn scenarios() -> Result<Command> {
    let mut cargo = shell::cargo()?;
    cargo.env("RUST_LIB_BACKTRACE", "0").args([
        "test",
        "--workspace",
        "--test",
        "*",
        "--no-fail-fast",
    ]);
    Ok(cargo)
}

/// The sum over all test programs.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    broken_commands: u32,
    /// Test programs that began, less those that reported: what is left over has crashed.
    silent: i32,
    /// Names of the failed tests.
    failures: Vec<String>,
    /// Names of those that passed when they ran alone.
    unsteady: Vec<String>,
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

    /// Runs each failed scenario alone, once, if they are few.
    fn try_again(&mut self) -> Result<()> {
        let few = (1..=MOST_UNSTEADY).contains(&self.failures.len());
        if !few || self.silent != 0 {
            return Ok(());
        }
        for name in std::mem::take(&mut self.failures) {
            shell::step(&format!("{name} failed: once more, alone"));
            let mut alone = Self::default();
            alone.add(scenarios()?.args([&name, "--", "--exact"]))?;
            self.settle(name, &alone);
        }
        if self.failures.is_empty() {
            // The command failed for the tests that have passed since.
            self.broken_commands = 0;
        }
        Ok(())
    }

    /// Takes over how a failed test fared alone.
    fn settle(&mut self, name: String, alone: &Self) {
        if alone.passed > 0 && alone.failed == 0 && alone.broken_commands == 0 {
            self.failed -= 1;
            self.passed += 1;
            self.unsteady.push(name);
        } else {
            self.failures.push(name);
        }
    }

    fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken_commands += other.broken_commands;
        self.failures.extend(other.failures);
        self.unsteady.extend(other.unsteady);
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; …` and `test some::name ... FAILED`.
    fn count(&mut self, line: &str) {
        if let Some(failed) = line.strip_suffix(" ... FAILED") {
            self.failures
                .extend(failed.strip_prefix("test ").map(str::to_owned));
        }
        if line.starts_with("running ") {
            self.silent += 1;
        }
        let Some(report) = line.strip_prefix("test result: ") else {
            return;
        };
        self.silent -= 1;
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
        for name in &self.unsteady {
            println!("UNSTEADY: {name} failed beside others and passed alone");
        }
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

    #[test]
    fn a_scenario_that_passes_alone_is_unsteady_and_one_that_fails_alone_has_failed() {
        let mut tally = Tally::default();
        tally.count("test unlucky ... FAILED");
        tally.count("test broken ... FAILED");
        tally.count("test result: FAILED. 4 passed; 2 failed; 0 ignored");
        let failures = std::mem::take(&mut tally.failures);
        assert_eq!(failures, ["unlucky", "broken"]);

        let mut alone = Tally::default();
        alone.count("test result: ok. 1 passed; 0 failed; 0 ignored");
        tally.settle("unlucky".to_owned(), &alone);
        let mut alone = Tally::default();
        alone.count("test result: FAILED. 0 passed; 1 failed; 0 ignored");
        tally.settle("broken".to_owned(), &alone);

        assert_eq!((tally.passed, tally.failed), (5, 1));
        assert_eq!(tally.unsteady, ["unlucky"]);
        assert_eq!(tally.failures, ["broken"]);
    }
}
