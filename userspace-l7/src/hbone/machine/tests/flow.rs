//! Tunnels, windows and farewells, frame by frame.

use super::*;

fn drain(machine: &mut Machine, id: u32) -> (Vec<u8>, Taken) {
    let mut all = Vec::new();
    loop {
        match machine.take(id) {
            Taken::Data(piece) => all.extend(piece),
            other => return (all, other),
        }
    }
}

#[test]
fn the_preface_advertises_what_the_peers_of_istio_do() {
    let all = |role| {
        let mut bytes = Vec::new();
        Machine::new(role).output(&mut bytes);
        bytes
    };
    let client = all(Role::Client);
    let sent = frames(client.strip_prefix(PREFACE).unwrap());
    let settings = |sent: &[Sent]| -> Vec<(u16, u32)> {
        let (pairs, []) = sent[0].1.as_chunks::<6>() else {
            panic!()
        };
        pairs
            .iter()
            .map(|[a, b, c, d, e, f]| {
                (
                    u16::from_be_bytes([*a, *b]),
                    u32::from_be_bytes([*c, *d, *e, *f]),
                )
            })
            .collect()
    };
    let common = [(4, 4 << 20), (5, 1 << 20), (6, 64 << 10)];
    assert_eq!(settings(&sent), [&[(2, 0)], &common[..]].concat());
    assert_eq!(
        summary(&sent)[1],
        (kind::WINDOW_UPDATE, 0, (16 << 20) - 65_535)
    );
    let sent = frames(&all(Role::Server));
    assert_eq!(settings(&sent), [&[(3, 200)], &common[..]].concat());
}

#[test]
fn a_request_is_answered_only_when_its_handler_answers() {
    let mut script = Script::server();
    script
        .frame(kind::HEADERS, flag::END_HEADERS, 1, &connect())
        .unwrap();
    assert!(script.sent().is_empty());
    let events = script.events();
    assert!(matches!(&events[..], [Event::Request(1, request)]
        if request.authority.to_string() == "10.0.0.1:80"));
    // Early data waits for the handler.
    script
        .frame(kind::DATA, flag::END_STREAM, 1, b"early")
        .unwrap();
    script.machine.respond(1, &ConnectResponse::accepted(None));
    let sent = script.sent();
    assert_eq!(sent[0].1, [0x88]);
    assert_eq!(sent[0].0.flags, flag::END_HEADERS);
    assert_eq!(
        drain(&mut script.machine, 1),
        (b"early".to_vec(), Taken::End)
    );
    script.machine.finish(1);
    assert_eq!(script.sent()[0].0.flags, flag::END_STREAM);
    script.machine.release(1, ErrorCode::CANCEL);
    assert!(script.sent().is_empty(), "both directions had ended");
}

#[test]
fn requests_that_are_none_are_refused_each_for_itself() {
    let mut get = Vec::new();
    put_field(&mut get, ":method", b"GET");
    put_field(&mut get, ":authority", b"a:1");
    let mut huge = connect();
    for _field in 0..40 {
        // The list counts 32 bytes more per field than the block has.
        put_field(&mut huge, "x-long", &[b'x'; 1600]);
    }
    let mut script = Script::server();
    for (id, block, answer) in [
        (1, get, &b"400"[..]),
        (3, huge, b"431"),
        (5, Vec::new(), b"400"),
    ] {
        script
            .frame(kind::HEADERS, flag::END_HEADERS, id, &block)
            .unwrap();
        let sent = script.sent();
        assert_eq!(sent[0].1, status(answer));
        assert_eq!(sent[0].0.flags, flag::END_HEADERS | flag::END_STREAM);
        assert_eq!(summary(&sent)[1..], [(kind::RST_STREAM, id, 0)]);
        assert!(script.events().is_empty());
    }
    assert_eq!(script.machine.active(), 0);
}

