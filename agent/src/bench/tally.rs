//! What became of requests: counts, and latencies in histograms of three digits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::failure::Failure;

/// Latencies above are counted as this long.
const LONGEST: Duration = Duration::from_secs(3600);

/// Durations, counted exactly enough: to three digits.
#[derive(Clone, Debug)]
pub(super) struct Durations(Option<Histogram<u64>>);

impl Default for Durations {
    fn default() -> Self {
        Self::with_digits(3)
    }
}

impl Durations {
    pub(super) fn with_digits(digits: u8) -> Self {
        // Bounds that are constants are good ones; without a histogram nothing would be recorded.
        Self(Histogram::new_with_max(nanoseconds(LONGEST), digits).ok())
    }

    pub(super) fn record(&mut self, duration: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(nanoseconds(duration));
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        if let (Some(one), Some(other)) = (&mut self.0, &other.0) {
            // Both have the same bounds.
            let _infallible = one.add(other);
        }
    }

    pub(super) fn clear(&mut self) {
        if let Some(histogram) = &mut self.0 {
            histogram.reset();
        }
    }

    /// The histogram, unless it is empty.
    pub(super) fn filled(&self) -> Option<&Histogram<u64>> {
        self.0.as_ref().filter(|histogram| !histogram.is_empty())
    }

    /// The duration that so many of 100 do not exceed; zero of nothing.
    pub(super) fn percentile(&self, percent: f64) -> Duration {
        let found = self
            .filled()
            .map(|all| all.value_at_quantile(percent / 100.0));
        Duration::from_nanos(found.unwrap_or_default())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What a request moved, without what protocols add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// How long it took to connect, if the request did.
    pub(super) connected: Option<Duration>,
}

/// One request that was sent.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When it was meant to be sent.
    pub(super) intended: Instant,
    /// When it was.
    pub(super) sent: Instant,
    /// When it was over.
    pub(super) done: Instant,
    /// How.
    pub(super) outcome: Result<Moved, Failure>,
}

/// The time that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) begin: Instant,
    pub(super) end: Option<Instant>,
}

impl Window {
    fn contains(self, time: Instant) -> bool {
        time >= self.begin && self.end.is_none_or(|end| time < end)
    }
}

/// What happened since somebody last looked.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pub(super) completed: u64,
    pub(super) failed: u64,
    pub(super) bytes: u64,
    pub(super) latency: Durations,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            completed: 0,
            failed: 0,
            bytes: 0,
            // Shown to people, and cleared each second.
            latency: Durations::with_digits(2),
        }
    }
}

impl Course {
    fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.latency.add(&other.latency);
    }

    fn clear(&mut self) {
        (self.completed, self.failed, self.bytes) = (0, 0, 0);
        self.latency.clear();
    }

    /// Moves what another has to this one.
    pub(super) fn drain(&mut self, other: &mut Self) {
        self.add(other);
        other.clear();
    }
}

/// All that one thread has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// From intended to done, of what was meant to be sent while it counts.
    pub(super) latency: Durations,
    /// From sent to done, of the same.
    pub(super) service: Durations,
    /// How long connecting took, at any time.
    pub(super) connect: Durations,
    /// How much later than asked for the generator woke, where a connection was free in time.
    pub(super) pacing: Durations,
    /// Sent, at any time.
    pub(super) total: u64,
    /// Done well while it counts: the rate.
    pub(super) completed: u64,
    /// Meant for the time that counts and done well, if later.
    pub(super) succeeded: u64,
    /// Meant for the time that counts and failed.
    pub(super) failed: u64,
    /// Never sent, because no connection was free.
    pub(super) unsent: u64,
    /// Bytes of what was done well while it counts.
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    /// Why requests failed, at any time.
    pub(super) failures: BTreeMap<Failure, u64>,
    pub(super) course: Course,
    /// When the last request was over.
    pub(super) last: Option<Instant>,
}

impl Tally {
    pub(super) fn record(&mut self, sample: &Sample, window: Window) {
        self.total += 1;
        self.last = self.last.max(Some(sample.done));
        let counts = window.contains(sample.intended);
        let latency = sample.done.saturating_duration_since(sample.intended);
        match &sample.outcome {
            Ok(moved) => {
                if let Some(connected) = moved.connected {
                    self.connect.record(connected);
                }
                self.course.completed += 1;
                self.course.bytes += moved.sent + moved.received;
                self.course.latency.record(latency);
                if window.contains(sample.done) {
                    self.completed += 1;
                    self.bytes_sent += moved.sent;
                    self.bytes_received += moved.received;
                }
                self.succeeded += u64::from(counts);
            }
            Err(failure) => {
                self.course.failed += 1;
                self.failed += u64::from(counts);
                *self.failures.entry(failure.clone()).or_default() += 1;
            }
        }
        // A fast failure is no latency; a request that was given up took at least as long as it was waited for.
        if counts && matches!(sample.outcome, Ok(_) | Err(Failure::Timeout)) {
            self.latency.record(latency);
            let service = sample.done.saturating_duration_since(sample.sent);
            self.service.record(service);
        }
    }

