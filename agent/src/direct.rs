//! The kernel-direct path: which connections between pods of this node go without the proxy, and their account.
//!
//! ```text
//!  worker: a pod's connection comes ─▶ consider ─▶ Book (pure: mesh, pods → rulings) ─▶ verdicts in the kernel
//!  the mesh or the pods change      ─▶ Book again ─▶ verdicts, then live connections that lost their right
//!  the kernel: ends, refusals, live connections ─▶ Accounts ─▶ metrics, access log
//! ```
//! A thread of its own does what takes time: it enters pods' namespaces.

mod accounts;
mod book;
mod metrics;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use culvert_ebpf::{FLOW_CLIENT, FlowEntry};
use smallvec::SmallVec;
use tracing::{debug, error, info, warn};
use userspace_l7::model::{Snapshot, WorkloadUid};
use userspace_l7::pod::Opening;
use userspace_l7::telemetry::{Metrics, Reporter};

use crate::admin::{Carriage, LiveConnection};
use crate::capture::{DirectPath, FlowEvents, Sockets};
use crate::mesh::SameNode;
use accounts::Accounts;
use book::{Book, Change, End, Ruling};
pub(crate) use metrics::DirectMetrics;

/// How often the kernel's events are read.
const CALM: Duration = Duration::from_millis(250);
/// How often while there are many: before the ring is full.
const BUSY: Duration = Duration::from_millis(50);
/// That many events at once are many.
const MANY_EVENTS: usize = 200;
/// How often live connections are looked through.
const LOOKED_EVERY: Duration = Duration::from_secs(1);
/// How often live connections' bytes are asked for.
const CARRIED_EVERY: Duration = Duration::from_secs(10);
/// How often sums of pods that are gone are forgotten.
const SWEPT_EVERY: Duration = Duration::from_secs(60);
/// How often connections that lost their right are looked for again in one go.
const ROUNDS: usize = 4;
/// How long a reset may take from one pod to another.
const GRACE: Duration = Duration::from_millis(20);

/// The book of pods that are reached by their sockets.
type Pods = Book<Arc<Sockets>>;

enum Order {
    /// Something has changed for which live connections have to end.
    Changed,
    /// There may be connections from now on. Told once between two looks.
    Ruled,
    Stop,
}

/// The path, for whoever asks or tells it something. Clones are the same.
#[derive(Clone)]
pub(crate) struct Direct {
    book: Arc<Mutex<Pods>>,
    path: DirectPath,
    orders: mpsc::Sender<Order>,
    /// Set when the kernel is told of a ruling, until somebody looks at what came of it.
    has_ruled: Arc<AtomicBool>,
    /// Set once every pod that is to take part has been admitted: whoever is not known after that is gone.
    has_all: Arc<AtomicBool>,
    metrics: DirectMetrics,
}

/// The thread behind it.
pub(crate) struct DirectThread {
    orders: mpsc::Sender<Order>,
    thread: thread::JoinHandle<()>,
}

/// Starts the path for the pods that are admitted from now on.
///
/// # Errors
/// The kernel's events cannot be read, or the thread not be started.
pub(crate) fn start(
    path: DirectPath,
    snapshot: Arc<Snapshot>,
    traffic: Arc<Metrics>,
    metrics: DirectMetrics,
) -> io::Result<(Direct, DirectThread)> {
    let (orders, inbox) = mpsc::channel();
    let direct = Direct {
        book: Arc::new(Mutex::new(Book::new(snapshot))),
        path,
        orders: orders.clone(),
        has_ruled: Arc::default(),
        has_all: Arc::default(),
        metrics: metrics.clone(),
    };
    let lost = direct.path.lost()?;
    let desk = Desk {
        events: direct.path.events()?,
        direct: direct.clone(),
        accounts: Accounts::new(traffic, metrics, lost),
        none_alive: false,
        had_rulings: true,
    };
    let thread = thread::Builder::new()
        .name("culvert-direct".to_owned())
        .spawn(move || desk.run(&inbox))?;
    Ok((direct, DirectThread { orders, thread }))
}

