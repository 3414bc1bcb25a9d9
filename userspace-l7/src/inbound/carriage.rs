//! L6: what an admitted connection is carried as: bytes, or requests that are judged one by one.

use std::future::{poll_fn, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tracing::debug;

use super::demands::{Demanded, Protocol};
use super::{Admitted, Caller, InboundError, refuse, requests};
use crate::dormant::Dormant;
use crate::hbone::ErrorCode;
use crate::http::{self, Wire};
use crate::hub::Hub;
use crate::model::{AppProtocol, Snapshot, Workload};
use crate::pod::Pod;
use crate::relay::{self, Application, Far, Local, Pass};
use crate::ring::RecvBuf;
use crate::telemetry::{Flow, Reporter, Security};
use crate::upstream;

/// What is left to do for an admitted connection, on the heap: how much room that takes depends on what it carries.
pub(crate) type Fulfilment = Pin<Box<dyn Future<Output = ()>>>;

/// Carries an admitted connection: as bytes, or as requests that are judged one by one.
///
/// # Cancel safety
/// Dropping the future resets both sides.
pub(super) fn fulfil(
    hub: &Rc<Hub>,
    pod: &Pod,
    caller: Caller,
    (admitted, demands): (Admitted, Demanded),
    far: Far,
) -> Fulfilment {
    match demands.protocol() {
        Protocol::Bytes => carry(hub, &caller, admitted, (far, RecvBuf::default())),
        Protocol::Requests(protocol) => {
            let ours = (Rc::clone(hub), pod.clone());
            Box::pin(converse(ours, caller, (admitted, demands), (far, protocol)))
        }
    }
}

/// Serves the requests of a connection; carries it as bytes if it turns out to have none.
async fn converse(
    (hub, pod): (Rc<Hub>, Pod),
    caller: Caller,
    (admitted, demands): (Admitted, Demanded),
    (mut far, protocol): (Far, AppProtocol),
) {
    let (version, early) = http::listen(async || receive(&mut far).await, protocol).await;
    let Some(version) = version else {
        if let Some(bytes) = demands.bytes(&caller, admitted.to) {
            if let Err(denial) = bytes.judge(&hub.snapshot()) {
                refuse(&hub, &caller, &InboundError::Demanded(denial));
                return give_up(far);
            }
            admitted.tracked.meet(bytes);
        }
        return carry_after(&hub, caller, admitted, early, far).await;
    };
    let Admitted {
        workload,
        pass,
        tracked,
        app,
        to,
        opening,
    } = admitted;
    let flow = flow_of(&hub.snapshot(), &caller, Arc::clone(&workload), to);
    let flow = Rc::new(hub.metrics.open(flow));
    let exchange = requests::Exchange {
        hub: Rc::clone(&hub),
        pod,
        own: Arc::clone(&workload),
        workload,
        client: caller.address,
        identity: caller.identity,
        to,
        called: demands.called,
        opening,
        beyond: None,
        _pass: Pass::Judged(pass),
    };
    let app = upstream::wire(app);
    let wire = match far {
        Far::Plain(tcp) => Wire::tcp(tcp, early),
        Far::Tunnel(stream) => Wire::tunnel(stream, early),
        // Nobody comes like that.
        Far::Secured(secured) => Wire::secured(secured),
    };
    let served = requests::serve(exchange, wire, version, Some(app), Rc::clone(&flow));
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                debug!(%error, "requests ended");
            }
            relay::Ending::Complete.settle_shared(flow);
        }
        denial = Dormant::new(tracked.refused()) => relay::Ending::Refused(denial).settle_shared(flow),
    }
}

/// The next bytes of a client; empty at their end.
pub(super) async fn receive(far: &mut Far) -> io::Result<RecvBuf> {
    match far {
        Far::Plain(tcp) => tcp.recv().await,
        Far::Tunnel(stream) => {
            let received = stream.recv().await.map_err(io::Error::from)?;
            Ok(RecvBuf::from(received.unwrap_or_default()))
        }
        Far::Secured(secured) => {
            let received = poll_fn(|cx| secured.poll_recv(cx)).await?;
            Ok(RecvBuf::from(received))
        }
    }
}

/// Lets a client see that its connection has failed.
fn give_up(far: Far) {
    match far {
        Far::Plain(tcp) => tcp.abort(),
        Far::Tunnel(stream) => stream.reset(ErrorCode::CONNECT_ERROR),
        Far::Secured(secured) => secured.abort(),
    }
}

/// Carries an admitted connection as bytes; `early` has been received from the client already.
///
/// # Cancel safety
/// Dropping the future resets both sides.
pub(super) fn carry(
    hub: &Rc<Hub>,
    caller: &Caller,
    admitted: Admitted,
    (far, early): (Far, RecvBuf),
) -> Fulfilment {
    let Admitted {
        workload,
        pass,
        tracked,
        app,
        to,
        ..
    } = admitted;
    let flow = flow_of(&hub.snapshot(), caller, workload, to);
    let flow = hub.metrics.open(flow);
    let pass = Pass::Judged(pass);
    match (app, far) {
        (Far::Plain(tcp), far) => {
            let local = Local {
                application: Application::Server,
                tcp,
                early: RecvBuf::default(),
            };
            Box::pin(relay::run(pass, local, far, (flow, tracked), ()))
        }
        (app, Far::Tunnel(client)) => Box::pin(async move {
            let client = (client, early);
            let carried = relay::pass_on(pass, client, app, &flow, tracked.refused());
            carried.await.settle(flow);
        }),
        // Only a client with a tunnel can ask for more than a socket.
        (_, far) => {
            give_up(far);
            relay::Ending::Complete.settle(flow);
            Box::pin(ready(()))
        }
    }
}

/// As [`carry`], with bytes that the client has sent already.
pub(super) async fn carry_after(
    hub: &Rc<Hub>,
    caller: Caller,
    admitted: Admitted,
    early: RecvBuf,
    far: Far,
) {
    let mut early = early;
    if let Far::Plain(app) = &admitted.app
        && !early.is_empty()
    {
        let (sent, _early) = app.send(std::mem::take(&mut early)).await;
        if let Err(source) = sent {
            let to = admitted.to;
            refuse(hub, &caller, &InboundError::Application { to, source });
            return give_up(far);
        }
    }
    carry(hub, &caller, admitted, (far, early)).await;
}

/// The connection, for metrics and the access log.
pub(super) fn flow_of(
    snapshot: &Snapshot,
    caller: &Caller,
    workload: Arc<Workload>,
    to: SocketAddr,
) -> Flow {
    let authenticated = caller.identity.is_some();
    let named = caller.service.as_deref();
    let service = named.and_then(|name| snapshot.service_named(name, &workload.namespace));
    // A name that does not select this workload would let a caller write into another service's metrics.
    let service = service
        .filter(|service| workload.services.contains(&service.key))
        .map(Arc::clone);
    Flow {
        reporter: Reporter::Destination,
        source: snapshot.workload_at(caller.address.ip()).map(Arc::clone),
        source_identity: caller.identity.clone(),
        destination_identity: authenticated.then(|| workload.identity()),
        destination: Some(workload),
        service,
        source_address: caller.address,
        destination_address: caller.arrived_at,
        hbone_target: authenticated.then(|| to.to_string()),
        security: if authenticated {
            Security::MutualTls
        } else {
            Security::Unknown
        },
    }
}
