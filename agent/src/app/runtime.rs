//! The container runtime's side: its CNI plugin asks here what becomes of a pod, and is kept in place.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::error;

use crate::cni::{Command, Gate, Keeper, ListenError, Outcome, PluginSocket, SOCKET, Sandbox};
use crate::config::AgentArgs;
use crate::enrolment::{Admission, Arrival, Orders};
use crate::mesh::{ObjectName, PodNetns};

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
pub(super) struct Runtime {
    socket: PluginSocket,
    gate: Arc<dyn Gate>,
}

impl Runtime {
    /// Listens for the plugin. Nothing where pods say themselves where they run.
    fn listen(args: &AgentArgs, orders: Orders) -> Result<Option<Self>, ListenError> {
        if args.pod_netns() != PodNetns::Found {
            return Ok(None);
        }
        let socket = PluginSocket::open(&args.run_dir.join(SOCKET))?;
        let gate = Arc::new(Reception(orders));
        Ok(Some(Self { socket, gate }))
    }

    /// Answers the plugin until it is dropped.
    pub(super) async fn serve(self) {
        if let Err(error) = self.socket.serve(self.gate).await {
            error!(%error, "cannot answer the CNI plugin: no pod can start");
        }
    }
}

/// Listens for the plugin, and keeps it in place, if the agent is told where: in this order, because the plugin holds pods
/// back while nobody listens.
pub(super) fn start(
    args: &AgentArgs,
    orders: &Orders,
) -> Result<(Option<Runtime>, Option<Keeper>), RuntimeError> {
    let runtime = Runtime::listen(args, orders.clone())?;
    let keep = |installation| {
        let orders = orders.clone();
        Keeper::start(installation, move || orders.repaired(CNI))
    };
    let keeper = args.cni().map(keep).transpose();
    Ok((runtime, keeper.map_err(RuntimeError::Keep)?))
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
