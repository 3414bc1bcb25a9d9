//! TLS as a whole: handshakes between two sides, what each accepts of the other, and their identities.

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::{AlertDescription, CertificateError, Error, version};

use super::fixture::{
    Authority, Flaw, Plain, established, feed, id, read_all, shake_hands, shake_hands_with, written,
};
use super::{
    Handshake, Identities, Identity, IdentityError, PeerRefused, Progress, RecordError, Role,
    TlsError,
};
use crate::error::{Fault, Retry};

const ALICE: &str = "spiffe://cluster.local/ns/shop/sa/alice";
const BOB: &str = "spiffe://cluster.local/ns/shop/sa/bob";
const MALLORY: &str = "spiffe://cluster.local/ns/evil/sa/mallory";
const FOREIGN: &str = "spiffe://elsewhere/ns/shop/sa/alice";

fn exchange(a: &mut super::Established, b: &mut super::Established, text: &[u8]) {
    let mut wire = Vec::new();
    a.sealer.append(&mut wire, text).unwrap();
    a.sealer.finish(&mut wire).unwrap();
    let mut read = Vec::new();
    b.opener
        .open(&mut wire, |piece| {
            read.extend_from_slice(piece);
            Ok::<_, RecordError>(())
        })
        .unwrap();
    assert_eq!(read, text);
}

#[test]
fn two_agents_agree_and_know_each_other() {
    let authority = Authority::new("root");
    let (alice, bob) = (authority.identity(ALICE), authority.identity(BOB));
    let (mut client, mut server) = established(&alice, &bob);
    assert_eq!(client.peer.id(), &id(BOB));
    assert_eq!(server.peer.id(), &id(ALICE));
    exchange(&mut client, &mut server, b"hello");
    exchange(&mut server, &mut client, b"welcome");
}

#[test]
fn any_expected_name_is_enough() {
    let authority = Authority::new("root");
    let alice = authority.identity(ALICE);
    let bob = authority
        .leaf(&["https://bob", BOB, MALLORY], Flaw::None)
        .identity(&authority);
    let client = Handshake::client(&alice, &[id(FOREIGN), id(MALLORY)]).unwrap();
    let (client, server) = shake_hands(client, Handshake::server(&bob).unwrap());
    assert_eq!(client.unwrap().peer.id(), &id(MALLORY));
    assert!(server.is_ok());
}

#[test]
fn a_client_is_known_by_its_name_in_our_trust_domain() {
    let authority = Authority::new("root");
    let bob = authority.identity(BOB);
    let both = authority
        .leaf(&[FOREIGN, ALICE], Flaw::None)
        .identity(&authority);
    let (_, server) = shake_hands(
        Handshake::client(&both, &[id(BOB)]).unwrap(),
        Handshake::server(&bob).unwrap(),
    );
    assert_eq!(server.unwrap().peer.id(), &id(ALICE));
}

#[test]
fn a_server_with_another_name_is_refused_before_it_sees_our_certificate() {
    let authority = Authority::new("root");
    let (alice, mallory) = (authority.identity(ALICE), authority.identity(MALLORY));
    for expected in [vec![id(BOB)], vec![]] {
        let (client, server) = shake_hands(
            Handshake::client(&alice, &expected).unwrap(),
            Handshake::server(&mallory).unwrap(),
        );
        let error = client.unwrap_err();
        assert_eq!(error.fault(Role::Client), Fault::Upstream);
        assert_eq!(error.retry(Role::Client), Retry::Safe);
        let TlsError::Peer(refused) = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            refused,
            PeerRefused::WrongIdentity {
                expected,
                found: vec![id(MALLORY)]
            }
        );
        let error = server.unwrap_err();
        assert!(matches!(error, TlsError::PeerAlert(_)), "{error:?}");
        assert_eq!(error.fault(Role::Server), Fault::Downstream);
        assert_eq!(error.retry(Role::Server), Retry::Never);
    }
}

