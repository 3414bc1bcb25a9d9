//! L7: connections of local applications that capture holds back until their far side answers, so that `connect`
//! fails as it would without a mesh.
//!
//! ```text
//!  Openings ─▶ Desk::hold ─▶ outbound::reach ─┬─▶ reached: kept, SYN released ─▶ accept ─▶ serve ─▶ carried
//!                                             └─▶ failed: the application's SYN is answered with the cause
//! ```
//!
//! Nothing depends on it: a connection that is accepted without having been held is reached after that.

mod places;
mod verdicts;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use self::places::{Key, Places};
use self::verdicts::Verdicts;
use crate::dial::DialError;
use crate::hub::Hub;
use crate::outbound::{self, Carrying, DNS_PORT, OutboundError, Reached};
use crate::pod::{Answer, Course, Opening, Openings, Pod, until_ended};
use crate::ring::{Readiness, RecvBuf, Tcp};
use crate::telemetry::Reporter;
use crate::waypoint;

/// How long a far side that was reached waits for its application, which takes a few microseconds unless it
/// has given up.
const KEPT: Duration = Duration::from_secs(5);

/// How often those that waited in vain are let go.
const SWEEP: Duration = Duration::from_secs(1);

/// Connections of one worker that are held back.
pub(crate) struct Desk {
    hub: Rc<Hub>,
    guests: RefCell<HashMap<u64, Guest>>,
    held: RefCell<Places>,
    verdicts: RefCell<Verdicts>,
}

/// A pod whose connections are held.
struct Guest {
    pod: Pod,
    course: Course,
}

/// A held connection.
struct Held {
    /// The last of its SYNs: the client may have begun anew from the same port.
    syn: Opening,
    stage: Stage,
}

enum Stage {
    /// Its far side is being dialled.
    Reaching,
    /// Its far side answers, and waits for the application since then.
    Reached(Box<Reached>, Instant),
}

impl Desk {
    pub(crate) fn new(hub: Rc<Hub>) -> Rc<Self> {
        Rc::new(Self {
            hub,
            guests: RefCell::default(),
            held: RefCell::default(),
            verdicts: RefCell::default(),
        })
    }

    /// Serves a pod's connections, in place of an earlier attachment of the same one: what that one reaches goes on.
    pub(crate) fn welcome(&self, pod: Pod, course: Course) {
        self.guests
            .borrow_mut()
            .insert(pod.netns, Guest { pod, course });
    }

    /// Stops serving a pod. What was reached for it is let go.
    pub(crate) fn forget(&self, netns: u64) {
        let gone = self.guests.borrow_mut().remove(&netns);
        let kept =
            self.remove(|key, held| key.netns == netns && matches!(held.stage, Stage::Reached(..)));
        drop((gone, kept));
    }

    /// Takes what capture holds back, for as long as the worker runs.
    pub(crate) async fn attend(self: Rc<Self>, mut openings: Box<dyn Openings>) {
        let readiness = openings.announcements().and_then(Readiness::of);
        let readiness = match readiness {
            Ok(readiness) => readiness,
            Err(error) => {
                warn!(%error, "cannot wait for held connections: they get no answer");
                return;
            }
        };
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ready = readiness.readable() => {
                    if let Err(error) = ready {
                        warn!(%error, "cannot wait for held connections any more");
                        return;
                    }
                    while let Some(opening) = openings.next() {
                        self.hold(opening);
                        tokio::task::coop::consume_budget().await;
                    }
                }
                _tick = sweep.tick(), if !self.is_idle() => self.sweep(),
            }
        }
    }

    /// Reaches the far side of a connection, unless that is under way.
    fn hold(self: &Rc<Self>, opening: Opening) {
        let guests = self.guests.borrow();
        let Some(Guest { pod, course }) = guests.get(&opening.netns) else {
            // Not attached yet, or no longer; its client sends the SYN again.
            return;
        };
        // The DNS proxy answers for every resolver.
        if pod.dns.is_some() && opening.dialled.port() == DNS_PORT {
            answer(pod, &opening, Answer::Release);
            return;
        }
        let told = self.verdicts.borrow().of(&opening, Instant::now());
        if let Some(told) = told {
            answer(pod, &opening, told);
            return;
        }
        let key = Key::of(&opening);
        let mut held = self.held.borrow_mut();
        if let Some(known) = held.get_mut(&key) {
            known.syn = opening;
            if matches!(known.stage, Stage::Reached(..)) {
                answer(pod, &known.syn, Answer::Release);
            }
            return;
        }
        if pod.sockets.consider(&opening) {
            return;
        }
        if !held.has_room_for(key.netns) {
            debug!(workload = %pod.uid, "too many connections open at once");
            return;
        }
        let first = Held {
            syn: opening,
            stage: Stage::Reaching,
        };
        held.insert(key, first);
        let reaching = Reaching {
            desk: Rc::clone(self),
            key,
        };
        let travel = reaching.run(pod.clone());
        drop(tokio::task::spawn_local(until_ended(
            course.follow(),
            travel,
        )));
    }

    /// The far side that was reached for a connection.
    fn take(&self, key: Key) -> Option<Box<Reached>> {
        let mut held = self.held.borrow_mut();
        // Accepted without having been released: it is being reached twice then, and each finds its end.
        if matches!(held.get(&key)?.stage, Stage::Reaching) {
            return None;
        }
        match held.remove(&key)?.stage {
            Stage::Reached(reached, _) => Some(reached),
            Stage::Reaching => None,
        }
    }

    fn is_idle(&self) -> bool {
        self.held.borrow().is_empty() && self.verdicts.borrow().is_empty()
    }

    fn sweep(&self) {
        self.verdicts.borrow_mut().sweep(Instant::now());
        let late = self.remove(
            |_, held| matches!(&held.stage, Stage::Reached(_, since) if since.elapsed() > KEPT),
        );
        for held in late {
            debug!(source = %held.syn.source, dialled = %held.syn.dialled, "given up by its client");
        }
    }

    /// Takes out what is to go; it is let go of outside of the borrow, for what that runs may come back here.
    fn remove(&self, which: impl Fn(&Key, &Held) -> bool) -> Vec<Held> {
        self.held.borrow_mut().remove_those(which)
    }
}

