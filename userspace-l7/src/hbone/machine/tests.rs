//! The machine against scripts of frames, against another implementation, and against arbitrary splits.

mod flow;
mod interop;
mod properties;
mod violations;

use std::time::Instant;

use super::super::frame::{self, HEAD_LEN, Head, PREFACE, flag, kind};
use super::super::hpack::put_field;
use super::*;

/// A machine and its peer's frames.
struct Script {
    machine: Machine,
    now: Instant,
}

/// A frame that the machine has sent.
type Sent = (Head, Vec<u8>);

impl Script {
    /// A server whose client has said hello.
    fn server() -> Self {
        let mut script = Self {
            machine: Machine::new(Role::Server),
            now: Instant::now(),
        };
        let mut hello = PREFACE.to_vec();
        frame::push_settings(&mut hello, &[]);
        script.feed(&hello).unwrap();
        let _greeting = script.sent();
        script
    }

    /// A client whose server has said hello.
    fn client() -> Self {
        let mut script = Self {
            machine: Machine::new(Role::Client),
            now: Instant::now(),
        };
        let mut hello = Vec::new();
        frame::push_settings(&mut hello, &[]);
        script.feed(&hello).unwrap();
        let _greeting = script.sent();
        script
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.machine.input(bytes, self.now)
    }

    /// Feeds one frame.
    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        frame::push(&mut bytes, kind, flags, stream, payload);
        self.feed(&bytes)
    }

    /// What the machine has sent since the last time, without a client's preface.
    fn sent(&mut self) -> Vec<Sent> {
        let mut bytes = Vec::new();
        self.machine.output(&mut bytes);
        frames(bytes.strip_prefix(PREFACE).unwrap_or(&bytes))
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.machine.event()).collect()
    }

    /// A CONNECT on the server, answered with 200.
    fn tunnel(&mut self, id: u32) {
        self.frame(kind::HEADERS, flag::END_HEADERS, id, &connect())
            .unwrap();
        self.machine.respond(id, &ConnectResponse::accepted(None));
        let _answer = self.sent();
        let _request = self.events();
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Sent> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() {
        let head = Head::decode(*head);
        let (payload, rest) = rest.split_at(head.length);
        frames.push((head, payload.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame was sent");
    frames
}

/// A header block of a plain CONNECT.
fn connect() -> Vec<u8> {
    let mut block = Vec::new();
    put_field(&mut block, ":method", b"CONNECT");
    put_field(&mut block, ":authority", b"10.0.0.1:80");
    block
}

fn status(code: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    put_field(&mut block, ":status", code);
    block
}

fn request() -> ConnectRequest {
    ConnectRequest::to_address("10.0.0.1:80".parse().unwrap())
}

/// Kind, stream and first four bytes as a number: enough to tell control frames apart.
fn summary(sent: &[Sent]) -> Vec<(u8, u32, u32)> {
    let number = |payload: &[u8]| {
        payload
            .first_chunk::<4>()
            .map_or(0, |first| u32::from_be_bytes(*first))
    };
    sent.iter()
        .map(|(head, payload)| (head.kind, head.stream, number(payload)))
        .collect()
}

/// The last GOAWAY's stream and code.
fn goaway_code(sent: &[Sent]) -> Option<(u32, u32)> {
    let (_, payload) = sent
        .iter()
        .rev()
        .find(|(head, _)| head.kind == kind::GOAWAY)?;
    let number = |at: usize| {
        payload[at..at + 4]
            .try_into()
            .map(u32::from_be_bytes)
            .unwrap()
    };
    Some((number(0), number(4)))
}