impl DirectThread {
    /// Whether it has ended, which it does by itself only after a failure.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread. Verdicts hold until the heartbeat is missed.
    pub(crate) fn stop(self) {
        let _stopped = self.orders.send(Order::Stop);
        if self.thread.join().is_err() {
            error!("the thread of direct connections panicked");
        }
    }
}

impl Direct {
    /// Takes over a new mesh: verdicts that it forbids are gone when this returns, live connections in a moment.
    pub(crate) fn publish(&self, snapshot: Arc<Snapshot>) {
        let mut book = self.lock();
        let changes = book.publish(snapshot);
        self.apply(&mut book, changes);
        drop(book);
        let _stopped = self.orders.send(Order::Changed);
    }

    /// This pod is captured from now on.
    pub(crate) fn admit(&self, uid: &WorkloadUid, same_node: SameNode, sockets: Arc<Sockets>) {
        let mut book = self.lock();
        let changes = book.admit(uid, same_node, (sockets.netns_cookie(), sockets));
        self.apply(&mut book, changes);
        drop(book);
        let _stopped = self.orders.send(Order::Changed);
    }

    /// Every pod has been admitted that an earlier agent has left and that still takes part.
    pub(crate) fn all_are_admitted(&self) {
        self.has_all.store(true, Ordering::Release);
    }

    /// It is not any more: nothing goes to it or from it by itself once this returns. Live connections are ended by
    /// whoever ends its capture.
    pub(crate) fn dismiss(&self, uid: &WorkloadUid) {
        let mut book = self.lock();
        let changes = book.dismiss(uid, Instant::now());
        self.apply(&mut book, changes);
    }

    /// A pod's connection has come to the proxy: what becomes of the next ones, and whether this one goes straight as
    /// well. Never waits: if somebody else is deciding, the next connection is as good an occasion.
    pub(crate) fn consider(&self, uid: &WorkloadUid, opening: &Opening, sockets: &Sockets) -> bool {
        let Ok(mut book) = self.book.try_lock() else {
            return false;
        };
        let changes = book.consider(uid, opening.dialled);
        self.apply(&mut book, changes);
        let (from, to) = (opening.source, opening.dialled);
        let Some(server) = book.straight(uid, to) else {
            return false;
        };
        // Within the lock: whoever takes the ruling back finds the connection among those that are alive.
        let announced = sockets.announce(from, to, server);
        drop(book);
        let sent = announced.and_then(|announced| {
            if announced {
                sockets.send_straight(from, to, &opening.tcp_header)?;
            }
            Ok(announced)
        });
        match sent {
            Ok(announced) => announced,
            Err(failure) => {
                debug!(workload = %uid, %to, error = %failure, "cannot let a connection go straight");
                false
            }
        }
    }

    /// The endpoints of the service at `dialled` that the kernel chooses by itself for this pod.
    pub(crate) fn served_straight(
        &self,
        uid: &WorkloadUid,
        dialled: SocketAddr,
    ) -> SmallVec<[SocketAddr; 4]> {
        let book = self.book.try_lock();
        book.map(|book| book.served_straight(uid, dialled))
            .unwrap_or_default()
    }

    /// Whose connections it carries, pods that are dismissed included.
    pub(crate) fn carried(&self) -> BTreeSet<WorkloadUid> {
        let flows = self.path.flows().unwrap_or_default();
        let book = self.lock();
        let owners = flows
            .iter()
            .filter_map(|(_, flow)| book.member(flow.own_netns()));
        owners.map(|owner| owner.uid.clone()).collect()
    }

    /// Every end of a live connection, as the admin server shows it.
    pub(crate) fn connections(&self) -> Vec<LiveConnection> {
        let flows = self.path.flows().unwrap_or_default();
        let book = self.lock();
        let shown = flows.iter().filter_map(|(_, flow)| connection(&book, flow));
        shown.collect()
    }

