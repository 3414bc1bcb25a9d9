//! One request, from its token to its certificate.
//!
//! ```text
//!  bearer token ─ TokenReview ─▶ caller ─▶ grant (pods of the caller's node) ─▶ key of the CSR ─▶ certificate
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};
use userspace_l7::model::Snapshot;

use super::caller::{self, Caller, REVIEWS, Unknown};
use super::grant::{Denied, Placed, Rules, grant};
use super::issuer::{Issued, Issuer};
use super::metrics::AuthorityMetrics;
use super::request;
use crate::sentence::sentence;
use crate::signing::{Code, Question};
use crate::sources::ApiWriter;

/// Reviews of tokens under way at once: whoever can reach the port can cause them.
const REVIEWS_AT_ONCE: usize = 16;

/// Between lines of the log about requests of nobody who is known.
const STRANGERS_LOGGED: Duration = Duration::from_secs(1);

/// Where requests are decided.
pub(super) struct Desk {
    pub(super) api: ApiWriter,
    pub(super) rules: Rules,
    pub(super) audience: String,
    pub(super) longest: Duration,
    pub(super) issuer: watch::Receiver<Option<Arc<Issuer>>>,
    pub(super) mesh: watch::Receiver<Arc<Snapshot>>,
    pub(super) metrics: AuthorityMetrics,
    pub(super) reviews: Semaphore,
    pub(super) strangers: Strangers,
}

/// Requests of nobody who is known: whoever reaches the port can cause as many as it likes, and lines of the log only now
/// and then.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Logged>);

#[derive(Debug, Default)]
struct Logged {
    last: Option<Instant>,
    suppressed: u64,
}

impl Strangers {
    /// Whether a request at `now` gets its line, and how many have got none since the last.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logged
            .last
            .is_some_and(|last| now.duration_since(last) < STRANGERS_LOGGED)
        {
            logged.suppressed += 1;
            return None;
        }
        logged.last = Some(now);
        Some(std::mem::take(&mut logged.suppressed))
    }
}

/// Why there is no certificate, as the caller is told.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refused {
    fn new(code: Code, message: &impl ToString) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }
}

/// As many reviews as may be under way.
pub(super) fn reviews() -> Semaphore {
    Semaphore::new(REVIEWS_AT_ONCE)
}

impl Desk {
    /// Answers a request, and writes down what became of it. `is_known` becomes true if its token says who asks.
    pub(super) async fn answer(
        &self,
        token: Option<&str>,
        body: &[u8],
        is_known: &AtomicBool,
    ) -> Result<Vec<String>, Refused> {
        let mut caller = None;
        let outcome = self.decide(token, body, &mut caller).await;
        if caller.is_some() {
            is_known.store(true, Ordering::Relaxed);
        }
        let (account, pod) = match &caller {
            Some(Caller { account, pod, .. }) => {
                (account.to_string(), pod.clone().unwrap_or_default())
            }
            None => (String::new(), String::new()),
        };
        match outcome {
            Ok((id, node, issued)) => {
                let (serial, until) = (&issued.serial, issued.not_after);
                info!(identity = %id, %node, account, pod, %serial, %until, "certificate issued");
                self.metrics.count("issued");
                Ok(issued.chain)
            }
            Err(refused) => {
                let (why, code) = (&refused.message, refused.code);
                if caller.is_some() {
                    warn!(account, pod, ?code, error = %why, "certificate refused");
                } else if let Some(suppressed) = self.strangers.admit(Instant::now()) {
                    warn!(?code, error = %why, suppressed, "certificate refused");
                }
                let is_ours = matches!(code, Code::Internal | Code::Unavailable);
                self.metrics
                    .count(if is_ours { "failed" } else { "refused" });
                Err(refused)
            }
        }
    }

    async fn decide(
        &self,
        token: Option<&str>,
        body: &[u8],
        known: &mut Option<Caller>,
    ) -> Result<(String, String, Issued), Refused> {
        let authority = self.issuer.borrow().clone();
        let authority = authority.ok_or_else(|| {
            Refused::new(
                Code::Unavailable,
                &"the authority has no root yet: try again",
            )
        })?;
        let caller = known.insert(self.review(token).await?);
        let question =
            Question::read(body).map_err(|error| Refused::new(Code::InvalidArgument, &error))?;
        let mesh = Arc::clone(&self.mesh.borrow());
        let placed = Placed {
            mesh: &mesh,
            rules: &self.rules,
        };
        let granted = grant(&self.rules, caller, &placed, question.identity.as_deref());
        let granted = granted.map_err(|denied| Refused::new(code(&denied), &denied))?;
        let key = request::key(&question.csr, &granted.id)
            .map_err(|unfit| Refused::new(Code::InvalidArgument, &unfit))?;
        let lifetime = request::lifetime(question.lifetime, self.longest);
        let issued = authority
            .issue(&granted.id, &key, (SystemTime::now(), lifetime))
            .map_err(|error| Refused::new(Code::Internal, &sentence(&error)))?;
        Ok((granted.id.to_string(), granted.node, issued))
    }

    async fn review(&self, token: Option<&str>) -> Result<Caller, Refused> {
        let unknown = |why: Unknown| Refused::new(Code::Unauthenticated, &why);
        let token = token.ok_or_else(|| unknown(Unknown::NoToken))?;
        let busy = |_closed| Refused::new(Code::Unavailable, &"the authority is stopping");
        let _place = self.reviews.acquire().await.map_err(busy)?;
        let review = caller::review(token, &self.audience);
        let answer = self.api.create(REVIEWS, &review).await;
        let answer = answer.map_err(|refusal| {
            // That we may not ask is our fault, not the caller's.
            Refused::new(Code::Unavailable, &format!("the API server {refusal}"))
        })?;
        caller::caller(&answer, &self.audience).map_err(unknown)
    }
}

fn code(denied: &Denied) -> Code {
    match denied {
        Denied::NoIdentity | Denied::Invalid(_) => Code::InvalidArgument,
        Denied::NotAnAgent(_)
        | Denied::Unbound
        | Denied::NoNode(_)
        | Denied::TrustDomain(_)
        | Denied::NotThere { .. } => Code::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_a_line_a_second() {
        let strangers = Strangers::default();
        let begin = Instant::now();
        let at = |millis| strangers.admit(begin + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(999)), (None, None));
        assert_eq!(at(1_000), Some(2));
        assert_eq!(at(1_500), None);
        assert_eq!(at(9_000), Some(1));
    }
}
