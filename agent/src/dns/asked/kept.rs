//! Answers, for as long as they hold: a bounded number of them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use userspace_l7::route::named::Name;

use super::Answer;

/// Names that are kept. More than a node's clients use at a time; a client that makes names up only costs others a look-up
/// sooner than they would need one.
const KEPT: usize = 1024;

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<Name, (Answer, Instant)>);

impl Kept {
    /// What a name leads to, if that is known at this time.
    pub(super) fn get(&self, name: &Name, now: Instant) -> Option<Answer> {
        let (answer, until) = self.0.get(name)?;
        (now < *until).then(|| answer.clone())
    }

    /// Keeps an answer from now on; the one that would end first makes room for it.
    pub(super) fn insert(&mut self, name: Name, answer: Answer, now: Instant, holds: Duration) {
        if self.0.len() >= KEPT && !self.0.contains_key(&name) {
            self.0.retain(|_, (_, until)| now < *until);
        }
        while self.0.len() >= KEPT && !self.0.contains_key(&name) {
            let soonest = self.0.iter().min_by_key(|(_, (_, until))| *until);
            let Some(soonest) = soonest.map(|(name, _)| name.clone()) else {
                break;
            };
            self.0.remove(&soonest);
        }
        self.0.insert(name, (answer, now + holds));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use userspace_l7::names::NoAddress;
    use userspace_l7::route::named::Name;

    use super::{KEPT, Kept};

    fn name(number: usize) -> Name {
        Name::asked_for("*.wild.example", &format!("n{number}.wild.example")).unwrap()
    }

    #[test]
    fn an_answer_holds_for_its_time() {
        let (mut kept, start) = (Kept::default(), Instant::now());
        let answer = Err(NoAddress::Nonexistent);
        kept.insert(name(1), answer.clone(), start, Duration::from_secs(2));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(kept.get(&name(1), at(1)), Some(answer));
        assert_eq!(kept.get(&name(1), at(2)), None);
        assert_eq!(kept.get(&name(2), at(1)), None);
    }

    #[test]
    fn names_that_are_made_up_do_not_grow_it() {
        let (mut kept, start) = (Kept::default(), Instant::now());
        let answer = || Err(NoAddress::Nonexistent);
        // One that lasts, one that does not, and any number of others.
        kept.insert(name(0), answer(), start, Duration::from_secs(60));
        kept.insert(name(1), answer(), start, Duration::from_secs(1));
        for number in 2..2 * KEPT {
            kept.insert(name(number), answer(), start, Duration::from_secs(5));
            assert!(kept.0.len() <= KEPT);
        }
        assert!(kept.get(&name(0), start).is_some());
        assert!(kept.get(&name(1), start).is_none());
        let later = start + Duration::from_secs(10);
        kept.insert(name(1), answer(), later, Duration::from_secs(5));
        assert_eq!(kept.0.len(), 2, "what is over goes first");
    }
}
