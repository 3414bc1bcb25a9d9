//! Brings the pods that are captured in line with those that should be. Owns [`Capture`] and the thread that
//! works with it: entering namespaces and loading programs blocks, so no runtime does it.
//!
//! ```text
//!  wanted pods ─▶ enrol ─▶ listeners, sockets ─▶ workers, DNS proxy
//!  each tick   ─▶ beat, reconcile ─▶ listeners that had to be opened anew ─▶ workers
//! ```

mod arrivals;
mod istio_cni;
mod ledger;
mod network;
mod orders;
mod placing;
mod release;
mod sandboxes;
mod whereabouts;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};
use userspace_l7::model::WorkloadUid;
use userspace_l7::pod::TakeDns;
use userspace_l7::worker::{Attachment, Worker};

use crate::capture::{
    self, Capture, CaptureError, DnsSockets, Enrolled, Report, Sockets, WorkerListeners,
};
use crate::direct::Direct;
use crate::discovery::Processes;
use crate::mesh::{LocalPod, ObjectName, SameNode};
use arrivals::Arrivals;
use ledger::{Entry, Pending};
use network::Network;
use orders::Order;
use release::Draining;
use whereabouts::{Namespace, Whereabouts};

pub(crate) use arrivals::{Admission, Arrival};
pub(crate) use ledger::Ledger;
pub(crate) use orders::{Inbox, Orders, channel};

/// How often the kernel's state is compared with what it should be, and the heartbeat renewed.
const TICK: Duration = Duration::from_secs(1);

/// How long after the start, or after the last pod was enrolled, what that took for a moment is the kernel's again: by then
/// others, too, have done with it.
const SETTLING: Duration = Duration::from_secs(2);

/// So many pods at once are guarded before anybody hears that they are captured. Of more, all are captured first.
const FEW: usize = 32;

/// What the DNS proxy is told about pods.
pub(crate) trait DnsPods: Send {
    /// Serve this pod, in place of an earlier one of the same name.
    fn serve(&self, uid: &WorkloadUid, sockets: DnsSockets, network: Arc<Sockets>);

    /// Where the pod's DNS connections over TCP are to be brought, each with the resolver that it was for.
    fn door(&self, uid: &WorkloadUid, network: Arc<Sockets>) -> Arc<TakeDns>;

    /// Stop serving it.
    fn forget(&self, uid: &WorkloadUid);
}

/// How it is known where pods run.
#[derive(Debug)]
pub(crate) enum Places {
    /// They say it themselves.
    Told,
    /// The runtime says it, or their processes do.
    Found(Processes),
    /// istio-cni says it, and puts its rules into them.
    NamedByIstioCni,
}

/// The thread that enrols pods. Dropping it leaves pods as they are: captured, and closed once the heartbeat is
/// missed.
pub(crate) struct Enrolment {
    orders: Orders,
    ledger: Arc<Mutex<Ledger>>,
    thread: thread::JoinHandle<()>,
}

impl Enrolment {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(crate) fn start(
        capture: Capture,
        workers: Arc<[Worker]>,
        (dns, direct): (Box<dyn DnsPods>, Option<Direct>),
        places: Places,
        channel: (Orders, Inbox),
    ) -> io::Result<Self> {
        let (orders, Inbox(inbox)) = channel;
        let ledger = Arc::<Mutex<Ledger>>::default();
        let office = Office {
            capture: Some(capture),
            workers,
            dns,
            direct,
            ledger: Arc::clone(&ledger),
            wanted: BTreeMap::new(),
            enrolled: BTreeMap::new(),
            whereabouts: match places {
                Places::Told => None,
                Places::Found(processes) => Some(Whereabouts::found(processes)),
                Places::NamedByIstioCni => Some(Whereabouts::named_by_istio_cni()),
            },
            arrivals: Arrivals::default(),
            bystanders: BTreeSet::new(),
            draining: BTreeMap::new(),
            opened_again: BTreeSet::new(),
            inherited: true,
            settling: Some(Instant::now()),
        };
        let thread = thread::Builder::new()
            .name("culvert-capture".to_owned())
            .spawn(move || office.run(&inbox))?;
        Ok(Self {
            orders,
            ledger,
            thread,
        })
    }

    /// Where orders go.
    pub(crate) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// What is known now.
    pub(crate) fn ledger(&self) -> Arc<Mutex<Ledger>> {
        Arc::clone(&self.ledger)
    }

