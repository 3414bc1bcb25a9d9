//! Measuring data planes beside each other: the same load, the same nodes, in turns.
//!
//! Rates on a shared machine say little by themselves; what is reported are ratios between runs that follow each other,
//! their medians and their spread, and what the proxies and the whole machine spent on the work.
//!
//! ```text
//!  options ─▶ loads × planes ─▶ cluster (lab, agents, proxies, servers)
//!                                  └─ round after round ─▶ runs ─▶ figures ─▶ report (HTML, Markdown, JSON)
//! ```

mod cluster;
mod figures;
pub mod generator;
mod idle;
mod load;
mod machine;
mod options;
mod plane;
mod read;
mod report;
mod round;
mod servers;

pub use cluster::Cluster;
pub use figures::{Figures, Ratio, Spread, figures};
pub use idle::Idle;
pub use load::{Kind, LOADS, Load, Output, Unit};
pub use machine::{Account, Machine, cpu_time_us, family, resident};
pub use options::{Options, Selection};
pub use plane::Plane;
pub use read::Measured;
pub use report::{Report, SCHEMA, html, markdown};
pub use round::{Run, Turns};