    /// Whole even if a thread panicked while it held the lock: the kernel is told after the book.
    fn lock(&self) -> MutexGuard<'_, Pods> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, book: &mut Pods, changes: Vec<Change>) {
        for Change { client, to, ruling } in changes {
            // Before the kernel knows: whoever sees this unset has missed no connection.
            if ruling.is_some() && !self.has_ruled.swap(true, Ordering::SeqCst) {
                let _stopped = self.orders.send(Order::Ruled);
            }
            let told = match &ruling {
                Some(Ruling::Straight { server }) => self.path.allow(client, to, *server),
                Some(Ruling::Refused) => self.path.deny(client, to),
                Some(Ruling::Spread(spread)) => {
                    self.path
                        .spread(client, to, &spread.endpoints, spread.total)
                }
                None => self.path.revoke(client, to),
            };
            if let Err(failure) = told {
                warn!(%to, error = %failure, "cannot tell the kernel what becomes of connections");
                book.forget(client, to);
            }
        }
        self.metrics.verdicts.set(book.len());
    }
}

fn connection(book: &Pods, flow: &FlowEntry) -> Option<LiveConnection> {
    let own = book.member(flow.own_netns())?;
    Some(LiveConnection {
        workload_uid: own.uid.to_string(),
        reporter: if flow.end == FLOW_CLIENT {
            Reporter::Source
        } else {
            Reporter::Destination
        },
        source: flow.client(),
        original_destination: flow.dialled(),
        service: book
            .service_of(flow)
            .map(|service| service.key.hostname.to_string()),
        actual_destination: flow.server(),
        carriage: Carriage::Direct,
    })
}

/// What the thread works with.
struct Desk {
    direct: Direct,
    events: FlowEvents,
    accounts: Accounts,
    /// Whether no connection was alive when they were looked through last.
    none_alive: bool,
    /// Whether one could have begun by a ruling then.
    had_rulings: bool,
}

