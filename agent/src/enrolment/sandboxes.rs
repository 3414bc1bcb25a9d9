//! Pods' sandboxes as the container runtime starts, asks about and ends them, through the CNI plugin.

use std::sync::Arc;

use tokio::sync::oneshot;
use userspace_l7::model::WorkloadUid;

use super::arrivals::{Admission, Arrival, Asker, Standing};
use super::whereabouts::Place;
use super::{Office, read};
use crate::mesh::ObjectName;

impl Office {
    /// A pod is about to start.
    pub(super) fn arrive(&mut self, arrival: Arrival, answer: oneshot::Sender<Admission>) {
        let Arrival {
            name,
            pod_uid,
            container,
            netns,
            addresses,
        } = arrival;
        let refusal = if self.capture.is_none() {
            Some("everything was released on request".to_owned())
        } else if let Some(whereabouts) = &mut self.whereabouts {
            let shown = netns.display().to_string();
            match Place::told(container, netns, addresses) {
                Ok(place) => {
                    whereabouts.tell(Arc::clone(&pod_uid), place);
                    None
                }
                Err(error) => Some(format!(
                    "the agent cannot open the network namespace {shown} ({error}): is /var/run/netns mounted into it, with propagation?"
                )),
            }
        } else {
            Some("this agent's pods name their network namespaces themselves".to_owned())
        };
        if let Some(why) = refusal {
            let _given_up = answer.send(Admission::Refused(why));
            return;
        }
        self.arrivals
            .wait((Some(name), pod_uid), Asker::Runtime, answer);
        self.enrol_missing();
        self.settle_arrivals();
    }

    pub(super) fn check(&self, arrival: &Arrival) -> Admission {
        match self.standing(Some(&arrival.name), &arrival.pod_uid) {
            Standing::Captured => Admission::Captured,
            Standing::NotInMesh => Admission::NotInMesh,
            Standing::Hindered(why) => Admission::Refused(why),
            Standing::Unknown => Admission::Refused("the agent knows no such pod".to_owned()),
        }
    }

    /// The runtime has ended sandboxes. Gives the pods that were in them, to be released: from now on nothing goes to them by
    /// itself, so their addresses can be other pods'. Only the runtime's word opens a pod's namespace again before the pod is
    /// deleted: that no process of a pod is found leaves the pod captured.
    pub(super) fn leave_places(&mut self, is_gone: impl Fn(&String) -> bool) -> Vec<WorkloadUid> {
        let Some(whereabouts) = &mut self.whereabouts else {
            return Vec::new();
        };
        let left = whereabouts.leave(is_gone);
        let captured = self.enrolled.iter();
        let captured = captured.filter(|(_, captured)| left.contains(&captured.pod.pod_uid));
        let draining = self.draining.iter();
        let draining = draining.filter(|(_, one)| left.iter().any(|pod_uid| one.is_of(pod_uid)));
        let captured = captured.map(|(uid, _)| uid.clone());
        let gone: Vec<_> = captured
            .chain(draining.map(|(uid, _)| uid.clone()))
            .collect();
        if let Some(direct) = &self.direct {
            for uid in &gone {
                direct.dismiss(uid);
            }
        }
        gone
    }

    /// Releases pods that have left their places.
    pub(super) fn release_left(&mut self, pods: Vec<WorkloadUid>) {
        for uid in pods {
            self.release(&uid);
        }
        self.enrol_missing();
    }

    pub(super) fn settle_arrivals(&mut self) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        arrivals.settle(|name, pod_uid| self.standing(name, pod_uid));
        self.arrivals = arrivals;
    }

    fn standing(&self, name: Option<&ObjectName>, pod_uid: &Arc<str>) -> Standing {
        let is_called = |called: &ObjectName| name.is_none_or(|name| called == name);
        let mut wanted = self.wanted.values();
        let Some(pod) = wanted.find(|pod| pod.pod_uid == *pod_uid && is_called(&pod.name)) else {
            let mut bystanders = self.bystanders.iter();
            return if bystanders.any(|(called, uid)| uid == pod_uid && is_called(called)) {
                Standing::NotInMesh
            } else {
                Standing::Unknown
            };
        };
        let is_captured = self
            .as_captured(pod)
            .is_ok_and(|as_wanted| self.enrolled.get(&pod.uid) == Some(&as_wanted));
        if is_captured {
            return Standing::Captured;
        }
        let ledger = read(&self.ledger);
        let entry = ledger.pods.get(&pod.uid);
        let pending = entry.and_then(|entry| entry.pending.as_ref());
        Standing::Hindered(pending.map_or_else(
            || "its capture has not begun".to_owned(),
            ToString::to_string,
        ))
    }
}
