//! Bounds on what costs a peer little and us more: frames that carry nothing, and work that is abandoned.

use std::time::{Duration, Instant};

use super::super::error::{ConnectionError, ErrorCode};
use super::broken;

/// Streams per second that may be abandoned before they were answered, or that break the protocol (rapid
/// reset, CVE-2023-44487, and CVE-2025-8671). A client that dies with all its streams pending stays below.
pub(super) const MAX_RESETS: u32 = 400;

/// PING and SETTINGS per second: each must be answered.
pub(super) const MAX_ANSWERS: u32 = 1000;

/// Frames per second without content: empty DATA, unknown types, PRIORITY.
pub(super) const MAX_EMPTY: u32 = 1000;

const WINDOW: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Clone, Copy)]
pub(super) enum Cost {
    Reset,
    Answer,
    Empty,
}

/// Counts within the current second.
#[derive(Default)]
pub(super) struct Flood {
    since: Option<Instant>,
    counts: [u32; 3],
}

impl Flood {
    /// Counts one.
    ///
    /// # Errors
    /// The peer has exceeded this second's bound.
    pub(super) fn count(&mut self, cost: Cost, now: Instant) -> Result<(), ConnectionError> {
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= WINDOW)
        {
            *self = Self {
                since: Some(now),
                counts: [0; 3],
            };
        }
        let (place, most, reason) = match cost {
            Cost::Reset => (0, MAX_RESETS, "streams opened only to be reset"),
            Cost::Answer => (1, MAX_ANSWERS, "a flood of PING or SETTINGS"),
            Cost::Empty => (2, MAX_EMPTY, "a flood of frames without content"),
        };
        self.counts[place] += 1;
        if self.counts[place] > most {
            return Err(broken(ErrorCode::ENHANCE_YOUR_CALM, reason));
        }
        Ok(())
    }
}
