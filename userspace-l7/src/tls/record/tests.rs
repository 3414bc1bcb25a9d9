//! The record layer: sealing, opening, and what a hostile peer may send.

use std::io::{Read, Write};

use proptest::prelude::*;
use rustls::AlertDescription;

use super::{HEADER, MAX_PLAINTEXT, Opened, RecordError, SealError};
use crate::tls::fixture::{
    Authority, Flaw, Plain, established, feed, id, read_all, shake_hands_with, written,
};
use crate::tls::{Established, Handshake};

const ALICE: &str = "spiffe://cluster.local/ns/shop/sa/alice";
const BOB: &str = "spiffe://cluster.local/ns/shop/sa/bob";

thread_local! {
    static AUTHORITY: Authority = Authority::new("root");
}

fn pair() -> (Established, Established) {
    AUTHORITY.with(|authority| established(&authority.identity(ALICE), &authority.identity(BOB)))
}

/// Our client and an ordinary server, or our server and an ordinary client.
fn with_rustls(ours_is_client: bool) -> (Established, rustls::Connection) {
    AUTHORITY.with(|authority| {
        let ours = authority.identity(if ours_is_client { ALICE } else { BOB });
        let (ours, mut peer) = if ours_is_client {
            let peer = Plain::default().server(authority, authority.leaf(&[BOB], Flaw::None));
            (Handshake::client(&ours, &[id(BOB)]).unwrap(), peer)
        } else {
            let peer = Plain::default().client(Some(authority.leaf(&[ALICE], Flaw::None)));
            (Handshake::server(&ours).unwrap(), peer)
        };
        let (ours, theirs) = shake_hands_with(ours, &mut peer, 100_000);
        theirs.unwrap();
        (ours.unwrap(), peer)
    })
}

fn sealed(from: &mut Established, pieces: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    for piece in pieces {
        from.sealer.append(&mut wire, piece).unwrap();
    }
    from.sealer.finish(&mut wire).unwrap();
    wire
}

/// Plaintext of `wire`, and whether the peer's direction is still open.
fn opened(to: &mut Established, wire: &[u8]) -> Result<(Vec<u8>, bool), RecordError> {
    let mut plaintext = Vec::new();
    let mut wire = wire.to_vec();
    let is_open = to.opener.open(&mut wire, |piece| {
        assert!(!piece.is_empty());
        plaintext.extend_from_slice(piece);
        Ok::<_, RecordError>(())
    })?;
    Ok((plaintext, is_open))
}

/// Lengths of the records that `wire` consists of.
fn records(mut wire: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some(&[high, low]) = wire.get(3..HEADER) {
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        lengths.push(length);
        wire = &wire[length..];
    }
    assert!(wire.is_empty());
    lengths
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_whatever_the_pieces_and_the_cuts(
        pieces in proptest::collection::vec((0_usize..40_000, any::<bool>()), 1..8),
        cuts in proptest::collection::vec(1_usize..30_000, 1..12),
        seed in any::<u8>(),
    ) {
        let (mut client, mut server) = pair();
        let mut sent = Vec::new();
        let mut wire = Vec::new();
        for (length, flush) in &pieces {
            let pattern = (0..=u8::MAX).map(|at| at.wrapping_mul(31) ^ seed);
            let piece: Vec<u8> = pattern.cycle().take(*length).collect();
            client.sealer.append(&mut wire, &piece).unwrap();
            if *flush {
                client.sealer.finish(&mut wire).unwrap();
            }
            sent.extend_from_slice(&piece);
        }
        client.sealer.close(&mut wire).unwrap();
        let mut read = Vec::new();
        let mut rest = wire.as_slice();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            let (plaintext, is_open) = opened(&mut server, now).unwrap();
            read.extend_from_slice(&plaintext);
            prop_assert_eq!(is_open, !later.is_empty());
            rest = later;
        }
        prop_assert!(read == sent);
        prop_assert_eq!(server.opener.end_of_input(), Ok(()));
    }

    #[test]
    fn a_changed_byte_never_passes(
        length in 1_usize..3_000,
        place in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        let (mut client, mut server) = pair();
        let mut wire = sealed(&mut client, &[&vec![7; length]]);
        let place = place.index(wire.len());
        wire[place] ^= flip;
        // A longer length may leave the record incomplete, which is not a verdict yet.
        match opened(&mut server, &wire) {
            Ok((plaintext, _)) => {
                prop_assert!(plaintext.is_empty());
                prop_assert!((3..HEADER).contains(&place));
                prop_assert_eq!(server.opener.end_of_input(), Err(RecordError::Truncated));
            }
            Err(error) => {
                prop_assert_eq!(opened(&mut server, &[]), Err(error), "sticky");
                prop_assert_eq!(server.opener.end_of_input(), Err(error));
            }
        }
    }
}

