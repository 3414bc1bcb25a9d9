//! The Lease itself: taken, renewed, and given back. Whoever writes looks at the [`Term`] before each request.

use std::future::Future;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::election::{Candidate, Record, Step};
use super::metrics::ControllerMetrics;
use crate::sources::{ApiWriter, Refusal};

/// Until when we may write, if at all. Ends well before anybody else may take the lease.
pub(super) type Term = Option<Instant>;

/// Name of the Lease.
pub(super) const NAME: &str = "culvert-controller";
/// How long giving the lease back may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a lease is kept (client-go's names).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// For how long others wait after the last change.
    pub(super) duration: Duration,
    /// A holder that could not renew it for so long stops.
    pub(super) deadline: Duration,
    /// How often it is looked at.
    pub(super) retry: Duration,
}

impl Timing {
    /// client-go's proportions: 15 s, 10 s, 2 s.
    pub(super) fn of(duration: Duration) -> Self {
        Self {
            duration,
            deadline: duration * 2 / 3,
            retry: duration * 2 / 15,
        }
    }
}

/// Runs for the lease.
pub(super) struct Election {
    api: ApiWriter,
    namespace: String,
    candidate: Candidate,
    timing: Timing,
    term: watch::Sender<Term>,
    metrics: ControllerMetrics,
    /// What was said last of what is in the way.
    trouble: Option<Refusal>,
}

impl Election {
    pub(super) fn new(
        api: ApiWriter,
        (namespace, identity): (&str, &str),
        timing: Timing,
        metrics: ControllerMetrics,
    ) -> Self {
        Self {
            api,
            namespace: namespace.to_owned(),
            candidate: Candidate::new(identity.to_owned(), timing.duration),
            timing,
            term: watch::Sender::new(None),
            metrics,
            trouble: None,
        }
    }

    /// Until when we may write.
    pub(super) fn term(&self) -> watch::Receiver<Term> {
        self.term.subscribe()
    }

    /// Takes and renews the lease until `stop` resolves, then gives it back. Nobody may write any more by then.
    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = self.turn() => {}
                () = &mut stop => break,
            }
        }
        self.put_term(None);
        match timeout(FAREWELL, self.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => {
                warn!(%refusal, "the lease is not given back: the next controller waits for its end");
            }
            Err(_elapsed) => {
                warn!("the lease is not given back in time: the next controller waits for its end");
            }
        }
    }

    async fn turn(&mut self) {
        // From before the request: the server may have had it at once.
        let asked = Instant::now();
        let until = asked + self.timing.deadline;
        let outcome = timeout(self.timing.deadline, self.attempt(asked)).await;
        let pause = match outcome {
            Ok(Ok(true)) => {
                self.trouble = None;
                self.put_term(Some(until));
                self.timing.retry
            }
            Ok(Ok(false)) => {
                self.trouble = None;
                self.put_term(None);
                // Not all candidates at once.
                self.timing.retry.mul_f64(rand::random_range(1.0..2.2))
            }
            Ok(Err(refusal)) => {
                self.fail(refusal);
                self.timing.retry
            }
            Err(_elapsed) => {
                self.put_term(None);
                self.timing.retry
            }
        };
        sleep(pause).await;
    }

    /// Whether the lease is ours now.
    async fn attempt(&mut self, at: Instant) -> Result<bool, Refusal> {
        let collection = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
            self.namespace
        );
        let path = format!("{collection}/{NAME}");
        let found = match self.api.get(&path).await {
            Ok(lease) => Some(lease),
            Err(refusal) if refusal.status == Some(404) => None,
            Err(refusal) => return Err(refusal),
        };
        let record = found.as_ref().map(Record::read);
        let Step::Take(record) = self.candidate.step(record.as_ref(), at, Timestamp::now()) else {
            return Ok(false);
        };
        let done = if let Some(lease) = found {
            self.api.replace(&path, &with(lease, &record)).await
        } else {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": NAME, "namespace": self.namespace },
                "spec": record.spec(),
            });
            self.api.create(&collection, &lease).await
        };
        match done {
            Ok(_lease) => Ok(true),
            Err(refusal) if refusal.status == Some(409) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    async fn release(&self) -> Result<(), Refusal> {
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{NAME}",
            self.namespace
        );
        let lease = self.api.get(&path).await?;
        let released = self
            .candidate
            .released(&Record::read(&lease), Timestamp::now());
        if let Some(record) = released {
            self.api.replace(&path, &with(lease, &record)).await?;
            info!("the lease is given back");
        }
        Ok(())
    }

    /// A failure does not end a term: its own end does, unless the lease is renewed before.
    fn fail(&mut self, refusal: Refusal) {
        let is_news = self
            .trouble
            .as_ref()
            .is_none_or(|known| known.status != refusal.status);
        if is_news {
            warn!(
                server = self.api.server(),
                "the lease cannot be looked at: the API server {refusal}"
            );
        }
        self.trouble = Some(refusal);
        let is_over = self
            .term
            .borrow()
            .is_some_and(|until| Instant::now() >= until);
        if is_over {
            self.put_term(None);
        }
    }

    fn put_term(&self, term: Term) {
        let before = self.term.send_replace(term);
        match (before.is_some(), term.is_some()) {
            (false, true) => info!(lease = NAME, "this controller writes"),
            (true, false) => warn!(lease = NAME, "this controller writes no more"),
            _ => {}
        }
        self.metrics.leader.set(term.is_some().into());
    }
}

/// A lease that says something else; the version of it that was read stays, and with it the claim to have been the last.
fn with(mut lease: Value, record: &Record) -> Value {
    lease["spec"] = record.spec();
    lease
}
