//! Keeps an SVID for each identity that this node's pods run under.
//!
//! ```text
//!  wanted ──► Initializing ──issue──► Available ──half-life──► issue … (sessions keep the old one)
//!                 │                       │ renewal fails until the end
//!                 └──fails──► Unavailable ◄┘──retry──► Available
//!  no longer wanted: withdrawn a little later, forgotten
//! ```

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tracing::{info, warn};
use userspace_l7::model::{SpiffeId, TrustDomain};
use userspace_l7::tls::{Identities, Identity};

use super::ca::{LocalCa, LocalCaError};
use super::files::{self, CaFiles};
use super::register::{Register, SvidStatus};
use super::remote::{RemoteCa, RemoteError, RemoteSettings, Roots};
use crate::fetch::MeshView;
use crate::sentence::sentence;

/// How often the CA's files are looked at. Polled, since a mounted secret is replaced by symbolic links that no
/// watch on the files would see.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);

/// Between two rounds of duties, if nothing else is asked for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// Requests to an authority elsewhere that are under way at once (ztunnel's figure).
const AT_ONCE: usize = 8;

/// Waits after failures are longer by up to this part, so that not all nodes come back at once (ztunnel's figure).
const JITTER: f64 = 0.2;

/// Issues, renews and withdraws SVIDs, and follows changes of the CA's files.
pub struct SvidKeeper {
    register: Register,
    authority: Authority,
}

/// Who signs.
enum Authority {
    Local(Box<Local>),
    Remote(Remote),
}

/// A CA whose key is here.
struct Local {
    directory: PathBuf,
    trust_domain: TrustDomain,
    lifetime: Duration,
    ca: LocalCa,
    /// What `ca` was loaded from.
    files: CaFiles,
    /// The last complaint about the files, so that it is logged once.
    complaint: Option<String>,
}

/// A CA elsewhere.
struct Remote {
    ca: Arc<RemoteCa>,
    /// The roots of its server as they were last; what cannot be read is as it was.
    roots: Option<Roots>,
}

/// What became of a request to an authority elsewhere.
type Outcome = (SpiffeId, Result<Identity, RemoteError>);

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
        let local = Local {
            directory,
            trust_domain,
            lifetime,
            ca,
            files,
            complaint: None,
        };
        Ok(Self {
            register: Register::new(identities),
            authority: Authority::Local(Box::new(local)),
        })
    }

    /// Asks an authority elsewhere, which is looked for in the mesh first, and publishes into `identities`.
    pub fn ask(settings: RemoteSettings, mesh: MeshView, identities: Arc<Identities>) -> Self {
        let ca = Arc::new(RemoteCa::new(settings, mesh));
        Self {
            register: Register::new(identities),
            authority: Authority::Remote(Remote { ca, roots: None }),
        }
    }

    /// The state of all wanted SVIDs, ordered by name.
    pub fn statuses(&self) -> watch::Receiver<Vec<SvidStatus>> {
        self.register.statuses()
    }

    /// Keeps the SVIDs that `wanted` names until its sender is gone.
    ///
    /// # Cancel safety
    /// Dropping the future stops the keeping; what is published stays.
    pub async fn run(self, wanted: watch::Receiver<HashSet<SpiffeId>>) {
        match self.authority {
            Authority::Local(local) => run_local(*local, self.register, wanted).await,
            Authority::Remote(remote) => run_remote(remote, self.register, wanted).await,
        }
    }

    /// Looks at the files of a CA whose key is here.
    #[cfg(test)]
    pub(super) fn follow_files(&mut self, now: SystemTime) {
        if let Authority::Local(local) = &mut self.authority {
            local.follow_files(&mut self.register, now);
        }
    }

    /// One round with a CA whose key is here.
    #[cfg(test)]
    pub(super) fn keep(
        &mut self,
        wanted: &HashSet<SpiffeId>,
        now: SystemTime,
    ) -> Option<SystemTime> {
        match &self.authority {
            Authority::Local(local) => local.keep(&mut self.register, wanted, now),
            Authority::Remote(_) => None,
        }
    }
}

