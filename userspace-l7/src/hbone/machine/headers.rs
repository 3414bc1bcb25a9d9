//! Header blocks: requests, answers, trailers.

use std::time::Instant;

use super::super::error::{ConnectionError, ErrorCode};
use super::super::frame::{self, Head, flag};
use super::super::head::{ConnectRequest, ConnectResponse, Fields};
use super::super::hpack::ENTRY_OVERHEAD;
use super::flood::Cost;
use super::streams::Stream;
use super::{Closing, Event, MAX_HEADERS, MAX_STREAMS, Machine, Role, broken, protocol, size};

/// CONTINUATION frames for one block (CVE-2024-27316): our limit on its size needs four of the default size.
pub(super) const MAX_CONTINUATIONS: u32 = 32;

/// A header block that is still being received.
pub(super) struct Block {
    pub(super) stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    frames: u32,
}

impl Machine {
    pub(super) fn headers(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let mut block = payload;
        let mut padding = 0;
        if head.has(flag::PADDED) {
            let whole = block.split_first();
            let (length, rest) = whole.ok_or(size("HEADERS without its padding length"))?;
            (padding, block) = (usize::from(*length), rest);
        }
        if head.has(flag::PRIORITY) {
            block = block.get(5..).ok_or(size("HEADERS without its priority"))?;
        }
        let length = block
            .len()
            .checked_sub(padding)
            .ok_or(protocol("more padding than frame"))?;
        if head.stream.is_multiple_of(2) {
            return Err(protocol("HEADERS on a stream that no client opens"));
        }
        let (stream, end_stream) = (head.stream, head.has(flag::END_STREAM));
        if head.has(flag::END_HEADERS) {
            return self.block(stream, end_stream, &block[..length], now);
        }
        let bytes = block[..length].to_vec();
        self.input.block = Some(Block {
            stream,
            end_stream,
            bytes,
            frames: 0,
        });
        Ok(())
    }

    pub(super) fn continuation(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let Some(mut block) = self.input.block.take() else {
            return Err(protocol("CONTINUATION of nothing"));
        };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if block.bytes.len() > MAX_HEADERS || block.frames > MAX_CONTINUATIONS {
            return Err(broken(
                ErrorCode::ENHANCE_YOUR_CALM,
                "a header block without end",
            ));
        }
        if head.has(flag::END_HEADERS) {
            return self.block(block.stream, block.end_stream, &block.bytes, now);
        }
        self.input.block = Some(block);
        Ok(())
    }

    fn block(
        &mut self,
        id: u32,
        end_stream: bool,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        // Decoded whatever becomes of it: the decoder's table has to stay in step.
        let fields = self.decode(bytes)?;
        match self.streams.get_mut(&id) {
            Some(stream) if stream.head_received => {
                // "A … header section … that is not … END_STREAM … MUST be treated as malformed" (RFC 9113
                // §8.1): the trailers of a tunnel say nothing but that it ends.
                if !end_stream || stream.ended_by_peer {
                    return self.fail_stream(id, ErrorCode::PROTOCOL_ERROR, now);
                }
                self.end_of_stream(id);
            }
            Some(stream) => {
                let Some(response) = fields.as_ref().and_then(ConnectResponse::decode) else {
                    return self.fail_stream(id, ErrorCode::PROTOCOL_ERROR, now);
                };
                // Informational answers come before the real one (RFC 9110 §15.2).
                if response.status < 200 && !end_stream {
                    return self.flood.count(Cost::Empty, now);
                }
                stream.head_received = true;
                self.events
                    .push_back(Event::Response(id, Box::new(response)));
                if end_stream {
                    self.end_of_stream(id);
                }
            }
            None if self.role == Role::Server && id > self.highest => {
                self.highest = id;
                self.request(id, fields.as_ref(), end_stream, now)?;
            }
            None => self.check_opened(id)?,
        }
        Ok(())
    }

    fn request(
        &mut self,
        id: u32,
        fields: Option<&Fields>,
        end_stream: bool,
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let held = self.streams.len();
        // Streams that are over may still be held by their consumers: theirs is a bound of its own.
        let is_full = held >= MAX_STREAMS as usize
            && (held >= 2 * MAX_STREAMS as usize || self.live() >= MAX_STREAMS as usize);
        if self.closing == Closing::Final || is_full {
            frame::push_reset(&mut self.control, id, ErrorCode::REFUSED_STREAM.0);
            return self.flood.count(Cost::Reset, now);
        }
        let mut stream = Stream::new(self.peer.initial_window);
        stream.head_received = true;
        stream.ended_by_peer = end_stream;
        self.streams.insert(id, stream);
        if let Some(request) = fields.and_then(ConnectRequest::decode) {
            self.events.push_back(Event::Request(id, Box::new(request)));
            return Ok(());
        }
        // 431 where we did not even look at the rest (RFC 6585 §5).
        let status = if fields.is_some() { 400 } else { 431 };
        self.respond(id, &ConnectResponse::refused(status, None));
        self.release(id, ErrorCode::NO_ERROR);
        self.flood.count(Cost::Reset, now)
    }

    /// `None` for a list that is longer than we allow: the stream's fault, not the connection's.
    fn decode(&mut self, block: &[u8]) -> Result<Option<Fields>, ConnectionError> {
        let mut fields = Fields::of_block(block.len());
        let mut length = 0;
        let decoded = self.decoder.decode(block, |name, value| {
            length += name.len() + value.len() + ENTRY_OVERHEAD;
            if length <= MAX_HEADERS {
                fields.push(name, value);
            }
        });
        let reason = "a header block that does not decompress";
        decoded.map_err(|_why| broken(ErrorCode::COMPRESSION_ERROR, reason))?;
        Ok((length <= MAX_HEADERS).then_some(fields))
    }
}
