//! What the agent finds on its node, and asks of it before it begins.

use std::path::PathBuf;

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;
use userspace_l7::ring::{self, Backend};

use crate::capture;
use crate::config::{AgentArgs, IoUring};
use crate::discovery::Processes;
use crate::enrolment::Places;

/// What all pods of the node live under, as far as that is known.
pub(super) fn pods_cgroup(args: &AgentArgs) -> Option<PathBuf> {
    let is_cluster = args.is_on_clusters_node();
    let kubelets = || capture::find_kubepods(args.host_cgroup.as_deref());
    let found = args.pods_cgroup.clone();
    let found = found.or_else(|| is_cluster.then(kubelets).flatten());
    if is_cluster && found.is_none() {
        warn!(
            "the kubelet's cgroup is not found: pods that use the node's network may probe pods as the kubelet does"
        );
    }
    found
}

/// How it is known where pods run.
pub(super) fn places(args: &AgentArgs) -> Places {
    if args.zds_socket.is_some() {
        Places::NamedByIstioCni
    } else if args.finds_pods() {
        Places::Found(Processes::new(args.host_proc.clone()))
    } else {
        Places::Told
    }
}

/// Chooses how workers wait for their sockets.
pub(super) fn backend(wanted: IoUring) -> Result<Backend> {
    match (wanted, ring::probe()) {
        (IoUring::Off, _) => Ok(Backend::Epoll),
        (_, Ok(())) => Ok(Backend::Uring),
        (IoUring::Auto, Err(unavailable)) => {
            warn!(reason = %unavailable, "io_uring is not to be had: running on epoll");
            Ok(Backend::Epoll)
        }
        (IoUring::Require, Err(unavailable)) => {
            bail!("io_uring is required and not to be had: {unavailable}")
        }
    }
}

/// Every connection takes two descriptors, and the usual soft limit is made for select(2).
pub(super) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}