    /// Whether the thread has ended, which it does by itself only after a failure.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread. Pods stay as they are; for so long, their new connections wait for the next agent.
    pub(crate) fn stop(self, window: Duration) {
        self.orders.give(Order::Stop(window));
        if self.thread.join().is_err() {
            error!("the capture thread panicked");
        }
    }
}

/// Reads the ledger. It is whole even if a thread panicked while it held the lock: every change is one insert.
pub(crate) fn read(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Office {
    /// `None` after everything was released on request.
    capture: Option<Capture>,
    workers: Arc<[Worker]>,
    dns: Box<dyn DnsPods>,
    direct: Option<Direct>,
    ledger: Arc<Mutex<Ledger>>,
    wanted: BTreeMap<WorkloadUid, LocalPod>,
    /// What is captured, as it was wanted then.
    enrolled: BTreeMap<WorkloadUid, Captured>,
    /// Where pods run; `None` where they say it themselves.
    whereabouts: Option<Whereabouts>,
    arrivals: Arrivals,
    /// Pods of this node that are not for the mesh. Both have to agree: a name is used again, and a UID can be claimed by
    /// an annotation.
    bystanders: BTreeSet<(ObjectName, Arc<str>)>,
    /// Pods that have left the mesh and go on without it.
    draining: BTreeMap<WorkloadUid, Draining>,
    /// Pods whose listeners were opened anew since the last tick.
    opened_again: BTreeSet<WorkloadUid>,
    /// Whether there may be pods of an earlier agent that have not been enrolled again.
    inherited: bool,
    /// Since when there is memory that was taken for a moment.
    settling: Option<Instant>,
}

/// A pod as it is captured: with the addresses that the runtime has given it where the API server shows none yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Captured {
    pod: LocalPod,
    /// The namespace that was found; `None` where the pod names it.
    namespace: Option<Namespace>,
}

impl Office {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let mut next_tick = Instant::now();
        loop {
            // Before the next order: there may always be one more.
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
            match inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Order::Wanted(pods, bystanders)) => {
                    let pairs = bystanders.into_iter().map(|one| (one.name, one.pod_uid));
                    self.bystanders = pairs.collect();
                    self.want(pods);
                }
                Ok(Order::Arrival(arrival, answer)) => self.arrive(arrival, answer),
                Ok(Order::Check(arrival, answer)) => {
                    let _given_up = answer.send(self.check(&arrival));
                }
                Ok(Order::Heard(notice, answer)) => self.hear(notice, answer),
                Ok(Order::Departure(container, gone)) => {
                    let left = self.leave_places(|one| *one == container);
                    // The runtime may have given up.
                    let _given_up = gone.send(());
                    self.release_left(left);
                }
                Ok(Order::Repaired(kind)) => self.count_repair(kind),
                Ok(Order::Containers(all)) => {
                    let left = self.leave_places(|one| !all.contains(one));
                    self.release_left(left);
                }
                Ok(Order::ListenerLost(uid)) => self.open_again(uid),
                Ok(Order::ReleaseAll(done)) => {
                    // Whoever asked may have gone away.
                    let _gone = done.send(self.release_all());
                }
                Ok(Order::Stop(window)) => return self.hand_over(window),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Opens a pod's listeners anew, of which a worker has lost one. What the pod's other listeners and other workers say
    /// of the same mishap is dealt with all at once, with the next tick, and so is a mishap that goes on.
    fn open_again(&mut self, uid: WorkloadUid) {
        warn!(workload = %uid, "a listener is lost");
        let Some(capture) = &mut self.capture else {
            return;
        };
        capture.lose_listeners(uid.as_str());
        if self.opened_again.insert(uid) {
            self.repair(Capture::reconcile);
        }
    }

    fn want(&mut self, pods: Vec<LocalPod>) {
        if self.capture.is_none() {
            return;
        }
        let before = std::mem::replace(
            &mut self.wanted,
            pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect(),
        );
        let gone = self.enrolled.iter();
        let gone = gone.filter(|(uid, captured)| {
            !self.wanted.contains_key(*uid) && !self.is_in_istio_cnis_hands(&captured.pod)
        });
        let gone: Vec<_> = gone
            .map(|(uid, captured)| (uid.clone(), self.is_bystander(&captured.pod)))
            .collect();
        for (uid, goes_on) in gone {
            if goes_on {
                self.see_off(&uid);
            } else {
                self.release(&uid);
            }
        }
        read(&self.ledger).pods.retain(|uid, _| {
            self.wanted.contains_key(uid)
                || self.draining.contains_key(uid)
                || self.enrolled.contains_key(uid)
        });
        if let Some(whereabouts) = self.whereabouts.as_mut().filter(|_| before != self.wanted) {
            whereabouts.look_again();
        }
        let is_complete = self.enrol_missing();
        read(&self.ledger).told = true;
        self.settle(is_complete);
        self.guard();
        self.settle_arrivals();
    }

