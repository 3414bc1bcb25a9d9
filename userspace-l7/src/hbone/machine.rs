//! An HTTP/2 connection that carries CONNECT tunnels and nothing else (RFC 9113), without input or output:
//! plaintext goes in by [`Machine::input`], events come out, frames leave through a [`FrameSink`].
//!
//! ```text
//!  client: open ──HEADERS──▶ ◀──HEADERS 200── Response      server: Request ── respond ──▶
//!          send_data ──DATA──▶ ◀──DATA── Readable            (the same both ways from here on)
//!          finish ──END_STREAM──▶ ◀──END_STREAM── Readable, then end of data
//!          release ──RST_STREAM──▶ ◀──RST_STREAM── Reset
//! ```
//!
//! No payload is queued on its way out: a sender whose window is closed keeps its bytes and waits. On the way
//! in, a stream holds at most its window, and returns credit only for what its consumer has taken, so a slow
//! reader costs at most 4 MiB and all of them together at most 16 MiB per connection.

mod control;
mod flood;
mod headers;
mod input;
mod settings;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use foldhash::{HashMap, HashMapExt as _};

use super::error::{ConnectionError, ErrorCode};
use super::frame::{self, kind};
use super::head::{ConnectRequest, ConnectResponse};
use super::hpack::Decoder;
use flood::Flood;
use input::Input;
use streams::Stream;
pub(super) use streams::{Allowance, Taken};

/// Credit that we give each stream (ztunnel's constant).
pub(super) const STREAM_WINDOW: u32 = 4 << 20;

/// Credit for the whole connection. Four times a stream's: an application that reads stream B before stream A
/// must not wait for A's unread bytes.
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;

/// The largest frame that we accept.
const MAX_FRAME: u32 = 1 << 20;

/// The largest DATA frame that we send, whatever the peer accepts, which is what one receive brings: streams take turns
/// by frames.
pub(super) const MAX_DATA: usize = 128 << 10;

/// The largest header block, and the largest list of decoded fields (RFC 9113 §6.5.2 counts 32 per field).
const MAX_HEADERS: usize = 64 << 10;

/// Streams that a client may have open at once, as we advertise it.
pub(super) const MAX_STREAMS: u32 = 200;

/// Bytes of answers (PING, SETTINGS, resets) that may wait while the peer reads nothing. Far above what all
/// streams of a connection can have to say at once.
const MAX_CONTROL: usize = 256 << 10;

/// Memory that an idle connection keeps for its next control frames.
const KEPT_CONTROL: usize = 512;

/// The payload of the PING that separates the two steps of a server's farewell; [`PING`] is all others'.
const FAREWELL: [u8; 8] = *b"farewell";
const PING: [u8; 8] = *b"cul-ping";

/// The largest stream identifier.
const MAX_STREAM_ID: u32 = (1 << 31) - 1;

const fn broken(code: ErrorCode, reason: &'static str) -> ConnectionError {
    ConnectionError { code, reason }
}

const fn protocol(reason: &'static str) -> ConnectionError {
    broken(ErrorCode::PROTOCOL_ERROR, reason)
}

const fn size(reason: &'static str) -> ConnectionError {
    broken(ErrorCode::FRAME_SIZE_ERROR, reason)
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Something that a stream's owner wants to know.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// A client asks for a tunnel.
    Request(u32, Box<ConnectRequest>),
    /// The server has answered.
    Response(u32, Box<ConnectResponse>),
    /// Data, or the end of it.
    Readable(u32),
    /// The stream may send more.
    Writable(u32),
    /// Every stream may send more.
    AllWritable,
    /// The stream was given up: by the peer, or because of what the peer sent on it.
    Reset(u32),
}

/// Takes frames on their way to the peer.
pub(super) trait FrameSink {
    /// Takes bytes; several calls make one frame.
    fn put(&mut self, bytes: &[u8]);
}

impl FrameSink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// How far our side has said that it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Closing {
    No,
    /// A server's first GOAWAY: streams that are under way to it are still taken.
    Announced,
    Final,
}

