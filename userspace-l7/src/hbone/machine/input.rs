//! Frames that the peer sends, in whatever pieces they arrive, and the DATA among them.

use std::time::Instant;

use super::super::error::{ConnectionError, ErrorCode};
use super::super::frame::{HEAD_LEN, Head, PREFACE, flag, kind};
use super::flood::Cost;
use super::headers::Block;
use super::{Event, MAX_CONTROL, MAX_FRAME, MAX_HEADERS, Machine, Role, broken, protocol, size};

/// What the next byte belongs to.
#[derive(Clone, Copy)]
enum Expecting {
    /// The rest of the client's preface.
    Preface(usize),
    /// A frame's head.
    Head,
    /// The padding length of a DATA frame.
    PadLength(Head),
    /// Payload of a DATA frame: passed on as it comes, however large the frame.
    Data {
        stream: u32,
        left: usize,
        padding: usize,
        end: bool,
    },
    /// Bytes without meaning: padding, frames of unknown types.
    Skipped(usize),
    /// The payload of any other frame, kept until it is whole.
    Payload(Head),
}

/// The reader's place in the stream of bytes.
pub(super) struct Input {
    expecting: Expecting,
    partial: Vec<u8>,
    /// HEADERS whose CONTINUATION is still to come: nothing else may come first.
    pub(super) block: Option<Block>,
    pub(super) settings_seen: bool,
}

/// Padding and priority in front of a header block.
const HEADERS_EXTRA: usize = 1 + 255 + 5;

impl Input {
    pub(super) fn new(role: Role) -> Self {
        let expecting = match role {
            Role::Server => Expecting::Preface(0),
            Role::Client => Expecting::Head,
        };
        Self {
            expecting,
            partial: Vec::new(),
            block: None,
            settings_seen: false,
        }
    }
}

impl Machine {
    /// Takes plaintext from the peer, all of it.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection has to end.
    pub(in crate::hbone) fn input(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        while !bytes.is_empty() {
            bytes = self.step(bytes, now)?;
        }
        if self.control.len() > MAX_CONTROL {
            let reason = "the peer makes us answer more than it reads";
            return Err(broken(ErrorCode::ENHANCE_YOUR_CALM, reason));
        }
        Ok(())
    }

