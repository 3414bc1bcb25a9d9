//! Pods that are let go: each by itself, all on request, those of an earlier agent, and to the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot::{self, error::TryRecvError};
use tracing::{error, info, warn};
use userspace_l7::model::WorkloadUid;

use super::ledger::Pending;
use super::{Captured, Office, chain, read};
use crate::admin::Released;
use crate::capture::Capture;
use crate::direct::Direct;
use crate::mesh::LocalPod;

/// How long other nodes may take to hear that a pod takes no HBONE any more.
const NEWS: Duration = Duration::from_secs(1);

/// How long connections of a pod that leaves the mesh may take to end after that (Istio's `terminationDrainDuration`).
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A pod that has left the mesh and has connections to end.
pub(super) struct Draining {
    captured: Captured,
    since: Instant,
    /// Those that may have something of it left; `None` while nobody is told to end.
    workers: Option<Vec<oneshot::Receiver<()>>>,
}

impl Draining {
    /// Of the pod with this UID.
    pub(super) fn is_of(&self, pod_uid: &str) -> bool {
        *self.captured.pod.pod_uid == *pod_uid
    }

    fn workers_are_done(&mut self) -> bool {
        let Some(workers) = &mut self.workers else {
            return false;
        };
        workers.retain_mut(|worker| matches!(worker.try_recv(), Err(TryRecvError::Empty)));
        workers.is_empty()
    }
}

impl Office {
    /// Releases what an earlier agent has captured and nobody wants any more. Only those are sure to be such that are
    /// wanted no more; once all that is wanted is captured, the others are, too.
    pub(super) fn release_inherited(&mut self, is_complete: bool) {
        if self.is_under_istio_cni() && !self.list_is_whole() {
            return;
        }
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

    /// Whether a pod runs on without the mesh.
    pub(super) fn is_bystander(&self, pod: &LocalPod) -> bool {
        let key = (pod.name.clone(), Arc::clone(&pod.pod_uid));
        self.bystanders.contains(&key)
    }

    /// Lets a pod go that runs on without the mesh: nothing new is captured, and what is goes on for a while.
    pub(super) fn see_off(&mut self, uid: &WorkloadUid) {
        let Some((uid, captured)) = self.enrolled.remove_entry(uid) else {
            return;
        };
        let capture = self.capture.as_mut();
        let passes = capture.map(|capture| capture.let_pass(uid.as_str()));
        if let Some(Err(error)) = passes {
            warn!(workload = %uid, error = %chain(&error), "cannot let the pod drain: released at once");
            return self.release(&uid);
        }
        if let Some(direct) = &self.direct {
            direct.dismiss(&uid);
        }
        if let Some(entry) = read(&self.ledger).pods.get_mut(&uid) {
            entry.pending = Some(Pending::Draining);
        }
        info!(workload = %uid, "pod leaves the mesh");
        let draining = Draining {
            captured,
            since: Instant::now(),
            workers: None,
        };
        self.draining.insert(uid, draining);
    }

    /// Has pods that leave take the next step: to take no HBONE and end what can be told to end, and to be released when nothing is
    /// carried for them any more.
    pub(super) fn drain(&mut self) {
        if self.draining.is_empty() {
            return;
        }
        let carried = self.direct.as_ref().map(Direct::carried);
        let mut drained = Vec::new();
        for (uid, draining) in &mut self.draining {
            if draining.workers.is_none() && draining.since.elapsed() >= NEWS {
                let workers = self.workers.iter();
                let parting = workers.map(|worker| worker.part(uid.clone(), DRAIN_TIME));
                draining.workers = Some(parting.collect());
                let capture = self.capture.as_mut();
                let closed = capture.map(|capture| capture.close_listeners(uid.as_str()));
                if let Some(Err(error)) = closed {
                    warn!(workload = %uid, error = %chain(&error), "HBONE for the pod is still taken");
                }
            }
            let is_carried = || carried.as_ref().is_some_and(|all| all.contains(uid));
            let is_late = draining.since.elapsed() >= NEWS + DRAIN_TIME;
            if draining.workers_are_done() && (is_late || !is_carried()) {
                drained.push(uid.clone());
            }
        }
        for uid in drained {
            self.release(&uid);
        }
    }

    /// Connections end first, while their packets still find their way.
    pub(super) fn release(&mut self, uid: &WorkloadUid) {
        // There may be hundreds, and each takes the kernel a while.
        self.beat();
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
        self.draining.remove(uid);
        read(&self.ledger).stopped += 1;
    }

    pub(super) fn release_all(&mut self) -> Released {
        self.wanted.clear();
        let pods = self.enrolled.keys().chain(self.draining.keys());
        let pods: Vec<_> = pods.cloned().collect();
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
