//! Waiting for a client's first bytes, to find out what it speaks.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::sniff::{Sniffed, Version, sniff};
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
            let (version, heard) = hear(receive, None).await;
            (Some(version.unwrap_or(Version::Http1)), heard)
        }
        AppProtocol::Detect => hear(receive, Some(Instant::now() + SPEAK_FIRST)).await,
    }
}

/// Receives until the first bytes tell, or cannot. A client that is silent until `deadline`, or for a moment after bytes
/// that hardly begin a request, waits for its server.
async fn hear(
    mut receive: impl AsyncFnMut() -> io::Result<RecvBuf>,
    deadline: Option<Instant>,
) -> (Option<Version>, RecvBuf) {
    let mut heard = RecvBuf::default();
    let mut until = deadline;
    loop {
        let received = match until {
            None => receive().await,
            Some(until) => match tokio::time::timeout_at(until, receive()).await {
                Ok(received) => received,
                Err(_silent) => return (None, heard),
            },
        };
        let Ok(received) = received else {
            return (None, heard);
        };
        let has_ended = received.is_empty();
        if heard.is_empty() {
            heard = received;
        } else {
            let mut joined = heard.to_vec();
            joined.extend_from_slice(&received);
            heard = RecvBuf::from(joined);
        }
        match sniff(&heard) {
            Sniffed::Http(version) => return (Some(version), heard),
            Sniffed::Opaque => return (None, heard),
            Sniffed::Undecided | Sniffed::Unlikely if has_ended => return (None, heard),
            Sniffed::Undecided => {}
            Sniffed::Unlikely => until = deadline.map(|end| end.min(Instant::now() + GO_ON)),
        }
    }
}
