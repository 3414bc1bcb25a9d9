//! When an SVID is issued, renewed and given up. Pure: facts and the time go in, a [`Duty`] comes out.

use std::time::{Duration, SystemTime};

/// First wait after a failed attempt, doubled with each further one (ztunnel's figures).
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait between attempts.
const RETRY_MAX: Duration = Duration::from_secs(150);

/// From when until when an SVID is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// What is known about one wanted SVID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Validity of the SVID in use.
    pub(super) in_use: Option<Validity>,
    /// It is to be replaced without waiting for half of its life: the CA has changed.
    pub(super) outdated: bool,
    /// Failed attempts since the last success, and from when the wait for the next one is counted.
    pub(super) failed: Option<(u32, SystemTime)>,
}

/// What to do about an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Issue a new one.
    Issue,
    /// Its time is over and none could be had since: stop using it, and look again at the given time.
    Expire(SystemTime),
    /// Nothing before this time.
    Wait(SystemTime),
}

impl Record {
    /// What is due at `now`: an SVID is renewed at half of its life, and used until its end if that fails.
    pub(super) fn duty(&self, now: SystemTime) -> Duty {
        let attempt = match (self.failed, self.in_use) {
            (Some((count, last)), _) => last + retry_after(count),
            (None, Some(validity)) if !self.outdated => validity.half_life(),
            (None, _) => now,
        };
        if attempt <= now {
            return Duty::Issue;
        }
        match self.in_use {
            Some(validity) if validity.not_after <= now => Duty::Expire(attempt),
            Some(validity) => Duty::Wait(attempt.min(validity.not_after)),
            None => Duty::Wait(attempt),
        }
    }

    /// A new SVID was issued.
    pub(super) fn succeeded(validity: Validity) -> Self {
        Self {
            in_use: Some(validity),
            ..Self::default()
        }
    }

    /// The CA is another one now: what it could not do before says nothing.
    pub(super) fn outdate(&mut self) {
        self.outdated = true;
        self.failed = None;
    }

    /// An attempt failed at `now`. The wait for the next one is longer by `spread`, of 1: many that fail at once shall
    /// not come back at once.
    pub(super) fn failed(&mut self, now: SystemTime, spread: f64) {
        let before = self.failed.map_or(0, |(count, _)| count);
        let count = before.saturating_add(1);
        let longer = retry_after(count).mul_f64(spread.clamp(0.0, 1.0));
        self.failed = Some((count, now + longer));
    }
}

impl Validity {
    /// The middle of the SVID's life.
    fn half_life(&self) -> SystemTime {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or(Duration::ZERO);
        self.not_before + life / 2
    }
}

/// Wait after the attempt that failed as the `count`th in a row.
fn retry_after(count: u32) -> Duration {
    let doublings = count.saturating_sub(1).min(16);
    (RETRY_FIRST * 2_u32.pow(doublings)).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1_000_000.0 + seconds)
    }

    #[track_caller]
    fn check(in_use: Option<(f64, f64)>, failed: Option<(u32, f64)>, now: f64, expected: Duty) {
        let in_use = in_use.map(|(from, to)| Validity {
            not_before: at(from),
            not_after: at(to),
        });
        let failed = failed.map(|(count, last)| (count, at(last)));
        let record = Record {
            in_use,
            failed,
            outdated: false,
        };
        assert_eq!(record.duty(at(now)), expected);
    }

    #[test]
    fn renewal_is_at_half_life_and_failures_back_off() {
        use Duty::{Expire, Issue, Wait};
        // Nothing yet.
        check(None, None, 0.0, Issue);
        // A day, backdated by two minutes.
        let day = Some((-120.0, 86_400.0));
        check(day, None, 0.0, Wait(at(43_140.0)));
        check(day, None, 43_139.0, Wait(at(43_140.0)));
        check(day, None, 43_140.0, Issue);
        check(day, None, 90_000.0, Issue);
        // Failures: 0.5 s, doubled, at most 150 s.
        check(None, Some((1, 0.0)), 0.4, Wait(at(0.5)));
        check(None, Some((1, 0.0)), 0.5, Issue);
        check(None, Some((2, 0.0)), 0.5, Wait(at(1.0)));
        check(None, Some((5, 0.0)), 0.5, Wait(at(8.0)));
        check(None, Some((10, 0.0)), 0.5, Wait(at(150.0)));
        check(None, Some((u32::MAX, 0.0)), 0.5, Wait(at(150.0)));
        // A valid one is used on meanwhile, until its end and not beyond.
        check(day, Some((1, 50_000.0)), 50_000.1, Wait(at(50_000.5)));
        check(day, Some((9, 86_390.0)), 86_391.0, Wait(at(86_400.0)));
        check(day, Some((9, 86_390.0)), 86_400.0, Expire(at(86_518.0)));
        check(day, Some((9, 86_390.0)), 86_518.0, Issue);
        // A validity without length is over at once.
        check(Some((5.0, 5.0)), None, 5.0, Issue);
    }

    #[test]
    fn success_forgets_failures() {
        let mut record = Record::default();
        record.failed(at(0.0), 0.0);
        record.failed(at(1.0), 0.0);
        assert_eq!(record.failed, Some((2, at(1.0))));
        // The third wait is of two seconds, and a tenth of it.
        record.failed(at(2.0), 0.1);
        assert_eq!(record.duty(at(2.0)), Duty::Wait(at(4.2)));
        let validity = Validity {
            not_before: at(0.0),
            not_after: at(100.0),
        };
        let record = Record::succeeded(validity);
        assert_eq!(record.duty(at(2.0)), Duty::Wait(at(50.0)));
    }

    #[test]
    fn another_ca_replaces_at_once_and_keeps_the_old_svid_if_it_cannot() {
        let validity = Validity {
            not_before: at(0.0),
            not_after: at(100.0),
        };
        let mut record = Record::succeeded(validity);
        record.failed(at(60.0), 0.0);
        record.outdate();
        assert_eq!(record.duty(at(60.1)), Duty::Issue);
        record.failed(at(60.1), 0.0);
        assert_eq!(record.duty(at(60.1)), Duty::Wait(at(60.6)));
        assert_eq!(record.duty(at(60.6)), Duty::Issue);
        record.failed(at(99.9), 0.0);
        assert_eq!(record.duty(at(100.0)), Duty::Expire(at(100.9)));
    }
}
