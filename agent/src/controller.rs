//! What a cluster's API is told: statuses of the mesh's objects, the classes of its waypoints, and Events. One of several
//! controllers writes, the one that holds the Lease; the others follow and are ready to.
//!
//! ```text
//!  objects ─▶ mesh ─ wanted statuses ─┐
//!     └──── held statuses ────────────┴▶ plan (pure: claim, merge, report) ─▶ writer ─▶ API server
//!                                              lease (election) ── term ──────▶  │
//!  authority: issues identities to agents; its root changes while the term lasts
//!  taint: nodes are opened when their agent is ready
//! ```

mod authority;
mod claim;
mod election;
mod journal;
mod lease;
mod merge;
mod metrics;
mod pace;
mod plan;
mod report;
mod taint;
mod writer;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use userspace_l7::model::Snapshot;

use self::authority::Authority;
use self::lease::{Election, Term, Timing};
use self::plan::{Seen, plan};
use self::report::reports;
use self::taint::Untainter;
use self::writer::{Work, Writer};
use crate::mesh::status::ObjectStatus;
use crate::mesh::{Kind, Notice};
use crate::sources::{ApiWriter, Cluster, Problems};

pub use self::authority::{AuthorityMetrics, AuthoritySettings};
pub use self::metrics::ControllerMetrics;
pub use self::plan::Istiod;

/// How a controller runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of this controller among those that want it.
    pub identity: String,
    /// How long the others wait for a holder that is silent.
    pub lease: Duration,
    /// Whether Istio's control plane is there.
    pub istiod: Istiod,
}

/// Plans what is to be written whenever something is new. Called by whoever follows the cluster.
pub struct Planner {
    work: watch::Sender<Arc<Work>>,
    istiod: Istiod,
}

/// The tasks that write.
pub struct Running {
    stop: oneshot::Sender<()>,
    election: JoinHandle<()>,
    writer: JoinHandle<()>,
    untainter: JoinHandle<()>,
    mesh: watch::Receiver<Arc<Snapshot>>,
    term: watch::Receiver<Term>,
    authority: Option<Authority>,
}

/// Begins to want the lease, and to write while it is held; `mesh` says which nodes have an agent. Called within a tokio
/// runtime.
pub fn start(
    api: &ApiWriter,
    settings: &Settings,
    mesh: watch::Receiver<Arc<Snapshot>>,
    metrics: &ControllerMetrics,
) -> (Planner, Running) {
    let Settings {
        namespace,
        identity,
        lease,
        istiod,
    } = settings;
    let work = watch::Sender::new(Arc::default());
    let place = (namespace.as_str(), identity.as_str());
    let election = Election::new(api.clone(), place, Timing::of(*lease), metrics.clone());
    let writer = Writer::new(
        api.clone(),
        work.subscribe(),
        election.term(),
        identity,
        metrics.clone(),
    );
    let untainter = Untainter {
        api: api.clone(),
        mesh: mesh.clone(),
        term: election.term(),
        namespace: namespace.clone(),
        instance: identity.clone(),
        metrics: metrics.clone(),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        // Dropped or told: either way it is over.
        let _told = stopped.await;
    };
    let running = Running {
        term: election.term(),
        authority: None,
        stop,
        election: spawn(election.run(stopped)),
        writer: spawn(writer.run()),
        untainter: spawn(untainter.run()),
        mesh,
    };
    let planner = Planner {
        work,
        istiod: *istiod,
    };
    (planner, running)
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

impl Planner {
    /// Takes over what the cluster holds and what is to be said of it now.
    pub fn take<'a>(
        &self,
        cluster: &Cluster,
        statuses: &[ObjectStatus],
        notices: impl IntoIterator<Item = &'a Notice>,
        problems: &Problems,
    ) {
        let seen = Seen {
            holdings: cluster.holdings(),
            has_classes: cluster.has_kind(&Kind::GatewayClass),
            istiod: self.istiod,
        };
        let work = Work {
            plan: plan(&seen, statuses, whole_second(Timestamp::now())),
            reports: reports(seen.holdings, statuses, notices, &problems.list),
        };
        self.work.send_replace(Arc::new(work));
    }
}

/// As `metav1.Time` has it.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

impl Running {
    /// Issues identities besides, to agents for what runs on their nodes. Whether there is a root to do that
    /// with. Called within a tokio runtime.
    ///
    /// # Errors
    /// The port is somebody else's.
    pub fn issue(
        &mut self,
        api: &ApiWriter,
        settings: AuthoritySettings,
        metrics: &AuthorityMetrics,
    ) -> io::Result<watch::Receiver<bool>> {
        let seen = (self.term.clone(), self.mesh.clone());
        let authority = Authority::start(api, settings, seen, metrics)?;
        let ready = authority.ready();
        self.authority = Some(authority);
        Ok(ready)
    }

    /// Stops issuing and writing, then gives the lease back.
    pub async fn stop(self) {
        drop(self.authority);
        self.writer.abort();
        self.untainter.abort();
        // It is over when it has been given up; how it ended is nobody's business.
        let _given_up = (self.writer.await, self.untainter.await);
        let _gone = self.stop.send(());
        let _ended = self.election.await;
    }
}

#[cfg(test)]
mod for_test {
    use serde_json::Value;

    use crate::mesh::{Kind, ObjectKey, ObjectName};
    use crate::sources::Held;

    pub(super) fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey {
            kind,
            name: ObjectName {
                namespace: namespace.into(),
                name: name.into(),
            },
        }
    }

    pub(super) fn held(status: Value) -> Held {
        Held {
            api_version: "v1".into(),
            uid: "u".into(),
            version: "7".into(),
            class: None,
            controller: None,
            status,
        }
    }
}
