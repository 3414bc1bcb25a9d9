//! What goes wrong: with one request, which is counted, or with the run, which ends.

use std::io;
use std::path::PathBuf;

/// A request has failed. Its words are what failures are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Failure {
    /// No connection.
    #[error("connect: {0}")]
    Connect(String),
    /// No answer in time.
    #[error("timeout")]
    Timeout,
    /// The connection broke, or what came is none of the protocol.
    #[error("broken: {0}")]
    Broken(String),
    /// An HTTP status other than 2xx.
    #[error("status {0}")]
    Status(u16),
    /// A gRPC status other than OK.
    #[error("grpc-status {0}")]
    GrpcStatus(i32),
    /// Another body than was asked for.
    #[error("a response of another length")]
    Length,
}

impl Failure {
    pub(super) fn connect(error: &io::Error) -> Self {
        Self::Connect(words(error))
    }

    pub(super) fn broken(error: &io::Error) -> Self {
        Self::Broken(words(error))
    }
}

/// The kind where the kernel gave a number, so that equal failures count together.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => error.kind().to_string(),
        None => error.to_string(),
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The name does not resolve.
    #[error("cannot resolve `{host}`: is the name right, and is DNS there?")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody is there.
    #[error(
        "cannot reach {target} ({why}): does `culvert bench server` run there? --wait TIME waits for it"
    )]
    Unreachable {
        /// Where.
        target: String,
        /// Why.
        why: String,
    },
    /// The address is taken.
    #[error("cannot listen on {address}: --base-port N chooses other ports")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Too many connections for this process.
    #[error(
        "{connections} connections need more open files than the limit of {limit}: raise it (`ulimit -n`)"
    )]
    Files {
        /// How many.
        connections: usize,
        /// The hard limit.
        limit: u64,
    },
    /// This process has no room for a runtime, a timer or a thread.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// A signal came before the server answered.
    #[error("interrupted before the server answered")]
    Interrupted,
    /// A thread ended before its time.
    #[error("a thread of the load generator ended early: this is a bug")]
    Thread,
    /// A report cannot be read.
    #[error("cannot read {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no reports.
    #[error("{origin} holds no report of `culvert bench client -o json`")]
    Decode {
        /// Where the text comes from.
        origin: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The same, and there was nothing at all.
    #[error("there is no report to compare: write them with `culvert bench client -o json`")]
    Nothing,
}
