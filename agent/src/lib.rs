//! The parts of the `culvert` program; `main.rs` only picks one.
//!
//! ```text
//!  sources ── objects ──▶ mesh ── Arc<Snapshot> ──▶ workers (userspace-l7), admin, dns
//!                           └─ local pods ──▶ enrolment ── capture (eBPF) ──▶ sockets ──▶ workers
//!                                  ▲ where they run: the runtime (cni), their processes (discovery), or istio-cni (zds)
//!                           └─ identities ──▶ identity (CA, SVIDs) ──▶ workers
//!                                               └─ signing (IstioCertificateService) ──▶ istiod, controller
//!                           └─ sources of keys ──▶ keys (JWKS) ──▶ workers
//!                           └─ hosts of endpoints ──▶ hosts (the system's resolver) ──▶ mesh
//!                           └─ statuses ──▶ controller (elected by Lease) ──▶ a cluster's API
//!  mesh, workers ── what goes without them ──▶ direct ── verdicts ──▶ capture
//!  workers ── sampled requests ──▶ spans (OTLP) ──▶ collectors
//! ```

#![deny(unsafe_code)]

pub mod admin;
pub mod app;
pub mod bench;
mod capture;
pub mod cli;
pub mod cni;
pub mod config;
pub mod controller;
mod direct;
pub mod discovery;
pub mod dns;
pub mod doctor;
mod enrolment;
pub mod fetch;
pub mod hosts;
pub mod identity;
pub mod keys;
pub mod mesh;
pub mod privilege;
mod sentence;
pub mod signing;
pub mod sources;
pub mod spans;
pub mod zds;
