//! Keeps an SVID for each identity that this node's pods run under.
//!
//! ```text
//!  wanted ──► Initializing ──issue──► Available ──half-life──► issue … (sessions keep the old one)
//!                 │                       │ renewal fails until the end
//!                 └──fails──► Unavailable ◄┘──retry──► Available
//!  no longer wanted: withdrawn, forgotten
//! ```

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};
use userspace_l7::model::{SpiffeId, TrustDomain};
use userspace_l7::tls::{Identities, Identity};

use super::ca::{LocalCa, LocalCaError};
use super::files::{self, CaFiles};
use super::schedule::{Duty, Record, Validity};

/// How often the CA's files are looked at. Polled, since a mounted secret is replaced by symbolic links that no
/// watch on the files would see.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);

/// Between two rounds of duties, if nothing else is asked for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// Issues, renews and withdraws SVIDs, and follows changes of the CA's files.
pub struct SvidKeeper {
    directory: PathBuf,
    trust_domain: TrustDomain,
    lifetime: Duration,
    ca: LocalCa,
    /// What `ca` was loaded from.
    files: CaFiles,
    /// The last complaint about the files, so that it is logged once.
    complaint: Option<String>,
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
}

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

impl SvidKeeper {
    /// Opens the CA in `directory`, which is made on first use, and publishes into `identities` from then on.
    ///
    /// # Errors
    /// [`LocalCaError`]: one sentence about what is wrong with the directory and what to do.
    pub fn open(
        directory: PathBuf,
        trust_domain: TrustDomain,
        lifetime: Duration,
        identities: Arc<Identities>,
    ) -> Result<Self, LocalCaError> {
        let (ca, files) = LocalCa::open(&directory, &trust_domain, SystemTime::now())?;
        let (statuses, _) = watch::channel(Vec::new());
        Ok(Self {
            directory,
            trust_domain,
            lifetime,
            ca,
            files,
            complaint: None,
            svids: HashMap::new(),
            identities,
            statuses,
        })
    }

    /// The state of all wanted SVIDs, ordered by name.
    pub fn statuses(&self) -> watch::Receiver<Vec<SvidStatus>> {
        self.statuses.subscribe()
    }

    /// Keeps the SVIDs that `wanted` names until its sender is gone.
    ///
    /// # Cancel safety
    /// Dropping the future stops the keeping; what is published stays.
    pub async fn run(mut self, mut wanted: watch::Receiver<HashSet<SpiffeId>>) {
        loop {
            let names = wanted.borrow_and_update().clone();
            // Files and signatures (an RSA key takes milliseconds for each) would hold up other tasks.
            let round = spawn_blocking(move || {
                let now = SystemTime::now();
                self.follow_files(now);
                let next = self.keep(&names, now);
                (self, next)
            });
            let next = match round.await {
                Ok((keeper, next)) => {
                    self = keeper;
                    next
                }
                Err(failure) => match failure.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down.
                    Err(_cancelled) => return,
                },
            };
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = sleep(pause(next, SystemTime::now())) => {}
            }
        }
    }

    /// Does all that is due at `now` for exactly the `wanted` SVIDs. The time of the next duty, if there is one.
    pub(super) fn keep(
        &mut self,
        wanted: &HashSet<SpiffeId>,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let mut changed = self.forget_unwanted(wanted);
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
        let mut next: Option<SystemTime> = None;
        changed = false;
        for (id, svid) in &mut self.svids {
            let mut duty = svid.record.duty(now);
            if duty == Duty::Issue {
                issue(&self.ca, &self.identities, id, svid, (now, self.lifetime));
                changed = true;
                duty = svid.record.duty(now);
            }
            let at = match duty {
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

    fn forget_unwanted(&mut self, wanted: &HashSet<SpiffeId>) -> bool {
        let before = self.svids.len();
        self.svids.retain(|id, _| {
            let keep = wanted.contains(id);
            if !keep {
                self.identities.withdraw(id);
                info!(identity = %id, "identity withdrawn");
            }
            keep
        });
        self.svids.len() != before
    }

    /// Loads the CA anew if its files have changed to something usable; all SVIDs are then due at once, since
    /// their roots are no longer what the directory says.
    pub(super) fn follow_files(&mut self, now: SystemTime) {
        match self.reload(now) {
            Ok(false) => {}
            Ok(true) => {
                self.complaint = None;
                info!(directory = %self.directory.display(), "the CA has changed");
                for svid in self.svids.values_mut() {
                    svid.record.outdate();
                }
            }
            Err(error) => {
                let complaint = sentence(&error);
                if self.complaint.as_ref() != Some(&complaint) {
                    warn!(error = %complaint, "the CA's files changed to something unusable");
                    self.complaint = Some(complaint);
                }
            }
        }
    }

    /// `true`: the CA is another one now.
    fn reload(&mut self, now: SystemTime) -> Result<bool, LocalCaError> {
        // An emptied directory is not a wish for another CA; the next start would be.
        let Some(files) = files::read(&self.directory)? else {
            return Ok(false);
        };
        if self.files == files {
            return Ok(false);
        }
        self.ca = LocalCa::load(&files, &self.directory, &self.trust_domain, now)?;
        self.files = files;
        Ok(true)
    }

    fn report(&self) {
        let mut statuses: Vec<_> = self
            .svids
            .iter()
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

/// One attempt at a new SVID. A failure leaves the one in use alone.
fn issue(
    ca: &LocalCa,
    identities: &Identities,
    id: &SpiffeId,
    svid: &mut Svid,
    (now, lifetime): (SystemTime, Duration),
) {
    match ca.issue(id, now, lifetime) {
        Ok(identity) => {
            let identity = Arc::new(identity);
            let (not_before, not_after) = (identity.not_before(), identity.not_after());
            info!(identity = %id, serial = identity.serial(), "identity issued");
            identities.publish(&identity);
            let record = Record::succeeded(Validity {
                not_before,
                not_after,
            });
            *svid = Svid {
                record,
                current: Some(identity),
                reason: None,
            };
        }
        Err(error) => {
            let reason = sentence(&error);
            warn!(identity = %id, error = %reason, "an identity could not be issued");
            svid.record.failed(now);
            svid.reason = Some(reason);
        }
    }
}

/// How long to do nothing when `next` is the time of the next duty.
fn pause(next: Option<SystemTime>, now: SystemTime) -> Duration {
    // Waking often enough, a jump of the clock does not delay a renewal; and not without end, since an SVID that
    // lives for a second is due again as soon as it is there.
    next.map_or(LOOK_AT_FILES, |next| {
        next.duration_since(now)
            .unwrap_or(Duration::ZERO)
            .clamp(SHORTEST_PAUSE, LOOK_AT_FILES)
    })
}

/// The error with its causes, in one line.
pub(super) fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
