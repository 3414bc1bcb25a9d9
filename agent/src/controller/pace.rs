//! How often one object may be written: a few times at once, then slowly. Two writers of different opinion then cost the
//! API server next to nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes at once; an object that is changed by hand needs no more.
const BURST: u32 = 5;
/// One more after each.
const REFILL: Duration = Duration::from_secs(30);
/// Waits after refusals: doubled each time, up to the longest.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long an object's own news of a write may take to come; then it is written anew.
const NEWS: Duration = Duration::from_secs(30);

/// The pace of each object. Moments are handed in.
#[derive(Debug)]
pub(super) struct Pace<K>(HashMap<K, Track>);

#[derive(Debug)]
struct Track {
    /// Writes that may be made at once.
    left: u32,
    /// When `left` was true.
    counted: Instant,
    /// Not before.
    wait_until: Instant,
    refusals: u32,
    /// The version that was written over, whose news have not come.
    written: Option<(Arc<str>, Instant)>,
}

impl<K: Hash + Eq + Clone> Pace<K> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// When an object may be written that has this version; a moment that has passed: now.
    pub(super) fn due(&self, key: &K, version: &str, now: Instant) -> Instant {
        let Some(track) = self.0.get(key) else {
            return now;
        };
        let news = match &track.written {
            Some((written, at)) if **written == *version => *at + NEWS,
            _ => now,
        };
        let refill = if track.left_at(now) > 0 {
            now
        } else {
            track.counted + REFILL
        };
        news.max(refill).max(track.wait_until)
    }

    /// It has been written.
    pub(super) fn wrote(&mut self, key: &K, version: &Arc<str>, now: Instant) {
        let track = self.track(key, now);
        let left = track.left_at(now);
        if left >= BURST {
            track.counted = now;
        } else {
            track.counted += REFILL * (left - track.left);
        }
        track.left = left.saturating_sub(1);
        track.refusals = 0;
        track.written = Some((Arc::clone(version), now));
    }

    /// It was refused.
    pub(super) fn refused(&mut self, key: &K, now: Instant) {
        let track = self.track(key, now);
        let wait = SHORTEST_WAIT * 2_u32.saturating_pow(track.refusals.min(16));
        track.refusals += 1;
        track.wait_until = now + wait.min(LONGEST_WAIT);
    }

    /// Forgets those of which nothing is left to remember.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.0.retain(|_, track| {
            let is_full = track.left_at(now) >= BURST;
            let has_news = track
                .written
                .as_ref()
                .is_none_or(|(_, at)| *at + NEWS <= now);
            !is_full || !has_news || track.wait_until > now
        });
    }

    fn track(&mut self, key: &K, now: Instant) -> &mut Track {
        self.0.entry(key.clone()).or_insert(Track {
            left: BURST,
            counted: now,
            wait_until: now,
            refusals: 0,
            written: None,
        })
    }
}

impl Track {
    fn left_at(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.counted).as_secs() / REFILL.as_secs();
        let refilled = u32::try_from(passed).unwrap_or(BURST);
        self.left.saturating_add(refilled).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::Pace;

    #[test]
    fn a_quarrel_is_five_writes_and_then_two_a_minute() {
        let mut pace = Pace::new();
        let begin = Instant::now();
        let mut writes = Vec::new();
        // Somebody undoes each write at once.
        for second in 0..300_u64 {
            let now = begin + Duration::from_secs(second);
            let version: Arc<str> = second.to_string().into();
            if pace.due(&"x", &version, now) <= now {
                pace.wrote(&"x", &version, now);
                writes.push(second);
            }
        }
        assert_eq!(writes[..6], [0, 1, 2, 3, 4, 30]);
        assert_eq!(writes.len(), 5 + 9, "{writes:?}");
        // Others are not held up.
        assert!(pace.due(&"y", "1", begin) <= begin);
        pace.tidy(begin + Duration::from_secs(1000));
        assert!(pace.0.is_empty());
    }

    #[test]
    fn a_version_is_written_over_once() {
        let mut pace = Pace::new();
        let now = Instant::now();
        let version: Arc<str> = "1".into();
        pace.wrote(&"x", &version, now);
        // Its news have not come.
        assert_eq!(pace.due(&"x", "1", now), now + Duration::from_secs(30));
        assert!(pace.due(&"x", "2", now) <= now);
    }

    #[test]
    fn refusals_are_answered_by_patience() {
        let mut pace = Pace::new();
        let now = Instant::now();
        let waits = (0..12).map(|_| {
            pace.refused(&"x", now);
            (pace.due(&"x", "1", now) - now).as_millis()
        });
        let waits: Vec<_> = waits.collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 60_000);
    }
}
