//! SVIDs of this node's workloads: who issues them, and their life from issue to withdrawal.
//!
//! ```text
//!  --ca-dir ──► files ──► ca ──┐
//!  --ca-address ──► remote ────┴──► keeper ──► register ──► userspace_l7::tls::Identities (workers)
//!  wanted SPIFFE IDs ──────────────────┘           └──────► Vec<SvidStatus> (dumps)
//!                      schedule: what is due when, pure
//! ```

mod ca;
mod files;
mod keeper;
mod register;
mod remote;
mod schedule;
#[cfg(test)]
mod tests;

pub use ca::{IssueError, LocalCa, LocalCaError, Subject};
pub use files::{CERTIFICATE, CHAIN, CaFiles, CaFilesError, KEY, ROOTS};
pub use keeper::SvidKeeper;
pub use register::{SvidState, SvidStatus};
pub use remote::{RemoteError, RemoteSettings, RootSource};
