//! Names that clients of a wildcard ask for (ServiceEntry with `resolution: DYNAMIC_DNS`): asks the node's resolvers, once
//! for all who ask at the same time, and keeps each answer for as long as it holds.
//!
//! ```text
//!  worker ─▶ AskedNames ─▶ NameDesk ─┬─ kept ─────────────────────────────▶ answer
//!                                    └─ under way ─▶ node's resolvers ─▶ kept, answer
//! ```
//! Clients choose the names: whatever is kept for one, or done, has a bound.

mod kept;
mod lookup;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::debug;
use userspace_l7::names::{Looking, Names, NoAddress};
use userspace_l7::route::named::Name;

use kept::Kept;
use lookup::{Answered, look_up};

/// Questions that wait to be read. The desk reads them faster than connections can be made.
const UNREAD: usize = 1024;

/// Names that are looked up at once. A resolver that answers nothing holds each for seconds.
const AT_ONCE: usize = 128;

/// Where a system says which resolvers it asks (resolv.conf(5)).
const RESOLVERS: &str = "/etc/resolv.conf";

/// What a name leads to.
type Answer = Result<Arc<[IpAddr]>, NoAddress>;

/// What workers ask.
#[derive(Clone, Debug)]
pub struct AskedNames(mpsc::Sender<Question>);

#[derive(Debug)]
struct Question {
    name: Name,
    answer: oneshot::Sender<Answer>,
}

/// Where names are looked up.
#[derive(Debug)]
pub struct NameDesk {
    questions: mpsc::Receiver<Question>,
    kept: Kept,
    /// Who waits for a name that is under way.
    waiting: HashMap<Name, Vec<oneshot::Sender<Answer>>>,
}

/// A way to ask, and whoever is to be run to answer.
pub fn channel() -> (AskedNames, NameDesk) {
    let (sender, questions) = mpsc::channel(UNREAD);
    let desk = NameDesk {
        questions,
        kept: Kept::default(),
        waiting: HashMap::new(),
    };
    (AskedNames(sender), desk)
}

impl Names for AskedNames {
    fn look_up(&self, name: &Name) -> Looking {
        let (answer, answered) = oneshot::channel();
        let name = name.clone();
        let asked = self.0.try_send(Question { name, answer });
        Box::pin(async move {
            asked.map_err(|_full| NoAddress::Overflow)?;
            // Without a desk the agent is about to end.
            answered.await.unwrap_or(Err(NoAddress::Unanswered))
        })
    }
}

impl NameDesk {
    /// Answers until nobody can ask any more.
    pub async fn serve(mut self) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                question = self.questions.recv() => match question {
                    Some(question) => self.take(question, &mut running),
                    None => return,
                },
                Some(ended) = running.join_next() => self.finish(ended),
            }
        }
    }

    fn take(&mut self, question: Question, running: &mut JoinSet<(Name, Answered)>) {
        let Question { name, answer } = question;
        let known = self.kept.get(&name, Instant::now());
        let refused = (self.waiting.len() >= AT_ONCE).then_some(Err(NoAddress::Overflow));
        if let Some(waiting) = self.waiting.get_mut(&name) {
            waiting.push(answer);
        } else if let Some(told) = known.or(refused) {
            // Whoever asked may have gone.
            let _gone = answer.send(told);
        } else {
            self.waiting.insert(name.clone(), vec![answer]);
            running.spawn(async move {
                let answered = look_up(Path::new(RESOLVERS), &name).await;
                (name, answered)
            });
        }
    }

    fn finish(&mut self, ended: Result<(Name, Answered), JoinError>) {
        let (name, answered) = match ended {
            Ok(ended) => ended,
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_cancelled) => return,
            },
        };
        let Answered { answer, holds } = answered;
        debug!(%name, ?answer, ?holds, "looked up for a client");
        let now = Instant::now();
        self.kept.insert(name.clone(), answer.clone(), now, holds);
        for waiting in self.waiting.remove(&name).into_iter().flatten() {
            let _gone = waiting.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests;
