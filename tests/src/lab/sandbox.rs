//! What runs of a pod as a container runtime runs it: a process in the pod's network namespace and in the cgroup that the
//! kubelet makes for the pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Lab, Netns, eventually};

/// How soon a killed process has left its cgroup.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// How the kubelet and the runtime name cgroups (`cgroupDriver` of its configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Directories.
    Cgroupfs,
    /// systemd's slices and scopes.
    Systemd,
}

/// A process of a pod. It ends, and its cgroups go, with the value.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    /// From the innermost to the outermost.
    cgroups: Vec<PathBuf>,
}

impl Sandbox {
    /// Starts a process for the pod with this UID in a network namespace, in a container of that name.
    ///
    /// # Errors
    /// If there is no cgroup2 hierarchy, or the process cannot be started.
    pub fn start(
        lab: &Lab,
        netns: &Netns,
        (uid, container): (&str, &str),
        driver: Driver,
    ) -> Result<Self> {
        let mut directory = lab_cgroup(lab.name())?;
        let mut cgroups = Vec::new();
        for part in parts(uid, container, driver) {
            directory.push(part);
            cgroups.push(directory.clone());
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        cgroups.reverse();
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        let child = netns.enter(&mut command)?.spawn();
        let sandbox = Self {
            child: child.context("`sleep` cannot be started")?,
            cgroups,
        };
        let pid = sandbox.child.id().to_string();
        fs::write(directory.join("cgroup.procs"), pid).context("cannot fill a cgroup")?;
        Ok(sandbox)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
        let Some(innermost) = self.cgroups.first() else {
            return;
        };
        // The kernel takes a moment to leave it. What is left is removed by the next run's sweep.
        let left = || match fs::remove_dir(innermost) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        };
        drop(eventually("the cgroup is empty", GONE_WITHIN, left));
        for shared in self.cgroups.iter().skip(1) {
            // Others of the lab may be in it.
            drop(fs::remove_dir(shared));
        }
    }
}

fn parts(uid: &str, container: &str, driver: Driver) -> Vec<String> {
    match driver {
        Driver::Cgroupfs => vec![
            "kubepods".to_owned(),
            "burstable".to_owned(),
            format!("pod{uid}"),
            container.to_owned(),
        ],
        Driver::Systemd => vec![
            "kubepods.slice".to_owned(),
            "kubepods-besteffort.slice".to_owned(),
            format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_")),
            format!("cri-containerd-{container}.scope"),
        ],
    }
}

/// Where the cgroup2 hierarchy is mounted.
fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("no mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.context("no cgroup2 hierarchy is mounted")
}

/// A lab's part of the hierarchy, made if missing.
pub(super) fn lab_cgroup(lab: &str) -> Result<PathBuf> {
    let directory = root()?.join(lab);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// Directories directly below the hierarchy's root; none where there is no hierarchy.
pub(super) fn top() -> Option<PathBuf> {
    root().ok()
}

/// Removes cgroups that no process is in, the innermost first.
pub(super) fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(cgroup));
}
