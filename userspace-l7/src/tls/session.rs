//! Handshakes over the worker's sockets.

use std::fmt;
use std::mem;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::TlsError;
use super::handshake::{Established, Handshake, Progress};
use super::identity::Identity;
use super::record::{Opener, Sealer};
use super::verify::VerifiedPeer;
use crate::model::SpiffeId;
use crate::ring::Tcp;

/// How long a refused peer may take to read why and to go away.
const PARTING: Duration = Duration::from_secs(1);

/// A connection whose peer is known.
///
/// The opener may hold data already: open an empty input before the first [`Tcp::recv`].
pub struct Session {
    /// The socket that the records travel on.
    pub tcp: Tcp,
    /// The proof of who the peer is.
    pub peer: VerifiedPeer,
    /// Seals what is sent.
    pub sealer: Sealer,
    /// Opens what is received.
    pub opener: Opener,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Makes a session with a server that proves to be one of `expected`. No byte of the application has been sent
/// when it returns, so another endpoint may be tried after an error.
///
/// A server tells only afterwards whether it accepts our certificate: the first read may yield its alert.
///
/// # Errors
/// [`TlsError`]; the peer has been told why where that is possible.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn connect(
    tcp: Tcp,
    identity: &Identity,
    expected: &[SpiffeId],
    deadline: Instant,
) -> Result<Session, TlsError> {
    drive(tcp, Handshake::client(identity, expected)?, deadline).await
}

/// Makes a session with a client of the identity's own trust domain.
///
/// # Errors
/// [`TlsError`]; the peer has been told why where that is possible.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn accept(tcp: Tcp, identity: &Identity, deadline: Instant) -> Result<Session, TlsError> {
    drive(tcp, Handshake::server(identity)?, deadline).await
}

async fn drive(tcp: Tcp, handshake: Handshake, deadline: Instant) -> Result<Session, TlsError> {
    match timeout_at(deadline, exchange(&tcp, handshake)).await {
        Ok(Ok(Established {
            peer,
            sealer,
            opener,
        })) => Ok(Session {
            tcp,
            peer,
            sealer,
            opener,
        }),
        Ok(Err(error)) => {
            if error.is_told() {
                drop(spawn_local(part(tcp)));
            }
            Err(error)
        }
        Err(_elapsed) => {
            tcp.abort();
            Err(TlsError::Timeout)
        }
    }
}

async fn exchange(tcp: &Tcp, handshake: Handshake) -> Result<Established, TlsError> {
    let mut out = Vec::new();
    let mut progress = handshake.step(&[], &mut out);
    loop {
        let mut sent = Ok(());
        if !out.is_empty() {
            (sent, out) = tcp.send(mem::take(&mut out)).await;
            out.clear();
        }
        // Why the handshake failed says more than why its alert could not be sent.
        let handshake = match progress? {
            Progress::Continue(handshake) => handshake,
            Progress::Done(established) => {
                return sent.map(|()| established).map_err(TlsError::Send);
            }
        };
        sent.map_err(TlsError::Send)?;
        let received = tcp.recv().await.map_err(TlsError::Receive)?;
        if received.is_empty() {
            return Err(TlsError::ClosedEarly);
        }
        progress = handshake.step(&received, &mut out);
    }
}

