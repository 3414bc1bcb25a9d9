//! What goes between pods of this node without the proxy: whether anything can, and who decides what does.

use std::sync::Arc;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};
use userspace_l7::model::Snapshot;
use userspace_l7::telemetry::Metrics;

use crate::capture::{Capture, DirectPath};
use crate::config::AgentArgs;
use crate::direct::{Direct, DirectMetrics, DirectThread};

/// Those who decide what goes there, if anything can.
///
/// # Errors
/// Their thread cannot be started.
pub(super) fn start(
    args: &AgentArgs,
    capture: &Capture,
    snapshot: &watch::Sender<Arc<Snapshot>>,
    traffic: Arc<Metrics>,
    registry: &mut Registry,
) -> Result<(Option<Direct>, Option<DirectThread>)> {
    let Some(path) = path(args, capture) else {
        return Ok((None, None));
    };
    let metrics = DirectMetrics::default();
    metrics.register(registry);
    let (direct, thread) =
        crate::direct::start(path, Arc::clone(&snapshot.borrow()), traffic, metrics)
            .context("cannot start the kernel-direct path")?;
    Ok((Some(direct), Some(thread)))
}

/// The kernel-direct path, where this kernel has one and nothing in the pods redirects what goes it.
fn path(args: &AgentArgs, capture: &Capture) -> Option<DirectPath> {
    if args.zds_socket.is_some() {
        info!(
            "pods of this node reach each other through the proxy: istio-cni's rules let nothing past it"
        );
        return None;
    }
    let path = capture.direct_path();
    if path.is_none() {
        warn!(
            "the kernel does not say where it counts bytes: pods of this node reach each other through the proxy"
        );
    }
    path
}
