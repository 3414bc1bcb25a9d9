//! What peers must not do, and what they are told.

use super::super::flood::{MAX_ANSWERS, MAX_EMPTY, MAX_RESETS};
use super::super::headers::MAX_CONTINUATIONS;
use super::*;

const UPDATE: u8 = kind::WINDOW_UPDATE;

#[track_caller]
fn check(
    script: &mut Script,
    (kind, flags, stream): (u8, u8, u32),
    payload: &[u8],
    code: ErrorCode,
) {
    let error = script.frame(kind, flags, stream, payload).unwrap_err();
    assert_eq!(error.code, code, "{error}");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of frames")]
fn broken_frames_end_the_connection() {
    use ErrorCode as E;
    for (frame, payload, code) in [
        ((kind::DATA, 0, 0), &b"x"[..], E::PROTOCOL_ERROR),
        ((kind::DATA, 0, 9), b"x", E::PROTOCOL_ERROR),
        ((kind::DATA, 0, 2), b"x", E::PROTOCOL_ERROR),
        ((kind::DATA, flag::PADDED, 1), b"", E::FRAME_SIZE_ERROR),
        ((kind::DATA, flag::PADDED, 1), b"\x05abc", E::PROTOCOL_ERROR),
        (
            (kind::HEADERS, flag::END_HEADERS, 0),
            b"",
            E::PROTOCOL_ERROR,
        ),
        (
            (kind::HEADERS, flag::END_HEADERS, 4),
            b"",
            E::PROTOCOL_ERROR,
        ),
        (
            (kind::HEADERS, flag::END_HEADERS, 3),
            b"\xff",
            E::COMPRESSION_ERROR,
        ),
        (
            (kind::HEADERS, flag::END_HEADERS | flag::PADDED, 3),
            b"",
            E::FRAME_SIZE_ERROR,
        ),
        (
            (kind::HEADERS, flag::END_HEADERS | flag::PADDED, 3),
            b"\x09\x82",
            E::PROTOCOL_ERROR,
        ),
        (
            (kind::HEADERS, flag::END_HEADERS | flag::PRIORITY, 3),
            b"abcd",
            E::FRAME_SIZE_ERROR,
        ),
        ((kind::PRIORITY, 0, 1), b"abcd", E::FRAME_SIZE_ERROR),
        ((kind::PRIORITY, 0, 0), b"abcde", E::PROTOCOL_ERROR),
        ((kind::RST_STREAM, 0, 0), &[0; 4], E::PROTOCOL_ERROR),
        ((kind::RST_STREAM, 0, 9), &[0; 4], E::PROTOCOL_ERROR),
        ((kind::RST_STREAM, 0, 1), &[0; 3], E::FRAME_SIZE_ERROR),
        ((kind::SETTINGS, 0, 1), &[], E::PROTOCOL_ERROR),
        ((kind::SETTINGS, 0, 0), &[0; 5], E::FRAME_SIZE_ERROR),
        ((kind::SETTINGS, flag::ACK, 0), &[0; 6], E::FRAME_SIZE_ERROR),
        (
            (kind::SETTINGS, 0, 0),
            &[0, 2, 0, 0, 0, 2],
            E::PROTOCOL_ERROR,
        ),
        (
            (kind::SETTINGS, 0, 0),
            &[0, 4, 0x80, 0, 0, 0],
            E::FLOW_CONTROL_ERROR,
        ),
        (
            (kind::SETTINGS, 0, 0),
            &[0, 5, 0, 0, 0x3f, 0xff],
            E::PROTOCOL_ERROR,
        ),
        (
            (kind::SETTINGS, 0, 0),
            &[0, 5, 1, 0, 0, 0],
            E::PROTOCOL_ERROR,
        ),
        ((kind::PUSH_PROMISE, 0, 1), &[0; 4], E::PROTOCOL_ERROR),
        ((kind::PING, 0, 1), &[0; 8], E::PROTOCOL_ERROR),
        ((kind::PING, 0, 0), &[0; 7], E::FRAME_SIZE_ERROR),
        ((kind::GOAWAY, 0, 1), &[0; 8], E::PROTOCOL_ERROR),
        ((kind::GOAWAY, 0, 0), &[0; 7], E::FRAME_SIZE_ERROR),
        ((UPDATE, 0, 0), &[0; 4], E::PROTOCOL_ERROR),
        ((UPDATE, 0, 0), &[0; 3], E::FRAME_SIZE_ERROR),
        (
            (UPDATE, 0, 0),
            &[0x7f, 0xff, 0xff, 0xff],
            E::FLOW_CONTROL_ERROR,
        ),
        ((UPDATE, 0, 9), &[0, 0, 0, 1], E::PROTOCOL_ERROR),
        (
            (kind::CONTINUATION, flag::END_HEADERS, 1),
            b"",
            E::PROTOCOL_ERROR,
        ),
    ] {
        let mut script = Script::server();
        script.tunnel(1);
        check(&mut script, frame, payload, code);
        script.machine.say_goodbye(code);
        assert_eq!(goaway_code(&script.sent()), Some((1, code.0)));
    }
}

#[test]
fn a_frame_larger_than_advertised_is_refused_by_its_head() {
    let mut script = Script::server();
    script.tunnel(1);
    let head = Head {
        length: MAX_FRAME as usize + 1,
        kind: kind::DATA,
        flags: 0,
        stream: 1,
    };
    assert_eq!(
        script.feed(&head.encode()).unwrap_err().code,
        ErrorCode::FRAME_SIZE_ERROR
    );
    // One of an unknown type may be as large as any.
    let mut script = Script::server();
    let head = Head {
        length: MAX_FRAME as usize,
        kind: 77,
        flags: 0xff,
        stream: 8,
    };
    script.feed(&head.encode()).unwrap();
    script.feed(&vec![0; MAX_FRAME as usize]).unwrap();
    script.tunnel(1);
}

#[test]
fn the_beginning_is_checked() {
    let mut wrong = Script {
        machine: Machine::new(Role::Server),
        now: Instant::now(),
    };
    assert_eq!(
        wrong.feed(b"GET / HTTP/1.1\r\n").unwrap_err().code,
        ErrorCode::PROTOCOL_ERROR
    );
    for role in [Role::Server, Role::Client] {
        let mut script = Script {
            machine: Machine::new(role),
            now: Instant::now(),
        };
        if role == Role::Server {
            script.feed(PREFACE).unwrap();
        }
        check(
            &mut script,
            (kind::PING, 0, 0),
            &[0; 8],
            ErrorCode::PROTOCOL_ERROR,
        );
    }
}

#[test]
fn nothing_may_interrupt_a_header_block() {
    for (kind, stream) in [
        (kind::PING, 0),
        (kind::DATA, 1),
        (kind::CONTINUATION, 1),
        (77, 0),
    ] {
        let mut script = Script::server();
        script.frame(kind::HEADERS, 0, 3, &connect()[..2]).unwrap();
        check(
            &mut script,
            (kind, 0, stream),
            &[0; 8],
            ErrorCode::PROTOCOL_ERROR,
        );
    }
}

#[test]
fn a_client_must_not_be_sent_requests_pushes_or_data_first() {
    let open = || {
        let mut script = Script::client();
        let _id = script.machine.open(&request()).unwrap();
        script
    };
    check(
        &mut open(),
        (kind::HEADERS, flag::END_HEADERS, 3),
        &status(b"200"),
        ErrorCode::PROTOCOL_ERROR,
    );
    check(
        &mut open(),
        (kind::PUSH_PROMISE, 0, 1),
        &[0; 4],
        ErrorCode::PROTOCOL_ERROR,
    );
    check(
        &mut open(),
        (kind::DATA, 0, 1),
        b"x",
        ErrorCode::PROTOCOL_ERROR,
    );
    let push = [0, 2, 0, 0, 0, 1];
    check(
        &mut open(),
        (kind::SETTINGS, 0, 0),
        &push,
        ErrorCode::PROTOCOL_ERROR,
    );
}

#[test]
fn what_only_a_stream_did_ends_only_the_stream() {
    use ErrorCode as E;
    for (frame, payload, code) in [
        ((UPDATE, 0, 1), &[0; 4][..], E::PROTOCOL_ERROR),
        (
            (UPDATE, 0, 1),
            &[0x7f, 0xff, 0xff, 0xff],
            E::FLOW_CONTROL_ERROR,
        ),
        (
            (kind::HEADERS, flag::END_HEADERS, 1),
            b"",
            E::PROTOCOL_ERROR,
        ),
    ] {
        let mut script = Script::server();
        script.tunnel(1);
        script.frame(frame.0, frame.1, frame.2, payload).unwrap();
        assert_eq!(summary(&script.sent()), [(kind::RST_STREAM, 1, code.0)]);
        assert_eq!(script.machine.take(1), Taken::Reset(code));
        script.tunnel(3);
    }
}

#[test]
fn data_after_the_end_is_refused_and_after_a_reset_ignored() {
    let mut script = Script::server();
    script.tunnel(1);
    script.tunnel(3);
    script
        .frame(kind::RST_STREAM, 0, 3, &8_u32.to_be_bytes())
        .unwrap();
    script.frame(kind::DATA, 0, 3, b"late").unwrap();
    script.frame(kind::DATA, flag::END_STREAM, 1, b"").unwrap();
    check(
        &mut script,
        (kind::DATA, 0, 1),
        b"x",
        ErrorCode::STREAM_CLOSED,
    );
}

#[test]
fn more_data_than_credit_is_refused() {
    let mut script = Script::server();
    script.tunnel(1);
    script.tunnel(3);
    let piece = vec![0; 1 << 20];
    for _piece in 0..4 {
        script.frame(kind::DATA, 0, 1, &piece).unwrap();
    }
    script.frame(kind::DATA, 0, 1, b"x").unwrap();
    let flow = ErrorCode::FLOW_CONTROL_ERROR;
    assert_eq!(summary(&script.sent()), [(kind::RST_STREAM, 1, flow.0)]);
    // The connection's own credit is used up by several streams that nobody reads.
    let mut script = Script::server();
    for id in [1, 3, 5, 7, 9] {
        script.tunnel(id);
    }
    for id in [1, 3, 5, 7] {
        for _piece in 0..4 {
            script.frame(kind::DATA, 0, id, &piece).unwrap();
        }
    }
    check(&mut script, (kind::DATA, 0, 9), b"x", flow);
}

/// So many in one second are too many; in the next second they are allowed again.
#[track_caller]
fn check_flood(most: u32, mut once: impl FnMut(&mut Script, u32) -> Result<(), ConnectionError>) {
    let mut script = Script::server();
    script.now += std::time::Duration::from_secs(5);
    let mut number = 0;
    let mut flood = |script: &mut Script| {
        for _frame in 0..most {
            number += 1;
            once(script, number)?;
            // The peer reads what it is answered, and handlers take what they are given.
            let _answers = script.sent();
            for event in script.events() {
                if let Event::Reset(id) = event {
                    script.machine.release(id, ErrorCode::CANCEL);
                }
            }
        }
        Ok::<_, ConnectionError>(())
    };
    flood(&mut script).unwrap();
    script.now += std::time::Duration::from_secs(1);
    flood(&mut script).unwrap();
    let error = flood(&mut script).unwrap_err();
    assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM, "{error}");
}

