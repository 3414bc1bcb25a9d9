//! Pods that are let go: each by itself, all on request, those of an earlier agent, and to the next one.

use std::time::Duration;

use tracing::{error, info, warn};
use userspace_l7::model::WorkloadUid;

use super::{Office, chain, read};
use crate::admin::Released;
use crate::capture::Capture;

impl Office {
    /// Releases what an earlier agent has captured and nobody wants any more. Only those are sure to be such that are
    /// wanted no more; once all that is wanted is captured, the others are, too.
    pub(super) fn release_inherited(&mut self, is_complete: bool) {
        let Some(capture) = self.capture.as_mut().filter(|_| self.inherited) else {
            return;
        };
        let awaited = |uid: &str| !is_complete && self.wanted.contains_key(&WorkloadUid::new(uid));
        let (released, failures) = match capture.release_unclaimed(awaited) {
            Ok((released, failures)) => (released, failures),
            Err(error) => (Vec::new(), vec![error]),
        };
        if !released.is_empty() {
            info!(pods = ?released, "released pods that nobody wants captured any more");
        }
        for failure in &failures {
            warn!(error = %chain(failure), "cannot release a pod that nobody wants captured any more");
        }
        self.inherited = !is_complete || !failures.is_empty();
    }

    /// Connections end first, while their packets still find their way.
    pub(super) fn release(&mut self, uid: &WorkloadUid) {
        self.stop_serving(uid);
        read(&self.ledger).pods.remove(uid);
        let Some(capture) = &mut self.capture else {
            return;
        };
        match capture.release(uid.as_str()) {
            Ok(()) => info!(workload = %uid, "pod released"),
            Err(error) => {
                warn!(workload = %uid, error = %chain(&error), "cannot release the pod: tried again");
                // What is left of it is nobody's now, as what an earlier agent left is.
                self.inherited = true;
            }
        }
    }

    /// Ends what is carried for a pod, and takes nothing more from it.
    pub(super) fn stop_serving(&mut self, uid: &WorkloadUid) {
        if let Some(direct) = &self.direct {
            direct.dismiss(uid);
        }
        let detached: Vec<_> = self
            .workers
            .iter()
            .map(|worker| worker.detach(uid.clone()))
            .collect();
        for done in detached {
            // A worker that has ended has no connections.
            let _ended = done.blocking_recv();
        }
        self.dns.forget(uid);
        self.enrolled.remove(uid);
        read(&self.ledger).stopped += 1;
    }

    pub(super) fn release_all(&mut self) -> Released {
        self.wanted.clear();
        let pods: Vec<_> = self.enrolled.keys().cloned().collect();
        for uid in &pods {
            self.release(uid);
        }
        let removed = self.capture.take().map(Capture::remove_everything);
        let failed = removed.and_then(Result::err);
        let failures = failed.map(|error| chain(&error)).into_iter().collect();
        Released {
            pods: pods.iter().map(ToString::to_string).collect(),
            failures,
        }
    }

    pub(super) fn hand_over(self, window: Duration) {
        let handed_over = self.capture.map(|capture| capture.hand_over(window));
        if let Some(Err(error)) = handed_over {
            error!(error = %chain(&error), "connections are refused until the next agent is there");
        }
    }
}
