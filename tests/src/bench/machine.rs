//! The machine that a benchmark runs on: what it is, and how busy it was with what.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// What a reader needs to know to trust figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The CPU's name.
    pub cpu: String,
    /// How many.
    pub cpus: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Commit of this repository, with `-dirty` if files differ from it.
    pub commit: String,
    /// What was typed.
    pub command: String,
}

impl Machine {
    /// Looks at this one.
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |line: &str| Some(line.split_once(':')?.1.trim().to_owned());
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let words: Vec<String> = std::env::args().skip(1).collect();
        Self {
            cpu: model
                .and_then(field)
                .unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: release.trim().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            command: format!("cargo xtask bench {}", words.join(" "))
                .trim_end()
                .to_owned(),
        }
    }
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude", "*"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// CPU time in microseconds up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Account {
    /// Of all CPUs: not idle.
    pub all: f64,
    /// Of those: answering interrupts, which is charged to nobody or to whoever is there.
    pub interrupts: f64,
    /// This process and all that it started.
    pub own: f64,
}

impl Account {
    /// Reads it.
    ///
    /// # Errors
    /// If the kernel's files are not as they should be.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let tick = sysconf(SysconfVar::CLK_TCK)?.context("no ticks")?;
        #[expect(clippy::cast_precision_loss, reason = "100 on every Linux")]
        let (all, interrupts) = busy(&stat, 1e6 / tick as f64).context("/proc/stat")?;
        let own = std::process::id();
        let living: f64 = family(own)
            .into_iter()
            .filter_map(|pid| cpu_time_us(pid).ok())
            .sum();
        let ended = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let ended = ended.user_time().num_microseconds() + ended.system_time().num_microseconds();
        #[expect(clippy::cast_precision_loss, reason = "exact for centuries")]
        let own = living + ended as f64;
        Ok(Self {
            all,
            interrupts,
            own,
        })
    }

    /// What was used between an earlier look and this one.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            interrupts: self.interrupts - before.interrupts,
            own: self.own - before.own,
        }
    }

    /// What neither the benchmark nor interrupts explain: somebody else.
    pub fn others(self) -> f64 {
        (self.all - self.interrupts - self.own).max(0.0)
    }
}

/// Busy time and that of interrupts, in microseconds (`proc_stat(5)`).
fn busy(stat: &str, tick: f64) -> Option<(f64, f64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<f64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    let interrupts = irq + softirq;
    let all = user + nice + system + interrupts + steal;
    Some((all * tick, interrupts * tick))
}

/// A process and all that descend from it.
pub fn family(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let listing = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in listing {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything; the parent is the second field after it (proc_pid_stat(5)).
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|text| text.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// CPU time of a process in microseconds, from the scheduler's own account of each thread.
///
/// # Errors
/// If the process is gone.
pub fn cpu_time_us(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let path = thread
            .context("the process is gone")?
            .path()
            .join("schedstat");
        // A thread may end while we look at it; what it used then no longer matters.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        let on_cpu = text
            .split_whitespace()
            .next()
            .context("schedstat is empty")?;
        nanoseconds += on_cpu.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e3)
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// If the process is gone.
pub fn resident(pid: u32) -> Result<f64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{Account, busy, cpu_time_us, family, resident};

    #[test]
    fn busy_is_all_but_idle_and_waiting() {
        let stat = "cpu  10 2 30 400 50 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy(stat, 1e4), Some((63e4, 13e4)));
        assert_eq!(busy("cpu  1 2 3\n", 1e4), None);
        assert_eq!(busy("", 1e4), None);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "sums of whole numbers")]
    fn others_are_what_is_left() {
        let account = |all, interrupts, own| Account {
            all,
            interrupts,
            own,
        };
        let used = account(100.0, 20.0, 70.0).since(account(50.0, 10.0, 40.0));
        assert_eq!(used, account(50.0, 10.0, 30.0));
        assert_eq!(used.others(), 10.0);
        assert_eq!(account(50.0, 10.0, 60.0).others(), 0.0);
    }

    #[test]
    fn a_family_has_its_children() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(family(child.id()), [child.id()]);
        assert!(family(std::process::id()).contains(&child.id()));
        assert!(resident(std::process::id()).unwrap() > 1e6);
        assert!(cpu_time_us(std::process::id()).unwrap() > 0.0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(cpu_time_us(child.id()).is_err());
    }
}
