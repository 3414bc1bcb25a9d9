//! When a key set is fetched. Pure: outcomes and the time go in.
//!
//! istiod's figures (`pilot/pkg/model/jwks_resolver.go`): every 20 minutes; after a failure in one, twice as
//! long after each further one, up to 60.

use std::time::Duration;

use tokio::time::Instant;

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// After a fetch that succeeded.
    pub refresh: Duration,
    /// After the first that failed.
    pub first_pause: Duration,
    /// After any number of failures.
    pub longest_pause: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);

impl Pace {
    /// istiod's pauses. Whoever wants keys more often than every minute wants them so after failures, too.
    pub fn every(refresh: Duration) -> Self {
        Self {
            refresh,
            first_pause: refresh.min(MINUTE),
            longest_pause: 60 * MINUTE,
        }
    }
}

/// Where a source is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
enum State {
    #[default]
    Due,
    Running,
    Waiting(Instant),
}

/// What happened to one source so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    state: State,
    /// In a row.
    failures: u32,
}

impl Record {
    pub(super) fn is_due(&self, now: Instant) -> bool {
        match self.state {
            State::Due => true,
            State::Running => false,
            State::Waiting(until) => until <= now,
        }
    }

    /// When the next fetch is due; `None`: it is due now or under way.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(until) => Some(until),
            State::Due | State::Running => None,
        }
    }

    pub(super) fn begin(&mut self) {
        self.state = State::Running;
    }

    pub(super) fn succeeded(&mut self, now: Instant, pace: &Pace) {
        self.failures = 0;
        self.state = State::Waiting(now + pace.refresh);
    }

    pub(super) fn failed(&mut self, now: Instant, pace: &Pace) {
        let doubled = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let pause = pace.first_pause.saturating_mul(doubled);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(now + pause.min(pace.longest_pause));
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// Waits no longer.
    pub(super) fn hurry(&mut self) {
        if let State::Waiting(_) = self.state {
            self.state = State::Due;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Pace, Record};

    /// Minutes until the next fetch after each of these outcomes, one right after the other.
    #[track_caller]
    fn pauses(outcomes: &[bool], expected: &[u64]) {
        let pace = Pace::every(Duration::from_secs(20 * 60));
        let mut record = Record::default();
        let mut now = Instant::now();
        assert!(record.is_due(now), "a new source is fetched at once");
        let mut found = Vec::new();
        for succeeded in outcomes {
            record.begin();
            assert!(!record.is_due(now), "one fetch at a time");
            if *succeeded {
                record.succeeded(now, &pace);
            } else {
                record.failed(now, &pace);
            }
            let next = record.next().unwrap();
            let pause = next - now;
            assert!(!record.is_due(next.checked_sub(Duration::from_millis(1)).unwrap()));
            assert!(record.is_due(next));
            found.push(pause.as_secs() / 60);
            now = next;
        }
        assert_eq!(found, expected, "{outcomes:?}");
    }

    #[test]
    fn a_set_is_fetched_again_after_20_minutes_and_after_failures_in_growing_ones() {
        pauses(&[true, true], &[20, 20]);
        pauses(&[false; 9], &[1, 2, 4, 8, 16, 32, 60, 60, 60]);
        pauses(&[true, false, false, true, false], &[20, 1, 2, 20, 1]);
        pauses(
            &[false; 40],
            &[&[1, 2, 4, 8, 16, 32][..], &[60; 34]].concat(),
        );
    }

    #[test]
    fn a_failed_fetch_is_repeated_at_once_when_asked_to() {
        let pace = Pace::every(Duration::from_secs(5));
        assert_eq!(pace.first_pause, pace.refresh);
        let (mut record, now) = (Record::default(), Instant::now());
        record.begin();
        record.hurry();
        assert!(!record.is_due(now), "what runs is not started twice");
        record.failed(now, &pace);
        assert!(record.has_failed());
        record.hurry();
        assert!(record.is_due(now));
    }
}
