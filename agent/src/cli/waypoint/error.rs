//! Why a waypoint could not be written, read or removed: whose fault, and what to do.

use std::path::PathBuf;

use crate::sources::{ClusterError, Refusal};

/// A waypoint could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum WaypointError {
    /// Neither an agent nor a cluster is at hand.
    #[error(
        "no agent answers at {admin}, and it is not said which cluster is meant ({why}): run this where an agent runs, \
         or name a cluster with --kubeconfig"
    )]
    Nowhere {
        /// Where an agent was looked for.
        admin: String,
        /// Why no cluster is known.
        why: ClusterError,
    },
    /// The kubeconfig cannot be used.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The API server said no, or nothing.
    #[error("cannot {doing}: the API server at {server} {why}: {advice}")]
    Refused {
        /// What was asked of it.
        doing: String,
        /// Its URL.
        server: String,
        /// What it says, on one line.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// No such namespace.
    #[error("there is no namespace {namespace} in the cluster at {server}: create it first")]
    NoNamespace {
        /// Which.
        namespace: String,
        /// The API server's URL.
        server: String,
    },
    /// The namespace uses another waypoint since it was looked at.
    #[error(
        "namespace {namespace} uses waypoint {other} by now: say --overwrite if it shall use {name} all the same"
    )]
    Taken {
        /// Which.
        namespace: String,
        /// What it uses.
        other: String,
        /// What it should have used.
        name: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read`, `write` or `remove`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing of that name.
    #[error("there is no waypoint {namespace}/{name}: see `culvert waypoint list -A`")]
    Missing {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It is not ready in time.
    #[error(
        "waypoint {namespace}/{name} is not ready after {seconds} s: see `culvert waypoint status`"
    )]
    NotReady {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The limit.
        seconds: u64,
    },
}

impl WaypointError {
    /// What an API server refused, and what its reader can do about it.
    pub(super) fn refused(doing: String, server: &str, refusal: &Refusal) -> Self {
        let advice = match refusal.status {
            None => "check that it is up, and that this is the cluster you mean",
            Some(401) => "log in anew, or name another kubeconfig",
            Some(403) => "have your account granted that",
            Some(404) => "if the cluster lacks the Gateway API, install its CRDs first",
            Some(409) => {
                "somebody else keeps these fields: change them there, or take them over with `kubectl apply \
                 --server-side --force-conflicts`"
            }
            Some(_) => "see what it says",
        };
        Self::Refused {
            doing,
            server: server.to_owned(),
            why: refusal
                .message
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            advice,
        }
    }
}