#[test]
fn a_client_waits_for_the_real_answer() {
    let mut script = Script::client();
    assert_eq!(script.machine.open(&request()), Some(1));
    assert_eq!(script.machine.open(&request()), Some(3));
    let sent = script.sent();
    assert_eq!(
        (sent[0].0.kind, sent[0].0.stream, sent[1].0.stream),
        (kind::HEADERS, 1, 3)
    );
    script
        .frame(kind::HEADERS, flag::END_HEADERS, 1, &status(b"103"))
        .unwrap();
    assert!(script.events().is_empty());
    script
        .frame(kind::HEADERS, flag::END_HEADERS, 1, &status(b"200"))
        .unwrap();
    assert!(matches!(&script.events()[..], [Event::Response(1, answer)] if answer.status == 200));
    script
        .frame(
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            3,
            &status(b"503"),
        )
        .unwrap();
    assert!(matches!(&script.events()[0], Event::Response(3, answer) if answer.status == 503));
    // Answers that make no sense are the stream's end only.
    assert_eq!(script.machine.open(&request()), Some(5));
    let _request = script.sent();
    script
        .frame(kind::HEADERS, flag::END_HEADERS, 5, &status(b"abc"))
        .unwrap();
    assert_eq!(
        summary(&script.sent()),
        [(kind::RST_STREAM, 5, ErrorCode::PROTOCOL_ERROR.0)]
    );
}

#[test]
fn trailers_and_padding_and_priority_carry_no_meaning() {
    let mut script = Script::server();
    let block = [&[3, 0, 0, 0, 0, 9][..], &connect(), b"pad"].concat();
    let flags = flag::END_HEADERS | flag::PADDED | flag::PRIORITY;
    script.frame(kind::HEADERS, flags, 1, &block).unwrap();
    assert!(matches!(script.events()[..], [Event::Request(1, _)]));
    script.frame(kind::PRIORITY, 0, 1, &[0; 5]).unwrap();
    script
        .frame(kind::DATA, flag::PADDED, 1, b"\x03datapad")
        .unwrap();
    script
        .frame(kind::DATA, flag::PADDED, 1, b"\x03pad")
        .unwrap();
    let mut trailers = Vec::new();
    put_field(&mut trailers, "x-trailer", b"y");
    script
        .frame(kind::HEADERS, flag::END_STREAM, 1, &trailers[..3])
        .unwrap();
    script
        .frame(kind::CONTINUATION, flag::END_HEADERS, 1, &trailers[3..])
        .unwrap();
    assert_eq!(
        drain(&mut script.machine, 1),
        (b"data".to_vec(), Taken::End)
    );
}

#[test]
fn pings_and_settings_are_answered() {
    let mut script = Script::client();
    script.frame(kind::PING, 0, 0, b"12345678").unwrap();
    script
        .frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 7, 0, 99, 0, 0, 0, 1])
        .unwrap();
    let sent = script.sent();
    assert_eq!(
        (sent[0].0.kind, sent[0].0.flags, &sent[0].1[..]),
        (kind::PING, flag::ACK, &b"12345678"[..])
    );
    assert_eq!(
        (sent[1].0.kind, sent[1].0.flags, sent[1].0.length),
        (kind::SETTINGS, flag::ACK, 0)
    );
    assert_eq!(script.machine.peer_max_streams(), 7);
    script.frame(kind::SETTINGS, flag::ACK, 0, &[]).unwrap();
    assert!(script.sent().is_empty());
}

#[test]
fn credit_returns_only_for_what_is_taken() {
    let mut script = Script::server();
    script.tunnel(1);
    let piece = vec![5; 1 << 20];
    for _piece in 0..3 {
        script.frame(kind::DATA, 0, 1, &piece).unwrap();
    }
    assert!(script.sent().is_empty(), "nobody has read");
    let (data, _) = drain(&mut script.machine, 1);
    assert_eq!(data.len(), 3 << 20);
    let sent = script.sent();
    let [(kind::WINDOW_UPDATE, 1, credit)] = summary(&sent)[..] else {
        panic!("{sent:?}")
    };
    assert!((STREAM_WINDOW / 2..=3 << 20).contains(&credit), "{credit}");
    // Half of the connection's window: what streams of the past did not take counts too.
    script.tunnel(3);
    for _piece in 0..4 {
        script.frame(kind::DATA, 0, 3, &piece).unwrap();
    }
    script.machine.release(3, ErrorCode::CANCEL);
    assert_eq!(
        summary(&script.sent()),
        [(kind::RST_STREAM, 3, ErrorCode::CANCEL.0)]
    );
    script.frame(kind::DATA, 0, 3, &piece).unwrap();
    assert_eq!(summary(&script.sent()), [(kind::WINDOW_UPDATE, 0, 8 << 20)]);
}

