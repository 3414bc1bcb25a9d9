//! One tunnel's state, and what its owner does to it.

use std::collections::VecDeque;

use super::super::error::ErrorCode;
use super::super::frame::{self, Head, flag, kind};
use super::super::head::{ConnectRequest, ConnectResponse};
use super::{CONNECTION_WINDOW, FrameSink, MAX_DATA, Machine, Role, STREAM_WINDOW};

/// The largest piece that a consumer takes at once, and gives credit for: what it holds beyond its window.
const CHUNK: usize = MAX_DATA;

/// One tunnel.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each side's head and end are four independent facts"
)]
pub(super) struct Stream {
    /// Arrived and not yet taken, in pieces of at most [`CHUNK`].
    unread: VecDeque<Vec<u8>>,
    /// What the peer may still send.
    pub(super) receive_window: i64,
    /// Taken, and not yet returned as credit.
    taken: u32,
    /// What we may still send. Negative after the peer shrank its initial window (RFC 9113 §6.9.2).
    pub(super) send_window: i64,
    pub(super) head_received: bool,
    pub(super) head_sent: bool,
    pub(super) ended_by_us: bool,
    pub(super) ended_by_peer: bool,
    pub(super) reset: Option<ErrorCode>,
}

/// What a stream has for its reader.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::hbone) enum Taken {
    /// The next piece. Never empty.
    Data(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// An orderly end.
    End,
    Reset(ErrorCode),
}

/// Whether a stream may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hbone) enum Allowance {
    Open,
    /// The stream's own window is used up.
    StreamFull,
    /// The connection's window is used up.
    ConnectionFull,
    /// Our direction has ended.
    Finished,
    Reset(ErrorCode),
}

impl Stream {
    pub(super) fn new(send_window: i64) -> Self {
        Self {
            unread: VecDeque::new(),
            receive_window: i64::from(STREAM_WINDOW),
            taken: 0,
            send_window,
            head_received: false,
            head_sent: false,
            ended_by_us: false,
            ended_by_peer: false,
            reset: None,
        }
    }

    fn is_over(&self) -> bool {
        self.reset.is_some() || (self.ended_by_us && self.ended_by_peer)
    }

    /// Keeps `data`, the beginning of `coming` bytes of one frame.
    pub(super) fn push(&mut self, data: &[u8], coming: usize) {
        match self.unread.back_mut() {
            Some(last) if last.len() + data.len() <= CHUNK => last.extend_from_slice(data),
            _ => {
                let mut piece = Vec::with_capacity(coming.clamp(data.len(), CHUNK.max(data.len())));
                piece.extend_from_slice(data);
                self.unread.push_back(piece);
            }
        }
    }
}

impl Machine {
    /// Asks for a tunnel. `None` where no stream can be opened any more.
    pub(in crate::hbone) fn open(&mut self, request: &ConnectRequest) -> Option<u32> {
        if self.role != Role::Client || self.is_closing() {
            return None;
        }
        let id = if self.highest == 0 {
            1
        } else {
            self.highest + 2
        };
        self.highest = id;
        let mut stream = Stream::new(self.peer.initial_window);
        stream.head_sent = true;
        self.streams.insert(id, stream);
        let block = request.encode(self.peer.max_header_list);
        frame::push_headers(&mut self.control, id, &block, false, self.peer.max_frame);
        Some(id)
    }

