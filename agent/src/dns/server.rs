//! The pods' sockets: bounded loops that read queries, have them answered and write replies.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use rand::seq::SliceRandom;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;
use userspace_l7::model::{Workload, WorkloadUid};

use super::metrics::Labels;
use super::resolve::{Answer, resolve};
use super::wire::{self, Received};
use super::{DnsMetrics, PodDns, PodNetwork, SnapshotSource, Transport, redirected, upstream};

/// Queries of one pod and socket that may wait for a resolver at once. More are dropped, as a full
/// network would: the pod asks again.
const WAITING_QUERIES: usize = 256;

/// TCP connections of one pod and listener at once; more wait in its backlog.
const CONNECTIONS: usize = 64;

/// How long a TCP client may be silent, between or within messages.
const IDLE: Duration = Duration::from_secs(10);

/// Pause after a socket failed, which would otherwise fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The DNS proxy of all pods.
#[derive(Clone)]
pub struct Dns {
    snapshots: SnapshotSource,
    metrics: DnsMetrics,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").finish_non_exhaustive()
    }
}

impl Dns {
    /// A proxy that answers from what `snapshots` gives.
    pub fn new(snapshots: SnapshotSource, metrics: DnsMetrics) -> Self {
        Self { snapshots, metrics }
    }

    /// Serves one pod for as long as the future is polled. Dropping it closes the pod's sockets and
    /// abandons what is in flight.
    ///
    /// # Errors
    /// Only at the start, if a socket cannot be made asynchronous.
    pub async fn serve(&self, pod: PodDns) -> io::Result<()> {
        let client = Client {
            dns: self.clone(),
            workload: pod.workload,
            network: pod.network,
        };
        let mut tasks = JoinSet::new();
        for socket in pod.udp {
            tasks.spawn(client.clone().datagrams(Arc::new(udp_socket(socket)?)));
        }
        for listener in pod.tcp {
            tasks.spawn(client.clone().accept(tcp_listener(listener)?));
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// Serves one TCP connection to port 53 that was accepted elsewhere.
    ///
    /// # Errors
    /// If the connection breaks or is silent for too long.
    pub async fn serve_stream(
        &self,
        workload: WorkloadUid,
        network: Arc<dyn PodNetwork>,
        stream: TcpStream,
    ) -> io::Result<()> {
        Client {
            dns: self.clone(),
            workload,
            network,
        }
        .stream(stream)
        .await
    }
}

fn udp_socket(socket: OwnedFd) -> io::Result<UdpSocket> {
    let socket = StdUdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn tcp_listener(listener: OwnedFd) -> io::Result<TcpListener> {
    let listener = StdTcpListener::from(listener);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// One pod, as the proxy serves it.
#[derive(Clone)]
struct Client {
    dns: Dns,
    workload: WorkloadUid,
    network: Arc<dyn PodNetwork>,
}

/// What is to be done with a query.
enum Next {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask a resolver first.
    Ask(Box<Pending>),
    /// Stay silent.
    Nothing,
}

/// A query that a resolver is to answer.
struct Pending {
    query: Message,
    /// As it came.
    bytes: Vec<u8>,
    labels: Labels,
    limit: usize,
    follow: Option<(Message, Name)>,
}

/// The next datagram. Room for it is made when it is there: sockets wait most of the time, and a node has many.
///
/// Cancel safe: no datagram is lost.
async fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    loop {
        socket.readable().await?;
        let mut bytes = Vec::with_capacity(usize::from(u16::MAX));
        match socket.try_recv_buf_from(&mut bytes) {
            Ok((_, peer)) => return Ok((bytes, peer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

impl Client {
    async fn datagrams(self, socket: Arc<UdpSocket>) {
        let waiting = Arc::new(Semaphore::new(WAITING_QUERIES));
        let mut asking = JoinSet::new();
        loop {
            let received = tokio::select! {
                received = receive(&socket) => received,
                Some(_ended) = asking.join_next() => continue,
            };
            let (bytes, peer) = match received {
                Ok(received) => received,
                Err(error) => {
                    debug!(workload = %self.workload, %error, "dns socket cannot be read");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            match self.next(&bytes, Transport::Udp) {
                Next::Reply(reply) => send(&socket, &reply, peer).await,
                Next::Ask(pending) => {
                    let Ok(place) = Arc::clone(&waiting).try_acquire_owned() else {
                        continue;
                    };
                    let (client, socket) = (self.clone(), Arc::clone(&socket));
                    asking.spawn(async move {
                        if let Some(reply) = client.ask(*pending, Transport::Udp, peer).await {
                            send(&socket, &reply, peer).await;
                        }
                        drop(place);
                    });
                }
                Next::Nothing => {}
            }
        }
    }

    async fn accept(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let next = async {
                let place = Arc::clone(&places)
                    .acquire_owned()
                    .await
                    .map_err(io::Error::other)?;
                listener
                    .accept()
                    .await
                    .map(|(stream, _peer)| (stream, place))
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                Some(_ended) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, place)) => {
                    let client = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = client.accepted(stream).await {
                            debug!(workload = %client.workload, %error, "dns connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    debug!(workload = %self.workload, %error, "dns connection cannot be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers a connection's queries as those of whoever it was for.
    async fn accepted(&self, stream: TcpStream) -> io::Result<()> {
        let network = Arc::clone(&self.network);
        let client = Self {
            network: redirected::network(network, &stream, stream.local_addr()?),
            ..self.clone()
        };
        client.stream(stream).await
    }

    /// Answers a connection's queries one after the other.
    async fn stream(&self, mut stream: TcpStream) -> io::Result<()> {
        let peer = stream.peer_addr()?;
        while let Some(query) = timeout(IDLE, upstream::read(&mut stream)).await?? {
            let reply = match self.next(&query, Transport::Tcp) {
                Next::Reply(reply) => Some(reply),
                Next::Ask(pending) => self.ask(*pending, Transport::Tcp, peer).await,
                Next::Nothing => None,
            };
            // Without a reply the client would wait for what never comes.
            let Some(reply) = reply else { return Ok(()) };
            timeout(IDLE, upstream::write(&mut stream, &reply)).await??;
        }
        Ok(())
    }

    /// All that needs no waiting.
    fn next(&self, bytes: &[u8], transport: Transport) -> Next {
        let query = match wire::receive(bytes) {
            Received::Query(query) => *query,
            Received::Malformed(reply) => return Next::Reply(reply),
            Received::Nothing => return Next::Nothing,
        };
        let limit = match transport {
            Transport::Udp => wire::datagram_limit(&query),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let snapshot = (self.dns.snapshots)();
        let Some(client) = snapshot.workloads.get(&self.workload) else {
            // The pod is leaving, or the mesh does not know it yet: nothing can be decided for it.
            return encoded(&wire::failure(&query, ResponseCode::ServFail), limit);
        };
        let labels = labels(client, &query, transport);
        self.dns.metrics.request(&labels);
        let mut shuffle = |addresses: &mut [_]| addresses.shuffle(&mut rand::rng());
        let follow = match resolve(&snapshot, client, &query, &mut shuffle) {
            Answer::Local(reply) => return encoded(&reply, limit),
            Answer::Forward => None,
            Answer::Follow { reply, name } => Some((*reply, name)),
        };
        Next::Ask(Box::new(Pending {
            query,
            bytes: bytes.to_vec(),
            labels,
            limit,
            follow,
        }))
    }

    /// The resolver's reply, or that there is none.
    async fn ask(
        &self,
        pending: Pending,
        transport: Transport,
        peer: SocketAddr,
    ) -> Option<Vec<u8>> {
        let Pending {
            query,
            bytes,
            labels,
            limit,
            follow,
        } = pending;
        let asked = follow
            .as_ref()
            .map(|(_reply, name)| renamed(&query, name))
            .transpose();
        let start = Instant::now();
        let network = &*self.network;
        let answered = match asked {
            Ok(None) => upstream::exchange(network, transport, peer, &bytes).await,
            Ok(Some(asked)) => upstream::exchange(network, transport, peer, &asked).await,
            Err(error) => {
                debug!(workload = %self.workload, %error, "alias cannot be asked for");
                return wire::encode(&wire::failure(&query, ResponseCode::ServFail), limit);
            }
        };
        self.dns
            .metrics
            .upstream(&labels, answered.is_ok(), start.elapsed());
        match (answered, follow) {
            (Ok(answer), None) => Some(answer),
            (Ok(answer), Some((reply, _name))) => joined(reply, &answer, limit),
            (Err(error), _) => {
                debug!(workload = %self.workload, %error, "dns query was not answered");
                wire::encode(&wire::failure(&query, ResponseCode::ServFail), limit)
            }
        }
    }
}

fn labels(client: &Workload, query: &Message, transport: Transport) -> Labels {
    let query_type = query.queries.first().map(Query::query_type);
    Labels::new(client, query_type, transport)
}

fn encoded(reply: &Message, limit: usize) -> Next {
    wire::encode(reply, limit).map_or(Next::Nothing, Next::Reply)
}

/// The same query for another name.
fn renamed(query: &Message, name: &Name) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let mut asked = Message::new(query.metadata.id, MessageType::Query, OpCode::Query);
    asked.metadata.recursion_desired = query.metadata.recursion_desired;
    asked.metadata.checking_disabled = query.metadata.checking_disabled;
    for question in &query.queries {
        let mut question = question.clone();
        question.set_name(name.clone());
        asked.add_query(question);
    }
    if let Some(edns) = &query.edns {
        asked.set_edns(edns.clone());
    }
    asked.to_vec()
}

/// The alias's records with the resolver's behind them.
fn joined(mut reply: Message, answer: &[u8], limit: usize) -> Option<Vec<u8>> {
    let answer = Message::from_vec(answer).ok()?;
    reply.metadata.response_code = answer.metadata.response_code;
    reply.metadata.truncation = answer.metadata.truncation;
    // What a resolver told us is not ours to vouch for.
    reply.metadata.authoritative = false;
    reply.add_answers(answer.answers);
    reply.add_authorities(answer.authorities);
    wire::encode(&reply, limit)
}

async fn send(socket: &UdpSocket, reply: &[u8], peer: SocketAddr) {
    // A client that is gone does not wait for it.
    if let Err(error) = socket.send_to(reply, peer).await {
        debug!(%peer, %error, "dns reply cannot be sent");
    }
}
