//! Pods as istio-cni names them, where it says which are in the mesh and where they run (`zds`).
//!
//! Its rules are in a pod's network namespace from before it names the pod until just before it takes the pod out. So a pod is
//! captured until istio-cni takes it out, whatever the API server says meanwhile: what is let pass would be redirected to nobody.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::warn;
use userspace_l7::model::WorkloadUid;

use super::arrivals::{Admission, Asker};
use super::whereabouts::{Place, Whereabouts};
use super::{Office, read};
use crate::capture;
use crate::mesh::{LocalPod, ObjectName};
use crate::sentence::sentence;
use crate::zds::{Named, Notice};

impl Office {
    pub(super) fn hear(&mut self, notice: Notice, answer: oneshot::Sender<Admission>) {
        if self.capture.is_none() {
            let why = "everything was released on request".to_owned();
            let _given_up = answer.send(Admission::Refused(why));
            return;
        }
        match notice {
            Notice::Add(named) => return self.take_in(named, answer),
            Notice::Keep(pod_uid) => {
                if let Some(whereabouts) = &mut self.whereabouts {
                    whereabouts.keep_in_mesh(pod_uid);
                }
                self.enrol_missing();
            }
            Notice::Del(pod_uid) => self.take_out(&pod_uid),
            Notice::All(pods) => {
                let whereabouts = self.whereabouts.as_mut();
                let left = whereabouts.map(|known| known.all(&pods));
                for pod_uid in left.into_iter().flatten() {
                    self.take_out(&pod_uid);
                }
                let is_complete = self.enrol_missing();
                // Else nobody knows yet who is wanted, and whoever is not would be let go.
                if read(&self.ledger).told {
                    self.settle(is_complete);
                }
            }
        }
        let _given_up = answer.send(Admission::Captured);
    }

    fn take_in(&mut self, named: Named, answer: oneshot::Sender<Admission>) {
        let Named { uid, name, netns } = named;
        let place = match place(netns) {
            Ok(place) => place,
            Err(error) => {
                let why = format!("what came with it is no network namespace to enter: {error}");
                let _given_up = answer.send(Admission::Refused(why));
                return;
            }
        };
        if let Some(whereabouts) = &mut self.whereabouts {
            whereabouts.tell(Arc::clone(&uid), place);
        }
        let name = name.map(|(namespace, name)| ObjectName { namespace, name });
        self.arrivals.wait((name, uid), Asker::IstioCni, answer);
        self.enrol_missing();
        self.settle_arrivals();
    }

    /// Lets a pod go that istio-cni takes out of the mesh: one that runs on drains, as one whose label was taken off.
    fn take_out(&mut self, pod_uid: &str) {
        if let Some(whereabouts) = &mut self.whereabouts {
            whereabouts.take_out(pod_uid);
        }
        let captured = self.enrolled.iter();
        let captured = captured.filter(|(_, captured)| *captured.pod.pod_uid == *pod_uid);
        let captured: Vec<_> = captured
            .map(|(uid, captured)| (uid.clone(), self.runs_on(uid, &captured.pod)))
            .collect();
        for (uid, runs_on) in captured {
            if runs_on {
                self.see_off(&uid);
            } else {
                self.release(&uid);
            }
        }
    }

    /// Whether a pod is there, as far as the API server has told. It may be later than istio-cni to say that it is not.
    fn runs_on(&self, uid: &WorkloadUid, pod: &LocalPod) -> bool {
        self.wanted.contains_key(uid) || self.is_bystander(pod)
    }

    /// Looks for the namespaces that istio-cni does not hand over again, because an agent should have them: an earlier one has
    /// left their names.
    pub(super) fn recall_kept(&mut self) {
        let (Some(whereabouts), Some(capture)) = (&mut self.whereabouts, &self.capture) else {
            return;
        };
        let kept: Vec<_> = whereabouts.kept().cloned().collect();
        for pod_uid in kept {
            let mut wanted = self.wanted.values();
            let Some(pod) = wanted.find(|pod| pod.pod_uid == pod_uid) else {
                continue;
            };
            let recalled = capture.recall(pod.uid.as_str());
            match recalled.map(|netns| netns.map(place).transpose()) {
                Ok(Ok(Some(place))) => whereabouts.tell(pod_uid, place),
                // Said of the pod, for as long as it is so.
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    warn!(workload = %pod.uid, %error, "cannot look at the pod's network namespace");
                }
                Err(error) => {
                    let error = sentence(&error);
                    warn!(workload = %pod.uid, %error, "cannot find the pod's network namespace");
                }
            }
        }
    }

    /// Whether only istio-cni takes this pod out of the mesh.
    pub(super) fn is_in_istio_cnis_hands(&self, pod: &LocalPod) -> bool {
        let whereabouts = self.whereabouts.as_ref();
        whereabouts.is_some_and(|known| known.is_in_istio_cnis_hands(&pod.pod_uid))
    }

    /// Whether istio-cni names the pods, and has its rules in them.
    pub(super) fn is_under_istio_cni(&self) -> bool {
        let list = self.whereabouts.as_ref().map(Whereabouts::list_is_whole);
        list.flatten().is_some()
    }

    /// Whether a pod that istio-cni has not named is not there for it.
    pub(super) fn list_is_whole(&self) -> bool {
        let list = self.whereabouts.as_ref().map(Whereabouts::list_is_whole);
        list.flatten() == Some(true)
    }
}

fn place(netns: OwnedFd) -> io::Result<Place> {
    let addresses = capture::addresses_in(&netns)?;
    Place::handed_over(netns, addresses)
}
