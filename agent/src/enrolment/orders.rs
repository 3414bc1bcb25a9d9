//! What the capture thread is told, and by whom it may be told.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use userspace_l7::model::WorkloadUid;

use super::arrivals::{Admission, Arrival};
use crate::admin::Released;
use crate::mesh::{Bystander, LocalPod};
use crate::zds::Notice;

/// What the thread is told.
pub(super) enum Order {
    Wanted(Vec<LocalPod>, Vec<Bystander>),
    Arrival(Arrival, oneshot::Sender<Admission>),
    Check(Arrival, oneshot::Sender<Admission>),
    Heard(Notice, oneshot::Sender<Admission>),
    /// Answered once nothing goes to the sandbox's address by itself any more.
    Departure(String, oneshot::Sender<()>),
    Repaired(&'static str),
    Containers(BTreeSet<String>),
    ListenerLost(WorkloadUid),
    ReleaseAll(oneshot::Sender<Released>),
    /// For so long, connections wait for the next agent.
    Stop(Duration),
}

/// Gives orders to the thread from anywhere.
#[derive(Clone)]
pub(crate) struct Orders(mpsc::Sender<Order>);

impl Orders {
    /// The pods that are to be captured from now on, all of them, and all others of this node.
    pub(crate) fn want(&self, pods: Vec<LocalPod>, bystanders: Vec<Bystander>) {
        self.give(Order::Wanted(pods, bystanders));
    }

    /// The runtime is about to start a pod. The answer comes once the pod is captured or known not to be for the mesh, or
    /// has waited too long; whoever drops the receiver waits no longer.
    pub(crate) fn arrival(&self, arrival: Arrival) -> oneshot::Receiver<Admission> {
        let (answer, admission) = oneshot::channel();
        self.give(Order::Arrival(arrival, answer));
        admission
    }

    /// How a pod fares that the runtime has started.
    pub(crate) fn check(&self, arrival: Arrival) -> oneshot::Receiver<Admission> {
        let (answer, admission) = oneshot::channel();
        self.give(Order::Check(arrival, answer));
        admission
    }

    /// istio-cni has said something. The answer comes once that is done, and [`Admission::Captured`] where a pod is not
    /// to be captured says no more than that.
    pub(crate) fn hear(&self, notice: Notice) -> oneshot::Receiver<Admission> {
        let (answer, admission) = oneshot::channel();
        self.give(Order::Heard(notice, answer));
        admission
    }

    /// The runtime has ended a sandbox. The answer comes once its address can be given to another one: no pod of the node is led
    /// to this one by it any more. What is left of it goes after that.
    pub(crate) fn departure(&self, container: String) -> oneshot::Receiver<()> {
        let (gone, departure) = oneshot::channel();
        self.give(Order::Departure(container, gone));
        departure
    }

    /// Something was put back that others had changed: counted with what the reconciler repairs.
    pub(crate) fn repaired(&self, kind: &'static str) {
        self.give(Order::Repaired(kind));
    }

    /// These are all sandboxes that the runtime has.
    pub(crate) fn containers(&self, containers: BTreeSet<String>) {
        self.give(Order::Containers(containers));
    }

    /// A worker's listener of this pod stopped working.
    pub(crate) fn listener_lost(&self, uid: &WorkloadUid) {
        self.give(Order::ListenerLost(uid.clone()));
    }

    /// Releases every pod and removes all that was put into the kernel. Nothing is enrolled after that.
    pub(crate) fn release_all(&self) -> oneshot::Receiver<Released> {
        let (done, released) = oneshot::channel();
        self.give(Order::ReleaseAll(done));
        released
    }

    pub(super) fn give(&self, order: Order) {
        // The thread ends only when the agent stops: then no order matters any more.
        let _stopped = self.0.send(order);
    }
}

/// Where the thread gets its orders from.
pub(crate) struct Inbox(pub(super) mpsc::Receiver<Order>);

/// Orders and where they arrive: made before the thread, because workers give orders too.
pub(crate) fn channel() -> (Orders, Inbox) {
    let (orders, inbox) = mpsc::channel();
    (Orders(orders), Inbox(inbox))
}
