//! Removes what test runs left that were killed before they could clean up.

use std::path::Path;
use std::sync::Once;
use std::{env, fs, process};

use nix::sys::signal::{SigSet, Signal};

use super::{PREFIX, agent, netns, sandbox};

static SWEEP: Once = Once::new();

/// Removes namespaces and directories of labs whose process is gone, once per process.
pub(crate) fn once() {
    SWEEP.call_once(|| {
        for name in labs_of(Path::new(netns::DIRECTORY), is_gone) {
            // Another run may be sweeping too: whoever comes second finds nothing, and that is fine.
            drop(netns::ip(&["netns", "del", &name]));
        }
        remove_directories(is_gone);
        remove_cgroups(is_gone);
    });
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).exists()
}

/// Makes SIGINT and SIGTERM end the process only after its labs are removed. Agents end with the process.
///
/// To be called before any thread is started, because threads inherit what they do not hear.
///
/// # Errors
/// If the signals cannot be blocked.
pub fn remove_on_interrupt() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        let signal = signals.wait();
        let own = process::id().to_string();
        for name in labs_of(Path::new(netns::DIRECTORY), |pid| pid == own) {
            drop(netns::ip(&["netns", "del", &name]));
        }
        remove_directories(|pid| pid == own);
        remove_cgroups(|pid| pid == own);
        let code = signal.map_or(1, |signal| 128 + signal as i32);
        end(code);
    });
    Ok(())
}

#[expect(
    clippy::exit,
    reason = "an interrupted program has nobody to return to"
)]
fn end(code: i32) -> ! {
    process::exit(code)
}

/// Removes a lab's directory and what its agents have pinned, which would otherwise stay attached.
pub(crate) fn remove_directory(directory: &Path) {
    for node in ["a", "b"] {
        drop(fs::remove_dir_all(agent::pins(&agent::run_directory(
            directory, node,
        ))));
    }
    drop(fs::remove_dir_all(directory));
}

fn remove_directories(of: impl Fn(&str) -> bool) {
    let directory = env::temp_dir();
    for name in labs_of(&directory, of) {
        remove_directory(&directory.join(name));
    }
}

/// Removes a lab's cgroups.
pub(crate) fn remove_cgroup(lab: &str) {
    if let Some(top) = sandbox::top() {
        sandbox::remove(&top.join(lab));
    }
}

fn remove_cgroups(of: impl Fn(&str) -> bool) {
    let Some(top) = sandbox::top() else { return };
    for name in labs_of(&top, of) {
        sandbox::remove(&top.join(name));
    }
}

fn labs_of(directory: &Path, of: impl Fn(&str) -> bool) -> Vec<String> {
    let Ok(listing) = fs::read_dir(directory) else {
        return Vec::new();
    };
    listing
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(&of))
        .collect()
}

/// The process in a lab's name, `cvlab<pid>-…`.
fn owner(name: &str) -> Option<&str> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.bytes()
        .all(|digit| digit.is_ascii_digit())
        .then_some(pid)
}