/// Lets the peer read its alert: closing with unread bytes would reset the connection and take the alert along.
async fn part(tcp: Tcp) {
    if tcp.shutdown_write().is_err() {
        return;
    }
    let drained = async {
        while let Ok(received) = tcp.recv().await {
            if received.is_empty() {
                break;
            }
        }
    };
    // Either way the socket closes now.
    drop(timeout(PARTING, drained).await);
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::os::fd::OwnedFd;

    use rustls::AlertDescription;
    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::ring::{Backend, Listener, run};
    use crate::tls::fixture::{Authority, id};
    use crate::tls::{PeerRefused, RecordError};

    const ALICE: &str = "spiffe://cluster.local/ns/shop/sa/alice";
    const BOB: &str = "spiffe://cluster.local/ns/shop/sa/bob";
    const FOREIGN: &str = "spiffe://elsewhere/ns/shop/sa/alice";

    fn on_both_backends<F: Future<Output = ()>>(case: impl Fn() -> F) {
        for backend in [Backend::Uring, Backend::Epoll] {
            run(backend, async {
                timeout(Duration::from_secs(30), case()).await.unwrap();
            })
            .unwrap();
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn tcp_pair() -> (Tcp, Tcp) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        socket.listen(1).unwrap();
        let to = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = Listener::from_fd(socket.into()).unwrap();
        let client: OwnedFd = Socket::new(Domain::IPV4, Type::STREAM, None)
            .unwrap()
            .into();
        let client = Tcp::connect(client, to, Duration::from_secs(20))
            .await
            .unwrap();
        (client, listener.accept().await.unwrap())
    }

    /// Reads `length` bytes of plaintext.
    async fn read(session: &mut Session, length: usize) -> Result<Vec<u8>, RecordError> {
        let mut plaintext = Vec::new();
        let mut keep = |piece: &[u8]| {
            plaintext.extend_from_slice(piece);
            Ok::<_, RecordError>(plaintext.len())
        };
        let mut enough = false;
        session.opener.open(&mut [], |piece| {
            keep(piece).map(|have| enough = have >= length)
        })?;
        while !enough {
            let mut received = session.tcp.recv().await.unwrap();
            if received.is_empty() {
                session.opener.end_of_input()?;
                break;
            }
            session.opener.open(&mut received, |piece| {
                keep(piece).map(|have| enough = have >= length)
            })?;
        }
        Ok(plaintext)
    }

    async fn write(session: &mut Session, plaintext: &[u8]) {
        let mut out = Vec::new();
        session.sealer.append(&mut out, plaintext).unwrap();
        session.sealer.finish(&mut out).unwrap();
        session.tcp.send(out).await.0.unwrap();
    }

    #[test]
    fn sessions_carry_data_both_ways() {
        on_both_backends(|| async {
            let authority = Authority::new("root");
            let (alice, bob) = (authority.identity(ALICE), authority.identity(BOB));
            let (near, far) = tcp_pair().await;
            let large: Vec<u8> = (0..=u8::MAX).cycle().take(300_000).collect();
            let client = async {
                let mut session = connect(near, &alice, &[id(BOB)], soon()).await.unwrap();
                assert_eq!(session.peer.id(), &id(BOB));
                // Right behind the last handshake record.
                write(&mut session, b"first").await;
                read(&mut session, large.len()).await.unwrap()
            };
            let server = async {
                let mut session = accept(far, &bob, soon()).await.unwrap();
                assert_eq!(session.peer.id(), &id(ALICE));
                assert_eq!(read(&mut session, 5).await.unwrap(), b"first");
                write(&mut session, &large).await;
                session
            };
            let (received, _session) = tokio::join!(client, server);
            assert!(received == large);
        });
    }

    #[test]
    fn a_refused_client_reads_why_even_if_it_has_sent_data() {
        on_both_backends(|| async {
            let authority = Authority::new("root");
            let (foreign, bob) = (authority.identity(FOREIGN), authority.identity(BOB));
            let (near, far) = tcp_pair().await;
            let client = async {
                let mut session = connect(near, &foreign, &[id(BOB)], soon()).await.unwrap();
                write(&mut session, &vec![0; 100_000]).await;
                read(&mut session, 1).await.unwrap_err()
            };
            let (told, refused) = tokio::join!(client, accept(far, &bob, soon()));
            assert!(matches!(
                refused,
                Err(TlsError::Peer(PeerRefused::WrongTrustDomain { .. }))
            ));
            assert_eq!(
                told,
                RecordError::PeerAlert(AlertDescription::CertificateUnknown)
            );
        });
    }

    #[test]
    fn a_wrong_server_is_refused_before_it_is_trusted_with_a_byte() {
        on_both_backends(|| async {
            let authority = Authority::new("root");
            let (alice, bob) = (authority.identity(ALICE), authority.identity(BOB));
            let (near, far) = tcp_pair().await;
            let expected = [id(ALICE)];
            let (client, server) = tokio::join!(
                connect(near, &alice, &expected, soon()),
                accept(far, &bob, soon())
            );
            assert!(matches!(
                client,
                Err(TlsError::Peer(PeerRefused::WrongIdentity { .. }))
            ));
            assert!(matches!(server, Err(TlsError::PeerAlert(_))), "{server:?}");
        });
    }

    #[test]
    fn silence_and_absence_end_a_handshake() {
        on_both_backends(|| async {
            let authority = Authority::new("root");
            let bob = authority.identity(BOB);
            let (near, far) = tcp_pair().await;
            let deadline = Instant::now() + Duration::from_millis(30);
            let silent = accept(far, &bob, deadline).await;
            assert!(matches!(silent, Err(TlsError::Timeout)), "{silent:?}");
            assert!(near.recv().await.is_err(), "the connection was reset");
            let (near, far) = tcp_pair().await;
            drop(near);
            let absent = accept(far, &bob, soon()).await;
            assert!(matches!(absent, Err(TlsError::ClosedEarly)), "{absent:?}");
        });
    }
}