    /// A request that nobody was free to send until `now`: it would have taken longer than that.
    pub(super) fn miss(&mut self, intended: Instant, now: Instant, window: Window) {
        if window.contains(intended) {
            self.unsent += 1;
            self.latency.record(now.saturating_duration_since(intended));
        }
    }

    /// A request that was under way when the run was stopped: it would have taken longer than that.
    pub(super) fn give_up(&mut self, intended: Instant, now: Instant, window: Window) {
        self.total += 1;
        if window.contains(intended) {
            self.latency.record(now.saturating_duration_since(intended));
        }
    }

    /// Something outside of requests: a connection that could not be opened before the run, a stream that broke.
    pub(super) fn fail(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.connect.add(&other.connect);
        self.pacing.add(&other.pacing);
        self.total += other.total;
        self.completed += other.completed;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.unsent += other.unsent;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        for (failure, count) in &other.failures {
            *self.failures.entry(failure.clone()).or_default() += count;
        }
        self.course.add(&other.course);
        self.last = self.last.max(other.last);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{Failure, Histogram, Moved, Sample, Tally, Window};

    const MS: Duration = Duration::from_millis(1);

    const MOVED: Result<Moved, Failure> = Ok(Moved {
        sent: 1,
        received: 10,
        connected: None,
    });

    #[test]
    fn what_counts_is_what_was_meant_for_the_time_that_counts() {
        let start = Instant::now();
        let window = Window {
            begin: start + 10 * MS,
            end: Some(start + 20 * MS),
        };
        // Intended and done in milliseconds; completed, succeeded, failed, latencies.
        for (intended, done, outcome, expected) in [
            (0, 5, MOVED, (0, 0, 0, 0)),
            // Of the warm-up, and done when it is over: the server's work counts, the latency does not.
            (5, 12, MOVED, (1, 0, 0, 0)),
            (11, 12, MOVED, (1, 1, 0, 1)),
            (19, 25, MOVED, (0, 1, 0, 1)),
            (11, 12, Err(Failure::Status(503)), (0, 0, 1, 0)),
            (11, 19, Err(Failure::Timeout), (0, 0, 1, 1)),
            (5, 9, Err(Failure::Timeout), (0, 0, 0, 0)),
        ] {
            let mut tally = Tally::default();
            let intended = start + intended * MS;
            let sample = Sample {
                intended,
                sent: intended,
                done: start + done * MS,
                outcome,
            };
            tally.record(&sample, window);
            let latencies = tally.latency.filled().map_or(0, Histogram::len);
            let counted = (tally.completed, tally.succeeded, tally.failed, latencies);
            assert_eq!(counted, expected, "{sample:?}");
            assert_eq!(tally.total, 1);
            assert_eq!(tally.bytes_received, tally.completed * 10);
        }
    }

    proptest! {
        /// Splitting samples among threads changes nothing.
        #[test]
        fn tallies_add_up(samples in prop::collection::vec((0u32..50, 0u32..50, 0u8..3), 0..50), cut in 0usize..50) {
            let start = Instant::now();
            let window = Window { begin: start + 10 * MS, end: Some(start + 40 * MS) };
            let samples: Vec<Sample> = samples.into_iter().map(|(intended, took, kind)| {
                let intended = start + intended * MS;
                let outcome = match kind {
                    0 => MOVED,
                    1 => Err(Failure::Timeout),
                    _ => Err(Failure::Status(500)),
                };
                Sample { intended, sent: intended + took * MS / 2, done: intended + took * MS, outcome }
            }).collect();
            let tally = |samples: &[Sample]| {
                let mut tally = Tally::default();
                for sample in samples {
                    tally.record(sample, window);
                }
                tally
            };
            let whole = tally(&samples);
            let (one, other) = samples.split_at(cut.min(samples.len()));
            let mut sum = tally(one);
            sum.add(&tally(other));
            prop_assert_eq!(sum.total, whole.total);
            prop_assert_eq!(sum.completed, whole.completed);
            prop_assert_eq!(sum.succeeded + sum.failed, whole.succeeded + whole.failed);
            prop_assert_eq!(&sum.failures, &whole.failures);
            prop_assert_eq!(sum.latency.filled(), whole.latency.filled());
            prop_assert_eq!(sum.service.filled(), whole.service.filled());
            prop_assert_eq!(sum.last, whole.last);
        }
    }
}