#[test]
fn a_client_of_another_trust_domain_is_refused_and_told() {
    let authority = Authority::new("root");
    let (foreign, bob) = (authority.identity(FOREIGN), authority.identity(BOB));
    let (client, server) = shake_hands(
        Handshake::client(&foreign, &[id(BOB)]).unwrap(),
        Handshake::server(&bob).unwrap(),
    );
    assert!(matches!(client, Err(TlsError::PeerAlert(_))), "{client:?}");
    let TlsError::Peer(refused) = server.unwrap_err() else {
        panic!("not a refusal")
    };
    let own = id(BOB).trust_domain().clone();
    assert_eq!(
        refused,
        PeerRefused::WrongTrustDomain {
            own,
            found: vec![id(FOREIGN)]
        }
    );
}

#[test]
fn chains_that_do_not_verify_are_refused_on_both_sides() {
    let authority = Authority::new("root");
    let other = Authority::new("other root");
    let good = |name| authority.identity(name);
    let expired = |name| authority.leaf(&[name], Flaw::Expired).identity(&authority);
    // A certificate of another root, whose owner does trust ours.
    let unknown = |name| other.leaf(&[name], Flaw::None).identity(&authority);
    let verdict = |result: Result<super::Established, TlsError>| match result.unwrap_err() {
        TlsError::Handshake(Error::InvalidCertificate(error)) => error,
        other => panic!("{other:?}"),
    };
    let bob = [id(BOB)];
    let run = |client: &Identity, server: &Identity| {
        shake_hands(
            Handshake::client(client, &bob).unwrap(),
            Handshake::server(server).unwrap(),
        )
    };
    let error = verdict(run(&good(ALICE), &expired(BOB)).0);
    assert!(
        matches!(error, CertificateError::ExpiredContext { .. }),
        "{error:?}"
    );
    let error = verdict(run(&expired(ALICE), &good(BOB)).1);
    assert!(
        matches!(error, CertificateError::ExpiredContext { .. }),
        "{error:?}"
    );
    assert_eq!(
        verdict(run(&good(ALICE), &unknown(BOB)).0),
        CertificateError::UnknownIssuer
    );
    assert_eq!(
        verdict(run(&unknown(ALICE), &good(BOB)).1),
        CertificateError::UnknownIssuer
    );
    let server_only = authority
        .leaf(&[ALICE], Flaw::NoClientAuth)
        .identity(&authority);
    let error = verdict(run(&server_only, &good(BOB)).1);
    assert!(
        matches!(error, CertificateError::InvalidPurposeContext { .. }),
        "{error:?}"
    );
}

#[test]
fn plain_rustls_servers_are_understood_whatever_the_cut() {
    let authority = Authority::new("root");
    let alice = authority.identity(ALICE);
    for (cut, suite) in [
        (1, cipher_suite::TLS13_AES_128_GCM_SHA256),
        (7, cipher_suite::TLS13_AES_256_GCM_SHA384),
        (100_000, cipher_suite::TLS13_AES_128_GCM_SHA256),
    ] {
        let plain = Plain {
            suites: vec![suite],
            ..Plain::default()
        };
        let mut peer = plain.server(&authority, authority.leaf(&[BOB], Flaw::None));
        let ours = Handshake::client(&alice, &[id(BOB)]).unwrap();
        let (ours, theirs) = shake_hands_with(ours, &mut peer, cut);
        theirs.unwrap();
        let mut ours = ours.unwrap();
        let mut wire = Vec::new();
        ours.sealer.append(&mut wire, b"question").unwrap();
        ours.sealer.finish(&mut wire).unwrap();
        feed(&mut peer, &wire).unwrap();
        assert_eq!(read_all(&mut peer), b"question");
    }
}

