//! What fuzz targets reach of this module's private parts, as checks over bytes: each panics where a promise
//! is broken.

use std::time::Instant;

use super::error::{ConnectionError, ErrorCode};
use super::frame::{self, HEAD_LEN, Head, PREFACE};
use super::head::{ConnectRequest, ConnectResponse, Fields};
use super::hpack::{Decoder, TABLE_SIZE};
use super::machine::{CONNECTION_WINDOW, Event, MAX_STREAMS, Machine, Role, Taken};

/// More than any connection is asked to list.
const WHOLE: usize = usize::MAX;

/// Header blocks of one connection, each behind its length (two bytes, big endian): the decoder's table stays
/// within its limit, and a request or answer that is accepted survives being written and read again.
pub fn header_blocks(mut bytes: &[u8]) {
    let mut decoder = Decoder::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (block, rest) = rest.split_at(length);
        bytes = rest;
        let mut fields = Fields::default();
        let each = |name: &[u8], value: &[u8]| fields.push(name, value);
        let decoded = decoder.decode(block, each);
        assert!(decoder.size() <= TABLE_SIZE, "the table has outgrown us");
        if decoded.is_err() {
            return;
        }
        request(&fields);
        answer(&fields);
    }
}

fn request(fields: &Fields) {
    let Some(request) = ConnectRequest::decode(fields) else {
        return;
    };
    let again = ConnectRequest::decode(&read(&request.encode(WHOLE)));
    let again = again.expect("what we write is a request");
    assert_eq!(again.authority, request.authority);
    assert_eq!(again.traceparent, request.traceparent);
    assert_eq!(again.forwarded, request.forwarded);
    assert_eq!(again.service, request.service);
}

fn answer(fields: &Fields) {
    let Some(answer) = ConnectResponse::decode(fields) else {
        return;
    };
    let again = ConnectResponse::decode(&read(&answer.encode(WHOLE)));
    assert_eq!(again.map(|again| again.status), Some(answer.status));
}

fn read(block: &[u8]) -> Fields {
    let mut fields = Fields::default();
    let each = |name: &[u8], value: &[u8]| fields.push(name, value);
    let decoded = Decoder::new().decode(block, each);
    assert_eq!(decoded, Ok(()), "what we write can be read");
    fields
}

/// A peer's bytes behind its preface and SETTINGS. The first byte says which side we are and how the rest is
/// cut. How bytes are cut changes nothing; every answer is made of whole frames; no more streams are open and
/// no more bytes kept than was advertised.
pub fn frames(bytes: &[u8]) {
    let Some((choice, payload)) = bytes.split_first() else {
        return;
    };
    let role = if choice & 1 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let mut input = match role {
        Role::Server => PREFACE.to_vec(),
        Role::Client => Vec::new(),
    };
    frame::push_settings(&mut input, &[]);
    input.extend_from_slice(payload);
    let now = Instant::now();
    let whole = outcome(role, &input, usize::MAX, now);
    let cut = outcome(role, &input, usize::from(choice >> 1) + 1, now);
    // Where input is refused, what is taken of it may differ by the pieces; that it is refused, and why, may not.
    assert_eq!(whole.result, cut.result, "the cuts decide");
    if whole.result.is_ok() {
        assert_eq!(whole, cut, "the cuts decide");
    }
}

/// What became of a connection.
#[derive(Debug, PartialEq)]
struct Outcome {
    result: Result<(), ConnectionError>,
    requests: Vec<u32>,
    data: Vec<(u32, Vec<u8>)>,
    answers: Vec<u8>,
}

fn outcome(role: Role, input: &[u8], piece: usize, now: Instant) -> Outcome {
    let mut machine = Machine::new(role);
    let mut asked = Vec::new();
    if role == Role::Client {
        let address = ([10, 0, 0, 1], 80).into();
        let request = ConnectRequest::to_address(address);
        asked = (0..2).filter_map(|_| machine.open(&request)).collect();
        let mut greeting = Vec::new();
        machine.output(&mut greeting);
        let frames = greeting.strip_prefix(PREFACE);
        whole_frames(frames.expect("a client begins with its preface"));
    }
    let mut result = Ok(());
    for piece in input.chunks(piece) {
        result = machine.input(piece, now);
        if result.is_err() {
            break;
        }
    }
    let mut requests = Vec::new();
    while let Some(event) = machine.event() {
        if let Event::Request(id, _request) = event {
            requests.push(id);
        }
    }
    assert!(
        requests.len() <= MAX_STREAMS as usize,
        "{} streams of {MAX_STREAMS}",
        requests.len()
    );
    let mut data = Vec::new();
    let mut kept = 0;
    for id in requests.iter().chain(&asked) {
        let mut all = Vec::new();
        while let Taken::Data(piece) = machine.take(*id) {
            assert!(!piece.is_empty(), "a piece is never empty");
            all.extend(piece);
        }
        kept += all.len();
        data.push((*id, all));
    }
    assert!(kept <= CONNECTION_WINDOW as usize, "{kept} bytes were kept");
    for id in requests.iter().chain(&asked) {
        machine.release(*id, ErrorCode::NO_ERROR);
    }
    assert_eq!(machine.active(), 0, "a stream that nobody can release");
    let mut answers = Vec::new();
    machine.output(&mut answers);
    whole_frames(&answers);
    Outcome {
        result,
        requests,
        data,
        answers,
    }
}

/// Checks that bytes are whole frames.
fn whole_frames(mut bytes: &[u8]) {
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() {
        let length = Head::decode(*head).length;
        bytes = rest.get(length..).expect("half a frame was sent");
    }
    assert!(bytes.is_empty(), "half a head was sent");
}
