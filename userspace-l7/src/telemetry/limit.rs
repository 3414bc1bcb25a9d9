//! A bound on what peers can make us log: so many lines per second, the rest counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Fixed one-second windows. Workers share it without a lock: a race at a window's edge lets a few lines
/// more through, which is harmless.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: u32,
    epoch: Instant,
    window: AtomicU64,
    admitted: AtomicU32,
    suppressed: AtomicU64,
}

impl RateLimit {
    pub(crate) fn per_second(per_second: u32) -> Self {
        Self {
            per_second,
            epoch: Instant::now(),
            window: AtomicU64::new(0),
            admitted: AtomicU32::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether one more line may be written at `now`; if so, how many were left out since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let window = now.saturating_duration_since(self.epoch).as_secs() / WINDOW.as_secs();
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.admitted.store(0, Ordering::Relaxed);
        }
        if self.admitted.fetch_add(1, Ordering::Relaxed) < self.per_second {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        // Keeps the count from wrapping within a window however long the flood lasts.
        self.admitted.store(self.per_second, Ordering::Relaxed);
        let _before = self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

const WINDOW: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::{RateLimit, WINDOW};

    #[test]
    fn a_flood_is_cut_and_counted_and_the_next_window_reports_it() {
        let limit = RateLimit::per_second(2);
        let start = limit.epoch;
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(start), None);
        assert_eq!(
            limit.admit(start + WINDOW),
            Some(2),
            "two lines were left out"
        );
        assert_eq!(limit.admit(start + WINDOW), Some(0));
        assert_eq!(limit.admit(start + WINDOW), None);
    }
}
