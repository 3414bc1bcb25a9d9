//! SETTINGS: what we ask of the peer, and what it asks of us (RFC 9113 §6.5).

use super::super::error::{ConnectionError, ErrorCode};
use super::super::frame::{self, DEFAULT_MAX_FRAME, PREFACE, setting};
use super::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_HEADERS, MAX_STREAMS, Machine, Role, STREAM_WINDOW, broken,
    protocol,
};

/// Every window before anyone says otherwise (RFC 9113 §6.9.2).
pub(super) const DEFAULT_WINDOW: i64 = 65_535;

/// The largest window (RFC 9113 §6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

/// Streams that we open before the peer has told its limit: Envoy's limit, and ztunnel's own cap.
const ASSUMED_MAX_STREAMS: u32 = 100;

/// What the peer asks of us.
pub(super) struct Peer {
    pub(super) initial_window: i64,
    pub(super) max_frame: usize,
    pub(super) max_streams: u32,
    pub(super) max_header_list: usize,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            initial_window: DEFAULT_WINDOW,
            max_frame: DEFAULT_MAX_FRAME,
            max_streams: ASSUMED_MAX_STREAMS,
            max_header_list: usize::MAX,
        }
    }
}

/// [`MAX_HEADERS`] as SETTINGS have it.
#[expect(clippy::cast_possible_truncation, reason = "64 KiB")]
const MAX_HEADERS_ADVERTISED: u32 = MAX_HEADERS as u32;

/// What the connection's window has to grow by to become ours.
#[expect(clippy::cast_possible_truncation, reason = "65,535")]
const WINDOW_GROWTH: u32 = CONNECTION_WINDOW - DEFAULT_WINDOW as u32;

/// Writes the preface: SETTINGS, and the connection's window, which SETTINGS cannot carry.
pub(super) fn announce(role: Role, out: &mut Vec<u8>) {
    let own = match role {
        Role::Client => {
            out.extend_from_slice(PREFACE);
            (setting::ENABLE_PUSH, 0)
        }
        Role::Server => (setting::MAX_CONCURRENT_STREAMS, MAX_STREAMS),
    };
    let settings = [
        own,
        (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
        (setting::MAX_FRAME_SIZE, MAX_FRAME),
        (setting::MAX_HEADER_LIST_SIZE, MAX_HEADERS_ADVERTISED),
    ];
    frame::push_settings(out, &settings);
    frame::push_window_update(out, 0, WINDOW_GROWTH);
}

impl Machine {
    /// Takes over one setting other than the initial window. Ours need no acknowledgement to count: they allow more than the
    /// defaults do.
    pub(super) fn apply(&mut self, id: u16, value: u32) -> Result<(), ConnectionError> {
        match id {
            setting::MAX_FRAME_SIZE => {
                let size = value as usize;
                if !(DEFAULT_MAX_FRAME..1 << 24).contains(&size) {
                    return Err(protocol("a frame size out of bounds"));
                }
                self.peer.max_frame = size;
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
            setting::MAX_HEADER_LIST_SIZE => self.peer.max_header_list = value as usize,
            setting::ENABLE_PUSH if value > 1 => {
                return Err(protocol("ENABLE_PUSH is neither 0 nor 1"));
            }
            // "A server MUST NOT … set … to a value other than 0" (RFC 9113 §6.5.2).
            setting::ENABLE_PUSH if value == 1 && self.role == Role::Client => {
                return Err(protocol("a server that asks for pushes"));
            }
            // HEADER_TABLE_SIZE bounds our encoder's table, and ours has none. Unknown settings "MUST" be
            // ignored.
            _ => {}
        }
        Ok(())
    }

    /// Takes over the initial window of streams.
    pub(super) fn apply_initial_window(&mut self, window: i64) -> Result<(), ConnectionError> {
        if window > MAX_WINDOW {
            return Err(broken(
                ErrorCode::FLOW_CONTROL_ERROR,
                "an initial window above 2^31-1",
            ));
        }
        // The change goes to every stream, and may leave its window negative (RFC 9113 §6.9.2).
        let change = window - self.peer.initial_window;
        self.peer.initial_window = window;
        for stream in self.streams.values_mut() {
            stream.send_window += change;
            if stream.send_window > MAX_WINDOW {
                let reason = "a stream's window grew above 2^31-1";
                return Err(broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
            }
        }
        self.all_writable = true;
        Ok(())
    }
}