/// The claim of a task on the connection that it reaches. Dropped before its time, the client is left to send its
/// SYN again.
struct Reaching {
    desk: Rc<Desk>,
    key: Key,
}

impl Reaching {
    async fn run(self, pod: Pod) {
        let Key {
            source, dialled, ..
        } = self.key;
        let hub = &self.desk.hub;
        let reached = loop {
            if waypoint::has_to_read(hub, &pod, dialled).await {
                if let Some(syn) = self.end() {
                    answer(&pod, &syn, Answer::Release);
                }
                return;
            }
            match outbound::reach(hub, &pod, (source, dialled), None).await {
                // What is known by now may have layer 7.
                Err(OutboundError::Outdated) => {}
                reached => break reached,
            }
        };
        match reached {
            Ok(reached) => self.release(&pod, reached),
            Err(error) => {
                hub.metrics
                    .refused(Reporter::Source, source, dialled, error.flags(), &error);
                if let (Some(truth), Some(syn)) = (truth(&error), self.end()) {
                    answer(&pod, &syn, truth);
                    let mut verdicts = self.desk.verdicts.borrow_mut();
                    verdicts.remember(&syn, truth, Instant::now());
                }
            }
        }
    }

    fn release(&self, pod: &Pod, reached: Reached) {
        let mut held = self.desk.held.borrow_mut();
        let Some(held) = held.get_mut(&self.key) else {
            return;
        };
        held.stage = Stage::Reached(Box::new(reached), Instant::now());
        answer(pod, &held.syn, Answer::Release);
    }

    fn end(&self) -> Option<Opening> {
        let mut held = self.desk.held.borrow_mut();
        held.remove(&self.key).map(|held| held.syn)
    }
}

impl Drop for Reaching {
    fn drop(&mut self) {
        let mut all = self.desk.held.borrow_mut();
        if all
            .get(&self.key)
            .is_some_and(|held| matches!(held.stage, Stage::Reaching))
        {
            let given_up = all.remove(&self.key);
            drop(all);
            drop(given_up);
        }
    }
}

/// What an application is told of a far side that was not reached; `None` to leave it to its own patience.
///
/// Whatever is not the network's word is a refusal: so is that of a policy, whose client has no business there and
/// is told so at once.
///
/// An agent that ends knows nothing of the far side: the client sends its SYN again, to the next agent (ADR 0015).
fn truth(error: &OutboundError) -> Option<Answer> {
    use crate::hbone::{Cause, OpenError};
    if let OutboundError::Dial(DialError::Tunnel {
        source: OpenError::Closing,
        ..
    }) = error
    {
        return None;
    }
    match error.cause() {
        Some(Cause::HostUnreachable) => Some(Answer::HostUnreachable),
        Some(Cause::NetworkUnreachable) => Some(Answer::NetworkUnreachable),
        Some(Cause::TimedOut) => None,
        Some(Cause::Refused) | None => Some(Answer::Refuse),
    }
}

fn answer(pod: &Pod, syn: &Opening, answer: Answer) {
    if let Err(error) = pod.sockets.answer(syn, answer) {
        debug!(workload = %pod.uid, dialled = %syn.dialled, %error, "cannot answer a held connection");
    }
}

/// Opens one connection of `pod`: to the far side that was reached for it, or to one that is reached now. `None` if it was
/// refused, or served at layer 7.
///
/// # Cancel safety
/// Dropping the future closes the connection as a reset.
pub(crate) async fn serve(desk: &Desk, pod: &Pod, app: Tcp) -> Option<Carrying> {
    let (Ok(source), Ok(dialled)) = (app.peer_addr(), app.local_addr()) else {
        // Reset between the handshake and accept: there is no one left to serve or to tell of.
        return None;
    };
    let reached = desk.take(Key {
        netns: pod.netns,
        source,
        dialled,
    });
    match reached {
        Some(reached) => {
            let said = RecvBuf::default();
            Some(outbound::carry(&desk.hub, pod, (app, said), *reached))
        }
        // On the heap, for those that were reached need no room for it.
        None => Box::pin(outbound::open(&desk.hub, pod, (source, dialled), app)).await,
    }
}
