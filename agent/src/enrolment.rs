//! Brings the pods that are captured in line with those that should be. Owns [`Capture`] and the thread that
//! works with it: entering namespaces and loading programs blocks, so no runtime does it.
//!
//! ```text
//!  wanted pods ─▶ enrol ─▶ listeners, sockets ─▶ workers, DNS proxy
//!  each tick   ─▶ beat, reconcile ─▶ listeners that had to be opened anew ─▶ workers
//! ```

mod arrivals;
mod ledger;
mod network;
mod orders;
mod whereabouts;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{error, info, warn};
use userspace_l7::model::WorkloadUid;
use userspace_l7::pod::TakeDns;
use userspace_l7::worker::{Attachment, Worker};

use crate::admin::Released;
use crate::capture::{self, Capture, CaptureError, DnsSockets, Enrolled, Sockets, WorkerListeners};
use crate::direct::Direct;
use crate::discovery::Processes;
use crate::mesh::{LocalPod, ObjectName};
use arrivals::{Arrivals, Standing};
use ledger::{Entry, Pending};
use network::Network;
use orders::Order;
use whereabouts::{Namespace, Place, Whereabouts};

pub(crate) use arrivals::{Admission, Arrival};
pub(crate) use ledger::Ledger;
pub(crate) use orders::{Inbox, Orders, channel};

/// How often the kernel's state is compared with what it should be, and the heartbeat renewed.
const TICK: Duration = Duration::from_secs(1);

/// What the DNS proxy is told about pods.
pub(crate) trait DnsPods: Send {
    /// Serve this pod, in place of an earlier one of the same name.
    fn serve(&self, uid: &WorkloadUid, sockets: DnsSockets, network: Arc<Sockets>);

    /// Where the pod's DNS connections over TCP are to be brought, each with the resolver that it was for.
    fn door(&self, uid: &WorkloadUid, network: Arc<Sockets>) -> Arc<TakeDns>;

    /// Stop serving it.
    fn forget(&self, uid: &WorkloadUid);
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
        processes: Option<Processes>,
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
            whereabouts: processes.map(Whereabouts::new),
            arrivals: Arrivals::default(),
            bystanders: BTreeSet::new(),
            inherited: true,
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

    /// Ends the thread. Pods stay as they are.
    pub(crate) fn stop(self) {
        self.orders.give(Order::Stop);
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
    /// Whether there may be pods of an earlier agent that have not been enrolled again.
    inherited: bool,
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
                Ok(Order::Departure(container)) => {
                    self.leave_places(|one| *one == container);
                }
                Ok(Order::Repaired(kind)) => self.count_repair(kind),
                Ok(Order::Containers(all)) => self.leave_places(|one| !all.contains(one)),
                Ok(Order::ListenerLost(uid)) => {
                    // The reconciler sees which listener it is; it only has to look now.
                    warn!(workload = %uid, "a listener is lost");
                    self.tick();
                }
                Ok(Order::ReleaseAll(done)) => {
                    // Whoever asked may have gone away.
                    let _gone = done.send(self.release_all());
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    next_tick = Instant::now() + TICK;
                }
            }
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
        let gone: Vec<_> = self
            .enrolled
            .keys()
            .filter(|uid| !self.wanted.contains_key(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.release(&uid);
        }
        read(&self.ledger)
            .pods
            .retain(|uid, _| self.wanted.contains_key(uid));
        if let Some(whereabouts) = self.whereabouts.as_mut().filter(|_| before != self.wanted) {
            whereabouts.look_again();
        }
        let is_complete = self.enrol_missing();
        read(&self.ledger).told = true;
        self.release_inherited(is_complete);
        self.settle_arrivals();
    }