#[test]
fn plain_rustls_clients_are_understood_whatever_the_cut() {
    let authority = Authority::new("root");
    let bob = authority.identity(BOB);
    for cut in [1, 7, 100_000] {
        let mut peer = Plain::default().client(Some(authority.leaf(&[ALICE], Flaw::None)));
        let ours = Handshake::server(&bob).unwrap();
        let (ours, theirs) = shake_hands_with(ours, &mut peer, cut);
        theirs.unwrap();
        let mut ours = ours.unwrap();
        assert_eq!(ours.peer.id(), &id(ALICE));
        let mut wire = Vec::new();
        ours.sealer.append(&mut wire, b"answer").unwrap();
        ours.sealer.finish(&mut wire).unwrap();
        feed(&mut peer, &wire).unwrap();
        assert_eq!(read_all(&mut peer), b"answer");
    }
}

#[test]
fn data_that_comes_with_the_last_handshake_record_is_not_lost() {
    use std::io::Write;
    let authority = Authority::new("root");
    let bob = authority.identity(BOB);
    let mut peer = Plain::default().client(Some(authority.leaf(&[ALICE], Flaw::None)));
    let mut out = Vec::new();
    let Ok(Progress::Continue(ours)) = Handshake::server(&bob)
        .unwrap()
        .step(&written(&mut peer), &mut out)
    else {
        panic!("a server waits for the client")
    };
    feed(&mut peer, &out).unwrap();
    peer.writer().write_all(b"early ").unwrap();
    let mut flight = written(&mut peer);
    peer.writer().write_all(b"bird").unwrap();
    let late = written(&mut peer);
    let (now, later) = late.split_at(9);
    flight.extend_from_slice(now);
    out.clear();
    let Ok(Progress::Done(mut ours)) = ours.step(&flight, &mut out) else {
        panic!("the handshake is complete")
    };
    let mut read = Vec::new();
    let mut keep = |piece: &[u8]| {
        read.extend_from_slice(piece);
        Ok::<_, RecordError>(())
    };
    assert!(ours.opener.open(&mut [], &mut keep).unwrap());
    assert!(ours.opener.open(&mut later.to_vec(), &mut keep).unwrap());
    assert_eq!(read, b"early bird");
}

#[test]
fn a_client_without_certificate_is_refused() {
    let authority = Authority::new("root");
    let bob = authority.identity(BOB);
    let mut peer = Plain::default().client(None);
    let (ours, theirs) = shake_hands_with(Handshake::server(&bob).unwrap(), &mut peer, 4096);
    let error = ours.unwrap_err();
    assert!(
        matches!(error, TlsError::Handshake(Error::NoCertificatesPresented)),
        "{error:?}"
    );
    assert_eq!(
        theirs.unwrap_err(),
        Error::AlertReceived(AlertDescription::CertificateRequired),
        "the peer learns why"
    );
}

#[test]
fn peers_without_h2_are_refused() {
    let authority = Authority::new("root");
    let (alice, bob) = (authority.identity(ALICE), authority.identity(BOB));
    for alpn in [vec![], vec![b"http/1.1".to_vec()]] {
        let none = alpn.is_empty();
        let plain = Plain {
            alpn: alpn.clone(),
            ..Plain::default()
        };
        let mut peer = plain.client(Some(authority.leaf(&[ALICE], Flaw::None)));
        let (ours, theirs) = shake_hands_with(Handshake::server(&bob).unwrap(), &mut peer, 4096);
        let error = ours.unwrap_err();
        if none {
            assert!(matches!(error, TlsError::NotHttp2), "{error:?}");
        } else {
            assert!(
                matches!(error, TlsError::Handshake(Error::NoApplicationProtocol)),
                "{error:?}"
            );
        }
        assert_eq!(
            theirs.unwrap_err(),
            Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        );
        let plain = Plain {
            alpn,
            ..Plain::default()
        };
        let mut peer = plain.server(&authority, authority.leaf(&[BOB], Flaw::None));
        let ours = Handshake::client(&alice, &[id(BOB)]).unwrap();
        let (ours, theirs) = shake_hands_with(ours, &mut peer, 4096);
        assert!(ours.is_err());
        assert!(theirs.is_err());
    }
}

