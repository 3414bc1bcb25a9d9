//! Culvert's proxy library: the bytes' way between captured applications and the mesh.
//!
//! Knows nothing of Kubernetes, eBPF or environment variables; the agent feeds it snapshots, sockets and
//! identities. Modules import downwards only (`cargo xtask tidy` holds that).

#![deny(unsafe_code)]

mod asking;
mod connections;
mod dial;
pub mod direct;
mod dormant;
mod doubt;
mod endpoints;
mod envoy;
pub mod error;
pub mod hbone;
mod held;
mod http;
#[cfg(fuzzing)]
pub use http::fuzzing as http_fuzzing;
mod hub;
mod inbound;
mod io;
mod judgement;
pub mod key_sets;
pub mod model;
pub mod names;
pub mod origination;
mod outbound;
pub mod pod;
pub mod policy;
mod relay;
#[expect(
    unsafe_code,
    reason = "the ring shares memory and descriptors with the kernel"
)]
pub mod ring;
pub mod route;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod traffic;
mod upstream;
mod waypoint;
pub mod worker;
