//! Waiting for a client's first bytes, to find out what it speaks.

use std::io;
use std::time::Duration;

use super::sniff::{Sniffed, Version, sniff};
use crate::model::AppProtocol;
use crate::ring::RecvBuf;

/// Time that a client of an undeclared port has to say something: after that it is taken for one that lets
/// its server speak first.
const SPEAK_FIRST: Duration = Duration::from_secs(5);

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
            let (version, heard) = hear(receive).await;
            (Some(version.unwrap_or(Version::Http1)), heard)
        }
        // Only before the first byte: what has begun to speak is heard to the end of its first line.
        AppProtocol::Detect => {
            let mut receive = receive;
            match tokio::time::timeout(SPEAK_FIRST, receive()).await {
                Ok(Ok(first)) => {
                    let mut first = Some(first);
                    hear(async || match first.take() {
                        Some(first) => Ok(first),
                        None => receive().await,
                    })
                    .await
                }
                Ok(Err(_)) | Err(_) => (None, RecvBuf::default()),
            }
        }
    }
}

/// Receives until the first bytes tell, or cannot.
async fn hear(mut receive: impl AsyncFnMut() -> io::Result<RecvBuf>) -> (Option<Version>, RecvBuf) {
    let mut heard = RecvBuf::default();
    loop {
        let Ok(received) = receive().await else {
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
            Sniffed::Undecided if has_ended => return (None, heard),
            Sniffed::Undecided => {}
        }
    }
}
