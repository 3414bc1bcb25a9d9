//! Where this node's pods run, if they do not say it themselves: the runtime tells by the CNI plugin, or their processes do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::discovery::{Finding, Processes, Witness};

/// Between two looks at all processes while pods are missing that were missing before: the first wait, and the longest.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// A pod's place on this node.
#[derive(Debug)]
pub(super) struct Place {
    netns: OwnedFd,
    /// A name of the namespace, for an agent that comes later.
    pub(super) path: PathBuf,
    /// The addresses that the runtime has given it, before the API server shows them.
    pub(super) addresses: Vec<IpAddr>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The container that the runtime named.
    Runtime { container: String },
    /// A process of the pod.
    Process(Witness),
}

impl Place {
    /// The place that the runtime names.
    ///
    /// # Errors
    /// If there is no such network namespace.
    pub(super) fn told(
        container: String,
        path: PathBuf,
        addresses: Vec<IpAddr>,
    ) -> io::Result<Self> {
        let netns = File::open(&path)?.into();
        let source = Source::Runtime { container };
        Ok(Self {
            netns,
            path,
            addresses,
            source,
        })
    }

    /// The namespace.
    pub(super) fn netns(&self) -> &OwnedFd {
        &self.netns
    }

    /// What tells one namespace from another, for as long as it is held.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub(super) fn namespace(&self) -> io::Result<Namespace> {
        let metadata = File::from(self.netns.try_clone()?).metadata()?;
        Ok(Namespace(metadata.dev(), metadata.ino()))
    }
}

/// The identity of a network namespace: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Namespace(u64, u64);

/// What is known of pods, by their UID.
#[derive(Debug)]
pub(super) struct Whereabouts {
    processes: Processes,
    known: BTreeMap<Arc<str>, Place>,
    /// Why a pod that runs has no place.
    hindered: BTreeMap<String, String>,
    missed: BTreeSet<String>,
    pause: Duration,
    next_look: Instant,
}

impl Whereabouts {
    pub(super) fn new(processes: Processes) -> Self {
        Self {
            processes,
            known: BTreeMap::new(),
            hindered: BTreeMap::new(),
            missed: BTreeSet::new(),
            pause: LOOK_AGAIN[0],
            next_look: Instant::now(),
        }
    }

    pub(super) fn of(&self, pod: &str) -> Option<&Place> {
        self.known.get(pod)
    }

    /// Why a pod that runs has no place; `None` if nothing of it runs.
    pub(super) fn hindrance(&self, pod: &str) -> Option<&String> {
        self.hindered.get(pod)
    }

    /// Takes the runtime's word for where a pod runs.
    pub(super) fn tell(&mut self, pod: Arc<str>, place: Place) {
        self.hindered.remove(&*pod);
        self.known.insert(pod, place);
    }

    /// Forgets the places of containers that the runtime has ended. Gives the pods that were there.
    pub(super) fn leave(&mut self, is_gone: impl Fn(&String) -> bool) -> BTreeSet<Arc<str>> {
        let mut left = BTreeSet::new();
        self.known.retain(|pod, place| match &place.source {
            Source::Runtime { container } if is_gone(container) => {
                left.insert(Arc::clone(pod));
                false
            }
            _ => true,
        });
        left
    }

    /// Forgets all pods but these.
    pub(super) fn keep(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.known.retain(|pod, _| is_wanted(pod));
        self.hindered.retain(|pod, _| is_wanted(pod));
    }

    /// The next look does not wait.
    pub(super) fn look_again(&mut self) {
        self.missed.clear();
    }

    /// Forgets places whose witnesses have ended, and looks for the pods that have none: at once if they are others than
    /// last time, else more and more seldom. Most of them have not started.
    pub(super) fn look(&mut self, wanted: impl Iterator<Item = Arc<str>>) {
        self.known.retain(|_, place| match &place.source {
            Source::Runtime { .. } => true,
            Source::Process(witness) => witness.is_alive(),
        });
        let missing: BTreeSet<String> = wanted
            .filter(|pod| !pod.is_empty() && !self.known.contains_key(pod))
            .map(|pod| pod.to_string())
            .collect();
        let [first, longest] = LOOK_AGAIN;
        if missing != self.missed {
            self.missed.clone_from(&missing);
            self.pause = first;
        } else if Instant::now() < self.next_look {
            return;
        } else {
            self.pause = (self.pause * 2).min(longest);
        }
        self.next_look = Instant::now() + self.pause;
        self.hindered.clear();
        if missing.is_empty() {
            return;
        }
        match self.processes.find(&missing) {
            Ok(findings) => findings
                .into_iter()
                .for_each(|(pod, finding)| self.note(pod, finding)),
            Err(error) => {
                warn!(%error, "cannot list the node's processes");
                let why = format!("the node's processes cannot be listed: {error}");
                self.hindered = missing.into_iter().map(|pod| (pod, why.clone())).collect();
            }
        }
    }

    fn note(&mut self, pod: String, finding: Finding) {
        match finding {
            Finding::Netns(found) => {
                let place = Place {
                    netns: found.netns,
                    path: found.path,
                    addresses: Vec::new(),
                    source: Source::Process(found.witness),
                };
                self.known.insert(pod.into(), place);
            }
            Finding::HostNetwork => {
                let why = "its processes run in the node's own network namespace";
                self.hindered.insert(pod, why.to_owned());
            }
            Finding::Refused(why) => {
                self.hindered.insert(pod, why);
            }
        }
    }
}