#[test]
fn small_pieces_share_a_record_and_large_ones_fill_records() {
    let (mut client, mut server) = pair();
    let wire = sealed(&mut client, &[b"one ", b"two ", b"", b"three"]);
    assert_eq!(records(&wire).len(), 1);
    assert_eq!(opened(&mut server, &wire).unwrap().0, b"one two three");
    let large = vec![1; 2 * MAX_PLAINTEXT + 3];
    let wire = sealed(&mut client, &[&large]);
    let full = HEADER + MAX_PLAINTEXT + 17;
    assert_eq!(records(&wire), [full, full, HEADER + 3 + 17]);
    assert_eq!(opened(&mut server, &wire).unwrap().0, large);
    assert!(
        sealed(&mut client, &[]).is_empty(),
        "nothing makes no record"
    );
}

#[test]
fn room_tells_what_still_fits() {
    let (mut client, _server) = pair();
    let mut wire = Vec::new();
    assert_eq!(client.sealer.room(), MAX_PLAINTEXT);
    client.sealer.append(&mut wire, &[0; 9]).unwrap();
    assert_eq!(client.sealer.room(), MAX_PLAINTEXT - 9);
    client
        .sealer
        .append(&mut wire, &[0; MAX_PLAINTEXT - 9])
        .unwrap();
    assert_eq!(client.sealer.room(), MAX_PLAINTEXT);
    assert_eq!(records(&wire).len(), 1);
}

#[test]
fn plaintext_lies_in_the_buffer_that_was_received() {
    let (mut client, mut server) = pair();
    let mut wire = sealed(&mut client, &[b"in place"]);
    wire.extend(sealed(&mut client, &[b"straddling"]));
    let tail = wire.split_off(wire.len() - 4);
    let mut position = 0;
    let Ok(Opened::InPlace(place)) = server.opener.next(&mut wire, &mut position) else {
        panic!("a whole record is opened in place")
    };
    assert_eq!(&wire[place], b"in place");
    assert_eq!(
        server.opener.next(&mut wire, &mut position),
        Ok(Opened::Blocked)
    );
    assert_eq!(position, wire.len());
    let mut tail = tail;
    let mut position = 0;
    let carried = server.opener.next(&mut tail, &mut position);
    assert_eq!(carried, Ok(Opened::Carried(b"straddling")));
    assert_eq!(position, tail.len());
}

#[test]
fn a_foreign_write_into_an_open_record_is_noticed() {
    let (mut client, _server) = pair();
    let mut wire = Vec::new();
    client.sealer.append(&mut wire, b"mine").unwrap();
    wire.push(0);
    assert!(matches!(
        client.sealer.append(&mut wire, b"x"),
        Err(SealError::BufferChanged)
    ));
    assert!(matches!(
        client.sealer.finish(&mut wire),
        Err(SealError::BufferChanged)
    ));
}

#[test]
fn closing_and_truncation_differ() {
    let (mut client, mut server) = pair();
    let mut wire = sealed(&mut client, &[b"last"]);
    assert_eq!(
        opened(&mut server, &wire).unwrap(),
        (b"last".to_vec(), true)
    );
    assert_eq!(server.opener.end_of_input(), Err(RecordError::Truncated));
    wire.clear();
    client.sealer.append(&mut wire, b"words").unwrap();
    client.sealer.close(&mut wire).unwrap();
    assert!(matches!(
        client.sealer.append(&mut wire, b"more"),
        Err(SealError::Closed)
    ));
    assert!(matches!(
        client.sealer.close(&mut wire),
        Err(SealError::Closed)
    ));
    client.sealer.finish(&mut wire).unwrap();
    wire.extend_from_slice(b"ignored after the end");
    assert_eq!(
        opened(&mut server, &wire).unwrap(),
        (b"words".to_vec(), false)
    );
    assert_eq!(server.opener.end_of_input(), Ok(()));
    assert_eq!(opened(&mut server, &wire).unwrap(), (vec![], false));
}

#[test]
fn close_is_understood_by_and_from_rustls() {
    for ours_is_client in [true, false] {
        let (mut ours, mut peer) = with_rustls(ours_is_client);
        let mut wire = Vec::new();
        ours.sealer.close(&mut wire).unwrap();
        feed(&mut peer, &wire).unwrap();
        assert_eq!(
            peer.reader().read(&mut [0; 8]).unwrap(),
            0,
            "an orderly end"
        );
        peer.send_close_notify();
        assert_eq!(
            opened(&mut ours, &written(&mut peer)).unwrap(),
            (vec![], false)
        );
    }
}

