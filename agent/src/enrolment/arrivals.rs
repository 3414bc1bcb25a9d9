//! Pods that the runtime is about to start: each waits until it is captured, or known not to be for the mesh.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::mesh::ObjectName;

/// How long a pod waits. The runtime tries again, with a new network namespace, as often as it likes.
const PATIENCE: Duration = Duration::from_secs(15);

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
    fn answer(self, waited: Duration) -> Option<Admission> {
        let is_late = waited >= PATIENCE;
        match self {
            Self::Captured => Some(Admission::Captured),
            Self::NotInMesh => Some(Admission::NotInMesh),
            Self::Hindered(why) => is_late.then_some(Admission::Refused(why)),
            Self::Unknown => is_late.then(|| {
                let seconds = PATIENCE.as_secs();
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
    name: ObjectName,
    pod_uid: Arc<str>,
    since: Instant,
    answer: oneshot::Sender<Admission>,
}

impl Arrivals {
    /// Another one waits.
    pub(super) fn wait(
        &mut self,
        name: ObjectName,
        pod_uid: Arc<str>,
        answer: oneshot::Sender<Admission>,
    ) {
        self.waiting.push(Waiting {
            name,
            pod_uid,
            since: Instant::now(),
            answer,
        });
    }

    /// Whether somebody waits for this pod.
    pub(super) fn is_awaited(&self, pod_uid: &str) -> bool {
        self.waiting.iter().any(|one| *one.pod_uid == *pod_uid)
    }

    /// Answers those who have waited long enough.
    pub(super) fn settle(&mut self, standing: impl Fn(&ObjectName, &Arc<str>) -> Standing) {
        let waiting = std::mem::take(&mut self.waiting);
        for one in waiting {
            // Whoever asked may have given up.
            if one.answer.is_closed() {
                continue;
            }
            let standing = standing(&one.name, &one.pod_uid);
            match standing.answer(one.since.elapsed()) {
                Some(admission) => drop(one.answer.send(admission)),
                None => self.waiting.push(one),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Admission, PATIENCE, Standing};

    #[test]
    fn who_is_known_hears_at_once_and_who_is_not_waits() {
        let soon = Duration::from_millis(1);
        let hindered = || Standing::Hindered("no room".to_owned());
        assert_eq!(Standing::Captured.answer(soon), Some(Admission::Captured));
        assert_eq!(Standing::NotInMesh.answer(soon), Some(Admission::NotInMesh));
        assert_eq!(hindered().answer(soon), None);
        assert_eq!(Standing::Unknown.answer(soon), None);
        let refused = Admission::Refused("no room".to_owned());
        assert_eq!(hindered().answer(PATIENCE), Some(refused));
        let unknown = Standing::Unknown.answer(PATIENCE);
        assert!(matches!(unknown, Some(Admission::Refused(_))));
    }
}