fn send(script: &mut Script, id: u32, length: usize) -> usize {
    let mut out = Vec::new();
    let sent = script.machine.send_data(id, &vec![9; length], &mut out);
    let sizes: usize = frames(&out).iter().map(|(head, _)| head.length).sum();
    assert_eq!(sizes, sent);
    sent
}

#[test]
fn sending_respects_both_windows_and_the_frame_size() {
    let mut script = Script::server();
    script.tunnel(1);
    script.tunnel(3);
    assert_eq!(
        send(&mut script, 1, 1 << 20),
        16_384,
        "the peer's default frame size"
    );
    script
        .frame(kind::SETTINGS, 0, 0, &[0, 5, 0, 0x10, 0, 0])
        .unwrap();
    let _ack = script.sent();
    assert_eq!(send(&mut script, 1, 1 << 20), 65_535 - 16_384);
    assert_eq!(script.machine.allowance(1), Allowance::StreamFull);
    assert_eq!(script.machine.allowance(3), Allowance::ConnectionFull);
    assert_eq!(send(&mut script, 3, 10), 0);
    script
        .frame(kind::WINDOW_UPDATE, 0, 0, &200_000_u32.to_be_bytes())
        .unwrap();
    assert_eq!(send(&mut script, 1, 10), 0);
    assert_eq!(send(&mut script, 3, 10), 10);
    script
        .frame(kind::WINDOW_UPDATE, 0, 1, &150_000_u32.to_be_bytes())
        .unwrap();
    assert_eq!(script.events(), [Event::Writable(1), Event::AllWritable]);
    assert_eq!(
        send(&mut script, 1, 1 << 20),
        MAX_DATA,
        "streams take turns"
    );
}

