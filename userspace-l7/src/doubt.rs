//! L6: tunnels that a node takes no more, or not yet. Nodes do not hear of a pod that enters or leaves the mesh at the same
//! moment: the client's may still send tunnels to a pod whose node has released it, or already to one whose node has yet to
//! capture it. Nothing has reached the application then, so its client waits a moment for the nodes to agree.
//!
//! A failure never leads into the clear: only the mesh does, by saying that the workload is not in it any more.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use crate::dial::DialError;
use crate::hub::Hub;
use crate::model::{Peer, Snapshot, Workload};
use crate::route::{MAX_ATTEMPTS, Target};

/// Time that nodes have to agree on whether a workload is in the mesh, from when one has taken no tunnel for it. Whoever
/// asks for a pod that is simply dead is told so this much later.
const PATIENCE: Duration = Duration::from_millis(300);

/// Pause before what the mesh goes on to say is tried again: that a pod has been captured is announced by nobody.
const PAUSE: Duration = Duration::from_millis(100);

/// Workloads that take tunnels as the mesh says, and took none.
#[derive(Default)]
pub(crate) struct Doubts {
    about: SmallVec<[Arc<Workload>; MAX_ATTEMPTS]>,
    until: Option<Instant>,
}

impl Doubts {
    /// Notes why a target was not reached. Where another data plane answers, which may be in the pod itself, an end of
    /// its tunnels means that it is down.
    pub(crate) fn note(&mut self, target: &Target, error: &DialError) {
        let workload = target.workload.as_ref();
        if let Some(workload) = workload.filter(|workload| workload.peer == Peer::Culvert)
            && error.is_untaken()
        {
            self.about.push(Arc::clone(workload));
        }
    }

    /// Forgets what was noted: the attempt has failed for good.
    pub(crate) fn dismiss(&mut self) {
        self.about.clear();
    }

    /// Whether anything was noted.
    pub(crate) fn are_any(&self) -> bool {
        !self.about.is_empty()
    }

    /// Waits until the mesh says something else about one of the workloads than it did, which it may do already, or
    /// until it is time to try again. False if there is nothing to wait for, or not any more.
    ///
    /// # Cancel safety
    /// Dropping the future forgets what was noted.
    pub(crate) async fn settle(&mut self, hub: &Hub) -> bool {
        let about = mem::take(&mut self.about);
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + PATIENCE);
        if about.is_empty() || now >= until {
            return false;
        }
        let told = hub.until(|snapshot| about.iter().any(|known| is_outdated(snapshot, known)));
        // As it was, then.
        drop(timeout_at(until.min(now + PAUSE), told).await);
        true
    }
}

/// Whether the mesh says by now that a workload is reached in another way, or not at all.
fn is_outdated(snapshot: &Snapshot, known: &Workload) -> bool {
    snapshot.workloads.get(&known.uid).is_none_or(|now| {
        (now.protocol, now.peer, now.health) != (known.protocol, known.peer, known.health)
            || now.addresses != known.addresses
            || now.identity() != known.identity()
    })
}
