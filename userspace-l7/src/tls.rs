//! L4: mutual TLS between agents, with SPIFFE identities instead of host names (Istio's rules; wire-compatible
//! with ztunnel).
//!
//! ```text
//!  Identity ──► Handshake (rustls, unbuffered) ──► Established { peer: VerifiedPeer, sealer, opener }
//!                 config + verify                      record: AES-GCM in the caller's buffers
//!  connect, accept (session): the same over a socket of the worker ──► Session
//! ```
//!
//! TLS 1.3 with AES-GCM only, ALPN `h2`, certificates on both sides, no SNI, no resumption. [`VerifiedPeer`]
//! comes out of a finished handshake and nowhere else. Keys appear in no `Debug` output and no log.

mod config;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod handshake;
mod hello;
mod identity;
mod record;
mod session;
#[cfg(test)]
mod tests;
mod verify;

pub use error::{Role, TlsError};
pub use handshake::{Established, Handshake, Progress};
pub(crate) use hello::{Hello, hello};
pub use identity::{Identities, Identity, IdentityError};
pub use record::{MAX_PLAINTEXT, Opened, Opener, RecordError, SealError, Sealer, TrafficKeyError};
pub use session::{Session, accept, connect};
pub use verify::{PeerRefused, VerifiedPeer};
