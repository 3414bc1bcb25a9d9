//! One thread of a run: it opens its connections, waits for the start, and drives them to the end.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bulk::Flow;
use super::caller::{Callee, Caller, Multiplexed};
use super::failure::{BenchError, Failure};
use super::pace::Alarm;
use super::plan::{Direction, Plan, Protocol};
use super::schedule::{Schedule, Ticket};
use super::tally::{Moved, Sample, Tally};

/// Connections that one thread opens at once before a run.
const OPENING: usize = 64;
/// Pause of a connection that could not be opened, in closed loop.
const PAUSE: Duration = Duration::from_millis(10);

/// What the watcher sees of a thread.
#[derive(Debug, Default)]
pub(super) struct Shard {
    tally: Mutex<Tally>,
    pub(super) flows: Vec<Flow>,
}

impl Shard {
    /// A thread's share of a plan.
    pub(super) fn new(plan: &Plan, number: usize) -> Arc<Self> {
        Arc::new(Self {
            flows: flows(plan, number),
            ..Self::default()
        })
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between the watcher and its threads.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) go: watch::Receiver<Option<Arc<Schedule>>>,
    pub(super) stop: watch::Receiver<bool>,
    /// One message when ready; closed when all are done.
    pub(super) ready: mpsc::UnboundedSender<()>,
}

/// The streams of one thread.
fn flows(plan: &Plan, thread: usize) -> Vec<Flow> {
    if plan.protocol != Protocol::Bulk {
        return Vec::new();
    }
    let ways: &[bool] = match plan.direction {
        Direction::Upload => &[true],
        Direction::Download => &[false],
        Direction::Both => &[true, false],
    };
    let count = share(plan.connections, plan.threads, thread);
    (0..count)
        .flat_map(|_| ways)
        .map(|up| Flow::new(*up))
        .collect()
}

/// How many of `all` belong to thread `number`.
fn share(all: NonZeroUsize, threads: NonZeroUsize, number: usize) -> usize {
    all.get() / threads + usize::from(number < all.get() % threads)
}

/// Starts the thread.
pub(super) fn spawn(
    callee: &Arc<Callee>,
    number: usize,
    shard: Arc<Shard>,
    line: Line,
) -> Result<JoinHandle<Result<(), BenchError>>, BenchError> {
    let callee = Arc::clone(callee);
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(BenchError::Start)?;
        runtime.block_on(drive_all(callee, number, shard, line))
    };
    let name = format!("bench-{number}");
    thread::Builder::new()
        .name(name)
        .spawn(body)
        .map_err(BenchError::Start)
}

async fn drive_all(
    callee: Arc<Callee>,
    number: usize,
    shard: Arc<Shard>,
    mut line: Line,
) -> Result<(), BenchError> {
    let plan = &callee.plan;
    let mut tasks = JoinSet::new();
    if plan.protocol == Protocol::Bulk {
        let _unheard = line.ready.send(());
        let Some(schedule) = started(&mut line).await else {
            return Ok(());
        };
        for flow in shard.flows.clone() {
            let (callee, shard) = (Arc::clone(&callee), Arc::clone(&shard));
            drop(tasks.spawn(carry(
                flow,
                callee,
                shard,
                Arc::clone(&schedule),
                line.stop.clone(),
            )));
        }
    } else {
        let connections = share(plan.connections, plan.threads, number);
        let callers = open(&callee, connections, &shard, line.stop.clone()).await;
        let _unheard = line.ready.send(());
        let Some(schedule) = started(&mut line).await else {
            return Ok(());
        };
        for caller in callers {
            let driver = Driver {
                caller,
                shard: Arc::clone(&shard),
                schedule: Arc::clone(&schedule),
                limit: plan.timeout,
                stop: line.stop.clone(),
            };
            let is_idle = plan.protocol == Protocol::Idle;
            drop(tasks.spawn(async move {
                if is_idle {
                    driver.rest().await
                } else {
                    driver.drive().await
                }
            }));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|_panic| BenchError::Thread)??;
    }
    Ok(())
}

/// The schedule, as soon as all threads are ready; `None` if the run was given up.
async fn started(line: &mut Line) -> Option<Arc<Schedule>> {
    let schedule = line.go.wait_for(Option::is_some).await.ok()?.clone();
    schedule.filter(|_| !*line.stop.borrow())
}

/// Opens connections, some at a time. One that fails is counted, and tried again by its first request.
async fn open(
    callee: &Arc<Callee>,
    connections: usize,
    shard: &Arc<Shard>,
    mut stop: watch::Receiver<bool>,
) -> Vec<Caller> {
    let places = Arc::new(Semaphore::new(OPENING));
    let mut opening = JoinSet::new();
    for _ in 0..connections {
        let (callee, shard) = (Arc::clone(callee), Arc::clone(shard));
        let places = Arc::clone(&places);
        drop(opening.spawn(async move {
            // The semaphore is never closed.
            let _place = places.acquire_owned().await;
            let plan = &callee.plan;
            let mut callers: Vec<Caller> = if plan.protocol.is_multiplexed() {
                let connection = Multiplexed::new(Arc::clone(&callee));
                (0..plan.streams.get())
                    .map(|_| connection.caller())
                    .collect()
            } else {
                vec![Caller::new(Arc::clone(&callee))]
            };
            if let Some(caller) = callers.first_mut() {
                prepare(caller, plan, &shard).await;
            }
            callers
        }));
    }
    let mut callers = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => return Vec::new(),
            opened = opening.join_next() => match opened {
                Some(opened) => callers.extend(opened.unwrap_or_default()),
                None => return callers,
            },
        }
    }
}

