//! A session's records changed, dropped, repeated and cut on their way: what is opened is a prefix of what was
//! sent, and an end is only believed if it was said.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use userspace_l7::tls::{Established, Handshake, Identity, Progress, RecordError};

const NAME: &str = "spiffe://cluster.local/ns/web/sa/fuzz";
const SENT: &[&[u8]] = &[b"first", &[7; 300], b"", b"last"];

static IDENTITY: LazyLock<Identity> = LazyLock::new(identity);

fn identity() -> Identity {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, key).expect("an authority");
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(NAME.try_into().expect("ASCII"))];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().expect("a key");
    let leaf: CertificateDer<'static> = leaf
        .signed_by(&key, &authority)
        .expect("a leaf")
        .der()
        .clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Identity::new(vec![leaf], &key, vec![authority.der().clone()]).expect("an identity")
}

/// The two ends of a fresh session.
fn session() -> (Established, Established) {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = Handshake::client(&IDENTITY, &[NAME.parse().expect("an identity")])
        .and_then(|begun| begun.step(&[], &mut to_server))
        .expect("a hello");
    let mut server = Progress::Continue(Handshake::server(&IDENTITY).expect("a server"));
    loop {
        server = match server {
            Progress::Continue(waiting) => waiting
                .step(&std::mem::take(&mut to_server), &mut to_client)
                .expect("the client is good"),
            done => done,
        };
        client = match client {
            Progress::Continue(waiting) => waiting
                .step(&std::mem::take(&mut to_client), &mut to_server)
                .expect("the server is good"),
            done => done,
        };
        match (client, server) {
            (Progress::Done(client), Progress::Done(server)) => return (client, server),
            (one, other) => (client, server) = (one, other),
        }
    }
}

/// What was sent with the edits in `script`: three bytes are a place, a kind and a value.
fn damaged(mut wire: Vec<u8>, script: &[u8]) -> Vec<u8> {
    let (edits, rest) = script.as_chunks::<3>();
    for [place, kind, value] in edits {
        let at = usize::from(*place) * wire.len() / 256;
        match kind % 4 {
            0 if at < wire.len() => wire[at] ^= value,
            1 => wire.truncate(at),
            2 => drop(wire.splice(at..at, wire.clone())),
            _ => wire.insert(at, *value),
        }
        if wire.len() > 1 << 14 {
            break;
        }
    }
    wire.extend_from_slice(rest);
    wire
}

fuzz_target!(|script: &[u8]| {
    let (mut client, mut server) = session();
    let mut wire = Vec::new();
    for piece in SENT {
        client.sealer.append(&mut wire, piece).expect("room");
        client.sealer.finish(&mut wire).expect("sealed");
    }
    let without_end = wire.len();
    client.sealer.close(&mut wire).expect("closed");
    let is_whole = |arrived: &[u8]| arrived.starts_with(&wire);
    let (step, script) = script.split_first().unwrap_or((&255, &[]));
    let arrived = damaged(wire.clone(), script);

    let mut read = Vec::new();
    let mut ended = false;
    for piece in arrived.chunks(usize::from(*step) + 1) {
        let opened = server.opener.open(&mut piece.to_vec(), |content| {
            read.extend_from_slice(content);
            Ok::<_, RecordError>(())
        });
        match opened {
            Ok(is_open) => ended = !is_open,
            Err(error) => {
                assert_eq!(
                    server.opener.end_of_input(),
                    Err(error),
                    "errors are sticky"
                );
                break;
            }
        }
    }
    assert!(SENT.concat().starts_with(&read), "bytes that nobody sent");
    assert_eq!(ended, is_whole(&arrived), "an end that nobody said");
    assert_eq!(server.opener.end_of_input().is_ok(), ended);
    if arrived.starts_with(&wire[..without_end]) {
        assert_eq!(read, SENT.concat(), "bytes were lost");
    }
});
