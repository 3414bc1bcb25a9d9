//! A request's body that may have to be sent again: what has passed is kept, up to a bound, as long as
//! somebody may want it.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::{Frame, SizeHint};

use super::inflow::Inflow;

/// Bytes of a body that are kept. A longer one passes, but is sent only once.
const KEPT: usize = 64 << 10;

/// Bytes that each piece counts for at least: about what keeping it takes besides.
const PIECE: usize = 64;

/// A body and what has passed of it; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Recording(Rc<RefCell<Tape>>);

#[derive(Debug)]
struct Tape {
    rest: Inflow,
    /// As the sender announced it.
    size: SizeHint,
    passed: Vec<Bytes>,
    kept: usize,
    trailers: Option<HeaderMap>,
    state: State,
    /// Copies that wait for the original to move on.
    followers: Vec<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Complete,
    /// Longer than what is kept: nothing is.
    TooLong,
    Broken,
}

/// One reading of a [`Recording`], from its beginning.
#[derive(Debug)]
pub(crate) struct Replay {
    tape: Rc<RefCell<Tape>>,
    next: usize,
    role: Role,
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Moves the body on; one at a time.
    Leads,
    /// Takes what has passed.
    Follows,
}

/// A copy cannot go on: the body is longer than what is kept, or broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body could not be kept")]
pub(crate) struct NotKept;

impl Recording {
    /// A recording, and its first reading.
    pub(crate) fn new(rest: Inflow) -> (Self, Replay) {
        let size = rest.size_hint();
        let tape = Rc::new(RefCell::new(Tape {
            rest,
            size,
            passed: Vec::new(),
            kept: 0,
            trailers: None,
            state: State::Running,
            followers: Vec::new(),
        }));
        let first = Replay {
            tape: Rc::clone(&tape),
            next: 0,
            role: Role::Leads,
        };
        (Self(tape), first)
    }

    /// The body from its beginning, for the next attempt; `None` if that is gone.
    pub(crate) fn replay(&self) -> Option<Replay> {
        self.reading(Role::Leads)
    }

    /// A copy that follows the attempts; `None` if the beginning is gone.
    pub(crate) fn follow(&self) -> Option<Replay> {
        self.reading(Role::Follows)
    }

    fn reading(&self, role: Role) -> Option<Replay> {
        let state = self.0.borrow().state;
        matches!(state, State::Running | State::Complete).then(|| Replay {
            tape: Rc::clone(&self.0),
            next: 0,
            role,
        })
    }
}

impl Replay {
    /// Moves on, or tells why not.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, super::BodyError>>> {
        let mut tape = self.tape.borrow_mut();
        if tape.state == State::TooLong && self.role == Role::Follows {
            return Poll::Ready(Some(Err(NotKept.into())));
        }
        if let Some(bytes) = tape.passed.get(self.next).cloned() {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match (tape.state, self.role) {
            (State::Complete, _) => {
                let is_first = self.next == tape.passed.len();
                self.next += 1;
                let trailers = tape.trailers.clone().filter(|_| is_first);
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            (State::Broken, _) => Poll::Ready(Some(Err(NotKept.into()))),
            (State::Running | State::TooLong, Role::Follows) => {
                tape.followers.push(cx.waker().clone());
                Poll::Pending
            }
            (State::Running | State::TooLong, Role::Leads) => {
                let frame = ready!(tape.rest.poll_frame(cx));
                self.next += tape.pass(frame.as_ref());
                let followers = std::mem::take(&mut tape.followers);
                drop(tape);
                followers.into_iter().for_each(Waker::wake);
                Poll::Ready(frame.map(|frame| frame.map_err(super::BodyError::from)))
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let tape = self.tape.borrow();
        let at_end = self.next >= tape.passed.len();
        match tape.state {
            State::Complete => at_end && (tape.trailers.is_none() || self.next > tape.passed.len()),
            State::Running => at_end && tape.rest.is_end_stream(),
            State::TooLong | State::Broken => false,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.next == 0 {
            self.tape.borrow().size
        } else {
            SizeHint::default()
        }
    }
}

impl Tape {
    /// The body has come to its end. What was too long to be kept stays so: there is nothing to be read again.
    fn end(&mut self) {
        if self.state == State::Running {
            self.state = State::Complete;
        }
    }

    /// Keeps a frame that passes, while there is room; returns how many pieces were kept.
    fn pass(&mut self, frame: Option<&Result<Frame<Bytes>, hyper::Error>>) -> usize {
        match frame {
            None => self.end(),
            Some(Err(_)) => self.state = State::Broken,
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                    self.end();
                    // Whoever leads has them already.
                    return 1;
                }
                let bytes = frame.data_ref().filter(|_| self.state == State::Running);
                if let Some(bytes) = bytes {
                    self.kept += bytes.len().max(PIECE);
                    if self.kept > KEPT {
                        self.state = State::TooLong;
                        self.passed = Vec::new();
                    } else {
                        self.passed.push(bytes.clone());
                        return 1;
                    }
                }
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::body::Frame;

    use super::{Inflow, KEPT, PIECE, Recording};

    #[test]
    fn a_body_in_small_pieces_is_kept_as_long_as_what_it_takes_is_bounded() {
        let (recording, _first) = Recording::new(Inflow::empty());
        let pass = || {
            let piece = Frame::data(Bytes::from_static(b"x"));
            recording.0.borrow_mut().pass(Some(&Ok(piece)))
        };
        let kept: usize = (0..KEPT / PIECE).map(|_| pass()).sum();
        assert_eq!(kept, KEPT / PIECE);
        assert!(recording.replay().is_some());
        assert_eq!(pass(), 0);
        assert!(recording.replay().is_none());
        assert!(recording.0.borrow().passed.is_empty());
    }
}