    /// Draws the line under what was there before: whoever is not captured now is wanted no more.
    fn settle(&mut self, is_complete: bool) {
        self.release_inherited(is_complete);
        if let Some(direct) = self.direct.as_ref().filter(|_| is_complete) {
            direct.all_are_admitted();
        }
    }

    /// Captures what is to be captured and is not. Gives whether all is.
    fn enrol_missing(&mut self) -> bool {
        if let Some(whereabouts) = &mut self.whereabouts {
            let arrivals = &self.arrivals;
            let uids: BTreeSet<_> = self.wanted.values().map(|pod| &*pod.pod_uid).collect();
            let draining = &self.draining;
            let drains = |pod: &str| draining.values().any(|one| one.is_of(pod));
            whereabouts.keep(|pod| uids.contains(pod) || arrivals.is_awaited(pod) || drains(pod));
            whereabouts.look(self.wanted.values().map(|pod| Arc::clone(&pod.pod_uid)));
        }
        self.recall_kept();
        let mut missing = Vec::new();
        let mut is_complete = true;
        for pod in self.wanted.values().cloned().collect::<Vec<_>>() {
            match self.as_captured(&pod) {
                Ok(captured) if self.enrolled.get(&pod.uid) == Some(&captured) => {
                    // It may have been lost sight of, and stayed captured.
                    if let Some(entry) = read(&self.ledger).pods.get_mut(&pod.uid) {
                        entry.pending = None;
                    }
                }
                Ok(captured) => missing.push((pod, captured)),
                // Of one that leaves it is known that it does.
                Err(_) if self.draining.contains_key(&pod.uid) => {}
                Err(pending) => {
                    is_complete &= pending == Pending::NotStarted && self.list_is_whole();
                    self.note(pod, Some(pending));
                }
            }
        }
        is_complete & self.enrol(missing)
    }

    /// Writes down whether a pod is captured.
    fn note(&self, pod: LocalPod, pending: Option<Pending>) {
        let uid = pod.uid.clone();
        let entry = Entry {
            pod,
            pending: pending.clone(),
        };
        let before = read(&self.ledger).pods.insert(uid.clone(), entry);
        let has_changed = before.and_then(|entry| entry.pending) != pending;
        // It is tried again each tick: said once, not each time.
        if let Some(Pending::Hindered(reason)) = pending.filter(|_| has_changed) {
            error!(workload = %uid, %reason, "pod not captured");
        }
    }

    /// Captures pods. Gives whether all are.
    fn enrol(&mut self, pods: Vec<(LocalPod, Captured)>) -> bool {
        if pods.is_empty() {
            return true;
        }
        let Some(mut capture) = self.capture.take() else {
            return false;
        };
        let is_few = pods.len() <= FEW;
        let mut is_complete = true;
        let mut specs = Vec::new();
        let mut awaited = BTreeMap::new();
        for (pod, captured) in pods {
            match self.spec(&captured.pod) {
                Ok(spec) => {
                    specs.push(spec);
                    awaited.insert(pod.uid.to_string(), (pod, captured));
                }
                Err(why) => {
                    is_complete = false;
                    self.note(pod, Some(Pending::Hindered(why)));
                }
            }
        }
        let enrolled = capture.enrol(specs, |uid, enrolled| {
            let Some((pod, captured)) = awaited.remove(uid) else {
                return;
            };
            let pending = match enrolled {
                Ok(enrolled) => {
                    self.serve(captured, enrolled);
                    None
                }
                Err(error) => Some(Pending::Hindered(chain(&error))),
            };
            is_complete &= pending.is_none();
            self.note(pod, pending);
        });
        if let Err(error) = enrolled {
            for (pod, _) in awaited.into_values() {
                self.note(pod, Some(Pending::Hindered(chain(&error))));
            }
            is_complete = false;
        }
        let is_lost = |uid: &WorkloadUid| capture.sockets(uid.as_str()).is_none();
        let lost: Vec<_> = self
            .enrolled
            .keys()
            .filter(|uid| is_lost(uid))
            .cloned()
            .collect();
        self.capture = Some(capture);
        // They are in another network namespace by now, and could not be captured there yet.
        for uid in lost {
            self.stop_serving(&uid);
        }
        if is_few {
            self.guard();
        }
        is_complete
    }

