//! A run of the load generator, from finding the server to the report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval_at};

use super::bulk::{self, Flow};
use super::caller::Callee;
use super::drive::{Line, Shard, spawn};
use super::failure::BenchError;
use super::plan::{Direction, Loop, Plan, Protocol};
use super::report::{Finished, IntervalReport, RunReport};
use super::schedule::{Schedule, Ticket};
use super::tally::{Course, Tally};

/// Open files besides connections and their timers.
const OTHER_FILES: u64 = 128;

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// Every connection is open; figures count after so long.
    Warmup(Duration),
    /// One more interval.
    Interval(IntervalReport),
}

/// Makes a run and reports it; `tell` hears how it goes on. SIGINT and SIGTERM end it early, with what it has by then.
///
/// # Errors
/// [`BenchError`] if the server cannot be reached or this process lacks something. Failing requests are no error: the
/// report counts them.
pub fn run(plan: &Plan, tell: impl FnMut(Progress)) -> Result<RunReport, BenchError> {
    raise_file_limit(plan)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .map_err(BenchError::Start)?
        .block_on(watch_run(plan, tell))
}

async fn watch_run(plan: &Plan, tell: impl FnMut(Progress)) -> Result<RunReport, BenchError> {
    let mut signals = Signals::new()?;
    let callee = tokio::select! {
        found = Callee::find(plan) => found?,
        () = signals.any() => return Err(BenchError::Interrupted),
    };
    let (stop, is_stopped) = watch::channel(false);
    let (go, going) = watch::channel(None);
    let (ready, mut readiness) = mpsc::unbounded_channel();
    let line = Line {
        go: going,
        stop: is_stopped,
        ready,
    };
    let (mut shards, mut threads) = (Vec::new(), Vec::new());
    for number in 0..plan.threads.get() {
        let shard = Shard::new(plan, number);
        shards.push(Arc::clone(&shard));
        threads.push(spawn(&callee, number, shard, line.clone())?);
    }
    drop(line);
    let mut watcher = Watcher {
        plan,
        shards,
        tell,
        intervals: Vec::new(),
        moved: 0,
    };
    let mut interrupted = false;
    let mut waiting = plan.threads.get();
    while waiting > 0 && !interrupted {
        tokio::select! {
            heard = readiness.recv() => match heard {
                Some(()) => waiting -= 1,
                None => break,
            },
            () = signals.any() => interrupted = true,
        }
    }
    stop.send_replace(interrupted);
    let schedule = Arc::new(Schedule::new(Instant::now(), plan.pace, plan.extent));
    drop(go.send_replace(Some(Arc::clone(&schedule))));
    let cpu = watcher.watch(&schedule, readiness, signals, &stop).await;
    for thread in threads {
        thread.join().map_err(|_panic| BenchError::Thread)??;
    }
    Ok(watcher.report(&schedule, cpu, *stop.borrow()))
}

/// What ends a run early.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, BenchError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(BenchError::Start)?,
            terminate: signal(SignalKind::terminate()).map_err(BenchError::Start)?,
        })
    }

    /// The next one.
    ///
    /// # Cancel safety
    /// Dropping the future loses none.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Looks at the threads now and then.
struct Watcher<'a, Tell> {
    plan: &'a Plan,
    shards: Vec<Arc<Shard>>,
    tell: Tell,
    intervals: Vec<IntervalReport>,
    moved: u64,
}

impl<Tell: FnMut(Progress)> Watcher<'_, Tell> {
    /// Watches until every thread is done; returns the CPU time of what counts.
    async fn watch(
        &mut self,
        schedule: &Schedule,
        mut readiness: mpsc::UnboundedReceiver<()>,
        mut signals: Signals,
        stop: &watch::Sender<bool>,
    ) -> Duration {
        let begin = schedule.begin();
        let left = begin.saturating_duration_since(Instant::now());
        (self.tell)(Progress::Warmup(left));
        let mut ticks = interval_at(begin.into(), self.plan.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut used = cpu_time();
        let mut has_begun = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => if has_begun {
                    self.look(begin);
                } else {
                    has_begun = true;
                    used = cpu_time();
                    drop(self.course());
                },
                heard = readiness.recv() => if heard.is_none() {
                    let cpu = cpu_time().saturating_sub(used);
                    if has_begun {
                        self.look_at_the_rest(begin);
                    }
                    return cpu;
                },
                () = signals.any() => {
                    stop.send_replace(true);
                }
            }
        }
    }

    /// What happened since the last look.
    fn course(&mut self) -> Course {
        let mut course = Course::default();
        for shard in &self.shards {
            course.drain(&mut shard.tally().course);
        }
        let flows = self.shards.iter().flat_map(|shard| &shard.flows);
        let moved = flows.map(|flow| flow.received().total()).sum::<u64>();
        course.bytes += moved - self.moved;
        self.moved = moved;
        course
    }

    fn look(&mut self, begin: Instant) {
        let course = self.course();
        let interval = IntervalReport::of(&course, begin.elapsed());
        self.intervals.push(interval);
        (self.tell)(Progress::Interval(interval));
    }

    /// The last interval ends with the run, and perhaps just before its tick.
    fn look_at_the_rest(&mut self, begin: Instant) {
        let seen = self.intervals.last().map_or(0.0, |interval| interval.at_s);
        let left = begin.elapsed().as_secs_f64() - seen;
        if left >= self.plan.interval.as_secs_f64() / 2.0 {
            self.look(begin);
        }
    }

    fn report(self, schedule: &Schedule, cpu: Duration, interrupted: bool) -> RunReport {
        let now = Instant::now();
        let window = schedule.window();
        let mut tally = Tally::default();
        for shard in &self.shards {
            tally.add(&shard.tally());
        }
        // The request that tried the server.
        tally.total += u64::from(self.plan.protocol != Protocol::Bulk);
        if interrupted && self.plan.pace != Loop::Closed {
            while let Some(Ticket::At(intended) | Ticket::Missed(intended)) = schedule.take(now) {
                if intended > now {
                    break;
                }
                tally.miss(intended, now, window);
            }
        }
        let end = window.end.or(tally.last).unwrap_or(now).min(now);
        let all: Vec<Flow> = self
            .shards
            .iter()
            .flat_map(|shard| shard.flows.clone())
            .collect();
        let finished = Finished {
            plan: self.plan,
            tally: &tally,
            bulk: (self.plan.protocol == Protocol::Bulk).then(|| bulk::report(&all)),
            intervals: self.intervals,
            counted: end.saturating_duration_since(window.begin),
            cpu,
            interrupted,
        };
        finished.report()
    }
}

fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// Connections and timers are files.
fn raise_file_limit(plan: &Plan) -> Result<(), BenchError> {
    let (connections, streams) = (plan.connections.get() as u64, plan.streams.get() as u64);
    let timers = match plan.pace {
        Loop::Open { .. } => connections.saturating_mul(streams),
        Loop::Closed => 0,
    };
    let streams = if plan.direction == Direction::Both {
        2
    } else {
        1
    };
    let needed = connections
        .saturating_mul(streams)
        .saturating_add(timers)
        .saturating_add(OTHER_FILES);
    let start = |errno: nix::errno::Errno| BenchError::Start(errno.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(start)?;
    if needed > hard {
        return Err(BenchError::Files {
            connections: plan.connections.get(),
            limit: hard,
        });
    }
    if needed > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(start)?;
    }
    Ok(())
}