#[test]
fn a_shrunken_window_may_be_negative() {
    let mut script = Script::server();
    script.tunnel(1);
    assert_eq!(send(&mut script, 1, 10_000), 10_000);
    let window = |size: u32| [&[0, 4][..], &size.to_be_bytes()].concat();
    script.frame(kind::SETTINGS, 0, 0, &window(4000)).unwrap();
    assert_eq!(script.machine.allowance(1), Allowance::StreamFull);
    script
        .frame(kind::WINDOW_UPDATE, 0, 1, &6000_u32.to_be_bytes())
        .unwrap();
    assert_eq!(script.machine.allowance(1), Allowance::StreamFull);
    script.frame(kind::SETTINGS, 0, 0, &window(4001)).unwrap();
    let _acks = script.sent();
    assert_eq!(send(&mut script, 1, 10), 1);
    // An initial window that makes another one overflow ends the connection.
    script
        .frame(kind::WINDOW_UPDATE, 0, 1, &0x7fff_0000_u32.to_be_bytes())
        .unwrap();
    let error = script
        .frame(kind::SETTINGS, 0, 0, &window(0x7fff_ffff))
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn resets_cut_and_a_reset_after_the_end_does_not() {
    let mut script = Script::server();
    for (id, end, code, expected) in [
        (1, 0, 8_u32, (Vec::new(), Taken::Reset(ErrorCode::CANCEL))),
        (3, flag::END_STREAM, 0, (b"all".to_vec(), Taken::End)),
        (5, 0, 0, (Vec::new(), Taken::Reset(ErrorCode::NO_ERROR))),
        // The far connection broke, after it had brought this.
        (
            7,
            0,
            10,
            (b"all".to_vec(), Taken::Reset(ErrorCode::CONNECT_ERROR)),
        ),
    ] {
        script.tunnel(id);
        script.frame(kind::DATA, end, id, b"all").unwrap();
        script
            .frame(kind::RST_STREAM, 0, id, &code.to_be_bytes())
            .unwrap();
        assert_eq!(drain(&mut script.machine, id), expected);
        assert_eq!(
            script.machine.allowance(id),
            Allowance::Reset(ErrorCode(code))
        );
        script.machine.release(id, ErrorCode::CANCEL);
        assert!(script.sent().is_empty(), "a reset is not answered");
    }
}

#[test]
fn too_many_streams_are_refused() {
    let mut script = Script::server();
    for number in 0..MAX_STREAMS {
        script.tunnel(2 * number + 1);
    }
    let next = 2 * MAX_STREAMS + 1;
    script
        .frame(kind::HEADERS, flag::END_HEADERS, next, &connect())
        .unwrap();
    let refused = (kind::RST_STREAM, next, ErrorCode::REFUSED_STREAM.0);
    assert_eq!(summary(&script.sent()), [refused]);
    // One that is over leaves its place, even while its handler still holds it.
    script
        .frame(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes())
        .unwrap();
    script.tunnel(next + 2);
    assert_eq!(script.machine.active(), MAX_STREAMS as usize + 1);
}

#[test]
fn a_server_says_goodbye_in_two_steps() {
    let mut script = Script::server();
    script.tunnel(1);
    script.machine.drain();
    script.machine.drain();
    let sent = script.sent();
    assert_eq!(goaway_code(&sent), Some((0x7fff_ffff, 0)));
    assert_eq!(
        sent.iter().map(|(head, _)| head.kind).collect::<Vec<_>>(),
        [kind::GOAWAY, kind::PING]
    );
    // Under way before the client knew.
    script.tunnel(3);
    script.frame(kind::PING, flag::ACK, 0, &sent[1].1).unwrap();
    assert_eq!(goaway_code(&script.sent()), Some((3, 0)));
    script
        .frame(kind::HEADERS, flag::END_HEADERS, 5, &connect())
        .unwrap();
    assert_eq!(
        summary(&script.sent()),
        [(kind::RST_STREAM, 5, ErrorCode::REFUSED_STREAM.0)]
    );
    script.frame(kind::DATA, 0, 3, b"goes on").unwrap();
    assert!(!script.machine.is_drained());
    script.machine.release(1, ErrorCode::CANCEL);
    script.machine.release(3, ErrorCode::CANCEL);
    assert!(script.machine.is_drained());
}

#[test]
fn a_client_obeys_a_goodbye() {
    let mut script = Script::client();
    for id in [1, 3] {
        assert_eq!(script.machine.open(&request()), Some(id));
    }
    let goaway = |last: u32| [last.to_be_bytes(), [0; 4]].concat();
    script
        .frame(kind::GOAWAY, 0, 0, &goaway(0x7fff_ffff))
        .unwrap();
    assert!(script.machine.is_closing());
    assert_eq!(script.machine.open(&request()), None);
    assert!(script.events().is_empty());
    script.frame(kind::GOAWAY, 0, 0, &goaway(1)).unwrap();
    assert_eq!(script.events(), [Event::Reset(3)]);
    assert_eq!(
        script.machine.reset_code(3),
        Some(ErrorCode::REFUSED_STREAM)
    );
    assert_eq!(script.machine.reset_code(1), None);
    let _requests = script.sent();
    script.machine.release(3, ErrorCode::CANCEL);
    assert!(script.sent().is_empty(), "the server never knew it");
}

#[test]
fn header_blocks_are_cut_to_the_peers_frame_size() {
    let mut out = Vec::new();
    frame::push_headers(&mut out, 1, &vec![7; 40_000], true, 16_384);
    let sent = frames(&out);
    let shape: Vec<_> = sent
        .iter()
        .map(|(head, _)| (head.kind, head.flags, head.length))
        .collect();
    let expected = [
        (kind::HEADERS, flag::END_STREAM, 16_384),
        (kind::CONTINUATION, 0, 16_384),
        (kind::CONTINUATION, flag::END_HEADERS, 40_000 - 2 * 16_384),
    ];
    assert_eq!(shape, expected);
}

#[test]
fn however_often_a_peer_gives_credit_its_streams_are_told_once() {
    let mut script = Script::client();
    for _ in 0..100 {
        script
            .frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())
            .unwrap();
    }
    let windows: Vec<u8> = [[0, 4, 0, 0, 0, 1], [0, 4, 0, 1, 0, 0]]
        .concat()
        .repeat(5000);
    let windows = &windows[..6 * (16_384 / 6)];
    script.frame(kind::SETTINGS, 0, 0, windows).unwrap();
    assert_eq!(script.events(), [Event::AllWritable]);
    let ended = script.frame(kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]);
    assert!(ended.is_err(), "a window above 2^31-1");
}
