//! Pure: what held connections were told, for SYNs that crossed the answer on its way.
//!
//! An answer may be lost: the kernel ignores an ICMP message for a socket that is in use at that moment. The
//! application's next SYN then gets the same answer, instead of the price of another attempt.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use crate::pod::{Answer, Opening};

/// How long an answer holds. The first SYNs follow each other at a second's distance (`tcp_syn_linear_timeouts`).
const HOLDS: Duration = Duration::from_secs(2);

/// Verdicts that a worker remembers at once; what is forgotten costs another attempt.
const MAX_VERDICTS: usize = 4096;

#[derive(Default)]
pub(super) struct Verdicts(HashMap<Key, Verdict>);

struct Verdict {
    /// That of the SYN: a client that begins anew from the same port has another.
    sequence: [u8; 4],
    answer: Answer,
    since: Instant,
}

impl Verdicts {
    pub(super) fn remember(&mut self, syn: &Opening, answer: Answer, now: Instant) {
        if let Some(sequence) = sequence(syn)
            && self.0.len() < MAX_VERDICTS
        {
            let verdict = Verdict {
                sequence,
                answer,
                since: now,
            };
            self.0.insert(Key::of(syn), verdict);
        }
    }

    /// The answer to this very SYN, if it was given a moment ago.
    pub(super) fn of(&self, syn: &Opening, now: Instant) -> Option<Answer> {
        let verdict = self.0.get(&Key::of(syn))?;
        let is_known = sequence(syn) == Some(verdict.sequence) && verdict.holds(now);
        is_known.then_some(verdict.answer)
    }

    /// Forgets what holds no more.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, verdict| verdict.holds(now));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Verdict {
    fn holds(&self, now: Instant) -> bool {
        now.duration_since(self.since) < HOLDS
    }
}

/// The sequence number (RFC 9293 §3.1).
fn sequence(syn: &Opening) -> Option<[u8; 4]> {
    syn.tcp_header.get(4..8)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(port: u16, sequence: u8) -> Opening {
        let mut tcp_header = [0; 20];
        tcp_header[7] = sequence;
        Opening {
            netns: 1,
            source: ([10, 0, 0, 1], port).into(),
            dialled: ([10, 0, 0, 2], 80).into(),
            tcp_header: tcp_header.as_slice().into(),
        }
    }

    #[test]
    fn a_verdict_is_for_one_syn_and_a_moment() {
        let mut verdicts = Verdicts::default();
        let begun = Instant::now();
        verdicts.remember(&syn(40_000, 1), Answer::HostUnreachable, begun);
        let second = Duration::from_secs(1);
        let table = [
            ("sent again", syn(40_000, 1), second, true),
            (
                "begun anew from the same port",
                syn(40_000, 2),
                second,
                false,
            ),
            ("another connection", syn(40_001, 1), second, false),
            ("sent again much later", syn(40_000, 1), HOLDS, false),
        ];
        for (what, syn, later, is_known) in table {
            let expected = is_known.then_some(Answer::HostUnreachable);
            assert_eq!(verdicts.of(&syn, begun + later), expected, "{what}");
        }
    }

    #[test]
    fn what_holds_no_more_is_swept() {
        let mut verdicts = Verdicts::default();
        let begun = Instant::now();
        verdicts.remember(&syn(40_000, 1), Answer::Refuse, begun);
        verdicts.sweep(begun + HOLDS / 2);
        assert!(!verdicts.is_empty());
        verdicts.sweep(begun + HOLDS);
        assert!(verdicts.is_empty());
    }

    #[test]
    fn a_flood_of_failures_is_not_remembered_beyond_its_bound() {
        let mut verdicts = Verdicts::default();
        let now = Instant::now();
        for port in 0..=u16::MAX {
            verdicts.remember(&syn(port, 1), Answer::Refuse, now);
        }
        assert_eq!(verdicts.0.len(), MAX_VERDICTS);
        assert_eq!(verdicts.of(&syn(0, 1), now), Some(Answer::Refuse));
        assert_eq!(verdicts.of(&syn(u16::MAX, 1), now), None);
    }
}
