//! `culvert bench`: a load generator and the server that it loads, for people's own clusters.
//!
//! ```text
//!  plan ── schedule ──▶ drive (one task for each connection) ── caller ──▶ server
//!                          └── samples ──▶ tally ──▶ report ──▶ compare (several runs, one invocation)
//! ```
//!
//! In open loop the latency of a request counts from when it was meant to be sent, so a server that stalls cannot hide
//! the requests that it kept from being sent ("coordinated omission"). Nothing here runs in an agent.

mod bulk;
mod caller;
mod client;
mod compare;
mod drive;
mod failure;
mod pace;
mod plan;
mod report;
mod schedule;
mod server;
mod tally;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{Progress, run};
pub use compare::{Comparison, Row, Spread, Versus, compare, read_runs};
pub use failure::BenchError;
pub use plan::{Direction, Extent, Loop, Plan, Protocol, Target};
pub use report::{
    BulkReport, Distribution, GeneratorReport, IntervalReport, PlanReport, RequestsReport,
    RunReport, SCHEMA,
};
pub use server::{Counters, PROTOCOL_PORTS, Served, ServerPlan, serve};
pub use wire::Ports;
