//! Keeps a connection to istio-cni, and does what it asks: one packet after the other, one answer for each.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::condition::{Condition, Progress};
use super::message::{Ack, Hello, VERSION, WorkloadResponse};
use super::session::{Malformed, Session, Step};
use super::socket::{LONGEST, Packet, Socket, SocketError};
use super::{Named, Notice, Proxy};
use crate::sentence::sentence;

/// Waits between connections, doubled each time (ztunnel's figures).
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// When an answer is due. istio-cni waits 5 s for it, and takes one that is late for that to its next packet.
const ANSWER_WITHIN: Duration = Duration::from_millis(4_500);

/// The most of a reason that fits into an answer, with the bytes around it.
const LONGEST_REASON: usize = LONGEST - 16;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The next connection begins with the whole list again, so nobody is let go because of a packet that nobody understood.
    #[error("istio-cni has sent what is not its protocol: {0}")]
    Malformed(#[from] Malformed),
}

/// The agent's end.
pub(crate) struct Client {
    socket: PathBuf,
    condition: watch::Sender<Condition>,
}

impl Client {
    /// For istio-cni at this socket.
    pub(crate) fn new(socket: PathBuf) -> Self {
        let condition = watch::Sender::new(Condition {
            socket: socket.clone(),
            progress: Progress::Waiting,
        });
        Self { socket, condition }
    }

    /// How it fares.
    pub(crate) fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Follows istio-cni for as long as the future is polled. To be begun once it is known which pods are for the mesh: istio-cni
    /// names all at once, and waits for each.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection. Pods stay as they are.
    pub(crate) async fn run(self, proxy: Arc<dyn Proxy>) {
        let mut wait = SHORTEST_WAIT;
        loop {
            let ended = self.follow(&*proxy).await;
            let was_useful = self.condition.borrow().progress == Progress::Told;
            let why = sentence(&ended);
            let before = self.progress(Progress::Disconnected(why.clone()));
            // It is tried again and again: said once, not each time.
            if before != Progress::Disconnected(why.clone()) {
                warn!(socket = %self.socket.display(), reason = %why, "istio-cni is not connected");
            }
            if was_useful {
                wait = SHORTEST_WAIT;
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Makes one connection and keeps it.
    async fn follow(&self, proxy: &dyn Proxy) -> Ended {
        match self.converse(proxy).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn converse(&self, proxy: &dyn Proxy) -> Result<std::convert::Infallible, Ended> {
        let socket = Socket::connect(&self.socket)?;
        let hello = Hello { version: VERSION };
        socket.send(&hello.encode_to_vec()).await?;
        self.progress(Progress::Listing);
        let mut session = Session::default();
        loop {
            let packet = match socket.receive().await {
                Ok(packet) => packet,
                Err(SocketError::Truncated) => {
                    socket
                        .send(&no(&SocketError::Truncated.to_string()))
                        .await?;
                    return Err(SocketError::Truncated.into());
                }
                Err(error) => return Err(error.into()),
            };
            let notice = match notice(&mut session, packet) {
                Ok(notice) => notice,
                Err(malformed) => {
                    socket.send(&no(&malformed.to_string())).await?;
                    return Err(malformed.into());
                }
            };
            let is_whole = matches!(notice, Notice::All(_));
            debug!(?notice, "istio-cni says");
            let taken = timeout(ANSWER_WITHIN, proxy.take(notice)).await;
            let taken = taken.unwrap_or_else(|_late| Err(LATE.to_owned()));
            if is_whole {
                info!(socket = %self.socket.display(), "istio-cni has named the node's pods");
                self.progress(Progress::Told);
            }
            match taken {
                Ok(()) => socket.send(&yes()).await?,
                Err(why) => socket.send(&no(&why)).await?,
            }
        }
    }

    /// Gives what it was before.
    fn progress(&self, progress: Progress) -> Progress {
        let mut before = Progress::Waiting;
        self.condition
            .send_modify(|condition| before = std::mem::replace(&mut condition.progress, progress));
        before
    }
}

/// What is answered when nothing is known in time.
const LATE: &str = "the agent is still at it";

/// What a packet tells. Descriptors of one that is refused are closed.
fn notice(session: &mut Session, packet: Packet) -> Result<Notice, Malformed> {
    let Packet {
        bytes,
        mut descriptors,
    } = packet;
    Ok(match session.take(&bytes, descriptors.len())? {
        Step::Add { uid, name } => {
            // The session has counted them.
            let netns = descriptors.pop().ok_or(Malformed::Descriptors {
                found: 0,
                expected: 1,
            })?;
            Notice::Add(Named { uid, name, netns })
        }
        Step::Keep(uid) => Notice::Keep(uid),
        Step::Del(uid) => Notice::Del(uid),
        Step::End(all) => Notice::All(all),
    })
}

fn yes() -> Vec<u8> {
    answer(String::new())
}

/// An answer that is not empty, whatever the reason is.
fn no(why: &str) -> Vec<u8> {
    let mut end = why.len().min(LONGEST_REASON);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    match why.get(..end) {
        Some(why) if !why.is_empty() => answer(why.to_owned()),
        _ => answer("for no reason that is known".to_owned()),
    }
}

fn answer(error: String) -> Vec<u8> {
    let ack = Some(Ack { error });
    WorkloadResponse { ack }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::message::WorkloadResponse;
    use super::super::socket::LONGEST;
    use super::{no, yes};

    #[track_caller]
    fn error(answer: &[u8]) -> String {
        assert!(answer.len() <= LONGEST);
        WorkloadResponse::decode(answer).unwrap().ack.unwrap().error
    }

    #[test]
    fn a_yes_is_empty_and_a_no_never_is() {
        // Field 1, which is empty but there.
        assert_eq!(yes(), b"\x0a\x00");
        assert_eq!(error(&yes()), "");
        assert_eq!(error(&no("no room")), "no room");
        assert_ne!(error(&no("")), "");
    }

    #[test]
    fn a_long_reason_is_cut_where_a_letter_ends() {
        for letter in ["x", "é", "€"] {
            let why = letter.repeat(LONGEST);
            let error = error(&no(&why));
            assert!(error.len() > LONGEST - 32 && why.starts_with(&error));
        }
    }
}