async fn prepare(caller: &mut Caller, plan: &Plan, shard: &Shard) {
    let prepared = async {
        let mut took = caller.prepare().await?;
        if plan.protocol == Protocol::Idle {
            let asked = caller.call().await;
            shard.tally().total += 1;
            took = took.or(asked?.connected);
        }
        Ok(took)
    };
    let prepared = timeout(plan.timeout, prepared).await;
    match prepared.unwrap_or(Err(Failure::Timeout)) {
        Ok(took) => took
            .into_iter()
            .for_each(|took| shard.tally().connect.record(took)),
        Err(failure) => {
            shard.tally().fail(failure);
            caller.reset();
        }
    }
}

/// One stream of bulk.
async fn carry(
    flow: Flow,
    callee: Arc<Callee>,
    shard: Arc<Shard>,
    schedule: Arc<Schedule>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), BenchError> {
    let window = schedule.window();
    let last = window.end.unwrap_or_else(Instant::now) + callee.plan.timeout;
    let carried = async {
        let (stream, took) = callee.dial().await?;
        shard.tally().connect.record(took);
        flow.run(stream, window).await
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stopped| *stopped) => {}
        carried = tokio::time::timeout_at(last.into(), carried) => {
            if let Err(failure) = carried.unwrap_or(Err(Failure::Timeout)) {
                shard.tally().fail(failure);
            }
        }
    }
    Ok(())
}

/// One caller and its tickets.
struct Driver {
    caller: Caller,
    shard: Arc<Shard>,
    schedule: Arc<Schedule>,
    limit: Duration,
    stop: watch::Receiver<bool>,
}

impl Driver {
    /// Makes requests as the schedule says, until it ends or the run is stopped.
    async fn drive(mut self) -> Result<(), BenchError> {
        let window = self.schedule.window();
        let mut alarm = None;
        while let Some(ticket) = self.schedule.take(Instant::now()) {
            let intended = match ticket {
                Ticket::Now => Instant::now(),
                Ticket::Missed(intended) => {
                    self.shard.tally().miss(intended, Instant::now(), window);
                    continue;
                }
                Ticket::At(intended) if intended > Instant::now() => {
                    let alarm = match &mut alarm {
                        Some(alarm) => alarm,
                        none => none.insert(Alarm::new().map_err(BenchError::Start)?),
                    };
                    tokio::select! {
                        biased;
                        _ = self.stop.wait_for(|stopped| *stopped) => return Ok(()),
                        woken = alarm.until(intended) => woken.map_err(BenchError::Start)?,
                    }
                    self.shard.tally().pacing.record(intended.elapsed());
                    intended
                }
                Ticket::At(intended) => intended,
            };
            let Some(outcome) = self.call(intended).await else {
                return Ok(());
            };
            let is_closed_loop = matches!(ticket, Ticket::Now);
            if is_closed_loop && matches!(outcome, Err(Failure::Connect(_))) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Leaves the connection alone until the end, and asks once more then.
    async fn rest(mut self) -> Result<(), BenchError> {
        let Some(end) = self.schedule.end() else {
            return Ok(());
        };
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stopped| *stopped) => return Ok(()),
            () = tokio::time::sleep_until(end.into()) => {}
        }
        // The last moment that counts.
        let intended = end.checked_sub(Duration::from_nanos(1)).unwrap_or(end);
        let _outcome = self.call(intended).await;
        Ok(())
    }

    /// Makes and counts one request; `None` if the run was stopped meanwhile.
    async fn call(&mut self, intended: Instant) -> Option<Result<Moved, Failure>> {
        let window = self.schedule.window();
        let sent = Instant::now();
        let outcome = tokio::select! {
            biased;
            _ = self.stop.wait_for(|stopped| *stopped) => {
                self.shard.tally().give_up(intended, Instant::now(), window);
                return None;
            }
            called = timeout(self.limit, self.caller.call()) => {
                called.unwrap_or(Err(Failure::Timeout))
            }
        };
        let done = Instant::now();
        let is_unusable =
            |failure: &Failure| !matches!(failure, Failure::Status(_) | Failure::GrpcStatus(_));
        if outcome.as_ref().is_err_and(is_unusable) {
            self.caller.reset();
        }
        let sample = Sample {
            intended,
            sent,
            done,
            outcome,
        };
        self.shard.tally().record(&sample, window);
        Some(sample.outcome)
    }
}
