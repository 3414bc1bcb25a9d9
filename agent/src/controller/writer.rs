//! Writes what is planned while the lease is ours: one request after the other, each held to the version of the object that
//! it was planned for. What is refused waits, longer each time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::journal::{Journal, Telling};
use super::lease::Term;
use super::metrics::{ControllerMetrics, Outcome};
use super::pace::Pace;
use super::plan::{Patch, Plan};
use super::report::Report;
use crate::mesh::ObjectKey;
use crate::sources::{ApiWriter, Refusal, object_path};

/// Waits while the server does not answer or has no time: doubled each time, up to the longest.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Longest wait that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// Where classes are created.
const CLASSES: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
/// As the version of an object that is not there.
const ABSENT: &str = "absent";

/// What there is to write.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) plan: Plan,
    pub(super) reports: BTreeSet<Report>,
}

/// The only one that changes anything in a cluster.
pub(super) struct Writer {
    api: ApiWriter,
    work: watch::Receiver<Arc<Work>>,
    term: watch::Receiver<Term>,
    instance: String,
    pace: Pace<ObjectKey>,
    journal: Journal,
    metrics: ControllerMetrics,
    /// How often in turn the server failed.
    failures: u32,
}

/// Why a round ended early.
enum Halt {
    /// The lease is not ours any more.
    Over,
    /// There is something newer to write.
    Stale,
    /// The server is not to be asked before this.
    Until(Instant),
}

impl Writer {
    pub(super) fn new(
        api: ApiWriter,
        work: watch::Receiver<Arc<Work>>,
        term: watch::Receiver<Term>,
        instance: &str,
        metrics: ControllerMetrics,
    ) -> Self {
        Self {
            api,
            work,
            term,
            instance: instance.to_owned(),
            pace: Pace::new(),
            journal: Journal::default(),
            metrics,
            failures: 0,
        }
    }

