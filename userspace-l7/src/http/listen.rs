//! Waiting for a client's first bytes, to find out what it speaks.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::guard::HEAD_TIME;
use super::sniff::{Sniffed, Version, declared, sniff};
use crate::model::AppProtocol;
use crate::ring::RecvBuf;

/// Time that a client of an undeclared port has to say something: after that it is taken for one that lets
/// its server speak first.
const SPEAK_FIRST: Duration = Duration::from_secs(5);

/// The same once it has said something that hardly any client of HTTP begins with.
const GO_ON: Duration = Duration::from_millis(250);

/// Finds out which version of HTTP a client speaks, if any, from what `receive` yields; what was received comes
/// back with it. On a declared port the bytes only choose the version: what is not HTTP is to be answered as bad
/// HTTP. On one that speaks anything else, nothing is received.
///
/// # Cancel safety
/// None: what was received is lost.
pub(crate) async fn listen(
    receive: impl AsyncFnMut() -> io::Result<RecvBuf>,
    protocol: AppProtocol,
) -> (Option<Version>, RecvBuf) {
    match protocol {
        AppProtocol::Tcp | AppProtocol::Tls => (None, RecvBuf::default()),
        AppProtocol::Http1 | AppProtocol::Http2 => {
            let (version, heard) = hear_version(receive).await;
            (Some(version), heard)
        }
        AppProtocol::Detect => hear(receive, Instant::now() + SPEAK_FIRST).await,
    }
}

/// Receives until the first bytes tell the version. The rest of a head is not waited for here: whoever reads it knows how long
/// it may take.
async fn hear_version(mut receive: impl AsyncFnMut() -> io::Result<RecvBuf>) -> (Version, RecvBuf) {
    let mut heard = RecvBuf::default();
    let mut until = None;
    loop {
        let received = match until {
            None => receive().await,
            Some(until) => match tokio::time::timeout_at(until, receive()).await {
                Ok(received) => received,
                Err(_slow) => return (Version::Http1, heard),
            },
        };
        let Ok(received) = received else {
            return (Version::Http1, heard);
        };
        let has_ended = received.is_empty();
        heard = joined(&heard, received);
        match declared(&heard) {
            Some(version) => return (version, heard),
            None if has_ended => return (Version::Http1, heard),
            // Silent clients may wait with what they want; one that has begun may not.
            None => until = until.or_else(|| Some(Instant::now() + HEAD_TIME)),
        }
    }
}

/// Receives until the first bytes tell, or cannot. A client that is silent until `deadline`, or for a moment after bytes
/// that hardly begin a request, waits for its server.
async fn hear(
    mut receive: impl AsyncFnMut() -> io::Result<RecvBuf>,
    deadline: Instant,
) -> (Option<Version>, RecvBuf) {
    let mut heard = RecvBuf::default();
    let mut until = deadline;
    loop {
        let Ok(Ok(received)) = tokio::time::timeout_at(until, receive()).await else {
            return (None, heard);
        };
        let has_ended = received.is_empty();
        heard = joined(&heard, received);
        match sniff(&heard) {
            Sniffed::Http(version) => return (Some(version), heard),
            Sniffed::Opaque => return (None, heard),
            Sniffed::Undecided | Sniffed::Unlikely if has_ended => return (None, heard),
            Sniffed::Undecided => {}
            Sniffed::Unlikely => until = deadline.min(Instant::now() + GO_ON),
        }
    }
}

fn joined(heard: &RecvBuf, received: RecvBuf) -> RecvBuf {
    if heard.is_empty() {
        return received;
    }
    let mut joined = heard.to_vec();
    joined.extend_from_slice(&received);
    RecvBuf::from(joined)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;

    use super::{Version, listen};
    use crate::model::AppProtocol;
    use crate::ring::RecvBuf;

    /// What is found of a client that sends these pieces, and how many of them have to come.
    fn heard(pieces: &[&str], protocol: AppProtocol) -> (Option<Version>, usize) {
        let mut coming: VecDeque<_> = pieces.iter().collect();
        let receive = async || -> io::Result<RecvBuf> {
            let piece = coming.pop_front();
            let piece = piece.ok_or(io::ErrorKind::ConnectionReset)?;
            Ok(RecvBuf::from(piece.as_bytes().to_vec()))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let listening = listen(receive, protocol);
        let (version, bytes) = runtime.unwrap().block_on(listening);
        assert_eq!(
            &*bytes,
            pieces.concat().get(..bytes.len()).unwrap().as_bytes()
        );
        (version, pieces.len() - coming.len())
    }

    #[test]
    fn a_declared_port_waits_for_no_more_than_the_version() {
        let (http1, http2) = (Some(Version::Http1), Some(Version::Http2));
        for (pieces, expected) in [
            // Whoever is slow from here on is the reader's business.
            (&["G", "ET / HTTP/1.1"][..], (http1, 1)),
            (&["P", "O", "ST / HTTP/1.1"], (http1, 2)),
            (&["\0", "x"], (http1, 1)),
            (
                &["PRI * HTTP/2.0\r\n", "\r\nSM", "\r\n\r\n", "x"],
                (http2, 3),
            ),
            (&["PRI * HTTP/1.1\r\n"], (http1, 1)),
            // One that ends amid the preface.
            (&["PRI", ""], (http1, 2)),
        ] {
            let found = heard(pieces, AppProtocol::Http1);
            assert_eq!(found, expected, "{pieces:?}");
        }
    }

    #[test]
    fn a_port_that_declares_nothing_waits_for_a_request_line() {
        let pieces = ["GET / HT", "TP/1.1\r\n", "Host: a"];
        let found = heard(&pieces, AppProtocol::Detect);
        assert_eq!(found, (Some(Version::Http1), 2));
        assert_eq!(heard(&["\x16\x03\x01"], AppProtocol::Detect), (None, 1));
        assert_eq!(heard(&["G"], AppProtocol::Tcp), (None, 0));
    }
}
