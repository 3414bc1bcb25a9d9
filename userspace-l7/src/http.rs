//! L5: HTTP on hyper, over whatever carries bytes here: TCP of the worker's ring or an HBONE stream. Knows the
//! protocol and what a proxy owes it; knows no routes and no policies.
//!
//! ```text
//!  Wire (Tcp | Stream) ── serve ──► service ──► Response<B>       towards whoever asks
//!  Wire (Tcp | Stream) ── connect ─► Sender ── Pool ── Lease       towards whoever answers
//! ```
//!
//! Everything stays on the worker's thread: futures are spawned locally, nothing is locked, and bodies pass
//! frame by frame, each waiting for its reader.

mod body;
mod client;
mod exchange;
mod forwarding;
mod framing;
#[cfg(fuzzing)]
#[expect(
    clippy::missing_panics_doc,
    reason = "a fuzz target reports by panicking"
)]
pub mod fuzzing;
mod guard;
mod inflow;
mod listen;
mod pool;
mod recording;
mod refusal;
mod relayed;
mod server;
mod sniff;
mod target;
mod tunnel;
mod unanswered;
mod wire;

use hyper::rt::Executor;

pub(crate) use body::{Body, BodyError};
#[cfg(test)]
pub(crate) use client::Sender;
pub(crate) use client::{Failure, SendError, connect};
pub(crate) use exchange::{Answered, relay, send_on, switch};
pub(crate) use forwarding::{Upgrade, strip, wants_upgrade};
pub(crate) use inflow::Inflow;
pub(crate) use listen::listen;
pub(crate) use pool::{Keeping, Lease, Pool, PoolKey};
pub(crate) use recording::Recording;
pub(crate) use refusal::{OverLimit, Refusal, is_grpc, plain, replace, trailers_only};
pub(crate) use relayed::{Ending, Observer, Relayed};
pub(crate) use server::{Handover, serve};
pub(crate) use sniff::Version;
pub(crate) use target::{Malformed, receive, respell, send};
pub(crate) use unanswered::{take_told, tell};
pub(crate) use wire::{Peer, Wire};

/// Bytes of one HTTP/2 stream that wait for its peer. Far below hyper's own bounds (400 KiB as a server, 1 MiB as a
/// client): peers that stop reading make us hold this much for each of their streams.
const MAX_STREAM_BACKLOG: usize = 64 << 10;

/// Runs hyper's futures on this worker.
#[derive(Clone, Copy, Debug)]
struct OnWorker;

impl<F> Executor<F> for OnWorker
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(async move {
            drop(future.await);
        }));
    }
}
