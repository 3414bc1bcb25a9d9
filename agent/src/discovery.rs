//! Finds the network namespaces of pods that run already, by their processes: the kubelet has put each into a cgroup that
//! names the pod.
//!
//! A pod says nothing about itself here: its UID is the API server's word, its cgroup the kubelet's, and its namespace the
//! kernel's.

mod cgroup;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

pub use cgroup::pod_of;

/// Where container runtimes keep names of the namespaces that they make.
const NAMED: &str = "/var/run/netns";

/// A pod's network namespace.
#[derive(Debug)]
pub(crate) struct Found {
    /// The namespace itself.
    pub(crate) netns: OwnedFd,
    /// A name of it, for as long as it has that.
    pub(crate) path: PathBuf,
    /// The process by which it was found.
    pub(crate) witness: Witness,
}

/// A process of a pod, by its directory.
#[derive(Debug)]
pub(crate) struct Witness(OwnedFd);

impl Witness {
    /// Whether it still runs: nothing can be read of a process that has ended.
    pub(crate) fn is_alive(&self) -> bool {
        read(&self.0, "cgroup").is_ok()
    }
}

/// What a pod's processes say.
#[derive(Debug)]
pub(crate) enum Finding {
    /// Where they run.
    Netns(Found),
    /// They share this process's own namespace, the node's.
    HostNetwork,
    /// They may not be looked at: the sentence says whose and what is lacking.
    Refused(String),
}

/// The processes of a node.
#[derive(Clone, Debug)]
pub(crate) struct Processes {
    proc: PathBuf,
}

/// A process's network namespace.
struct Seen {
    netns: OwnedFd,
    identity: (u64, u64),
    witness: Witness,
}

/// A process of a wanted pod; the older, the less.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Clock ticks since the machine has started.
    began: u64,
    pid: u32,
}

impl Processes {
    /// The node's processes, as its `/proc` shows them.
    pub(crate) fn new(proc: PathBuf) -> Self {
        Self { proc }
    }

    /// Looks for processes of these pods. Of a pod that has several it is the oldest that counts: what the pod starts
    /// itself may be in a namespace that it has made, its sandbox is not.
    ///
    /// # Errors
    /// If the processes cannot be listed.
    pub(crate) fn find(&self, wanted: &BTreeSet<String>) -> io::Result<BTreeMap<String, Finding>> {
        let own = identity(&fs::metadata("/proc/self/ns/net")?);
        let mut candidates = BTreeMap::<String, BTreeSet<Candidate>>::new();
        for entry in fs::read_dir(&self.proc)? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // Most that fail have ended meanwhile.
            let Ok(Some(uid)) = self.open(pid).and_then(|process| pod(&process)) else {
                continue;
            };
            if wanted.contains(&uid)
                && let Ok(began) = self.open(pid).and_then(|process| began(&process))
            {
                let known = candidates.entry(uid).or_default();
                known.insert(Candidate { began, pid });
            }
        }
        let found = candidates.into_iter().filter_map(|(uid, candidates)| {
            let finding = self.look_into(&uid, &candidates, own)?;
            Some((uid, finding))
        });
        Ok(found.collect())
    }

    /// The namespace of the oldest that has one of its own. A runtime's helper may be in the pod's cgroup for the moment
    /// before it enters the pod's namespace.
    fn look_into(
        &self,
        uid: &str,
        candidates: &BTreeSet<Candidate>,
        own: (u64, u64),
    ) -> Option<Finding> {
        let mut outcome = None;
        for Candidate { pid, .. } in candidates {
            match self.namespace(*pid, uid) {
                Ok(Some(seen)) if seen.identity != own => {
                    let by_process = || self.proc.join(format!("{pid}/ns/net"));
                    return Some(Finding::Netns(Found {
                        path: name_of(seen.identity).unwrap_or_else(by_process),
                        netns: seen.netns,
                        witness: seen.witness,
                    }));
                }
                Ok(Some(_)) => outcome = Some(Finding::HostNetwork),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let why = format!(
                        "cannot look into its process {pid}: the agent needs CAP_SYS_PTRACE ({error})"
                    );
                    outcome = Some(Finding::Refused(why));
                }
                // It has ended, or is another pod's by now.
                Ok(None) | Err(_) => {}
            }
        }
        outcome
    }

    /// What a process of the pod is in; `None` if it is not, or no longer, the pod's.
    fn namespace(&self, pid: u32, uid: &str) -> io::Result<Option<Seen>> {
        let process = self.open(pid)?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let netns = openat(&process, "ns/net", flags, Mode::empty())?;
        // After it was opened: until then the number could have become another process's, or this one could have moved.
        if pod(&process)?.as_deref() != Some(uid) {
            return Ok(None);
        }
        let netns = File::from(netns);
        let identity = identity(&netns.metadata()?);
        Ok(Some(Seen {
            netns: netns.into(),
            identity,
            witness: Witness(process),
        }))
    }

    /// A process's directory: it stays that process's, whoever has the number later.
    fn open(&self, pid: u32) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(open(
            &self.proc.join(pid.to_string()),
            flags,
            Mode::empty(),
        )?)
    }
}

fn pod(process: &OwnedFd) -> io::Result<Option<String>> {
    Ok(pod_of(&read(process, "cgroup")?))
}

/// Field 22 of `proc_pid_stat(5)`; the name in parentheses may hold spaces.
fn began(process: &OwnedFd) -> io::Result<u64> {
    let stat = read(process, "stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let field = after_name.split_whitespace().nth(19);
    let began = field.and_then(|field| field.parse().ok());
    began.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn read(process: &OwnedFd, file: &str) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = Vec::new();
    File::from(openat(process, file, flags, Mode::empty())?).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Device and inode: two files of the same are one namespace.
fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The name that a runtime keeps of a namespace with this device and inode. It outlives the process by which the namespace was
/// found.
pub(crate) fn name_of(namespace: (u64, u64)) -> Option<PathBuf> {
    let names = fs::read_dir(Path::new(NAMED)).ok()?;
    let mut paths = names.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| fs::metadata(path).is_ok_and(|one| identity(&one) == namespace))
}