#[test]
fn floods_end_the_connection() {
    check_flood(MAX_ANSWERS, |script, _| {
        script.frame(kind::PING, 0, 0, &[0; 8])
    });
    check_flood(MAX_ANSWERS, |script, _| {
        script.frame(kind::SETTINGS, 0, 0, &[])
    });
    check_flood(MAX_EMPTY, |script, number| {
        if number == 1 {
            script.frame(kind::HEADERS, flag::END_HEADERS, 1, &connect())?;
        }
        script.frame(kind::DATA, 0, 1, &[])
    });
    check_flood(MAX_EMPTY, |script, _| script.frame(99, 0, 0, &[]));
    check_flood(MAX_EMPTY, |script, _| {
        script.frame(kind::PRIORITY, 0, 1, &[0; 5])
    });
    check_flood(MAX_RESETS, |script, number| {
        script.frame(kind::HEADERS, flag::END_HEADERS, 2 * number - 1, &connect())?;
        script.frame(kind::RST_STREAM, 0, 2 * number - 1, &8_u32.to_be_bytes())
    });
    // The same by making us do the reset.
    check_flood(MAX_RESETS, |script, number| {
        script.frame(kind::HEADERS, flag::END_HEADERS, 2 * number - 1, &connect())?;
        script.frame(UPDATE, 0, 2 * number - 1, &[0; 4])
    });
}

