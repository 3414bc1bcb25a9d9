//! L6: plain connections to a service that wants clients outside the mesh at its waypoint (`istio.io/ingress-use-waypoint`).
//! Their requests are routed here, at the node of the pod that they have come to; what turns out not to be requests goes to
//! that pod's application, as bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::carriage::{Fulfilment, carry_after, flow_of};
use super::claim::Believed;
use super::demands::{Demanded, Protocol};
use super::{Asked, Caller, InboundError, Judged, reach, refuse};
use crate::dormant::Dormant;
use crate::http::{self, Version, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, Service, Snapshot};
use crate::pod::Pod;
use crate::relay::{Ending, Far};
use crate::ring::{RecvBuf, Tcp};
use crate::waypoint::{self, Outsider};

/// Where a connection has come to, and what is demanded of it.
pub(super) struct Ingress {
    service: Arc<Service>,
    port: u16,
    to: SocketAddr,
    spoken: AppProtocol,
    demands: Demanded,
}

impl Ingress {
    /// Of a connection that may carry requests; nothing of any other.
    pub(super) fn of(snapshot: &Snapshot, to: SocketAddr, demands: Demanded) -> Option<Self> {
        let Believed { service, port, .. } = demands.called.as_ref()?;
        let Protocol::Requests(spoken) = demands.protocol() else {
            return None;
        };
        Some(Self {
            service: Arc::clone(snapshot.services.get(service)?),
            port: *port,
            to,
            spoken,
            demands,
        })
    }

    /// Serves a connection that has been judged.
    ///
    /// # Cancel safety
    /// Dropping the future resets the connection and drops its requests.
    pub(super) fn serve(
        self,
        hub: &Rc<Hub>,
        pod: &Pod,
        (caller, judged): (Caller, Judged),
        client: Tcp,
    ) -> Fulfilment {
        let (hub, pod) = (Rc::clone(hub), pod.clone());
        Box::pin(async move {
            let listening = http::listen(async || client.recv().await, self.spoken);
            match listening.await {
                (Some(version), early) => {
                    let wire = Wire::tcp(client, early);
                    self.route(&hub, &pod, (caller, judged), (version, wire))
                        .await;
                }
                (None, early) => {
                    self.carry(&hub, &pod, (caller, judged), (client, early))
                        .await;
                }
            }
        })
    }

    /// Serves its requests, as long as it may come to the pod at all.
    async fn route(
        self,
        hub: &Rc<Hub>,
        pod: &Pod,
        (caller, judged): (Caller, Judged),
        (version, wire): (Version, Wire),
    ) {
        let Judged {
            workload,
            pass: _pass,
            tracked,
        } = judged;
        let flow = flow_of(&hub.snapshot(), &caller, Arc::clone(&workload), self.to);
        let flow = Rc::new(hub.metrics.open(flow));
        let wire = wire.accounted(Rc::clone(&flow), http::Peer::Client);
        let side = self.demands.called.as_ref().map(|called| called.side);
        let outsider = Outsider {
            source: caller.address,
            application: self.to,
            service: self.service,
            port: self.port,
            side: side.unwrap_or_default(),
        };
        let served = waypoint::serve_outsider(hub, pod, workload, outsider, (version, wire));
        tokio::select! {
            () = served => Ending::Complete.settle_shared(flow),
            denial = Dormant::new(tracked.refused()) => Ending::Refused(denial).settle_shared(flow),
        }
    }

    /// Carries it as bytes.
    async fn carry(
        self,
        hub: &Rc<Hub>,
        pod: &Pod,
        (caller, judged): (Caller, Judged),
        (client, early): (Tcp, RecvBuf),
    ) {
        let admitted = async {
            if let Some(bytes) = self.demands.bytes(&caller, self.to) {
                let met = bytes.judge(&hub.snapshot());
                met.map_err(InboundError::Demanded)?;
                judged.tracked.meet(bytes);
            }
            reach(hub, pod, &caller, judged, Asked::plain(self.to)).await
        };
        match admitted.await {
            Ok(admitted) => carry_after(hub, caller, admitted, early, Far::Plain(client)).await,
            Err(error) => {
                refuse(hub, &caller, &error);
                client.abort();
            }
        }
    }
}
