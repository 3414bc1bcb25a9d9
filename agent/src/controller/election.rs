//! Who of several controllers writes: the one whose name is in a Lease, by the rules of client-go's leader election, so that
//! whoever reads Leases reads this one.
//!
//! Clocks of different nodes are never compared: a lease has ended when nothing has changed in it for its duration, as
//! measured here.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

/// What a Lease says (`coordination.k8s.io/v1`, `spec`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Who holds it; empty: nobody.
    pub(super) holder: String,
    /// For how long after each change.
    pub(super) seconds: i64,
    pub(super) acquired: String,
    pub(super) renewed: String,
    /// How often it has changed hands.
    pub(super) transitions: i64,
}

impl Record {
    pub(super) fn read(lease: &Value) -> Self {
        let spec = &lease["spec"];
        let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
        Self {
            holder: text("holderIdentity"),
            seconds: spec["leaseDurationSeconds"].as_i64().unwrap_or_default(),
            acquired: text("acquireTime"),
            renewed: text("renewTime"),
            transitions: spec["leaseTransitions"].as_i64().unwrap_or_default(),
        }
    }

    pub(super) fn spec(&self) -> Value {
        json!({
            "holderIdentity": self.holder,
            "leaseDurationSeconds": self.seconds,
            "acquireTime": self.acquired,
            "renewTime": self.renewed,
            "leaseTransitions": self.transitions,
        })
    }
}

/// One that wants to be the writer.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    identity: String,
    duration: Duration,
    /// What was seen last, and since when it is so.
    observed: Option<(Record, Instant)>,
}

/// What a candidate does about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody else holds it.
    Wait,
    /// Writes this into it; if nobody else was quicker, it is held.
    Take(Record),
}

impl Candidate {
    pub(super) fn new(identity: String, duration: Duration) -> Self {
        Self {
            identity,
            duration,
            observed: None,
        }
    }

    /// Decides by what the lease says now; `None`: there is none yet.
    pub(super) fn step(&mut self, found: Option<&Record>, at: Instant, now: Timestamp) -> Step {
        let now = micro(now);
        let fresh = Record {
            holder: self.identity.clone(),
            seconds: i64::try_from(self.duration.as_secs()).unwrap_or(i64::MAX),
            acquired: now.clone(),
            renewed: now,
            transitions: 0,
        };
        let Some(found) = found else {
            return Step::Take(fresh);
        };
        let is_same = self.observed.as_ref().is_some_and(|(old, _)| old == found);
        if !is_same {
            self.observed = Some((found.clone(), at));
        }
        let since = self.observed.as_ref().map_or(at, |(_, since)| *since);
        if found.holder == self.identity {
            return Step::Take(Record {
                acquired: found.acquired.clone(),
                transitions: found.transitions,
                ..fresh
            });
        }
        let seconds = u64::try_from(found.seconds).unwrap_or_default();
        let is_held = !found.holder.is_empty() && at < since + Duration::from_secs(seconds);
        if is_held {
            return Step::Wait;
        }
        Step::Take(Record {
            transitions: found.transitions + 1,
            ..fresh
        })
    }

    /// What a holder leaves behind that ends well: the next one need not wait.
    pub(super) fn released(&self, held: &Record, now: Timestamp) -> Option<Record> {
        let now = micro(now);
        (held.holder == self.identity).then(|| Record {
            holder: String::new(),
            seconds: 1,
            acquired: now.clone(),
            renewed: now,
            transitions: held.transitions,
        })
    }
}

/// `metav1.MicroTime`.
pub(super) fn micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use jiff::Timestamp;
    use serde_json::json;

    use super::{Candidate, Record, Step};

    const DURATION: Duration = Duration::from_secs(15);

    fn record(holder: &str, renewed: &str, transitions: i64) -> Record {
        Record {
            holder: holder.to_owned(),
            seconds: 15,
            acquired: "2026-01-01T00:00:00.000000Z".to_owned(),
            renewed: renewed.to_owned(),
            transitions,
        }
    }

    fn taken(step: Step) -> Option<(String, i64, String)> {
        match step {
            Step::Wait => None,
            Step::Take(Record {
                holder,
                transitions,
                acquired,
                ..
            }) => Some((holder, transitions, acquired)),
        }
    }

    #[test]
    fn a_lease_is_taken_when_nothing_has_changed_in_it_for_its_duration() {
        let mut me = Candidate::new("me".to_owned(), DURATION);
        let begin = Instant::now();
        let second = |n| begin + Duration::from_secs(n);
        let now = Timestamp::from_second(1_000_000).unwrap();
        // Its time may be years ago by our clock: that says nothing.
        let first = record("other", "1999-01-01T00:00:00.000000Z", 3);
        let second_one = record("other", "1999-01-01T00:00:02.000000Z", 3);
        for (at, found, takes) in [
            (0, &first, false),
            (14, &first, false),
            (14, &second_one, false),
            (28, &second_one, false),
            (29, &second_one, true),
        ] {
            let step = taken(me.step(Some(found), second(at), now));
            assert_eq!(step.is_some(), takes, "at {at}");
            if let Some((holder, transitions, acquired)) = step {
                assert_eq!((holder.as_str(), transitions), ("me", 4));
                assert_eq!(acquired, "1970-01-12T13:46:40.000000Z");
            }
        }
    }

    #[test]
    fn ones_own_lease_is_renewed_and_a_free_one_taken_at_once() {
        let mut me = Candidate::new("me".to_owned(), DURATION);
        let (at, now) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut step = |found: Option<&Record>| taken(me.step(found, at, now)).unwrap();
        let epoch = "1970-01-01T00:00:00.000000Z".to_owned();
        assert_eq!(step(None), ("me".to_owned(), 0, epoch.clone()));
        let own = record("me", "x", 2);
        assert_eq!(step(Some(&own)), ("me".to_owned(), 2, own.acquired.clone()));
        let free = record("", "x", 2);
        assert_eq!(step(Some(&free)), ("me".to_owned(), 3, epoch));
        let released = me.released(&own, now).unwrap();
        assert_eq!((released.holder.as_str(), released.seconds), ("", 1));
        assert_eq!(me.released(&record("other", "x", 2), now), None);
    }

    #[test]
    fn a_record_has_the_shape_of_a_lease() {
        let lease = json!({ "spec": {
            "holderIdentity": "me", "leaseDurationSeconds": 15, "leaseTransitions": 1,
            "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:01.000000Z",
        } });
        let read = Record::read(&lease);
        assert_eq!(json!({ "spec": read.spec() }), lease);
        // As `kubectl create` leaves one.
        assert_eq!(Record::read(&json!({ "spec": {} })), Record::default());
    }
}
