//! Brings the pods that are captured in line with those that should be. Owns [`Capture`] and the thread that
//! works with it: entering namespaces and loading programs blocks, so no runtime does it.
//!
//! ```text
//!  wanted pods ─▶ enrol ─▶ listeners, sockets ─▶ workers, DNS proxy
//!  each tick   ─▶ beat, reconcile ─▶ listeners that had to be opened anew ─▶ workers
//! ```

mod network;

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{error, info, warn};
use userspace_l7::model::WorkloadUid;
use userspace_l7::pod::TakeDns;
use userspace_l7::worker::{Attachment, Worker};

use crate::admin::{PodState, PodStatus, Released};
use crate::capture::{self, Capture, CaptureError, DnsSockets, Enrolled, Sockets, WorkerListeners};
use crate::direct::Direct;
use crate::mesh::{LocalPod, SameNode};
use network::Network;

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

enum Order {
    Wanted(Vec<LocalPod>),
    ListenerLost(WorkloadUid),
    ReleaseAll(oneshot::Sender<Released>),
    Stop,
}

/// The thread that enrols pods. Dropping it leaves pods as they are: captured, and closed once the heartbeat is
/// missed.
pub(crate) struct Enrolment {
    orders: Orders,
    ledger: Arc<Mutex<Ledger>>,
    thread: thread::JoinHandle<()>,
}

/// Gives orders to the thread from anywhere.
#[derive(Clone)]
pub(crate) struct Orders(mpsc::Sender<Order>);

impl Orders {
    /// The pods that are to be captured from now on, all of them.
    pub(crate) fn want(&self, pods: Vec<LocalPod>) {
        self.give(Order::Wanted(pods));
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

    fn give(&self, order: Order) {
        // The thread ends only when the agent stops: then no order matters any more.
        let _stopped = self.0.send(order);
    }
}

/// What is known about this node's pods, for operators.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pods: BTreeMap<WorkloadUid, Entry>,
    /// Whether the first list of pods has come.
    told: bool,
    /// Repairs since the start, by kind.
    pub(crate) repairs: BTreeMap<String, u64>,
    /// Pods armed since the start.
    pub(crate) started: u64,
    /// Pods released since the start.
    pub(crate) stopped: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    pod: LocalPod,
    /// Why it is not captured; `None` if it is.
    pending: Option<String>,
}

impl Ledger {
    /// This node's pods, in the order of their names.
    pub(crate) fn pods(&self) -> Vec<PodStatus> {
        let status = |(uid, entry): (&WorkloadUid, &Entry)| PodStatus {
            uid: uid.to_string(),
            name: entry.pod.name.name.to_string(),
            namespace: entry.pod.name.namespace.to_string(),
            service_account: entry.pod.identity.service_account().to_owned(),
            state: if entry.pending.is_some() {
                PodState::Pending
            } else {
                PodState::Up
            },
            reason: entry.pending.clone(),
            encrypted_within_node: entry.pod.same_node == SameNode::Encrypted,
        };
        self.pods.iter().map(status).collect()
    }

    /// What has to happen before every known pod is armed.
    pub(crate) fn pending(&self) -> Vec<String> {
        if !self.told {
            return vec!["the first list of pods".to_owned()];
        }
        let waiting = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.pending.is_some());
        waiting.map(|(uid, _)| format!("pod {uid}")).collect()
    }
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

/// Where the thread gets its orders from.
pub(crate) struct Inbox(mpsc::Receiver<Order>);

/// Orders and where they arrive: made before the thread, because workers give orders too.
pub(crate) fn channel() -> (Orders, Inbox) {
    let (orders, inbox) = mpsc::channel();
    (Orders(orders), Inbox(inbox))
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
    enrolled: BTreeMap<WorkloadUid, LocalPod>,
}

impl Office {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let mut next_tick = Instant::now();
        loop {
            match inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Order::Wanted(pods)) => self.want(pods),
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
        self.wanted = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
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
        self.enrol_missing();
        let first = !std::mem::replace(&mut read(&self.ledger).told, true);
        if first && let Some(capture) = &mut self.capture {
            // Only now is it known which pods of an earlier agent are no longer wanted.
            match capture.release_unclaimed() {
                Ok(released) if released.is_empty() => {}
                Ok(released) => info!(pods = ?released, "released pods of an earlier agent"),
                Err(error) => {
                    warn!(error = %chain(&error), "cannot release pods of an earlier agent");
                }
            }
        }
    }

    fn enrol_missing(&mut self) {
        let missing: Vec<_> = self
            .wanted
            .values()
            .filter(|pod| self.enrolled.get(&pod.uid) != Some(*pod))
            .cloned()
            .collect();
        if missing.is_empty() {
            return;
        }
        for pod in missing {
            self.beat();
            let pending = self.enrol(&pod).err();
            let fresh = pending.is_none() && !self.enrolled.contains_key(&pod.uid);
            let mut ledger = read(&self.ledger);
            ledger.started += u64::from(fresh);
            let entry = Entry {
                pod: pod.clone(),
                pending: pending.clone(),
            };
            let before = ledger.pods.insert(pod.uid.clone(), entry);
            drop(ledger);
            match pending {
                None => {
                    info!(workload = %pod.uid, "pod captured");
                    self.enrolled.insert(pod.uid.clone(), pod);
                }
                // It is tried again each tick: said once, not each time.
                Some(reason) if before.and_then(|entry| entry.pending) != Some(reason.clone()) => {
                    error!(workload = %pod.uid, %reason, "pod not captured");
                }
                Some(_) => {}
            }
        }
        capture::release_free_memory();
    }

    fn enrol(&mut self, pod: &LocalPod) -> Result<(), String> {
        if pod.addresses.is_empty() {
            return Err("it has no address yet".to_owned());
        }
        let capture = self
            .capture
            .as_mut()
            .ok_or("everything was released on request")?;
        let enrolled = capture.enrol(capture::Pod {
            uid: pod.uid.to_string(),
            netns: pod.netns.clone(),
            addresses: pod.addresses.to_vec(),
            dns: pod.dns_capture,
            inbound: !pod.bypass_inbound,
        });
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
            let pod = self.enrolled.get(&WorkloadUid::new(uid));
            if let (Some(sockets), Some(pod)) = (sockets, pod) {
                self.attach(pod, listeners, &sockets);
            }
        }
        for kind in report.repairs {
            warn!(kind, "capture had been changed from outside: repaired");
            *read(&self.ledger)
                .repairs
                .entry(kind.to_owned())
                .or_default() += 1;
        }
        for failure in &report.failures {
            error!(error = %chain(failure), "capture is not as it should be");
        }
        self.enrol_missing();
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
