//! Keeps the keys that tokens are signed with: fetches the sets that RequestAuthentications name, refreshes
//! them, and publishes them to the workers. What was fetched last stays in force while a server is away.
//!
//! ```text
//!  wanted ─▶ Due ─▶ Running ─┬─ succeeded ─▶ published, Waiting(refresh) ─▶ Due
//!                            └─ failed ─▶ Waiting(longer each time) ─ time, or others would be asked ─▶ Due
//!  no longer wanted: withdrawn, forgotten
//! ```

mod download;
mod metrics;
mod schedule;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::{JwksSource, Snapshot};
use userspace_l7::policy::jwt::KeySet;

use crate::fetch::{Client, Place};
use crate::sentence::sentence;

pub use download::DownloadError;
pub use metrics::KeyMetrics;
pub use schedule::Pace;

use schedule::Record;

/// Sources that are wanted, with how long a fetch may take.
pub type Wanted = BTreeMap<JwksSource, Duration>;

/// Fetches that are under way at once.
const AT_ONCE: usize = 8;

/// When nothing is due.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Fetches and refreshes key sets.
pub struct KeyKeeper {
    client: Client,
    pace: Pace,
    published: Arc<KeySets>,
    metrics: KeyMetrics,
    sources: BTreeMap<JwksSource, Tracked>,
    statuses: watch::Sender<Vec<KeyStatus>>,
}

/// A source that is wanted.
#[derive(Default)]
struct Tracked {
    timeout: Duration,
    record: Record,
    keys: Option<usize>,
    fetched: Option<SystemTime>,
    error: Option<String>,
    /// Who was asked last.
    asked: Option<Vec<Place>>,
}

/// Where a wanted key set is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// Where it is fetched from.
    pub source: JwksSource,
    /// How many keys it has; `None`: it could never be fetched, and tokens of its issuer are refused.
    pub keys: Option<usize>,
    /// When it was fetched last with success.
    pub fetched: Option<SystemTime>,
    /// Why the last fetch failed, in one sentence; `None`: it did not.
    pub error: Option<String>,
    /// When the next fetch begins; `None`: one is under way.
    pub next: Option<SystemTime>,
}

type Fetched = (JwksSource, Result<KeySet, DownloadError>);

impl KeyKeeper {
    /// Publishes into `published` from then on.
    pub fn new(client: Client, pace: Pace, published: Arc<KeySets>, metrics: KeyMetrics) -> Self {
        Self {
            client,
            pace,
            published,
            metrics,
            sources: BTreeMap::new(),
            statuses: watch::Sender::new(Vec::new()),
        }
    }

    /// The state of all wanted key sets, ordered by source.
    pub fn statuses(&self) -> watch::Receiver<Vec<KeyStatus>> {
        self.statuses.subscribe()
    }

    /// Keeps the key sets that `wanted` names until its sender is gone.
    ///
    /// # Cancel safety
    /// Dropping the future stops the keeping; what is published stays.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<Wanted>,
        mut mesh: watch::Receiver<Arc<Snapshot>>,
    ) {
        let mut running = JoinSet::new();
        self.follow(&wanted.borrow_and_update());
        loop {
            let next = self.begin_due(&mut running);
            self.report();
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow(&wanted.borrow_and_update());
                }
                changed = mesh.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.hurry();
                }
                Some(ended) = running.join_next() => self.finish(ended),
                () = sleep_until(next) => {}
            }
        }
    }

    fn follow(&mut self, wanted: &Wanted) {
        self.sources.retain(|source, _| {
            let stays = wanted.contains_key(source);
            if !stays {
                self.published.withdraw(source);
            }
            stays
        });
        for (source, timeout) in wanted {
            self.sources.entry(source.clone()).or_default().timeout = *timeout;
        }
    }

    /// Starts what is due. When to look again.
    fn begin_due(&mut self, running: &mut JoinSet<Fetched>) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        for (source, tracked) in &mut self.sources {
            if tracked.record.is_due(now) && running.len() < AT_ONCE {
                tracked.record.begin();
                tracked.asked = download::asks(&self.client, source);
                let (client, source, timeout) =
                    (self.client.clone(), source.clone(), tracked.timeout);
                running.spawn(async move {
                    let keys = download::download(&client, &source, timeout).await;
                    (source, keys)
                });
            } else if let Some(at) = tracked.record.next() {
                next = next.min(at.max(now));
            }
        }
        if running.len() < AT_ONCE {
            next
        } else {
            now + IDLE
        }
    }

    /// What failed is worth another try at once where another server would be asked.
    fn hurry(&mut self) {
        for (source, tracked) in &mut self.sources {
            if tracked.record.has_failed() && download::asks(&self.client, source) != tracked.asked
            {
                tracked.record.hurry();
            }
        }
    }

    fn finish(&mut self, ended: Result<Fetched, JoinError>) {
        let (source, result) = match ended {
            Ok(fetched) => fetched,
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_cancelled) => return,
            },
        };
        self.metrics.count(result.is_ok());
        let Some(tracked) = self.sources.get_mut(&source) else {
            return;
        };
        let now = Instant::now();
        match result {
            Ok(keys) => {
                tracked.record.succeeded(now, &self.pace);
                let count = keys.len();
                if tracked.keys != Some(count) || tracked.error.is_some() {
                    info!(source = %Named(&source), keys = count, "keys of tokens fetched");
                }
                tracked.keys = Some(count);
                tracked.fetched = Some(SystemTime::now());
                tracked.error = None;
                self.published.publish(&source, &Arc::new(keys));
            }
            Err(error) => {
                tracked.record.failed(now, &self.pace);
                let error = sentence(&error);
                if tracked.error.as_ref() != Some(&error) {
                    let has_keys = tracked.keys.is_some();
                    warn!(source = %Named(&source), %error, has_keys, "keys of tokens cannot be fetched");
                }
                tracked.error = Some(error);
            }
        }
    }

    fn report(&self) {
        let (now, time) = (Instant::now(), SystemTime::now());
        let status = |(source, tracked): (&JwksSource, &Tracked)| KeyStatus {
            source: source.clone(),
            keys: tracked.keys,
            fetched: tracked.fetched,
            error: tracked.error.clone(),
            next: tracked
                .record
                .next()
                .map(|at| time + at.saturating_duration_since(now)),
        };
        let statuses = self.sources.iter().map(status).collect();
        self.statuses.send_replace(statuses);
    }
}

/// A source, for people.
pub struct Named<'a>(pub &'a JwksSource);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            JwksSource::Uri(uri) => f.write_str(uri),
            JwksSource::Discovery(issuer) => write!(f, "OpenID discovery of {issuer}"),
        }
    }
}
