//! How streams get their bytes into the outgoing records: in turns, and only while there is room.

use std::task::{Context, Poll};

use super::super::error::{Lost, StreamError};
use super::super::machine::Allowance;
use super::{Core, OUTGOING, Records, Waiting};

/// The first bytes for a tunnel, which leave along with the request for it if there is room: a server that grants the
/// tunnel has them then, one flight earlier. A server that does not grant it passes none of them on.
#[derive(Debug)]
pub struct FirstBytes<'a> {
    bytes: &'a [u8],
    have_left: bool,
}

impl<'a> FirstBytes<'a> {
    /// To be sent; may be none.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            have_left: false,
        }
    }

    /// Whether all of them are in the tunnel that was opened; otherwise none is.
    pub fn have_left(&self) -> bool {
        self.have_left
    }
}

impl Core {
    /// Sends `first` behind the request of the stream `id`, all or none.
    pub(super) fn send_first(&mut self, id: u32, first: &mut FirstBytes<'_>) {
        first.have_left = false;
        let length = first.bytes.len();
        let has_room = self.turns.is_empty() && self.outgoing.len() < OUTGOING;
        if length == 0 || !has_room || !self.machine.takes_whole(id, length) {
            return;
        }
        let Self {
            machine,
            sealer,
            outgoing,
            ..
        } = self;
        let mut records = Records {
            sealer,
            outgoing,
            failed: false,
        };
        first.have_left = machine.send_data(id, first.bytes, &mut records) == length;
        if records.failed {
            self.fail(Lost::Seal);
        }
    }

    /// Sends the beginning of `payload`, one frame at most, and tells how much it was.
    pub(super) fn poll_send(
        &mut self,
        id: u32,
        payload: &[u8],
        cx: &Context<'_>,
    ) -> Poll<Result<usize, StreamError>> {
        let allowance = self.machine.allowance(id);
        let over = match allowance {
            Allowance::Reset(code) => Some(StreamError::Reset(code)),
            Allowance::Finished => Some(StreamError::Finished),
            _ => self.lost.map(StreamError::Lost),
        };
        if let Some(error) = over {
            self.leave_line(id);
            return Poll::Ready(Err(error));
        }
        if allowance == Allowance::StreamFull {
            // Its own peer's doing: the others need not wait for it.
            self.leave_line(id);
            self.wait_to_send(id, cx);
            return Poll::Pending;
        }
        let is_next = self.turns.front().is_none_or(|next| *next == id);
        if !is_next || allowance == Allowance::ConnectionFull || self.outgoing.len() >= OUTGOING {
            if !self.turns.contains(&id) {
                self.turns.push_back(id);
            }
            self.wait_to_send(id, cx);
            return Poll::Pending;
        }
        let Self {
            machine,
            sealer,
            outgoing,
            ..
        } = self;
        let mut records = Records {
            sealer,
            outgoing,
            failed: false,
        };
        let sent = machine.send_data(id, payload, &mut records);
        if records.failed {
            self.fail(Lost::Seal);
            return Poll::Ready(Err(Lost::Seal.into()));
        }
        self.leave_line(id);
        self.wake_writer();
        Poll::Ready(Ok(sent))
    }

    /// Gives up a place in the line, so that whoever is next may go on.
    pub(super) fn leave_line(&mut self, id: u32) {
        let was_next = self.turns.front() == Some(&id);
        self.turns.retain(|waiting| *waiting != id);
        if was_next {
            self.wake_next_sender();
        }
    }

    pub(super) fn wake_next_sender(&mut self) {
        let next = self.turns.front().and_then(|id| self.waiting.get_mut(id));
        if let Some(waker) = next.and_then(|waiting: &mut Waiting| waiting.writer.take()) {
            waker.wake();
        }
    }

    fn wait_to_send(&mut self, id: u32, cx: &Context<'_>) {
        self.waiting.entry(id).or_default().writer = Some(cx.waker().clone());
    }
}
