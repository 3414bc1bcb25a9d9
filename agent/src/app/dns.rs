//! Runs the DNS proxy of each pod on the control plane's runtime, as the capture thread asks for.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};
use userspace_l7::model::{Snapshot, WorkloadUid};
use userspace_l7::pod::TakeDns;

use crate::capture::{DnsSockets, Family, Sockets};
use crate::dns::asked::{self, AskedNames, NameDesk};
use crate::dns::{Dns, DnsMetrics, PodDns, PodNetwork, Transport};
use crate::enrolment::DnsPods;

enum Request {
    Serve(PodDns),
    Connection(Connection),
    Forget(WorkloadUid),
}

/// One DNS connection over TCP that a pod opened.
struct Connection {
    workload: WorkloadUid,
    network: Dialled,
    stream: OwnedFd,
}

/// The capture thread's end.
pub(super) struct Requests(mpsc::UnboundedSender<Request>);

/// The runtime's end.
pub(super) struct Pods {
    requests: mpsc::UnboundedReceiver<Request>,
    dns: Dns,
    names: NameDesk,
}

/// A proxy that answers from `snapshot`, the way to tell it about pods, and the one to ask for names that clients say.
pub(super) fn channel(
    snapshot: watch::Receiver<Arc<Snapshot>>,
    metrics: DnsMetrics,
) -> (Requests, Pods, AskedNames) {
    let (sender, requests) = mpsc::unbounded_channel();
    let source = Arc::new(move || Arc::clone(&snapshot.borrow()));
    let (asked, names) = asked::channel();
    let pods = Pods {
        requests,
        dns: Dns::new(source, metrics),
        names,
    };
    (Requests(sender), pods, asked)
}

impl DnsPods for Requests {
    fn serve(&self, uid: &WorkloadUid, sockets: DnsSockets, network: Arc<Sockets>) {
        let DnsSockets { udp, tcp } = sockets;
        let pod = PodDns {
            workload: uid.clone(),
            udp,
            tcp,
            network: Arc::new(Network(network)),
        };
        // The runtime ends only with the agent.
        let _stopped = self.0.send(Request::Serve(pod));
    }

    fn door(&self, uid: &WorkloadUid, network: Arc<Sockets>) -> Arc<TakeDns> {
        let (requests, workload) = (self.0.clone(), uid.clone());
        Arc::new(move |stream, resolver| {
            let network = Dialled {
                network: Network(Arc::clone(&network)),
                resolver,
            };
            let connection = Connection {
                workload: workload.clone(),
                network,
                stream,
            };
            let _stopped = requests.send(Request::Connection(connection));
        })
    }

    fn forget(&self, uid: &WorkloadUid) {
        let _stopped = self.0.send(Request::Forget(uid.clone()));
    }
}

impl Pods {
    /// Serves pods until the capture thread is gone.
    pub(super) async fn run(mut self) {
        let mut served = HashMap::<WorkloadUid, AbortHandle>::new();
        let mut tasks = JoinSet::new();
        drop(tasks.spawn(async move {
            self.names.serve().await;
            Ok(())
        }));
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Serve(pod)) => {
                        let (uid, dns) = (pod.workload.clone(), self.dns.clone());
                        let handle = tasks.spawn(async move { dns.serve(pod).await });
                        if let Some(earlier) = served.insert(uid, handle) {
                            earlier.abort();
                        }
                    }
                    Some(Request::Connection(connection)) => {
                        let dns = self.dns.clone();
                        drop(tasks.spawn(async move { connection.serve(&dns).await }));
                    }
                    Some(Request::Forget(uid)) => {
                        if let Some(handle) = served.remove(&uid) {
                            handle.abort();
                        }
                    }
                    None => return,
                },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(Err(error)) => debug!(%error, "a DNS connection or proxy ended"),
                    Err(failure) if failure.is_panic() => warn!("a pod's DNS proxy panicked"),
                    Ok(Ok(())) | Err(_) => {}
                },
            }
        }
    }
}

impl Connection {
    async fn serve(self, dns: &Dns) -> io::Result<()> {
        let stream = std::net::TcpStream::from(self.stream);
        stream.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        dns.serve_stream(self.workload, Arc::new(self.network), stream)
            .await
    }
}

/// The network of a pod, as one of its connections sees it: the resolver is the one that was dialled.
struct Dialled {
    network: Network,
    resolver: SocketAddr,
}

impl PodNetwork for Dialled {
    fn resolver(&self, _transport: Transport, _client: SocketAddr) -> Option<SocketAddr> {
        Some(self.resolver)
    }

    fn socket(&self, transport: Transport, resolver: SocketAddr) -> io::Result<OwnedFd> {
        self.network.socket(transport, resolver)
    }
}

struct Network(Arc<Sockets>);

impl PodNetwork for Network {
    fn resolver(&self, transport: Transport, client: SocketAddr) -> Option<SocketAddr> {
        match transport {
            // A client over TCP dialled the proxy itself: what it meant is known to no one.
            Transport::Tcp => None,
            Transport::Udp => self.0.original_resolver(client).ok().flatten(),
        }
    }

    fn socket(&self, transport: Transport, resolver: SocketAddr) -> io::Result<OwnedFd> {
        let family = if resolver.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        match transport {
            Transport::Udp => self.0.datagram(family),
            Transport::Tcp => self.0.outbound(family),
        }
    }
}
