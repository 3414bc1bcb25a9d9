//! The demo is a test too: it ends with 0 only if each of its claims was checked.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::lab::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a newcomer is promised of everything but the first run.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_demo_ends_well_and_soon() -> Result<()> {
    let begun = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .output()
        .context("the demo cannot be started")?;
    let told = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}\n{told}\n{complained}",
        output.status
    );
    ensure!(told.contains("every step was checked"), "{told}");
    let took = begun.elapsed();
    ensure!(took < SOON, "it took {took:?}");
    Ok(())
}

#[test]
fn the_demo_refuses_what_it_does_not_know() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("--fast")
        .output()?;
    ensure!(!output.status.success(), "an unknown option was taken");
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("usage"),
        "it says how it is used"
    );
    Ok(())
}

/// Ends with the test, whatever becomes of that.
struct Demo(Child);

impl Demo {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
        command
            .args(arguments)
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(Self(command.spawn().context("the demo cannot be started")?))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_shell_opens_in_a_pod() -> Result<()> {
    for arguments in [&["--shell"][..], &["--shell", "visitor"]] {
        let mut demo = Demo::start(arguments)?;
        let mut shell = demo.0.stdin.take().context("the shell's input")?;
        shell.write_all(b"echo in $(ip -4 -brief address show eth0)\n")?;
        drop(shell);
        let mut told = String::new();
        demo.0
            .stdout
            .take()
            .context("the demo's output")?
            .read_to_string(&mut told)?;
        ensure!(demo.0.wait()?.success(), "{told}");
        let line = told.lines().find(|line| line.starts_with("in eth0"));
        // Both clients live on node b.
        ensure!(
            line.is_some_and(|line| line.contains("10.244.2.")),
            "{arguments:?}: {told}"
        );
        ensure!(told.contains("every step was checked"), "{told}");
    }
    Ok(())
}

#[test]
fn a_kept_cluster_does_what_it_suggests_until_it_is_interrupted() -> Result<()> {
    let mut demo = Demo::start(&["--keep"])?;
    let id = demo.0.id();
    let output = demo.0.stdout.take().context("the demo's output")?;
    let mut suggestions = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?.trim().to_owned();
        if line.starts_with("ip netns exec ") || line.starts_with("rm ") {
            suggestions.push(line);
        }
        // The last one.
        if suggestions
            .last()
            .is_some_and(|line| line.starts_with("rm "))
        {
            break;
        }
    }
    ensure!(suggestions.len() >= 7, "{suggestions:?}");
    for suggestion in &suggestions {
        let output = Command::new("sh").args(["-c", suggestion]).output()?;
        ensure!(
            output.status.success(),
            "{suggestion}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            suggestion.starts_with("rm ") || !output.stdout.is_empty(),
            "{suggestion} prints nothing"
        );
    }

    kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGINT)?;
    let status = eventually("the demo ends", Duration::from_secs(20), || {
        demo.0.try_wait()?.context("it still runs")
    })?;
    ensure!(status.code() == Some(130), "{status}");
    eventually("nothing is left", Duration::from_secs(5), || {
        let left = remains(&format!("cvlab{id}-"))?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// Namespaces, directories and processes that belong to a lab.
fn remains(lab: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for directory in [Path::new("/run/netns"), &std::env::temp_dir()] {
        for entry in fs::read_dir(directory)? {
            left.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    for process in fs::read_dir("/proc")? {
        // A process may end while we look at it.
        let arguments = fs::read(process?.path().join("cmdline")).unwrap_or_default();
        left.push(String::from_utf8_lossy(&arguments).into_owned());
    }
    left.retain(|name| name.contains(lab));
    Ok(left)
}
