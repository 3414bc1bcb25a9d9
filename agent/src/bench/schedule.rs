//! When each request is meant to be sent, and which of them count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::plan::{Extent, Loop};
use super::tally::Window;

/// The tickets of a run: each request takes the next one, on whichever connection is free. A request that finds no
/// free connection is late, and its lateness is part of its latency.
#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    pace: Loop,
    extent: Extent,
    next: AtomicU64,
}

/// One request that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticket {
    /// Now: in closed loop nothing else is meant.
    Now,
    /// At that time; at once if it has passed.
    At(Instant),
    /// Not any more: the run was over before a connection was free. It was meant to be sent at that time.
    Missed(Instant),
}

impl Schedule {
    pub(super) fn new(start: Instant, pace: Loop, extent: Extent) -> Self {
        Self {
            start,
            pace,
            extent,
            next: AtomicU64::new(0),
        }
    }

    /// From when on requests count.
    pub(super) fn begin(&self) -> Instant {
        match self.extent {
            Extent::Time { warmup, .. } => self.start + warmup,
            Extent::Requests(_) => self.start,
        }
    }

    /// From when on nothing is sent any more; `None` while a number of requests is what ends the run.
    pub(super) fn end(&self) -> Option<Instant> {
        match self.extent {
            Extent::Time { duration, .. } => Some(self.begin() + duration),
            Extent::Requests(_) => None,
        }
    }

    /// The time that counts.
    pub(super) fn window(&self) -> Window {
        Window {
            begin: self.begin(),
            end: self.end(),
        }
    }

    /// The next request; `None` when all have been taken.
    pub(super) fn take(&self, now: Instant) -> Option<Ticket> {
        let is_over = self.end().is_some_and(|end| now >= end);
        if self.pace == Loop::Closed && is_over {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Extent::Requests(limit) = self.extent
            && number >= limit.get()
        {
            return None;
        }
        let Loop::Open { rate } = self.pace else {
            return Some(Ticket::Now);
        };
        let intended = self.start + offset(number, rate);
        if self.end().is_some_and(|end| intended >= end) {
            None
        } else if is_over {
            Some(Ticket::Missed(intended))
        } else {
            Some(Ticket::At(intended))
        }
    }
}

/// When request `number` is due, from the start on: computed from the number, so that errors do not add up.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 requests")]
fn offset(number: u64, rate: f64) -> Duration {
    Duration::try_from_secs_f64(number as f64 / rate).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::{Duration, Instant};

    use super::{Schedule, Ticket};
    use crate::bench::plan::{Extent, Loop};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn open_loop_counts_on_whatever_becomes_of_requests() {
        let start = Instant::now();
        let extent = Extent::Time {
            warmup: 2 * MS,
            duration: 2 * MS,
        };
        let schedule = Schedule::new(start, Loop::Open { rate: 1000.0 }, extent);
        assert_eq!(schedule.begin(), start + 2 * MS);
        assert_eq!(schedule.take(start), Some(Ticket::At(start)));
        assert_eq!(schedule.take(start), Some(Ticket::At(start + MS)));
        // Nobody was free before the end: the two that were due are not forgotten, and there are no more.
        let late = start + 50 * MS;
        assert_eq!(schedule.take(late), Some(Ticket::Missed(start + 2 * MS)));
        assert_eq!(schedule.take(late), Some(Ticket::Missed(start + 3 * MS)));
        assert_eq!(schedule.take(late), None);
    }

    #[test]
    fn closed_loop_sends_until_the_end() {
        let start = Instant::now();
        let extent = Extent::Time {
            warmup: Duration::ZERO,
            duration: MS,
        };
        let schedule = Schedule::new(start, Loop::Closed, extent);
        assert_eq!(schedule.take(start), Some(Ticket::Now));
        assert_eq!(schedule.take(start + MS), None);
    }

    #[test]
    fn a_number_of_requests_is_kept_exactly() {
        let start = Instant::now();
        for pace in [Loop::Closed, Loop::Open { rate: 1e6 }] {
            let extent = Extent::Requests(NonZeroU64::new(3).unwrap());
            let schedule = Schedule::new(start, pace, extent);
            let taken = std::iter::from_fn(|| schedule.take(start + MS)).count();
            assert_eq!(taken, 3, "{pace:?}");
            assert_eq!(schedule.end(), None);
        }
    }
}
