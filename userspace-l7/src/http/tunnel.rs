//! What remains of HTTP after `101 Switching Protocols`: two wires carried into each other.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::wire::Wire;
use crate::ring::RecvBuf;

/// Carries two connections into each other until both directions have ended; an error resets both. `early`
/// came from `one` behind its request.
///
/// # Cancel safety
/// Dropping the future resets both.
pub(super) async fn carry(mut one: Wire, early: Bytes, mut other: Wire) {
    if !early.is_empty() {
        one.unread(RecvBuf::from(early.to_vec()));
    }
    let (mut up, mut down) = (Pump::default(), Pump::default());
    let carried = poll_fn(|cx| {
        let up = up.poll(cx, &mut one, &mut other)?;
        let down = down.poll(cx, &mut other, &mut one)?;
        if up.is_ready() && down.is_ready() {
            Poll::Ready(Ok::<_, io::Error>(()))
        } else {
            Poll::Pending
        }
    });
    if let Err(error) = carried.await {
        tracing::debug!(%error, "upgraded connection cut");
        one.abort();
        other.abort();
    }
}

/// Reads to the end of the peer's stream, or to an error.
pub(super) async fn discard(wire: &mut Wire) {
    while let Ok(received) = poll_fn(|cx| wire.poll_recv(cx)).await {
        if received.is_empty() {
            return;
        }
    }
}

/// One direction.
#[derive(Default)]
struct Pump {
    pending: Option<RecvBuf>,
    has_ended: bool,
}

impl Pump {
    /// Moves what can be moved; ready once the direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire,
        to: &mut Wire,
    ) -> Poll<io::Result<()>> {
        while !self.has_ended {
            let Some(chunk) = &mut self.pending else {
                let received = ready!(from.poll_recv(cx))?;
                if received.is_empty() {
                    to.finish()?;
                    self.has_ended = true;
                } else {
                    self.pending = Some(received);
                }
                continue;
            };
            let sent = ready!(to.poll_send(cx, &[IoSlice::new(chunk)]))?;
            chunk.advance(sent);
            if chunk.is_empty() {
                self.pending = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}
