//! Frames about the connection and its windows: SETTINGS, PING, resets, credit, GOAWAY.

use std::time::Instant;

use super::super::error::{ConnectionError, ErrorCode};
use super::super::frame::{self, Head, flag, kind, setting};
use super::flood::Cost;
use super::settings::MAX_WINDOW;
use super::{Closing, Event, FAREWELL, Machine, Role, broken, protocol, size};

impl Machine {
    pub(super) fn settings(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        if head.stream != 0 {
            return Err(protocol("SETTINGS on a stream"));
        }
        self.flood.count(Cost::Answer, now)?;
        if head.has(flag::ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(size("SETTINGS ACK with a payload"))
            };
        }
        let (settings, []) = payload.as_chunks::<6>() else {
            return Err(size("SETTINGS of a wrong size"));
        };
        let mut window = None;
        for [i0, i1, v0, v1, v2, v3] in settings {
            let id = u16::from_be_bytes([*i0, *i1]);
            let value = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
            if id == setting::INITIAL_WINDOW_SIZE {
                // Every stream follows it, and only the last word counts (RFC 9113 §6.5.3): a frame has room for 10,000.
                window = Some(value);
            } else {
                self.apply(id, value)?;
            }
        }
        if let Some(window) = window {
            self.apply_initial_window(i64::from(window))?;
        }
        self.input.settings_seen = true;
        frame::push(&mut self.control, kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    pub(super) fn ping_received(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        if head.stream != 0 {
            return Err(protocol("PING on a stream"));
        }
        if payload.len() != FAREWELL.len() {
            return Err(size("PING of a wrong size"));
        }
        self.flood.count(Cost::Answer, now)?;
        if !head.has(flag::ACK) {
            frame::push(&mut self.control, kind::PING, flag::ACK, 0, payload);
        } else if payload == FAREWELL && self.closing == Closing::Announced {
            // Whatever the client had sent before it knew has arrived by now.
            self.say_goodbye(ErrorCode::NO_ERROR);
        }
        Ok(())
    }

    pub(super) fn peer_reset(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let code = payload
            .try_into()
            .map_err(|_wrong| size("RST_STREAM of a wrong size"))?;
        self.check_opened(head.stream)?;
        let Some(stream) = self.streams.get_mut(&head.stream) else {
            return Ok(());
        };
        if stream.reset.is_none() {
            stream.reset = Some(ErrorCode(u32::from_be_bytes(code)));
            self.events.push_back(Event::Reset(head.stream));
            if self.role == Role::Server && !stream.head_sent {
                self.flood.count(Cost::Reset, now)?;
            }
        }
        Ok(())
    }

    pub(super) fn window_update(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let bytes = payload
            .try_into()
            .map_err(|_wrong| size("WINDOW_UPDATE of a wrong size"))?;
        let increment = i64::from(u32::from_be_bytes(bytes) & 0x7fff_ffff);
        if head.stream == 0 {
            if increment == 0 {
                return Err(protocol("WINDOW_UPDATE by nothing"));
            }
            self.send_window += increment;
            if self.send_window > MAX_WINDOW {
                let reason = "the connection's window grew above 2^31-1";
                return Err(broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
            }
            self.all_writable = true;
            return Ok(());
        }
        self.check_opened(head.stream)?;
        let Some(stream) = self.streams.get_mut(&head.stream) else {
            return Ok(());
        };
        stream.send_window += increment;
        if increment == 0 {
            return self.fail_stream(head.stream, ErrorCode::PROTOCOL_ERROR, now);
        }
        if stream.send_window > MAX_WINDOW {
            return self.fail_stream(head.stream, ErrorCode::FLOW_CONTROL_ERROR, now);
        }
        self.events.push_back(Event::Writable(head.stream));
        Ok(())
    }

    pub(super) fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        if head.stream != 0 {
            return Err(protocol("GOAWAY on a stream"));
        }
        let last = payload.first_chunk::<4>().filter(|_| payload.len() >= 8);
        let last = u32::from_be_bytes(*last.ok_or(size("GOAWAY of a wrong size"))?) & 0x7fff_ffff;
        // A later GOAWAY may only lower the number (RFC 9113 §6.8).
        let last = self.peer_last.map_or(last, |earlier| earlier.min(last));
        self.peer_last = Some(last);
        if self.role == Role::Client {
            for (id, stream) in &mut self.streams {
                if *id > last && stream.reset.is_none() {
                    stream.reset = Some(ErrorCode::REFUSED_STREAM);
                    self.events.push_back(Event::Reset(*id));
                }
            }
        }
        Ok(())
    }

    /// Ends a stream for what the peer did on it.
    ///
    /// # Errors
    /// The peer does it too often.
    pub(super) fn fail_stream(
        &mut self,
        id: u32,
        code: ErrorCode,
        now: Instant,
    ) -> Result<(), ConnectionError> {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset.is_none()
        {
            stream.reset = Some(code);
            frame::push_reset(&mut self.control, id, code.0);
            self.events.push_back(Event::Reset(id));
        }
        self.flood.count(Cost::Reset, now)
    }
}