/// One connection.
pub(super) struct Machine {
    role: Role,
    input: Input,
    decoder: Decoder,
    streams: HashMap<u32, Stream>,
    events: VecDeque<Event>,
    /// Every stream may send more, and has not been told: however many frames say so, they are told once.
    all_writable: bool,
    /// Whole frames other than DATA, in the order in which they have to leave.
    control: Vec<u8>,
    peer: settings::Peer,
    send_window: i64,
    receive_window: i64,
    /// Taken by consumers, and not yet returned as the connection's credit.
    taken: u32,
    /// Highest stream that the client has opened.
    highest: u32,
    /// The peer's GOAWAY: streams above it were not processed.
    peer_last: Option<u32>,
    closing: Closing,
    flood: Flood,
}

impl Machine {
    /// A new connection, its preface and SETTINGS ready to leave.
    pub(super) fn new(role: Role) -> Self {
        let mut control = Vec::new();
        settings::announce(role, &mut control);
        Self {
            role,
            input: Input::new(role),
            decoder: Decoder::new(),
            streams: HashMap::new(),
            events: VecDeque::new(),
            all_writable: false,
            control,
            peer: settings::Peer::default(),
            send_window: settings::DEFAULT_WINDOW,
            receive_window: i64::from(CONNECTION_WINDOW),
            taken: 0,
            highest: 0,
            peer_last: None,
            closing: Closing::No,
            flood: Flood::default(),
        }
    }

    /// The next thing that happened.
    pub(super) fn event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        event.or_else(|| std::mem::take(&mut self.all_writable).then_some(Event::AllWritable))
    }

    /// Whether frames wait to leave.
    pub(super) fn has_output(&self) -> bool {
        !self.control.is_empty()
    }

    /// Moves the waiting frames into `sink`.
    pub(super) fn output(&mut self, sink: &mut impl FrameSink) {
        if !self.control.is_empty() {
            sink.put(&self.control);
            self.control.clear();
            self.control.shrink_to(KEPT_CONTROL);
        }
    }

    /// Streams that somebody still holds.
    pub(super) fn active(&self) -> usize {
        self.streams.len()
    }

    /// Streams that the peer allows at once.
    pub(super) fn peer_max_streams(&self) -> u32 {
        self.peer.max_streams
    }

    /// Whether no stream can be opened any more: the peer or we have announced the end, or the identifiers are
    /// used up.
    pub(super) fn is_closing(&self) -> bool {
        self.closing != Closing::No || self.peer_last.is_some() || self.highest >= MAX_STREAM_ID
    }

    /// Whether the connection has nothing left to carry after its announced end.
    pub(super) fn is_drained(&self) -> bool {
        let announced = self.closing == Closing::Final || self.peer_last.is_some();
        announced && self.streams.is_empty()
    }

    /// Announces that no new stream is welcome; those that exist go on. A server does it in two steps, so that
    /// requests under way are not lost (RFC 9113 §6.8).
    pub(super) fn drain(&mut self) {
        if self.closing != Closing::No {
            return;
        }
        match self.role {
            Role::Client => self.say_goodbye(ErrorCode::NO_ERROR),
            Role::Server => {
                self.closing = Closing::Announced;
                frame::push_goaway(&mut self.control, MAX_STREAM_ID, ErrorCode::NO_ERROR.0);
                frame::push(&mut self.control, kind::PING, 0, 0, &FAREWELL);
            }
        }
    }

    /// Tells the peer the last stream that was processed, and why the connection ends.
    pub(super) fn say_goodbye(&mut self, code: ErrorCode) {
        self.closing = Closing::Final;
        // A client processes no stream of its peer's.
        let last = if self.role == Role::Server {
            self.highest
        } else {
            0
        };
        frame::push_goaway(&mut self.control, last, code.0);
    }

    /// Asks the peer for a sign of life.
    pub(super) fn ping(&mut self) {
        frame::push(&mut self.control, kind::PING, 0, 0, &PING);
    }
}
