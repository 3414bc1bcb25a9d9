//! Where this node's pods run, if they do not say it themselves: the runtime tells by the CNI plugin, or their processes do; or
//! istio-cni does, and nobody besides.

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

use crate::discovery::{self, Finding, Processes, Witness};

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
    /// Istio's CNI agent.
    IstioCni,
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

    /// The place that istio-cni has handed over, with the addresses that are there: it tells none, and the API server shows none
    /// before the pod has started.
    ///
    /// # Errors
    /// If the kernel does not say what it is.
    pub(super) fn handed_over(netns: OwnedFd, addresses: Vec<IpAddr>) -> io::Result<Self> {
        let Namespace(device, inode) = Namespace::of(&netns)?;
        // Without a name the next agent cannot let go of it by itself; istio-cni hands it to that one again.
        let path = discovery::name_of((device, inode)).unwrap_or_default();
        Ok(Self {
            netns,
            path,
            addresses,
            source: Source::IstioCni,
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
        Namespace::of(&self.netns)
    }
}

/// The identity of a network namespace: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Namespace(u64, u64);

impl Namespace {
    fn of(netns: &OwnedFd) -> io::Result<Self> {
        let metadata = File::from(netns.try_clone()?).metadata()?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }
}

/// Who says where pods run.
#[derive(Debug)]
enum Authority {
    /// The runtime, and their processes.
    Processes(Processes),
    /// istio-cni.
    IstioCni {
        /// Whether it has named all that there are.
        has_named_all: bool,
        /// Those that it keeps in the mesh without saying where they are, as it need not to an agent that knows.
        kept: BTreeSet<Arc<str>>,
    },
}

/// What is known of pods, by their UID.
#[derive(Debug)]
pub(super) struct Whereabouts {
    authority: Authority,
    known: BTreeMap<Arc<str>, Place>,
    /// Why a pod that runs has no place.
    hindered: BTreeMap<String, String>,
    missed: BTreeSet<String>,
    pause: Duration,
    next_look: Instant,
}

impl Whereabouts {
    /// The runtime and pods' processes tell.
    pub(super) fn found(processes: Processes) -> Self {
        Self::by(Authority::Processes(processes))
    }

    /// istio-cni tells.
    pub(super) fn named_by_istio_cni() -> Self {
        Self::by(Authority::IstioCni {
            has_named_all: false,
            kept: BTreeSet::new(),
        })
    }

    fn by(authority: Authority) -> Self {
        Self {
            authority,
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
    pub(super) fn hindrance(&self, pod: &str) -> Option<&str> {
        if self.keeps(pod) {
            return Some("istio-cni keeps it in the mesh and does not say where it is");
        }
        self.hindered.get(pod).map(String::as_str)
    }

    /// Takes the runtime's word for where a pod runs, or istio-cni's.
    pub(super) fn tell(&mut self, pod: Arc<str>, place: Place) {
        self.hindered.remove(&*pod);
        if let Authority::IstioCni { kept, .. } = &mut self.authority {
            kept.remove(&*pod);
        }
        self.known.insert(pod, place);
    }

    /// Takes istio-cni's word that a pod is in the mesh, wherever it is.
    pub(super) fn keep_in_mesh(&mut self, pod: Arc<str>) {
        if let Authority::IstioCni { kept, .. } = &mut self.authority
            && !self.known.contains_key(&*pod)
        {
            kept.insert(pod);
        }
    }

    /// Pods that istio-cni keeps in the mesh and whose places are not known.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Arc<str>> {
        let kept = match &self.authority {
            Authority::IstioCni { kept, .. } => Some(kept),
            Authority::Processes(_) => None,
        };
        kept.into_iter().flatten()
    }

    fn keeps(&self, pod: &str) -> bool {
        matches!(&self.authority, Authority::IstioCni { kept, .. } if kept.contains(pod))
    }

    /// Takes istio-cni's word that a pod is not in the mesh any more.
    pub(super) fn take_out(&mut self, pod: &str) {
        if let Authority::IstioCni { kept, .. } = &mut self.authority {
            kept.remove(pod);
            self.known.remove(pod);
        }
    }

    /// Takes istio-cni's word that these are all. Gives the others of which it had said so before.
    pub(super) fn all(&mut self, pods: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let Authority::IstioCni {
            has_named_all,
            kept,
        } = &mut self.authority
        else {
            return BTreeSet::new();
        };
        *has_named_all = true;
        kept.retain(|pod| pods.contains(pod));
        let named = self.known.keys();
        let left: BTreeSet<_> = named.filter(|pod| !pods.contains(*pod)).cloned().collect();
        self.known.retain(|pod, _| pods.contains(pod));
        left
    }

    /// Whether only istio-cni takes this pod out of the mesh: its rules are in the pod until then.
    pub(super) fn is_in_istio_cnis_hands(&self, pod: &str) -> bool {
        let is_istio_cnis = matches!(self.authority, Authority::IstioCni { .. });
        is_istio_cnis && (self.known.contains_key(pod) || self.keeps(pod))
    }

    /// Whether istio-cni has named all pods that are in the mesh; `None` where it is not asked.
    pub(super) fn list_is_whole(&self) -> Option<bool> {
        match self.authority {
            Authority::IstioCni { has_named_all, .. } => Some(has_named_all),
            Authority::Processes(_) => None,
        }
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

    /// Forgets all pods but these. What istio-cni has said it says once.
    pub(super) fn keep(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.known
            .retain(|pod, place| matches!(place.source, Source::IstioCni) || is_wanted(pod));
        self.hindered.retain(|pod, _| is_wanted(pod));
    }

    /// The next look does not wait.
    pub(super) fn look_again(&mut self) {
        self.missed.clear();
    }

    /// Forgets places whose witnesses have ended, and looks for the pods that have none: at once if they are others than
    /// last time, else more and more seldom. Most of them have not started.
    pub(super) fn look(&mut self, wanted: impl Iterator<Item = Arc<str>>) {
        let Authority::Processes(processes) = &self.authority else {
            return;
        };
        self.known.retain(|_, place| match &place.source {
            Source::Runtime { .. } | Source::IstioCni => true,
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
        match processes.find(&missing) {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::sync::Arc;

    use super::{Place, Whereabouts};

    fn place() -> Place {
        let netns = File::open("/proc/self/ns/net").unwrap();
        Place::handed_over(netns.into(), Vec::new()).unwrap()
    }

    fn set<const N: usize>(pods: [&str; N]) -> BTreeSet<Arc<str>> {
        pods.into_iter().map(Arc::from).collect()
    }

    #[test]
    fn istio_cni_says_who_is_there_and_for_how_long() {
        let mut known = Whereabouts::named_by_istio_cni();
        assert_eq!(known.list_is_whole(), Some(false));
        for pod in ["added", "gone"] {
            known.tell(pod.into(), place());
        }
        for pod in ["kept", "added"] {
            known.keep_in_mesh(pod.into());
        }
        assert_eq!(
            known.kept().cloned().collect::<BTreeSet<_>>(),
            set(["kept"])
        );
        assert_eq!(known.all(&set(["added", "kept"])), set(["gone"]));
        assert_eq!(known.list_is_whole(), Some(true));
        // Whatever the API server says meanwhile.
        known.keep(|_| false);
        known.look(std::iter::once("other".into()));
        for (pod, is_placed, is_hindered) in [
            ("added", true, false),
            ("kept", false, true),
            ("gone", false, false),
            ("other", false, false),
        ] {
            assert_eq!(known.of(pod).is_some(), is_placed, "{pod}");
            assert_eq!(known.hindrance(pod).is_some(), is_hindered, "{pod}");
            let is_held = known.is_in_istio_cnis_hands(pod);
            assert_eq!(is_held, is_placed || is_hindered, "{pod}");
        }
        known.tell("kept".into(), place());
        assert_eq!(known.hindrance("kept"), None);
        for pod in ["added", "kept"] {
            known.take_out(pod);
            assert!(!known.is_in_istio_cnis_hands(pod), "{pod}");
        }
    }

    #[test]
    fn the_same_namespace_is_known_again() {
        let [one, other] = [place(), place()].map(|place| place.namespace().unwrap());
        assert_eq!(one, other);
    }
}
