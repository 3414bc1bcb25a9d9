//! The SVIDs that this node wants, where each is in its life, and their publication. Issues nothing itself: it says
//! what is due, and is told what became of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tracing::{info, warn};
use userspace_l7::model::SpiffeId;
use userspace_l7::tls::{Identities, Identity};

use super::schedule::{Duty, Record, Validity};

/// All wanted SVIDs.
pub(super) struct Register {
    svids: HashMap<SpiffeId, Svid>,
    identities: Arc<Identities>,
    statuses: watch::Sender<Vec<SvidStatus>>,
}

/// An identity that is wanted.
#[derive(Default)]
struct Svid {
    record: Record,
    current: Option<Arc<Identity>>,
    reason: Option<String>,
    /// Since when nobody wants it any more.
    unwanted: Option<SystemTime>,
}

/// How long an identity outlives its last pod: one that leaves the mesh has connections to end, and they may need new tunnels.
const LINGERING: Duration = Duration::from_secs(10);

/// Where a wanted SVID is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SvidState {
    /// Ready for use.
    Available,
    /// Wanted, not issued yet.
    Initializing,
    /// Not to be had, for this reason.
    Unavailable(String),
}

/// A wanted SVID, for dumps.
#[derive(Clone, Debug)]
pub struct SvidStatus {
    /// Whom it names.
    pub id: SpiffeId,
    /// Where it is in its life.
    pub state: SvidState,
    /// The SVID in use: chain, roots, serial and validity.
    pub identity: Option<Arc<Identity>>,
}

impl Register {
    /// Publishes into `identities`.
    pub(super) fn new(identities: Arc<Identities>) -> Self {
        let (statuses, _) = watch::channel(Vec::new());
        Self {
            svids: HashMap::new(),
            identities,
            statuses,
        }
    }

    /// The state of all wanted SVIDs, ordered by name.
    pub(super) fn statuses(&self) -> watch::Receiver<Vec<SvidStatus>> {
        self.statuses.subscribe()
    }

    /// Takes over which SVIDs are wanted at `now`: those that are not any more are withdrawn a while later.
    pub(super) fn want(&mut self, wanted: &HashSet<SpiffeId>, now: SystemTime) {
        let mut changed = false;
        for (id, svid) in &mut self.svids {
            let unwanted = (!wanted.contains(id)).then(|| svid.unwanted.unwrap_or(now));
            changed |= svid.unwanted != unwanted;
            svid.unwanted = unwanted;
        }
        for id in wanted {
            if !self.svids.contains_key(id) {
                self.svids.insert(id.clone(), Svid::default());
                changed = true;
            }
        }
        if changed {
            // Initializing is seen, however short it is.
            self.report();
        }
    }

    /// What is to be issued at `now`: first what there is none of yet.
    pub(super) fn due(&self, now: SystemTime) -> Vec<SpiffeId> {
        let is_due = |svid: &Svid| svid.unwanted.is_none() && svid.record.duty(now) == Duty::Issue;
        let due = self.svids.iter().filter(|(_, svid)| is_due(svid));
        let mut due: Vec<_> = due
            .map(|(id, svid)| (svid.current.is_some(), id.clone()))
            .collect();
        due.sort();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Gives up what is over at `now`. The time of the next duty, if there is one, of all but those in `busy`.
    pub(super) fn next(&mut self, now: SystemTime, busy: &HashSet<SpiffeId>) -> Option<SystemTime> {
        let mut next = self.withdraw_unwanted(now);
        let mut changed = false;
        let wanted = self.svids.iter_mut();
        for (id, svid) in wanted.filter(|(_, svid)| svid.unwanted.is_none()) {
            let at = match svid.record.duty(now) {
                Duty::Issue if busy.contains(id) => continue,
                // An SVID so short-lived that half of it is over already.
                Duty::Issue => now,
                Duty::Wait(at) => at,
                Duty::Expire(at) => {
                    warn!(identity = %id, "an identity expired and could not be renewed");
                    self.identities.withdraw(id);
                    svid.current = None;
                    svid.record.in_use = None;
                    changed = true;
                    at
                }
            };
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        if changed {
            self.report();
        }
        next
    }

    /// Withdraws what has been wanted by nobody for long enough at `now`. The time when there is more of it.
    fn withdraw_unwanted(&mut self, now: SystemTime) -> Option<SystemTime> {
        let mut next = None::<SystemTime>;
        self.svids.retain(|id, svid| {
            let Some(since) = svid.unwanted else {
                return true;
            };
            let over = since + LINGERING;
            if svid.current.is_some() && now < over {
                next = Some(next.map_or(over, |next| next.min(over)));
                return true;
            }
            self.identities.withdraw(id);
            info!(identity = %id, "identity withdrawn");
            false
        });
        next
    }

    /// An SVID was issued. One that nobody wants any more is not published.
    pub(super) fn issued(&mut self, identity: Identity) {
        let identity = Arc::new(identity);
        let svid = self.svids.get_mut(identity.id());
        let Some(svid) = svid.filter(|svid| svid.unwanted.is_none()) else {
            return;
        };
        let (not_before, not_after) = (identity.not_before(), identity.not_after());
        info!(identity = %identity.id(), serial = identity.serial(), "identity issued");
        self.identities.publish(&identity);
        let record = Record::succeeded(Validity {
            not_before,
            not_after,
        });
        *svid = Svid {
            record,
            current: Some(identity),
            reason: None,
            unwanted: None,
        };
        self.report();
    }

    /// An attempt failed at `now`, which leaves the SVID in use alone; the next one is later by `spread`, of 1, than it
    /// would be.
    pub(super) fn failed(&mut self, id: &SpiffeId, reason: String, now: SystemTime, spread: f64) {
        let Some(svid) = self.svids.get_mut(id) else {
            return;
        };
        warn!(identity = %id, error = %reason, "an identity could not be issued");
        svid.record.failed(now, spread);
        svid.reason = Some(reason);
        self.report();
    }

    /// The authority, or its roots, are others now: all are to be issued anew.
    pub(super) fn outdate(&mut self) {
        for svid in self.svids.values_mut() {
            svid.record.outdate();
        }
    }

    fn report(&self) {
        let mut statuses: Vec<_> = self
            .svids
            .iter()
            .filter(|(_, svid)| svid.unwanted.is_none())
            .map(|(id, svid)| SvidStatus {
                id: id.clone(),
                state: svid.state(),
                identity: svid.current.clone(),
            })
            .collect();
        statuses.sort_by(|a, b| a.id.cmp(&b.id));
        self.statuses.send_replace(statuses);
    }
}

impl Svid {
    fn state(&self) -> SvidState {
        match (&self.current, &self.reason) {
            (Some(_), _) => SvidState::Available,
            (None, None) => SvidState::Initializing,
            (None, Some(reason)) => SvidState::Unavailable(reason.clone()),
        }
    }
}