    fn step<'b>(&mut self, bytes: &'b [u8], now: Instant) -> Result<&'b [u8], ConnectionError> {
        match self.input.expecting {
            Expecting::Preface(seen) => {
                let wanted = &PREFACE[seen..];
                let (part, rest) = bytes.split_at(wanted.len().min(bytes.len()));
                if !wanted.starts_with(part) {
                    return Err(protocol("the client's preface is not HTTP/2's"));
                }
                let seen = seen + part.len();
                let is_whole = seen == PREFACE.len();
                self.input.expecting = if is_whole {
                    Expecting::Head
                } else {
                    Expecting::Preface(seen)
                };
                Ok(rest)
            }
            Expecting::Head => self.collect(bytes, HEAD_LEN, |machine, head| {
                let head = head
                    .try_into()
                    .map_err(|_wrong| size("a frame without a head"))?;
                machine.begin(Head::decode(head), now)
            }),
            Expecting::PadLength(head) => {
                let (pad, rest) = bytes.split_first().unwrap_or((&0, bytes));
                let padding = usize::from(*pad);
                let left = (head.length - 1).checked_sub(padding);
                self.receive_data(
                    head,
                    left.ok_or(protocol("more padding than frame"))?,
                    padding,
                );
                Ok(rest)
            }
            Expecting::Data {
                stream,
                left,
                padding,
                end,
            } => {
                let (part, rest) = bytes.split_at(left.min(bytes.len()));
                self.store(stream, part, left);
                let left = left - part.len();
                if left == 0 {
                    self.end_data(stream, padding, end);
                } else {
                    self.input.expecting = Expecting::Data {
                        stream,
                        left,
                        padding,
                        end,
                    };
                }
                Ok(rest)
            }
            Expecting::Skipped(left) => {
                let rest = &bytes[left.min(bytes.len())..];
                self.skip(left - (bytes.len() - rest.len()));
                Ok(rest)
            }
            Expecting::Payload(head) => {
                self.collect(bytes, head.length, move |machine, payload| {
                    machine.input.expecting = Expecting::Head;
                    machine.control_frame(head, payload, now)
                })
            }
        }
    }

    /// Runs `whole` once `length` bytes are there, without a copy where they arrived together.
    fn collect<'b>(
        &mut self,
        bytes: &'b [u8],
        length: usize,
        whole: impl FnOnce(&mut Self, &[u8]) -> Result<(), ConnectionError>,
    ) -> Result<&'b [u8], ConnectionError> {
        let missing = length - self.input.partial.len();
        let (part, rest) = bytes.split_at(missing.min(bytes.len()));
        if self.input.partial.is_empty() && part.len() == length {
            whole(self, part)?;
        } else {
            self.input.partial.extend_from_slice(part);
            if self.input.partial.len() == length {
                let partial = std::mem::take(&mut self.input.partial);
                whole(self, &partial)?;
            }
        }
        Ok(rest)
    }

    fn begin(&mut self, head: Head, now: Instant) -> Result<(), ConnectionError> {
        if !self.input.settings_seen && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(protocol("the first frame is not SETTINGS"));
        }
        if head.length > MAX_FRAME as usize {
            return Err(size("a frame larger than we allow"));
        }
        let continues = self.input.block.as_ref().map(|block| block.stream);
        let continuation = (head.kind == kind::CONTINUATION).then_some(head.stream);
        if continues != continuation {
            return Err(protocol(
                "a header block is interrupted, or continued out of place",
            ));
        }
        match head.kind {
            kind::DATA => return self.begin_data(head, now),
            kind::HEADERS | kind::CONTINUATION if head.length > MAX_HEADERS + HEADERS_EXTRA => {
                let reason = "a header block larger than we allow";
                return Err(broken(ErrorCode::ENHANCE_YOUR_CALM, reason));
            }
            kind::PRIORITY..=kind::CONTINUATION if head.length > MAX_HEADERS + HEADERS_EXTRA => {
                return Err(size("a control frame larger than any has to be"));
            }
            kind::HEADERS..=kind::CONTINUATION => {}
            // "Implementations MUST discard frames that have unknown or unsupported types" (RFC 9113 §5.5).
            _unknown => {
                self.skip(head.length);
                return self.flood.count(Cost::Empty, now);
            }
        }
        if head.length == 0 {
            return self.control_frame(head, &[], now);
        }
        self.input.expecting = Expecting::Payload(head);
        Ok(())
    }

    fn begin_data(&mut self, head: Head, now: Instant) -> Result<(), ConnectionError> {
        self.check_opened(head.stream)?;
        if head.length == 0 && !head.has(flag::END_STREAM) {
            self.flood.count(Cost::Empty, now)?;
        }
        // Padding counts too (RFC 9113 §6.9.1).
        #[expect(clippy::cast_possible_wrap, reason = "frames are at most 1 MiB")]
        let length = head.length as i64;
        self.receive_window -= length;
        if self.receive_window < 0 {
            let reason = "more data than the connection's window";
            return Err(broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
        }
        if let Some(stream) = self.streams.get_mut(&head.stream) {
            if stream.ended_by_peer && stream.reset.is_none() {
                return Err(broken(
                    ErrorCode::STREAM_CLOSED,
                    "data after the end of a stream",
                ));
            }
            if !stream.head_received {
                return Err(protocol("data before any head"));
            }
            stream.receive_window -= length;
            if stream.receive_window < 0 {
                self.fail_stream(head.stream, ErrorCode::FLOW_CONTROL_ERROR, now)?;
            }
        }
        if !head.has(flag::PADDED) {
            self.receive_data(head, head.length, 0);
        } else if head.length == 0 {
            return Err(size("a padded frame without a padding length"));
        } else {
            self.input.expecting = Expecting::PadLength(head);
        }
        Ok(())
    }

    fn receive_data(&mut self, head: Head, left: usize, padding: usize) {
        let end = head.has(flag::END_STREAM);
        if head.has(flag::PADDED) {
            // Nobody will take the padding: its credit goes back at once.
            self.credit(Some(head.stream), padding + 1);
        }
        if left == 0 {
            self.end_data(head.stream, padding, end);
        } else {
            self.input.expecting = Expecting::Data {
                stream: head.stream,
                left,
                padding,
                end,
            };
        }
    }

    /// Keeps data for its consumer; `left` is what the frame still holds, this part included.
    fn store(&mut self, id: u32, data: &[u8], left: usize) {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.reset.is_none() => {
                stream.push(data, left);
                self.events.push_back(Event::Readable(id));
            }
            // The stream's owner is gone: the bytes go nowhere, their credit goes back.
            _ => self.credit(None, data.len()),
        }
    }

    fn end_data(&mut self, id: u32, padding: usize, end: bool) {
        self.skip(padding);
        if end {
            self.end_of_stream(id);
        }
    }

    fn skip(&mut self, left: usize) {
        self.input.expecting = if left == 0 {
            Expecting::Head
        } else {
            Expecting::Skipped(left)
        };
    }

    pub(super) fn end_of_stream(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ended_by_peer = true;
            self.events.push_back(Event::Readable(id));
        }
    }

    /// Frames may come for streams that are over, never for streams that nobody opened.
    pub(super) fn check_opened(&self, id: u32) -> Result<(), ConnectionError> {
        if id == 0 {
            return Err(protocol("a stream's frame on the connection itself"));
        }
        if id.is_multiple_of(2) || id > self.highest {
            return Err(protocol("a frame for a stream that nobody opened"));
        }
        Ok(())
    }

    fn control_frame(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        match head.kind {
            kind::HEADERS => self.headers(head, payload, now),
            kind::CONTINUATION => self.continuation(head, payload, now),
            kind::SETTINGS => self.settings(head, payload, now),
            kind::PING => self.ping_received(head, payload, now),
            kind::RST_STREAM => self.peer_reset(head, payload, now),
            kind::WINDOW_UPDATE => self.window_update(head, payload, now),
            kind::GOAWAY => self.goaway(head, payload),
            kind::PUSH_PROMISE => Err(protocol("a push, which we refused")),
            kind::PRIORITY if head.length != 5 => Err(size("PRIORITY of a wrong size")),
            kind::PRIORITY if head.stream == 0 => Err(protocol("PRIORITY of the connection")),
            // Deprecated: ignored (RFC 9113 §5.3.2).
            _ => self.flood.count(Cost::Empty, now),
        }
    }
}