    /// Releases what an earlier agent has captured and nobody wants any more. Only those are sure to be such that are
    /// wanted no more; once all that is wanted is captured, the others are, too.
    fn release_inherited(&mut self, is_complete: bool) {
        let Some(capture) = self.capture.as_mut().filter(|_| self.inherited) else {
            return;
        };
        let awaited = |uid: &str| !is_complete && self.wanted.contains_key(&WorkloadUid::new(uid));
        match capture.release_unclaimed(awaited) {
            Ok(released) if released.is_empty() => {}
            Ok(released) => info!(pods = ?released, "released pods of an earlier agent"),
            Err(error) => {
                warn!(error = %chain(&error), "cannot release pods of an earlier agent");
            }
        }
        self.inherited = !is_complete;
    }

    /// Captures what is to be captured and is not. Gives whether all is.
    fn enrol_missing(&mut self) -> bool {
        if let Some(whereabouts) = &mut self.whereabouts {
            let arrivals = &self.arrivals;
            let uids: BTreeSet<_> = self.wanted.values().map(|pod| &*pod.pod_uid).collect();
            whereabouts.keep(|pod| uids.contains(pod) || arrivals.is_awaited(pod));
            whereabouts.look(self.wanted.values().map(|pod| Arc::clone(&pod.pod_uid)));
        }
        let mut is_complete = true;
        let mut any = false;
        for pod in self.wanted.values().cloned().collect::<Vec<_>>() {
            let captured = self.as_captured(&pod);
            if let (Ok(wanted), Some(there)) = (&captured, self.enrolled.get(&pod.uid))
                && wanted == there
            {
                // It may have been lost sight of, and stayed captured.
                if let Some(entry) = read(&self.ledger).pods.get_mut(&pod.uid) {
                    entry.pending = None;
                }
                continue;
            }
            self.beat();
            let pending = captured.and_then(|captured| {
                let fresh = !self.enrolled.contains_key(&pod.uid);
                self.enrol(&captured.pod).map_err(Pending::Hindered)?;
                self.enrolled.insert(pod.uid.clone(), captured);
                info!(workload = %pod.uid, "pod captured");
                read(&self.ledger).started += u64::from(fresh);
                Ok(())
            });
            let pending = pending.err();
            is_complete &= pending.is_none();
            any |= pending != Some(Pending::NotStarted);
            let entry = Entry {
                pod: pod.clone(),
                pending: pending.clone(),
            };
            let before = read(&self.ledger).pods.insert(pod.uid.clone(), entry);
            // It is tried again each tick: said once, not each time.
            if let Some(Pending::Hindered(reason)) = &pending
                && before.and_then(|entry| entry.pending) != pending
            {
                error!(workload = %pod.uid, %reason, "pod not captured");
            }
        }
        if any {
            capture::release_free_memory();
        }
        is_complete
    }

    /// The pod as it is to be captured.
    fn as_captured(&self, pod: &LocalPod) -> Result<Captured, Pending> {
        let mut pod = pod.clone();
        let mut namespace = None;
        if pod.netns.is_none() {
            let place = self.place(&pod)?;
            let known = place.namespace().map_err(|error| {
                Pending::Hindered(format!("its network namespace cannot be told: {error}"))
            })?;
            namespace = Some(known);
            if pod.addresses.is_empty() {
                pod.addresses = place.addresses.iter().copied().collect();
            }
        }
        if pod.addresses.is_empty() {
            return Err(Pending::Hindered("it has no address yet".to_owned()));
        }
        Ok(Captured { pod, namespace })
    }

    /// Where a pod runs that does not say it itself.
    fn place(&self, pod: &LocalPod) -> Result<&Place, Pending> {
        let whereabouts = self.whereabouts.as_ref();
        if let Some(place) = whereabouts.and_then(|known| known.of(&pod.pod_uid)) {
            return Ok(place);
        }
        let hindrance = whereabouts.and_then(|known| known.hindrance(&pod.pod_uid));
        Err(hindrance.map_or(Pending::NotStarted, |why| Pending::Hindered(why.clone())))
    }