    /// A pod is captured: workers, the direct path and the DNS proxy serve it from now on.
    fn serve(&mut self, captured: Captured, enrolled: Enrolled) {
        let pod = &captured.pod;
        let Enrolled {
            listeners,
            dns,
            sockets,
        } = enrolled;
        self.attach(pod, listeners, &sockets);
        if let Some(direct) = &self.direct {
            // Who lets everybody in has nothing to do with it; what it has begun before has to end.
            let same_node = if pod.bypass_inbound {
                SameNode::Encrypted
            } else {
                pod.same_node
            };
            direct.admit(&pod.uid, same_node, Arc::clone(&sockets));
        }
        match dns {
            Some(dns) => self.dns.serve(&pod.uid, dns, sockets),
            None => self.dns.forget(&pod.uid),
        }
        info!(workload = %pod.uid, "pod captured");
        self.draining.remove(&pod.uid);
        let before = self.enrolled.insert(pod.uid.clone(), captured);
        read(&self.ledger).started += u64::from(before.is_none());
        self.settling = Some(Instant::now());
    }

    /// Has closed ports of the captured pods refuse.
    fn guard(&mut self) {
        let failures = self.capture.as_mut().map(Capture::guard);
        for failure in failures.into_iter().flatten() {
            error!(error = %chain(&failure), "closed ports of a pod do not refuse yet");
        }
    }

    fn attach(&self, pod: &LocalPod, listeners: Vec<WorkerListeners>, sockets: &Arc<Sockets>) {
        let dns = pod
            .dns_capture
            .then(|| self.dns.door(&pod.uid, Arc::clone(sockets)));
        let network = Arc::new(Network {
            uid: pod.uid.clone(),
            sockets: Arc::clone(sockets),
            direct: self.direct.clone(),
        });
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            let WorkerListeners {
                outbound,
                inbound,
                hbone,
            } = listeners;
            worker.attach(Attachment {
                uid: pod.uid.clone(),
                outbound,
                inbound,
                hbone,
                netns: sockets.netns_cookie(),
                sockets: Arc::<Network>::clone(&network),
                dns: dns.clone(),
            });
        }
    }

    fn tick(&mut self) {
        self.beat();
        self.opened_again.clear();
        self.repair(Capture::reconcile_some);
        self.drain();
        if self.capture.is_none() {
            return;
        }
        if read(&self.ledger).told {
            let is_complete = self.enrol_missing();
            self.settle(is_complete);
            self.guard();
        }
        self.settle_arrivals();
        if self
            .settling
            .is_some_and(|since| since.elapsed() >= SETTLING)
        {
            self.settling = None;
            capture::release_free_memory();
        }
    }

    fn repair(&mut self, reconcile: impl FnOnce(&mut Capture) -> Report) {
        let Some(capture) = &mut self.capture else {
            return;
        };
        let report = reconcile(capture);
        for (uid, listeners) in report.listeners {
            let sockets = self
                .capture
                .as_ref()
                .and_then(|capture| capture.sockets(&uid));
            let captured = self.enrolled.get(&WorkloadUid::new(uid));
            if let (Some(sockets), Some(captured)) = (sockets, captured) {
                self.attach(&captured.pod, listeners, &sockets);
            }
        }
        for repair in report.repairs {
            let kind = repair.label();
            warn!(kind, "capture had been changed from outside: repaired");
            self.count_repair(kind);
        }
        for failure in &report.failures {
            error!(error = %chain(failure), "capture is not as it should be");
        }
    }

    fn count_repair(&self, kind: &str) {
        let mut ledger = read(&self.ledger);
        *ledger.repairs.entry(kind.to_owned()).or_default() += 1;
    }

    fn beat(&mut self) {
        if let Some(Err(error)) = self.capture.as_mut().map(Capture::beat) {
            error!(error = %chain(&error), "cannot renew the heartbeat");
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &CaptureError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