async fn run_local(
    mut local: Local,
    mut register: Register,
    mut wanted: watch::Receiver<HashSet<SpiffeId>>,
) {
    loop {
        let names = wanted.borrow_and_update().clone();
        // Files and signatures (an RSA key takes milliseconds for each) would hold up other tasks.
        let round = spawn_blocking(move || {
            let now = SystemTime::now();
            local.follow_files(&mut register, now);
            let next = local.keep(&mut register, &names, now);
            (local, register, next)
        });
        let next = match round.await {
            Ok((kept, registered, next)) => {
                (local, register) = (kept, registered);
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

impl Local {
    /// Does all that is due at `now` for exactly the `wanted` SVIDs. The time of the next duty, if there is one.
    fn keep(
        &self,
        register: &mut Register,
        wanted: &HashSet<SpiffeId>,
        now: SystemTime,
    ) -> Option<SystemTime> {
        register.want(wanted, now);
        for id in register.due(now) {
            match self.ca.issue(&id, now, self.lifetime) {
                Ok(identity) => register.issued(identity),
                // Nobody else queues for a file.
                Err(error) => register.failed(&id, sentence(&error), now, 0.0),
            }
        }
        register.next(now, &HashSet::new())
    }

    /// Loads the CA anew if its files have changed to something usable; all SVIDs are then due at once, since
    /// their roots are no longer what the directory says.
    fn follow_files(&mut self, register: &mut Register, now: SystemTime) {
        match self.reload(now) {
            Ok(false) => {}
            Ok(true) => {
                self.complaint = None;
                info!(directory = %self.directory.display(), "the CA has changed");
                register.outdate();
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
}

async fn run_remote(
    mut remote: Remote,
    mut register: Register,
    mut wanted: watch::Receiver<HashSet<SpiffeId>>,
) {
    info!(address = %remote.ca.address(), "identities are asked of an authority");
    let mut requests = JoinSet::<Outcome>::new();
    let mut busy = HashSet::new();
    loop {
        let now = SystemTime::now();
        register.want(&wanted.borrow_and_update().clone(), now);
        remote.follow_roots(&mut register);
        for id in register.due(now) {
            if busy.len() >= AT_ONCE {
                break;
            }
            if busy.insert(id.clone()) {
                let ca = Arc::clone(&remote.ca);
                requests.spawn(async move {
                    let outcome = ca.issue(&id).await;
                    (id, outcome)
                });
            }
        }
        let next = register.next(now, &busy);
        // Whoever waits for a free place is looked at again when there is one.
        let next = next.filter(|_| busy.len() < AT_ONCE);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(done) = requests.join_next() => match done {
                Ok((id, outcome)) => {
                    busy.remove(&id);
                    settle(&mut register, &id, outcome);
                }
                Err(failure) => match failure.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down.
                    Err(_cancelled) => return,
                },
            },
            () = sleep(pause(next, SystemTime::now())) => {}
        }
    }
}

fn settle(register: &mut Register, id: &SpiffeId, outcome: Result<Identity, RemoteError>) {
    match outcome {
        Ok(identity) => register.issued(identity),
        Err(error) => {
            let spread = rand::random_range(0.0..JITTER);
            register.failed(id, sentence(&error), SystemTime::now(), spread);
        }
    }
}

impl Remote {
    /// When the roots of the authority's server are others, so are those of the mesh: every SVID is asked for anew, and
    /// comes with all that are trusted now.
    fn follow_roots(&mut self, register: &mut Register) {
        // That they cannot be read is what each request says.
        let Ok(roots) = self.ca.roots() else {
            return;
        };
        if self.roots.as_ref() == Some(&roots) {
            return;
        }
        if self.roots.replace(roots).is_some() {
            info!("the authority's root certificates have changed");
            register.outdate();
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
