//! The name in a TLS client's first message. Somebody else's handshake: it is looked at and passed on as it is.

use rustls::server::Acceptor;

/// More than any client says before its server answers: the longest handshake message that rustls takes.
pub(crate) const LONGEST: usize = 64 << 10;

/// What a client's first bytes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// It asks for a server of this name (RFC 6066 §3).
    Named(String),
    /// It names none, or this is no TLS.
    Nameless,
    /// More bytes are needed.
    Undecided,
}

/// Looks at all bytes that have come so far.
pub(crate) fn hello(mut bytes: &[u8]) -> Hello {
    let is_long = bytes.len() > LONGEST;
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        // Reading from memory fails only where rustls has no more room.
        let Ok(1..) = acceptor.read_tls(&mut bytes) else {
            return Hello::Nameless;
        };
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map_or(Hello::Nameless, Hello::Named);
            }
            Err(_no_hello) => return Hello::Nameless,
        }
    }
    if is_long {
        Hello::Nameless
    } else {
        Hello::Undecided
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::{Hello, LONGEST, hello};

    /// What a client says first that asks for a server of this name.
    fn client(name: &str) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut said = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut said).unwrap();
        }
        said
    }

    #[test]
    fn a_client_says_whom_it_wants() {
        let said = client("a.wild.example");
        assert_eq!(hello(&said), Hello::Named("a.wild.example".to_owned()));
        // What comes after it is not looked at.
        let more = [&said[..], b"more"].concat();
        assert_eq!(hello(&more), Hello::Named("a.wild.example".to_owned()));
        // An address is no name.
        assert_eq!(hello(&client("192.0.2.1")), Hello::Nameless);
    }

    #[test]
    fn half_of_it_leaves_it_open_and_what_is_none_says_nothing() {
        let said = client("a.wild.example");
        for length in 0..said.len() {
            assert_eq!(hello(&said[..length]), Hello::Undecided, "{length}");
        }
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\x17\x03\x03\0\x01\0",
        ] {
            assert_eq!(hello(other), Hello::Nameless, "{other:?}");
        }
        assert_eq!(hello(&vec![0x16; LONGEST + 1]), Hello::Nameless);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _said = hello(&bytes);
        }

        #[test]
        fn a_damaged_hello_never_panics(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut said = client("a.wild.example");
            for (place, byte) in damage {
                let place = place.index(said.len());
                said[place] = byte;
            }
            let _whole = hello(&said);
            said.truncate(cut.index(said.len()));
            let _cut = hello(&said);
        }
    }
}
