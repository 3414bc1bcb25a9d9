//! Connections to a pod's own application for one client outside the mesh, whose address the application sees. They are
//! nobody else's, so they end with the client's own connection.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::http::{Pool, PoolKey};
use crate::model::WorkloadUid;
use crate::route::{Target, Transport};

/// Those of one connection of a client.
pub(crate) struct Legs {
    pool: Pool,
    pod: WorkloadUid,
    client: SocketAddr,
    application: SocketAddr,
    /// What those that were made are kept under.
    made: RefCell<Vec<Rc<PoolKey>>>,
}

impl Legs {
    /// For a client whose connection came to a port of the pod's application; there are none yet.
    pub(crate) fn new(
        pool: Pool,
        pod: WorkloadUid,
        (client, application): (SocketAddr, SocketAddr),
    ) -> Self {
        Self {
            pool,
            pod,
            client,
            application,
            made: RefCell::default(),
        }
    }

    /// The pod.
    pub(crate) fn pod(&self) -> &WorkloadUid {
        &self.pod
    }

    /// Whom the application sees.
    pub(crate) fn client(&self) -> SocketAddr {
        self.client
    }

    /// Where the client's own connection came to.
    pub(crate) fn application(&self) -> SocketAddr {
        self.application
    }

    /// Whether a target is the pod itself.
    pub(crate) fn lead_to(&self, target: &Target) -> bool {
        let is_own = |uid: &WorkloadUid| *uid == self.pod;
        let workload = target.workload.as_ref().map(|workload| &workload.uid);
        target.transport == Transport::Plain && workload.is_some_and(is_own)
    }

    /// One more has been made.
    pub(super) fn made(&self, key: &Rc<PoolKey>) {
        let mut made = self.made.borrow_mut();
        if !made.contains(key) {
            made.push(Rc::clone(key));
        }
    }
}

impl Drop for Legs {
    fn drop(&mut self) {
        for key in self.made.take() {
            self.pool.close(&key);
        }
    }
}