#[test]
fn errors_are_told_to_the_peer() {
    let (mut ours, mut peer) = with_rustls(true);
    peer.writer().write_all(b"hello").unwrap();
    let mut wire = written(&mut peer);
    let last = wire.len() - 1;
    wire[last] ^= 1;
    let error = opened(&mut ours, &wire).unwrap_err();
    assert_eq!(error, RecordError::Corrupt);
    let mut alert = Vec::new();
    ours.sealer.fail(&mut alert, error).unwrap();
    let told = feed(&mut peer, &alert).unwrap_err();
    assert_eq!(
        told,
        rustls::Error::AlertReceived(AlertDescription::BadRecordMac)
    );
}

#[test]
fn an_alert_of_the_peer_is_typed() {
    let (mut ours, mut peer) = with_rustls(true);
    let mut wire = sealed(&mut ours, &[b"x"]);
    wire[6] ^= 1;
    feed(&mut peer, &wire).unwrap_err();
    let error = opened(&mut ours, &written(&mut peer)).unwrap_err();
    assert_eq!(
        error,
        RecordError::PeerAlert(AlertDescription::BadRecordMac)
    );
    let mut alert = Vec::new();
    ours.sealer.fail(&mut alert, error).unwrap();
    assert!(alert.is_empty(), "an alert is not answered");
}

#[test]
fn malformed_records_have_their_own_errors() {
    #[track_caller]
    fn check(record: &[u8], expected: RecordError) {
        let (_client, mut server) = pair();
        assert_eq!(opened(&mut server, record).unwrap_err(), expected);
    }
    check(&[23, 3, 3, 0xff, 0xff], RecordError::Overflow(0xffff));
    check(
        &[23, 3, 3, 0x41, 0x01],
        RecordError::Overflow(MAX_PLAINTEXT + 257),
    );
    check(&[23, 3, 3, 0, 0], RecordError::Empty);
    check(
        &[&[23, 3, 3, 0, 16][..], &[0; 16]].concat(),
        RecordError::Empty,
    );
    check(
        &[&[23, 3, 3, 0, 17][..], &[0; 17]].concat(),
        RecordError::Corrupt,
    );
    check(&[20, 3, 3, 0, 1, 1], RecordError::UnexpectedRecord(20));
    check(&[22, 3, 3, 0, 1, 1], RecordError::UnexpectedRecord(22));
    check(&[21, 3, 3, 0, 2, 1, 0], RecordError::UnexpectedRecord(21));
}

/// Seals `content` as it is, padding and type included.
fn raw(from: &mut Established, content: &[u8]) -> Vec<u8> {
    let (padded, content_type) = content.split_at(content.len() - 1);
    let mut wire = vec![0; HEADER];
    wire.extend_from_slice(padded);
    from.sealer
        .seal_from(&mut wire, 0, content_type[0])
        .unwrap();
    wire
}

#[test]
fn what_records_may_carry() {
    #[track_caller]
    fn check(contents: &[&[u8]], expected: Result<&[u8], RecordError>) {
        let (mut client, mut server) = pair();
        let wire: Vec<u8> = contents
            .iter()
            .flat_map(|content| raw(&mut client, content))
            .collect();
        let read = opened(&mut server, &wire).map(|(plaintext, _)| plaintext);
        assert_eq!(read, expected.map(<[u8]>::to_vec));
    }
    check(&[b"hi\x17"], Ok(b"hi"));
    check(&[b"hi\x17\0\0\0"], Ok(b"hi"));
    check(&[b"\x17", b"\x17\0", b"hi\x17"], Ok(b"hi"));
    check(&[b"\0\0\0"], Err(RecordError::Empty));
    let mut long = vec![1; MAX_PLAINTEXT + 1];
    long.push(23);
    check(&[&long], Err(RecordError::Overflow(MAX_PLAINTEXT + 2)));
    check(&[b"hi\x18"], Err(RecordError::UnexpectedRecord(24)));
    // Alerts: user_canceled says nothing, a warning is as fatal as its description.
    check(&[b"\x01\x5a\x15", b"hi\x17"], Ok(b"hi"));
    check(
        &[b"\x01\x0a\x15"],
        Err(RecordError::PeerAlert(AlertDescription::UnexpectedMessage)),
    );
    check(&[b"\x01\x15"], Err(RecordError::Malformed));
    check(&[b"\x01\0\x01\0\x15"], Err(RecordError::Malformed));
    // Handshake messages. The receiver is a server: no tickets for it.
    check(
        &[&[4, 0, 0, 1, 9, 22]],
        Err(RecordError::UnexpectedHandshake(4)),
    );
    check(
        &[&[1, 0, 0, 0, 22]],
        Err(RecordError::UnexpectedHandshake(1)),
    );
    check(&[&[24, 0, 0, 1, 2, 22]], Err(RecordError::Malformed));
    check(&[&[24, 0, 0, 2, 0, 0, 22]], Err(RecordError::Malformed));
    check(
        &[&[24, 0, 0, 1, 0, 24, 22]],
        Err(RecordError::UnexpectedHandshake(24)),
    );
    check(&[&[24, 1, 0, 1, 0, 22]], Err(RecordError::Malformed));
    check(
        &[&[24, 0, 22], b"hi\x17"],
        Err(RecordError::UnexpectedRecord(23)),
    );
    check(&[&[22]], Err(RecordError::Empty));
}