#[test]
fn header_blocks_have_an_end() {
    let mut script = Script::server();
    script.frame(kind::HEADERS, 0, 1, &connect()).unwrap();
    for _frame in 0..MAX_CONTINUATIONS {
        script.frame(kind::CONTINUATION, 0, 1, &[]).unwrap();
    }
    check(
        &mut script,
        (kind::CONTINUATION, 0, 1),
        &[],
        ErrorCode::ENHANCE_YOUR_CALM,
    );
    let mut script = Script::server();
    script
        .frame(kind::HEADERS, 0, 1, &vec![0x82; 40_000])
        .unwrap();
    check(
        &mut script,
        (kind::CONTINUATION, 0, 1),
        &vec![0x82; 40_000],
        ErrorCode::ENHANCE_YOUR_CALM,
    );
    let mut script = Script::server();
    check(
        &mut script,
        (kind::HEADERS, 4, 1),
        &vec![0x82; 70_000],
        ErrorCode::ENHANCE_YOUR_CALM,
    );
}

#[test]
fn a_peer_that_reads_nothing_cannot_make_us_queue_without_bound() {
    let mut script = Script::server();
    let error = (0..100_000).find_map(|number| {
        script.now += std::time::Duration::from_millis(number % 2);
        script.frame(kind::PING, 0, 0, &[0; 8]).err()
    });
    assert_eq!(error.unwrap().code, ErrorCode::ENHANCE_YOUR_CALM);
}
