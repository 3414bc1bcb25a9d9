//! Requests that go on while something else happens, and what became of each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::Pod;
use crate::net::http::{Ask, Conversation};

/// A client that asks over and over.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Outcome>>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many were answered with 200.
    pub good: usize,
    /// The others, as far as a person wants to read: status and body, or what broke.
    pub bad: Vec<String>,
    /// Longest time in which none was answered well.
    pub silence: Duration,
}

/// How requests are spread over connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// All over one; a new one when it ends between two requests, as clients with a pool do.
    Kept,
    /// One for each.
    New,
}

impl Traffic {
    /// Begins.
    pub fn start(pod: &Pod, to: SocketAddr, ask: Ask, connections: Connections) -> Self {
        Self::paced(pod, to, ask, connections, Duration::ZERO)
    }

    /// Begins, with a pause after each answer: failures at once would take the machine from what is to recover.
    pub fn paced(
        pod: &Pod,
        to: SocketAddr,
        ask: Ask,
        connections: Connections,
        pause: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let good = Arc::new(AtomicUsize::new(0));
        let (stopped, pod) = (Arc::clone(&stop), pod.clone());
        let answered = Arc::clone(&good);
        let thread = thread::spawn(move || {
            let mut outcome = Outcome::default();
            let asking = pod.run(|| {
                let mut kept = None;
                let mut last_good = Instant::now();
                while !stopped.load(Ordering::Relaxed) {
                    let answer = once(&mut kept, to, &ask, connections);
                    let silence = last_good.elapsed();
                    if answer.is_ok() {
                        last_good = Instant::now();
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    outcome.count(answer, silence);
                    thread::sleep(pause);
                }
                Ok(())
            });
            if let Err(error) = asking {
                outcome.bad.push(format!("{error:#}"));
            }
            outcome
        });
        Self {
            stop,
            good,
            thread: Some(thread),
        }
    }

    /// How many requests have been answered with 200 so far.
    pub fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    /// Ends after the request that is under way.
    pub fn end(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().map(JoinHandle::join);
        match thread {
            Some(Ok(outcome)) => outcome,
            Some(Err(payload)) => std::panic::resume_unwind(payload),
            None => Outcome::default(),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Outcome {
    fn count(&mut self, answer: Result<()>, silence: Duration) {
        self.silence = self.silence.max(silence);
        match answer {
            Ok(()) => self.good += 1,
            Err(error) => self.bad.push(format!("{error:#}")),
        }
    }

    /// Some requests were made and each was answered well.
    ///
    /// # Errors
    /// If not; says what went wrong first.
    pub fn all_good(&self) -> Result<()> {
        let Self { good, bad, .. } = self;
        let first = bad.first();
        ensure!(
            bad.is_empty(),
            "{} of {} failed: {first:?}",
            bad.len(),
            good + bad.len()
        );
        ensure!(*good > 0, "no request was made");
        Ok(())
    }
}

fn once(
    kept: &mut Option<Conversation>,
    to: SocketAddr,
    ask: &Ask,
    connections: Connections,
) -> Result<()> {
    let answer = match (connections, kept.take()) {
        (Connections::New, _) => ask.send(to)?,
        (Connections::Kept, kept_one) => {
            let is_alive = |conversation: &Conversation| {
                // An orderly end has arrived if there is something to read, which is nothing.
                let mut byte = [0];
                let stream = conversation.stream();
                stream.set_nonblocking(true).is_ok()
                    && !matches!(stream.peek(&mut byte), Ok(0))
                    && stream.set_nonblocking(false).is_ok()
            };
            let mut conversation = match kept_one.filter(is_alive) {
                Some(conversation) => conversation,
                None => Conversation::open(to)?,
            };
            let answer = conversation.ask(ask)?;
            let closes = answer
                .header("connection")
                .is_some_and(|value| value == "close");
            *kept = (!closes).then_some(conversation);
            answer
        }
    };
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(())
}
