//! The access log: tracing events of target `access`, whose field names and order operators' tools know
//! from ztunnel. A field that is not known is left out.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tracing::{Level, enabled};

use super::flow::Ends;
use super::labels::{Reporter, Security};
use crate::model::{SpiffeId, Workload};

/// What is said of a connection however it ends.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) ends: &'a Ends,
    pub(super) source_address: SocketAddr,
    pub(super) destination_address: SocketAddr,
    pub(super) hbone_target: Option<&'a str>,
}

/// What a connection came to. `sent` and `received` are the local workload's view.
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) duration: Duration,
}

/// How a connection ended.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// Both sides were done.
    Complete,
    /// It broke or lost its right.
    Failed(&'a dyn fmt::Display),
    /// The agent let go of it.
    Abandoned,
}

/// The event with its fields in ztunnel's order: a macro, because tracing wants level and names at compile
/// time. What one kind of event adds comes last.
macro_rules! access_event {
    ($level:expr, $line:expr, $message:literal $(, $name:ident = $value:expr)*) => {{
        let line: &Line<'_> = $line;
        let ends = line.ends;
        let (source, destination) = (ends.source.as_deref(), ends.destination.as_deref());
        tracing::event!(
            target: "access",
            $level,
            src.addr = %line.source_address,
            src.workload = source.map(|found| &*found.name),
            src.namespace = source.map(|found| &*found.namespace),
            src.identity = proven(ends, ends.source_identity.as_ref()),
            src.cluster = source.and_then(cluster),
            dst.addr = %line.destination_address,
            dst.hbone_addr = line.hbone_target.map(display),
            dst.service = ends.service.as_deref().map(|found| &*found.key.hostname),
            dst.workload = destination.map(|found| &*found.name),
            dst.namespace = destination.map(|found| &*found.namespace),
            dst.identity = proven(ends, ends.destination_identity.as_ref()),
            dst.cluster = destination.and_then(cluster),
            direction = ends.reporter.direction(),
            $($name = $value,)*
            $message
        );
    }};
}

pub(super) fn opened(line: &Line<'_>) {
    access_event!(Level::DEBUG, line, "connection opened");
}

pub(super) fn closed(line: &Line<'_>, totals: &Totals, end: End<'_>) {
    // Asked first, so that an agent told to log less does not format what nobody reads.
    match end {
        End::Complete if enabled!(target: "access", Level::INFO) => complete(line, totals, None),
        End::Abandoned if enabled!(target: "access", Level::INFO) => {
            complete(
                line,
                totals,
                Some("closed by the agent: it is stopping, or the pod left the mesh"),
            );
        }
        End::Failed(error) if enabled!(target: "access", Level::ERROR) => {
            access_event!(
                Level::ERROR,
                line,
                "connection complete",
                bytes_sent = totals.sent,
                bytes_recv = totals.received,
                duration = milliseconds(totals.duration),
                error = error.to_string()
            );
        }
        End::Complete | End::Failed(_) | End::Abandoned => {}
    }
}

fn complete(line: &Line<'_>, totals: &Totals, error: Option<&str>) {
    access_event!(
        Level::INFO,
        line,
        "connection complete",
        bytes_sent = totals.sent,
        bytes_recv = totals.received,
        duration = milliseconds(totals.duration),
        error = error
    );
}

pub(super) fn refused(
    reporter: Reporter,
    source: SocketAddr,
    destination: SocketAddr,
    error: &dyn fmt::Display,
    suppressed: u64,
) {
    tracing::event!(
        target: "access",
        Level::WARN,
        src.addr = %source,
        dst.addr = %destination,
        direction = reporter.direction(),
        error = error.to_string(),
        suppressed = (suppressed > 0).then_some(suppressed),
        "connection failed"
    );
}

/// An identity is worth the log only if TLS or the kernel proved it.
fn proven(ends: &Ends, identity: Option<&SpiffeId>) -> Option<String> {
    identity
        .filter(|_| ends.security != Security::Unknown)
        .map(SpiffeId::uri)
}

fn cluster(workload: &Workload) -> Option<&str> {
    Some(&*workload.cluster).filter(|name| !name.is_empty())
}

/// A text, as in ztunnel's log: `123ms`.
fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
