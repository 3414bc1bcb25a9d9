//! istio-cni's side, where it names the node's pods: what it says is brought to those who enrol them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use userspace_l7::model::Snapshot;

use crate::config::AgentArgs;
use crate::enrolment::{Admission, Orders};
use crate::zds::{Client, Condition, Notice, Proxy};

/// Who listens to istio-cni.
pub(super) struct IstioCni {
    client: Client,
    condition: watch::Receiver<Condition>,
    orders: Orders,
    mesh: watch::Receiver<Arc<Snapshot>>,
}

impl IstioCni {
    /// For istio-cni at its socket, if the agent is told of one. It is asked once there is a mesh, because it names all pods at
    /// once and waits for each.
    pub(super) fn new(
        args: &AgentArgs,
        orders: Orders,
        mesh: watch::Receiver<Arc<Snapshot>>,
    ) -> Option<Self> {
        let client = Client::new(args.zds_socket.clone()?);
        Some(Self {
            condition: client.condition(),
            client,
            orders,
            mesh,
        })
    }

    /// How it fares.
    pub(super) fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }

    /// Follows it until it is dropped.
    pub(super) async fn follow(mut self) {
        // It fails only when the agent ends.
        if self.mesh.changed().await.is_ok() {
            self.client.run(Arc::new(Reception(self.orders))).await;
        }
    }
}

/// Brings what istio-cni says to those who enrol pods.
struct Reception(Orders);

impl Proxy for Reception {
    fn take(
        &self,
        notice: Notice,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        let admission = self.0.hear(notice);
        Box::pin(async {
            match admission.await {
                Ok(Admission::Captured) => Ok(()),
                Ok(Admission::NotInMesh) => {
                    Err("by what the API server says of it, the pod is not for the mesh".to_owned())
                }
                Ok(Admission::Refused(why)) => Err(why),
                Err(_stopped) => Err("the agent is stopping".to_owned()),
            }
        })
    }
}