    fn enrol(&mut self, pod: &LocalPod) -> Result<(), String> {
        let spec = |netns| capture::Pod {
            uid: pod.uid.to_string(),
            netns,
            addresses: pod.addresses.to_vec(),
            dns: pod.dns_capture,
            inbound: !pod.bypass_inbound,
        };
        let place = self
            .whereabouts
            .as_ref()
            .and_then(|known| known.of(&pod.pod_uid));
        let capture = self
            .capture
            .as_mut()
            .ok_or("everything was released on request")?;
        let enrolled = match (&pod.netns, place) {
            (Some(path), _) => capture.enrol(spec(path.clone())),
            (None, Some(place)) => {
                capture.enrol_opened(place.netns().as_fd(), spec(place.path.clone()))
            }
            (None, None) => return Err("its network namespace is not known".to_owned()),
        };
        let Enrolled {
            listeners,
            dns,
            sockets,
        } = enrolled.map_err(|error| chain(&error))?;
        self.attach(pod, listeners, &sockets);
        if let Some(direct) = &self.direct {
            // Who lets everybody in is not asked about anybody.
            if pod.bypass_inbound {
                direct.dismiss(&pod.uid);
            } else {
                direct.admit(&pod.uid, pod.same_node, Arc::clone(&sockets));
            }
        }
        match dns {
            Some(dns) => self.dns.serve(&pod.uid, dns, sockets),
            None => self.dns.forget(&pod.uid),
        }
        Ok(())
    }

    /// A pod is about to start.
    fn arrive(&mut self, arrival: Arrival, answer: oneshot::Sender<Admission>) {
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
        self.arrivals.wait(name, pod_uid, answer);
        self.enrol_missing();
        self.settle_arrivals();
    }

    fn check(&self, arrival: &Arrival) -> Admission {
        match self.standing(&arrival.name, &arrival.pod_uid) {
            Standing::Captured => Admission::Captured,
            Standing::NotInMesh => Admission::NotInMesh,
            Standing::Hindered(why) => Admission::Refused(why),
            Standing::Unknown => Admission::Refused("the agent knows no such pod".to_owned()),
        }
    }

    /// The runtime has ended sandboxes. Only its word opens a pod's namespace again before the pod is deleted: that no
    /// process of a pod is found leaves the pod captured.
    fn leave_places(&mut self, is_gone: impl Fn(&String) -> bool) {
        let Some(whereabouts) = &mut self.whereabouts else {
            return;
        };
        let left = whereabouts.leave(is_gone);
        let captured = self.enrolled.iter();
        let captured = captured.filter(|(_, captured)| left.contains(&captured.pod.pod_uid));
        for uid in captured.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.release(&uid);
        }
        self.enrol_missing();
    }

    fn settle_arrivals(&mut self) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        arrivals.settle(|name, pod_uid| self.standing(name, pod_uid));
        self.arrivals = arrivals;
    }

    fn standing(&self, name: &ObjectName, pod_uid: &Arc<str>) -> Standing {
        let mut wanted = self.wanted.values();
        let Some(pod) = wanted.find(|pod| pod.pod_uid == *pod_uid && pod.name == *name) else {
            let key = (name.clone(), Arc::clone(pod_uid));
            return if self.bystanders.contains(&key) {
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

    /// Connections end first, while their packets still find their way.
    fn release(&mut self, uid: &WorkloadUid) {
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
        let mut ledger = read(&self.ledger);
        ledger.pods.remove(uid);
        ledger.stopped += 1;
        drop(ledger);
        let Some(capture) = &mut self.capture else {
            return;
        };
        match capture.release(uid.as_str()) {
            Ok(()) => info!(workload = %uid, "pod released"),
            Err(error) => warn!(workload = %uid, error = %chain(&error), "cannot release the pod"),
        }
    }

    fn release_all(&mut self) -> Released {
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

    fn tick(&mut self) {
        self.beat();
        let Some(capture) = &mut self.capture else {
            return;
        };
        let report = capture.reconcile();
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
        for kind in report.repairs {
            warn!(kind, "capture had been changed from outside: repaired");
            self.count_repair(kind);
        }
        for failure in &report.failures {
            error!(error = %chain(failure), "capture is not as it should be");
        }
        if read(&self.ledger).told {
            let is_complete = self.enrol_missing();
            self.release_inherited(is_complete);
        }
        self.settle_arrivals();
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
