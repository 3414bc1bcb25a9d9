//! The container runtime's side: its CNI plugin asks here what becomes of a pod, and is kept in place; or istio-cni says what
//! becomes of it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::error;
use userspace_l7::model::Snapshot;

use super::istio_cni::IstioCni;
use crate::cni::{Command, Gate, Keeper, ListenError, Outcome, PluginSocket, SOCKET, Sandbox};
use crate::config::AgentArgs;
use crate::enrolment::{Admission, Arrival, Orders};
use crate::mesh::ObjectName;
use crate::zds;

/// How long the end of a sandbox may take to be taken notice of. A runtime ends many at once.
const DEPARTURE_TIME: Duration = Duration::from_secs(2);

/// A kind of repair, as operators see it.
const CNI: &str = "cni";

/// The runtime's side cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum RuntimeError {
    /// Nobody could ask.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The plugin would not stay in place.
    #[error("cannot keep the CNI plugin in place")]
    Keep(#[source] io::Error),
}

/// What the plugin needs of the agent, where pods come from a runtime.
struct Runtime {
    socket: PluginSocket,
    gate: Arc<dyn Gate>,
}

impl Runtime {
    /// Listens for the plugin. Nothing where pods say themselves where they run.
    fn listen(args: &AgentArgs, orders: Orders) -> Result<Option<Self>, ListenError> {
        if !args.finds_pods() {
            return Ok(None);
        }
        let socket = PluginSocket::open(&args.run_dir.join(SOCKET))?;
        let gate = Arc::new(Reception(orders));
        Ok(Some(Self { socket, gate }))
    }

    /// Answers the plugin until it is dropped.
    async fn serve(self) {
        if let Err(error) = self.socket.serve(self.gate).await {
            error!(%error, "cannot answer the CNI plugin: no pod can start");
        }
    }
}

/// Who hears of pods from the node's runtime.
pub(super) struct Ears {
    /// From our plugin; nothing where pods come from a directory, or from istio-cni.
    plugin: Option<Runtime>,
    /// From istio-cni, where that names the pods.
    istio_cni: Option<IstioCni>,
}

impl Ears {
    /// Listens until it is aborted.
    pub(super) fn open(self) -> Vec<JoinHandle<()>> {
        let plugin = self.plugin.map(|plugin| tokio::spawn(plugin.serve()));
        let istio_cni = self.istio_cni.map(|one| tokio::spawn(one.follow()));
        plugin.into_iter().chain(istio_cni).collect()
    }

    /// How istio-cni fares, if it is listened to.
    pub(super) fn istio_cni(&self) -> Option<watch::Receiver<zds::Condition>> {
        self.istio_cni.as_ref().map(IstioCni::condition)
    }
}

/// Listens for the plugin, and keeps it in place, if the agent is told where: in this order, because the plugin holds pods
/// back while nobody listens.
pub(super) fn start(
    args: &AgentArgs,
    orders: &Orders,
    mesh: &watch::Sender<Arc<Snapshot>>,
) -> Result<(Ears, Option<Keeper>), RuntimeError> {
    let ears = Ears {
        plugin: Runtime::listen(args, orders.clone())?,
        istio_cni: IstioCni::new(args, orders.clone(), mesh.subscribe()),
    };
    let keep = |installation| {
        let orders = orders.clone();
        Keeper::start(installation, move || orders.repaired(CNI))
    };
    let keeper = args.cni().map(keep).transpose();
    Ok((ears, keeper.map_err(RuntimeError::Keep)?))
}

/// Brings what the runtime says to those who enrol pods.
struct Reception(Orders);

impl Gate for Reception {
    fn serve(&self, command: Command) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        match command {
            Command::Add(sandbox) => Box::pin(outcome(self.0.arrival(arrival(sandbox)))),
            Command::Check(sandbox) => Box::pin(outcome(self.0.check(arrival(sandbox)))),
            Command::Del { container } => {
                let departure = self.0.departure(container);
                Box::pin(async {
                    // Late or stopped: what has ended has ended, and the runtime would only try again.
                    let _gone = tokio::time::timeout(DEPARTURE_TIME, departure).await;
                    Outcome::Done
                })
            }
            Command::Gc { containers } => {
                self.0.containers(containers);
                Box::pin(async { Outcome::Done })
            }
            Command::Status => Box::pin(async { Outcome::Done }),
        }
    }
}

fn arrival(sandbox: Sandbox) -> Arrival {
    Arrival {
        name: ObjectName {
            namespace: sandbox.pod.namespace.into(),
            name: sandbox.pod.name.into(),
        },
        pod_uid: sandbox.pod.uid.into(),
        container: sandbox.container,
        netns: sandbox.netns,
        addresses: sandbox.addresses,
    }
}

async fn outcome(admission: oneshot::Receiver<Admission>) -> Outcome {
    match admission.await {
        Ok(Admission::Captured) => Outcome::Captured,
        Ok(Admission::NotInMesh) => Outcome::NotInMesh,
        Ok(Admission::Refused(reason)) => Outcome::Refused { reason },
        Err(_stopped) => Outcome::Refused {
            reason: "the agent is stopping".to_owned(),
        },
    }
}
