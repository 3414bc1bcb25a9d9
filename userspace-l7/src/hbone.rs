//! L5: HBONE, TCP connections as HTTP/2 CONNECT streams in mutual TLS (wire-compatible with ztunnel).
//!
//! ```text
//!  Pool ── open ──► Connection ──┐                          ┌── serve ──► Incoming ── accept ──► Stream
//!                     Stream ◄───┤  machine (sans-IO HTTP/2) │
//!                                └─ reader, writer tasks ────┴─ tls::Session ─ ring::Tcp
//! ```
//!
//! One plaintext copy each way: a sender's bytes go straight into the record that they leave in, and received
//! bytes from the record that they came in to their consumer. The rest is bookkeeping of a few hundred bytes
//! per idle tunnel.

mod authority;
mod baggage;
mod cause;
mod connection;
mod error;
mod forwarded;
mod frame;
#[cfg(fuzzing)]
#[expect(clippy::expect_used, reason = "a fuzz target reports by panicking")]
pub mod fuzzing;
mod handlers;
mod head;
mod hpack;
mod machine;
#[cfg(feature = "measuring")]
#[expect(clippy::expect_used, reason = "a measurement reports by panicking")]
pub mod measuring;
mod opening;
mod pool;
mod server;
#[cfg(test)]
mod tests;

pub use authority::{Authority, ServiceClaim};
pub use baggage::Baggage;
pub use cause::Cause;
pub(crate) use connection::StreamSink;
pub use connection::{FirstBytes, Stream, StreamReader, StreamWriter};
pub use error::{ConnectionError, DialError, ErrorCode, Lost, OpenError, StreamError};
pub use forwarded::Forwarded;
pub use head::{ConnectRequest, ConnectResponse};
pub use opening::OpeningClaim;
pub use pool::{Pool, PoolKey};
pub use server::{Incoming, serve};
