//! How streams get their bytes into the outgoing records: in turns, and only while there is room.

use std::task::{Context, Poll};

use super::super::error::{Lost, StreamError};
use super::super::machine::Allowance;
use super::{Core, OUTGOING, Records, Waiting};

impl Core {
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