    /// Answers a request. Anything but success ends our direction.
    pub(in crate::hbone) fn respond(&mut self, id: u32, response: &ConnectResponse) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.is_over() || stream.head_sent {
            return;
        }
        stream.head_sent = true;
        stream.ended_by_us = !response.is_success();
        let block = response.encode(self.peer.max_header_list);
        let end = stream.ended_by_us;
        frame::push_headers(&mut self.control, id, &block, end, self.peer.max_frame);
    }

    /// Why the stream was given up, if it was.
    pub(in crate::hbone) fn reset_code(&self, id: u32) -> Option<ErrorCode> {
        self.streams
            .get(&id)
            .map_or(Some(ErrorCode::STREAM_CLOSED), |stream| stream.reset)
    }

    /// Whether the stream may send now.
    pub(in crate::hbone) fn allowance(&self, id: u32) -> Allowance {
        let Some(stream) = self.streams.get(&id) else {
            return Allowance::Reset(ErrorCode::STREAM_CLOSED);
        };
        if let Some(code) = stream.reset {
            Allowance::Reset(code)
        } else if stream.ended_by_us {
            Allowance::Finished
        } else if stream.send_window <= 0 {
            Allowance::StreamFull
        } else if self.send_window <= 0 {
            Allowance::ConnectionFull
        } else {
            Allowance::Open
        }
    }

    /// Whether `length` bytes would leave at once and in one frame.
    pub(in crate::hbone) fn takes_whole(&self, id: u32, length: usize) -> bool {
        let window = self
            .streams
            .get(&id)
            .map_or(0, |stream| stream.send_window.min(self.send_window));
        self.allowance(id) == Allowance::Open
            && length <= MAX_DATA.min(self.peer.max_frame)
            && i64::try_from(length).is_ok_and(|length| length <= window)
    }

    /// Writes as much of `payload` as the windows allow, as one DATA frame at most. Returns how much.
    pub(in crate::hbone) fn send_data(
        &mut self,
        id: u32,
        payload: &[u8],
        sink: &mut impl FrameSink,
    ) -> usize {
        if self.allowance(id) != Allowance::Open || payload.is_empty() {
            return 0;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return 0;
        };
        let window = usize::try_from(stream.send_window.min(self.send_window)).unwrap_or(0);
        let length = payload
            .len()
            .min(window)
            .min(MAX_DATA)
            .min(self.peer.max_frame);
        #[expect(clippy::cast_possible_wrap, reason = "at most MAX_DATA")]
        let used = length as i64;
        stream.send_window -= used;
        self.send_window -= used;
        // Frames that were queued earlier leave earlier: the HEADERS of this very stream may be among them.
        self.output(sink);
        sink.put(
            &Head {
                length,
                kind: kind::DATA,
                flags: 0,
                stream: id,
            }
            .encode(),
        );
        sink.put(&payload[..length]);
        length
    }

    /// Ends our direction in order.
    pub(in crate::hbone) fn finish(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.is_over() && !stream.ended_by_us {
            stream.ended_by_us = true;
            frame::push(&mut self.control, kind::DATA, flag::END_STREAM, id, &[]);
        }
    }

    /// Takes the next piece of what has arrived.
    pub(in crate::hbone) fn take(&mut self, id: u32) -> Taken {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Taken::Reset(ErrorCode::STREAM_CLOSED);
        };
        // A peer that has sent everything may reset what it no longer wants to hear (RFC 9113 §8.1). A server whose
        // own connection broke says CONNECT_ERROR behind what that had brought (§8.5), and an Envoy that closes
        // after its response in order says so too. Any other reset overtakes data.
        let cut = stream.reset.filter(|code| match *code {
            ErrorCode::NO_ERROR => !stream.ended_by_peer,
            ErrorCode::CONNECT_ERROR => stream.unread.is_empty(),
            _ => true,
        });
        if let Some(code) = cut {
            return Taken::Reset(code);
        }
        if let Some(piece) = stream.unread.pop_front() {
            self.credit(Some(id), piece.len());
            return Taken::Data(piece);
        }
        if stream.ended_by_peer {
            Taken::End
        } else {
            Taken::Nothing
        }
    }

    /// Whether [`Machine::take`] would say that the peer has ended its direction in order.
    pub(in crate::hbone) fn has_ended(&self, id: u32) -> bool {
        let stream = self.streams.get(&id);
        stream.is_some_and(|stream| {
            stream.ended_by_peer && stream.unread.is_empty() && stream.reset.is_none()
        })
    }

    /// Forgets a stream whose owner is gone; one that is not over is reset with `code`.
    pub(in crate::hbone) fn release(&mut self, id: u32, code: ErrorCode) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if !stream.is_over() {
            frame::push_reset(&mut self.control, id, code.0);
        }
        self.credit(None, stream.unread.iter().map(Vec::len).sum());
    }

    /// Streams that are not over, whoever holds them.
    pub(super) fn live(&self) -> usize {
        self.streams
            .values()
            .filter(|stream| !stream.is_over())
            .count()
    }

    /// Returns credit for bytes that are no longer held. Half a window at a time: a credit per read would send a
    /// frame for each.
    pub(super) fn credit(&mut self, stream: Option<u32>, bytes: usize) {
        // A receive window fits in 32 bits, and nobody takes more than has arrived.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= CONNECTION_WINDOW / 2 {
            frame::push_window_update(&mut self.control, 0, self.taken);
            self.receive_window += i64::from(self.taken);
            self.taken = 0;
        }
        let Some((id, stream)) = stream.and_then(|id| Some((id, self.streams.get_mut(&id)?)))
        else {
            return;
        };
        stream.taken = stream.taken.saturating_add(bytes);
        if stream.taken >= STREAM_WINDOW / 2 && !stream.ended_by_peer && stream.reset.is_none() {
            frame::push_window_update(&mut self.control, id, stream.taken);
            stream.receive_window += i64::from(stream.taken);
            stream.taken = 0;
        }
    }
}
