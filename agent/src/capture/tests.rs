//! Capture on the running kernel: network namespaces for pods, threads for applications.
//!
//! Needs root. Everything made carries this process's id in its name and is removed at the end, also
//! when a test fails.

mod bench;
mod clerk;
mod direct;
mod exit;
mod held;
mod inbound;
mod lifecycle;
mod openings;
mod outbound;
mod resolver;
mod restart;
