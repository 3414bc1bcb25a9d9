//! The accepting side: every CONNECT of a client becomes an [`Incoming`].

use std::fmt;
use std::future::Future;
use std::pin::pin;

use super::connection::{Connection, Held, Liveness, Stream};
use super::error::{ErrorCode, Lost};
use super::handlers::Handlers;
use super::head::{ConnectRequest, ConnectResponse};
use super::machine::Role;
use crate::tls::{Session, VerifiedPeer};

/// A client's request for a tunnel, waiting for its answer. Dropped without one, it is reset.
pub struct Incoming {
    request: Box<ConnectRequest>,
    peer: VerifiedPeer,
    held: Held,
}

impl Incoming {
    /// What the client asks for.
    pub fn request(&self) -> &ConnectRequest {
        &self.request
    }

    /// Who the client is.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Grants the tunnel. What the client has sent already is not lost.
    pub fn accept(self, response: &ConnectResponse) -> Stream {
        self.held.respond(response);
        Stream::new(self.held, None)
    }

    /// Answers with a status that is not success, and ends the stream.
    pub fn reject(self, refusal: &ConnectResponse) {
        self.held.respond(refusal);
        // The answer is complete; the rest of the request is not wanted (RFC 9113 §8.1).
        self.held.reset(ErrorCode::NO_ERROR);
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("request", &self.request)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Serves a client until its connection ends and every handler is done. Each request gets a task of its own,
/// which ends with this future. Once `draining` resolves, the client is told to open no more streams, and the
/// connection ends after those that it has. Returns why it ended, [`Lost::Closed`] if in order.
///
/// # Cancel safety
/// Dropping the future resets the connection and ends every handler.
pub async fn serve<H, F>(session: Session, draining: impl Future<Output = ()>, handler: H) -> Lost
where
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + 'static,
{
    let served = Served(Connection::start(
        session,
        Role::Server,
        Liveness::default(),
    ));
    let connection = &served.0;
    let handlers = Handlers::default();
    let mut draining = pin!(draining);
    let mut is_draining = false;
    loop {
        tokio::select! {
            biased;
            () = draining.as_mut(), if !is_draining => {
                is_draining = true;
                connection.drain();
            }
            next = connection.next_request() => {
                let Some((held, request)) = next else { break };
                let incoming = Incoming { request, peer: connection.peer().clone(), held };
                handlers.spawn(handler(incoming));
            }
        }
    }
    handlers.until_done().await;
    connection.ended().await
}

/// Takes the connection down with the future that serves it.
struct Served(Connection);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.take_down();
    }
}