impl Desk {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let now = Instant::now();
        let (mut read, mut looked, mut asked, mut swept) = (now, now, now, now);
        let mut has_changed = false;
        loop {
            // Pods come by the hundred: what they change is looked at when no order waits any more.
            let patience = if has_changed {
                Duration::ZERO
            } else {
                read.saturating_duration_since(Instant::now())
            };
            match inbox.recv_timeout(patience) {
                Ok(Order::Changed) => has_changed = true,
                Ok(Order::Ruled) => read = read.min(Instant::now() + CALM),
                Err(RecvTimeoutError::Timeout) if has_changed => {
                    has_changed = false;
                    match self.alive() {
                        Ok(flows) => self.end_the_wrong(flows.unwrap_or_default()),
                        Err(failure) => cannot_look(&failure),
                    }
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    let _last = self.read_events();
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let events = self.read_events();
                    let now = Instant::now();
                    if now >= looked + LOOKED_EVERY {
                        self.look_through();
                        looked = now;
                    }
                    if now >= asked + CARRIED_EVERY {
                        self.ask_for_bytes();
                        asked = now;
                    }
                    if now >= swept + SWEPT_EVERY {
                        self.forget_the_gone();
                        swept = now;
                    }
                    read = now + self.pause(events);
                }
            }
        }
    }

    /// How long to wait after so many events.
    fn pause(&self, events: usize) -> Duration {
        if events >= MANY_EVENTS {
            BUSY
        } else if self.none_alive && !self.had_rulings && events == 0 {
            LOOKED_EVERY
        } else {
            CALM
        }
    }

    /// Accounts for what has happened; returns how many events that were.
    fn read_events(&mut self) -> usize {
        let mut events = 0;
        while let Some(event) = self.events.next() {
            events += 1;
            // Not for longer than one event takes: workers ask the book, too.
            let book = self.direct.lock();
            self.accounts.take(&book, &event);
        }
        events
    }

    /// Every end of a live connection; `None` if there can be none, without asking the kernel, whose table is large and
    /// mostly empty.
    fn alive(&mut self) -> io::Result<Option<Vec<(u64, FlowEntry)>>> {
        let has_ruled = self.direct.has_ruled.swap(false, Ordering::SeqCst);
        let has_rulings = self.direct.lock().len() > 0;
        // Those of the last look may have been taken back since, and let something begin before.
        let can_have_begun = has_ruled || self.had_rulings;
        self.had_rulings = has_rulings;
        if self.none_alive && !can_have_begun {
            return Ok(None);
        }
        // Until it is seen: a look that fails has asked for the rulings' sake already.
        self.none_alive = false;
        let flows = self.direct.path.flows()?;
        self.none_alive = flows.is_empty();
        Ok(Some(flows))
    }

    /// Opens accounts of new connections, settles those whose end was not told, and ends what should not be there.
    fn look_through(&mut self) {
        let seen = self.alive().and_then(|flows| {
            Ok(match flows {
                Some(flows) => (flows, self.direct.path.lost()?),
                None => Default::default(),
            })
        });
        let (flows, lost) = match seen {
            Ok(seen) => seen,
            Err(failure) => return cannot_look(&failure),
        };
        let mut book = self.direct.lock();
        book.forget_the_gone(Instant::now());
        self.accounts.look_through(&book, &flows);
        self.accounts.make_up_for(&book, lost);
        drop(book);
        self.end_the_wrong(flows);
    }

    /// Forgets, after counting it, what the kernel has added up for pods that are gone: nobody adds to it any more.
    fn forget_the_gone(&mut self) {
        if !self.direct.has_all.load(Ordering::Acquire) {
            return;
        }
        let lost = match self.direct.path.lost() {
            Ok(lost) => lost,
            Err(failure) => return cannot_look(&failure),
        };
        let book = self.direct.lock();
        let gone = self.accounts.settle_the_gone(&book, lost);
        drop(book);
        for ends in gone {
            // In the kernel first: what is found there again would be counted anew.
            match self.direct.path.forget_lost(&ends) {
                Ok(()) => self.accounts.forget(&ends),
                Err(failure) => cannot_look(&failure),
            }
        }
    }

    /// Ends live connections that have lost their right. The verdicts are gone by then, so none follows them.
    ///
    /// First at the server's end, whose reset is what the client reads, as it would of the proxy; then whoever has not
    /// received it.
    fn end_the_wrong(&mut self, mut flows: Vec<(u64, FlowEntry)>) {
        for round in 0..ROUNDS {
            if round > 0 {
                thread::sleep(GRACE);
                flows = match self.direct.path.flows() {
                    Ok(flows) => flows,
                    Err(failure) => return cannot_look(&failure),
                };
            }
            let wrong = self.direct.lock().wrong(&flows);
            if wrong.is_empty() {
                return;
            }
            if round == 0 {
                let connections = wrong.len();
                info!(connections, "direct connections lost their right");
            }
            for one in &wrong {
                self.accounts.revoke(&one.client.flow, &one.why);
            }
            let ends = wrong.into_iter().map(|one| match one.server {
                Some(server) if round == 0 => server,
                _ => one.client,
            });
            end_all(ends);
        }
    }

    /// Asks the kernel what long connections have carried.
    fn ask_for_bytes(&mut self) {
        let pods = {
            let book = self.direct.lock();
            let pods = self.accounts.pods();
            pods.into_iter()
                .filter_map(|netns| Some(Arc::clone(&book.member(netns)?.sockets)))
                .collect::<Vec<_>>()
        };
        for sockets in pods {
            match sockets.carried() {
                Ok(carried) => self.accounts.carry(&carried),
                // Most likely the pod is going; its connections' ends say the rest.
                Err(failure) => debug!(error = %failure, "cannot ask for a pod's bytes"),
            }
        }
    }
}

fn cannot_look(failure: &io::Error) {
    error!(error = %failure, "cannot look through direct connections");
}

/// Ends connections, pod by pod.
fn end_all(ends: impl Iterator<Item = End<Arc<Sockets>>>) {
    let mut by_pod = BTreeMap::<u64, (Arc<Sockets>, Vec<(u64, FlowEntry)>)>::new();
    for End {
        cookie,
        flow,
        sockets,
    } in ends
    {
        let of_pod = by_pod.entry(flow.own_netns());
        let (_, flows) = of_pod.or_insert_with(|| (sockets, Vec::new()));
        flows.push((cookie, flow));
    }
    for (sockets, flows) in by_pod.into_values() {
        if let Err(failure) = sockets.end_flows(&flows) {
            error!(error = %failure, "cannot end direct connections");
        }
    }
}