#[test]
fn old_versions_and_other_ciphers_are_refused() {
    let authority = Authority::new("root");
    let (alice, bob) = (authority.identity(ALICE), authority.identity(BOB));
    let old = || Plain {
        versions: vec![&version::TLS12],
        ..Plain::default()
    };
    let chacha = || Plain {
        suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..Plain::default()
    };
    for plain in [old, chacha as fn() -> Plain] {
        let mut peer = plain().client(Some(authority.leaf(&[ALICE], Flaw::None)));
        let (ours, theirs) = shake_hands_with(Handshake::server(&bob).unwrap(), &mut peer, 4096);
        let error = ours.unwrap_err();
        assert!(
            matches!(error, TlsError::Handshake(Error::PeerIncompatible(_))),
            "{error:?}"
        );
        assert!(matches!(theirs, Err(Error::AlertReceived(_))), "{theirs:?}");
        let mut peer = plain().server(&authority, authority.leaf(&[BOB], Flaw::None));
        let ours = Handshake::client(&alice, &[id(BOB)]).unwrap();
        let (ours, theirs) = shake_hands_with(ours, &mut peer, 4096);
        assert!(matches!(ours, Err(TlsError::PeerAlert(_))), "{ours:?}");
        assert!(
            matches!(theirs, Err(Error::PeerIncompatible(_))),
            "{theirs:?}"
        );
    }
}

#[test]
fn bytes_that_are_no_record_are_refused_at_once() {
    let authority = Authority::new("root");
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        &[22, 3, 3, 0xff, 0xff, 1],
        b"PRI * HTTP/2.0",
    ] {
        let server = Handshake::server(&authority.identity(BOB)).unwrap();
        let mut out = Vec::new();
        let error = server.step(bytes, &mut out).unwrap_err();
        assert!(matches!(error, TlsError::Handshake(_)), "{error:?}");
        assert_eq!(out.first(), Some(&21), "an alert is sent");
    }
}

fn config(cases: u32) -> ProptestConfig {
    // A failing case becomes a test of its own, not a file beside the sources.
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(256))]

    /// Whatever a peer sends in place of its flight: an error or waiting, never a session, never a panic.
    #[test]
    fn a_changed_handshake_makes_no_session(
        place in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
        to_client in any::<bool>(),
    ) {
        let authority = Authority::new("root");
        let (alice, bob) = (authority.identity(ALICE), authority.identity(BOB));
        let client = Handshake::client(&alice, &[id(BOB)]).unwrap();
        let server = Handshake::server(&bob).unwrap();
        let (mut hello, mut flight) = (Vec::new(), Vec::new());
        let Ok(Progress::Continue(client)) = client.step(&[], &mut hello) else { panic!() };
        let Ok(Progress::Continue(server)) = server.step(&hello, &mut flight) else { panic!() };
        let (victim, mut bytes) = if to_client {
            (client, flight)
        } else {
            let mut finish = Vec::new();
            let Ok(Progress::Done(_)) = client.step(&flight, &mut finish) else { panic!() };
            (server, finish)
        };
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        let mut out = Vec::new();
        match victim.step(&bytes, &mut out) {
            Ok(Progress::Continue(_)) | Err(_) => {}
            // The only bytes without meaning: record versions, which RFC 8446 wants ignored.
            Ok(Progress::Done(_)) => prop_assert!(is_record_version(&bytes, place)),
        }
    }
}

/// Whether `place` is in the version field of a record of `wire`.
fn is_record_version(mut wire: &[u8], mut place: usize) -> bool {
    loop {
        let record = 5 + usize::from(u16::from_be_bytes([wire[3], wire[4]]));
        if place < record {
            return (1..3).contains(&place);
        }
        wire = &wire[record..];
        place -= record;
    }
}

