//! SVIDs of this node's workloads: a local CA and their life from issue to withdrawal.
//!
//! ```text
//!  --ca-dir ──► files ──► ca ──┐
//!                              ├──► keeper ──► userspace_l7::tls::Identities (workers)
//!  wanted SPIFFE IDs ──────────┘        └────► Vec<SvidStatus> (dumps)
//!               schedule: what is due when, pure
//! ```

mod ca;
mod files;
mod keeper;
mod schedule;
#[cfg(test)]
mod tests;

pub use ca::{IssueError, LocalCaError};
pub use files::CaFilesError;
pub use keeper::{SvidKeeper, SvidState, SvidStatus};