    /// Writes until whoever plans or whoever holds the lease is gone.
    pub(super) async fn run(mut self) {
        loop {
            let work = Arc::clone(&self.work.borrow_and_update());
            self.term.mark_unchanged();
            let now = Instant::now();
            self.journal.notice(&work.reports, now);
            self.pace.tidy(now);
            let pending = work.plan.patches.len() + work.plan.classes.len();
            self.metrics
                .pending
                .set(i64::try_from(pending).unwrap_or(i64::MAX));
            let (next, heeds_news) = match self.round(&work).await {
                Ok(next) => (next, true),
                Err(Halt::Over) => (None, true),
                Err(Halt::Stale) => continue,
                Err(Halt::Until(moment)) => (Some(moment), false),
            };
            let alarm = async {
                match next {
                    Some(moment) => sleep_until(moment.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = alarm => {}
                changed = self.work.changed(), if heeds_news => if changed.is_err() { return },
                changed = self.term.changed(), if heeds_news => if changed.is_err() { return },
            }
        }
    }

    /// Writes what may be written now; when there will be more.
    async fn round(&mut self, work: &Work) -> Result<Option<Instant>, Halt> {
        let mut next = None::<Instant>;
        let mut later = |moment: Instant| {
            next = Some(next.map_or(moment, |known: Instant| known.min(moment)));
        };
        self.term()?;
        for (key, class) in &work.plan.classes {
            let due = self.pace.due(key, ABSENT, Instant::now());
            if due > Instant::now() {
                later(due);
            } else {
                self.create_class(key, class).await?;
            }
        }
        for patch in &work.plan.patches {
            let due = self.pace.due(&patch.object, &patch.version, Instant::now());
            if due > Instant::now() {
                later(due);
            } else {
                self.write_status(patch).await?;
            }
        }
        let (reports, more) = self.journal.due(Instant::now());
        for report in &reports {
            self.tell(report).await?;
        }
        more.into_iter().for_each(later);
        Ok(next)
    }

    async fn create_class(&mut self, key: &ObjectKey, class: &Value) -> Result<(), Halt> {
        let api = self.api.clone();
        let done = self.within_term(api.create(CLASSES, class)).await?;
        self.settle("class", key, &ABSENT.into(), done)
    }

    async fn write_status(&mut self, patch: &Patch) -> Result<(), Halt> {
        let Patch {
            object, version, ..
        } = patch;
        let Some(place) = object_path(&object.kind, &patch.api_version, &object.name) else {
            return Ok(());
        };
        let (api, place) = (self.api.clone(), format!("{place}/status"));
        let done = self.within_term(api.merge(&place, &patch.fields)).await?;
        self.settle("status", object, version, done)
    }

    /// Notes what became of a request about an object.
    fn settle(
        &mut self,
        what: &'static str,
        object: &ObjectKey,
        version: &Arc<str>,
        done: Result<Value, Refusal>,
    ) -> Result<(), Halt> {
        let now = Instant::now();
        let Err(refusal) = done else {
            self.failures = 0;
            self.metrics.count(what, Outcome::Written);
            self.pace.wrote(object, version, now);
            if what == "class" {
                info!(%object, "created");
            } else {
                debug!(%object, "status written");
            }
            return Ok(());
        };
        self.bear(what, &refusal, now)?;
        self.pace.refused(object, now);
        // Somebody else was quicker, or it is gone: news of that are on their way.
        if matches!(refusal.status, Some(404 | 409)) {
            debug!(%object, "{what} not written: the API server {refusal}");
        } else {
            warn!(%object, "{what} cannot be written: the API server {refusal}");
        }
        Ok(())
    }

    async fn tell(&mut self, report: &Report) -> Result<(), Halt> {
        let api = self.api.clone();
        let done = match self
            .journal
            .telling(report, &self.instance, Timestamp::now())
        {
            Telling::New { collection, event } => {
                self.within_term(api.create(&collection, &event)).await?
            }
            Telling::Again { path, fields } => self.within_term(api.merge(&path, &fields)).await?,
        };
        let now = Instant::now();
        let Err(refusal) = done else {
            self.failures = 0;
            self.metrics.count("event", Outcome::Written);
            self.journal.told(report, now);
            return Ok(());
        };
        self.bear("event", &refusal, now)?;
        match refusal.status {
            // Another controller has told it.
            Some(409) => self.journal.told(report, now),
            Some(404) => {
                self.journal.forgotten(report);
                self.journal.refused(report, now);
            }
            _ => {
                warn!(object = %report.object, "an event cannot be written: the API server {refusal}");
                self.journal.refused(report, now);
            }
        }
        Ok(())
    }

    /// Counts a refusal; ends the round if others would fare no better.
    fn bear(&mut self, what: &'static str, refusal: &Refusal, now: Instant) -> Result<(), Halt> {
        if !refusal.is_general() {
            self.failures = 0;
            let is_conflict = refusal.status == Some(409);
            self.metrics.count(
                what,
                if is_conflict {
                    Outcome::Conflict
                } else {
                    Outcome::Refused
                },
            );
            return Ok(());
        }
        self.metrics.count(what, Outcome::Failed);
        if self.failures == 0 {
            warn!(
                server = self.api.server(),
                "nothing can be written: the API server {refusal}"
            );
        }
        let doubled = SHORTEST_WAIT * 2_u32.saturating_pow(self.failures.min(16));
        self.failures += 1;
        let wait = doubled.min(LONGEST_WAIT);
        let asked = refusal.after.unwrap_or_default().min(LONGEST_ASKED);
        Err(Halt::Until(now + asked.max(wait)))
    }

    /// Until when we may write.
    fn term(&self) -> Result<Instant, Halt> {
        let until = *self.term.borrow();
        until
            .filter(|until| Instant::now() < *until)
            .ok_or(Halt::Over)
    }

    /// Makes a request, unless it is not ours to make or there is something newer. Given up when the term ends.
    async fn within_term(
        &self,
        request: impl Future<Output = Result<Value, Refusal>>,
    ) -> Result<Result<Value, Refusal>, Halt> {
        // An error means that nobody plans any more: what is planned holds until the end.
        if self.work.has_changed().unwrap_or(false) {
            return Err(Halt::Stale);
        }
        let until = self.term()?;
        timeout_at(until.into(), request)
            .await
            .map_err(|_elapsed| Halt::Over)
    }
}