#[test]
fn no_host_name_is_sent() {
    let authority = Authority::new("root");
    let mut hello = Vec::new();
    let client = Handshake::client(&authority.identity(ALICE), &[id(BOB)]).unwrap();
    drop(client.step(&[], &mut hello));
    let mut acceptor = rustls::server::Acceptor::default();
    acceptor.read_tls(&mut hello.as_slice()).unwrap();
    let accepted = acceptor.accept().unwrap().unwrap();
    assert_eq!(accepted.client_hello().server_name(), None);
    let alpn: Vec<_> = accepted.client_hello().alpn().unwrap().collect();
    assert_eq!(alpn, [b"h2"]);
}

#[test]
fn an_identity_tells_its_facts_and_hides_its_key() {
    let authority = Authority::new("root");
    let credential = authority.leaf(&["https://x", BOB], Flaw::None);
    let secret = credential.key.secret_der().to_vec();
    let identity = credential.identity(&authority);
    assert_eq!(identity.id(), &id(BOB));
    assert!(
        identity
            .serial()
            .bytes()
            .all(|digit| digit.is_ascii_digit()),
        "{identity:?}"
    );
    assert!(identity.not_before() < identity.not_after());
    assert_eq!(identity.chain().len(), 1);
    assert_eq!(
        identity.roots().collect::<Vec<_>>(),
        [authority.root().as_ref()]
    );
    identity
        .check_trusted(std::time::SystemTime::now())
        .unwrap();
    let shown = format!("{identity:?} {:?}", identity.client());
    assert!(
        !shown.contains(&format!("{:?}", &secret[40..48])),
        "{shown}"
    );
}

#[test]
fn parts_that_do_not_fit_make_no_identity() {
    let authority = Authority::new("root");
    let bob = || authority.leaf(&[BOB], Flaw::None);
    let build = |chain, key, roots| Identity::new(chain, &key, roots).unwrap_err();
    let root = || vec![authority.root()];
    assert!(matches!(
        build(vec![], bob().key, root()),
        IdentityError::EmptyChain
    ));
    assert!(matches!(
        build(bob().chain, bob().key, vec![]),
        IdentityError::NoRoots
    ));
    assert!(matches!(
        build(bob().chain, bob().key, root()),
        IdentityError::Credential(_)
    ));
    let nameless = authority.leaf(&["https://bob"], Flaw::None);
    assert!(matches!(
        build(nameless.chain, nameless.key, root()),
        IdentityError::NoSpiffeId
    ));
    let junk = vec![authority.root(), vec![1, 2, 3].into()];
    let error = build(bob().chain, bob().key, junk);
    assert!(
        matches!(
            error,
            IdentityError::Root {
                position: 2,
                count: 2,
                ..
            }
        ),
        "{error:?}"
    );
    let stranger = Authority::new("stranger")
        .leaf(&[BOB], Flaw::None)
        .identity(&authority);
    let now = std::time::SystemTime::now();
    assert!(matches!(
        stranger.check_trusted(now),
        Err(IdentityError::Untrusted(_))
    ));
}

#[test]
fn the_store_replaces_by_name_and_leaves_sessions_alone() {
    let authority = Authority::new("root");
    let store = Identities::default();
    assert!(store.get(&id(BOB)).is_none());
    let first = std::sync::Arc::new(authority.identity(BOB));
    store.publish(&first);
    let held = store.get(&id(BOB)).unwrap();
    let second = std::sync::Arc::new(authority.identity(BOB));
    store.publish(&second);
    store.publish(&std::sync::Arc::new(authority.identity(ALICE)));
    assert_eq!(held.serial(), first.serial());
    assert_eq!(store.get(&id(BOB)).unwrap().serial(), second.serial());
    let names: Vec<_> = store
        .all()
        .iter()
        .map(|identity| identity.id().clone())
        .collect();
    assert_eq!(names, [id(ALICE), id(BOB)]);
    store.withdraw(&id(BOB));
    assert!(store.get(&id(BOB)).is_none());
}