#[test]
fn tickets_are_ignored_even_in_pieces() {
    let (mut client, mut server) = pair();
    let ticket = [&[4, 0, 0, 40][..], &[9; 40]].concat();
    let mut wire = raw(&mut server, &[&ticket[..3], &[22]].concat());
    wire.extend(raw(&mut server, &[&ticket[3..20], &[22]].concat()));
    wire.extend(raw(&mut server, &[&ticket[20..], &ticket, &[22]].concat()));
    wire.extend(sealed(&mut server, &[b"data"]));
    assert_eq!(opened(&mut client, &wire).unwrap().0, b"data");
}

#[test]
fn key_updates_of_rustls_are_followed_and_answered() {
    for ours_is_client in [true, false] {
        let (mut ours, mut peer) = with_rustls(ours_is_client);
        for round in 0..5_u8 {
            peer.refresh_traffic_keys().unwrap();
            peer.writer().write_all(&[round; 100]).unwrap();
            assert_eq!(
                opened(&mut ours, &written(&mut peer)).unwrap().0,
                [round; 100]
            );
            assert!(ours.sealer.owes_key_update());
            let wire = sealed(&mut ours, &[&[round; 50]]);
            assert_eq!(records(&wire).len(), 2, "the answer goes before the data");
            assert!(!ours.sealer.owes_key_update());
            feed(&mut peer, &wire).unwrap();
            assert_eq!(read_all(&mut peer), [round; 50]);
        }
        peer.refresh_traffic_keys().unwrap();
        opened(&mut ours, &written(&mut peer)).unwrap();
        let wire = sealed(&mut ours, &[]);
        assert_eq!(records(&wire).len(), 1, "flushing alone answers too");
        feed(&mut peer, &wire).unwrap();
    }
}

#[test]
fn our_key_is_replaced_before_it_wears_out() {
    for ours_is_client in [true, false] {
        let (mut ours, mut peer) = with_rustls(ours_is_client);
        ours.sealer.rekey_after_for_test(3);
        let mut count = 0;
        for round in 0..20_u8 {
            let wire = sealed(&mut ours, &[&[round; 10]]);
            count += records(&wire).len();
            feed(&mut peer, &wire).unwrap();
            assert_eq!(read_all(&mut peer), [round; 10]);
        }
        assert!(count > 25, "{count} records for 20 messages");
        assert!(
            written(&mut peer).is_empty(),
            "the peer was not asked for its key"
        );
    }
}

#[test]
fn both_sides_may_rekey_at_once() {
    let (mut client, mut server) = pair();
    client.sealer.rekey_after_for_test(1);
    server.sealer.rekey_after_for_test(1);
    for round in 0..50_u8 {
        let (a, b) = (
            sealed(&mut client, &[&[round]]),
            sealed(&mut server, &[&[!round]]),
        );
        assert_eq!(opened(&mut server, &a).unwrap().0, [round]);
        assert_eq!(opened(&mut client, &b).unwrap().0, [!round]);
    }
}

#[test]
fn a_flood_of_key_updates_ends_the_session() {
    let (mut client, mut server) = pair();
    client.sealer.rekey_after_for_test(0);
    let mut update = || {
        let mut wire = Vec::new();
        client.sealer.update_key(&mut wire).unwrap();
        wire
    };
    for _ in 0..32 {
        opened(&mut server, &update()).unwrap();
    }
    assert_eq!(
        opened(&mut server, &update()),
        Err(RecordError::KeyUpdateFlood)
    );
}
