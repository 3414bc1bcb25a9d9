//! Pods that the runtime is about to start: each waits until it is captured, or known not to be for the mesh.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::mesh::ObjectName;

/// Who waits with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// The runtime, for any pod.
    Runtime,
    /// istio-cni, for a pod of which it knows that it is for the mesh.
    IstioCni,
}

impl Asker {
    /// How long a pod waits, and up to a tick longer. Both try again as often as they like, the runtime with a new network
    /// namespace; istio-cni waits 5 s for an answer.
    const fn patience(self) -> Duration {
        match self {
            Self::Runtime => Duration::from_secs(15),
            Self::IstioCni => Duration::from_secs(3),
        }
    }
}

/// A pod for which the runtime has made a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Namespace and name.
    pub(crate) name: ObjectName,
    /// The UID by which the runtime knows it.
    pub(crate) pod_uid: Arc<str>,
    /// The runtime's name of its sandbox.
    pub(crate) container: String,
    /// Its network namespace.
    pub(crate) netns: PathBuf,
    /// What it is reached at.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What becomes of a pod that wants to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is captured.
    Captured,
    /// It is not for the mesh.
    NotInMesh,
    /// It may not start: one sentence says why. Later it may.
    Refused(String),
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Captured,
    NotInMesh,
    /// It is to be captured, and is not yet.
    Hindered(String),
    /// The source of the mesh's objects has not told of it yet.
    Unknown,
}

impl Standing {
    /// What is answered to a pod that has waited for some time; nothing if it has to wait longer.
    fn answer(self, asker: Asker, waited: Duration) -> Option<Admission> {
        let patience = asker.patience();
        let is_late = waited >= patience;
        match (self, asker) {
            (Self::Captured, _) => Some(Admission::Captured),
            // istio-cni may have heard of its label first.
            (Self::NotInMesh, Asker::IstioCni) if !is_late => None,
            (Self::NotInMesh, _) => Some(Admission::NotInMesh),
            (Self::Hindered(why), _) => is_late.then_some(Admission::Refused(why)),
            (Self::Unknown, _) => is_late.then(|| {
                let seconds = patience.as_secs();
                Admission::Refused(format!(
                    "the API server has not told the agent of this pod within {seconds} s: see `culvert status`"
                ))
            }),
        }
    }
}

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// `None` if it is known by its UID only.
    name: Option<ObjectName>,
    pod_uid: Arc<str>,
    asker: Asker,
    since: Instant,
    answer: oneshot::Sender<Admission>,
}

impl Arrivals {
    /// Another one waits.
    pub(super) fn wait(
        &mut self,
        (name, pod_uid): (Option<ObjectName>, Arc<str>),
        asker: Asker,
        answer: oneshot::Sender<Admission>,
    ) {
        self.waiting.push(Waiting {
            name,
            pod_uid,
            asker,
            since: Instant::now(),
            answer,
        });
    }

    /// Whether somebody waits for this pod.
    pub(super) fn is_awaited(&self, pod_uid: &str) -> bool {
        self.waiting.iter().any(|one| *one.pod_uid == *pod_uid)
    }

    /// Answers those who have waited long enough.
    pub(super) fn settle(&mut self, standing: impl Fn(Option<&ObjectName>, &Arc<str>) -> Standing) {
        let waiting = std::mem::take(&mut self.waiting);
        for one in waiting {
            // Whoever asked may have given up.
            if one.answer.is_closed() {
                continue;
            }
            let standing = standing(one.name.as_ref(), &one.pod_uid);
            match standing.answer(one.asker, one.since.elapsed()) {
                Some(admission) => drop(one.answer.send(admission)),
                None => self.waiting.push(one),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Admission, Asker, Standing};

    #[test]
    fn who_is_known_hears_at_once_and_who_is_not_waits() {
        let soon = Duration::from_millis(1);
        let hindered = || Standing::Hindered("no room".to_owned());
        let refused = || Some(Admission::Refused("no room".to_owned()));
        for asker in [Asker::Runtime, Asker::IstioCni] {
            let patience = asker.patience();
            let captured = Standing::Captured.answer(asker, soon);
            assert_eq!(captured, Some(Admission::Captured));
            assert_eq!(hindered().answer(asker, soon), None);
            assert_eq!(Standing::Unknown.answer(asker, soon), None);
            assert_eq!(hindered().answer(asker, patience), refused());
            let unknown = Standing::Unknown.answer(asker, patience);
            assert!(matches!(unknown, Some(Admission::Refused(_))));
        }
    }

    #[test]
    fn istio_cni_may_know_of_a_label_first() {
        let soon = Duration::from_millis(1);
        let answer = |asker, waited| Standing::NotInMesh.answer(asker, waited);
        let no = Some(Admission::NotInMesh);
        assert_eq!(answer(Asker::Runtime, soon), no);
        assert_eq!(answer(Asker::IstioCni, soon), None);
        assert_eq!(answer(Asker::IstioCni, Asker::IstioCni.patience()), no);
    }
}
