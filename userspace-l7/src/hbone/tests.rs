//! Tunnels over real sockets of a worker, with real certificates.

mod first_bytes;
mod lifecycle;
mod tunnels;

use std::cell::Cell;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, timeout};

use super::connection::{Connection, Liveness};
use super::machine::Role;
use super::pool::Patience;
use super::*;
use crate::model::WorkloadUid;
use crate::ring::{Backend, Listener, Tcp, run};
use crate::tls::fixture::{Authority as Certificates, id};
use crate::tls::{self, Identity, Session};

const ALICE: &str = "spiffe://cluster.local/ns/shop/sa/alice";
const BOB: &str = "spiffe://cluster.local/ns/shop/sa/bob";

fn on_both_backends<F: Future<Output = ()>>(case: impl Fn() -> F) {
    for backend in [Backend::Uring, Backend::Epoll] {
        run(backend, async {
            timeout(Duration::from_secs(60), case()).await.unwrap();
        })
        .unwrap();
    }
}

/// A server that tunnels to nowhere: every stream is given to `handler`.
struct Node {
    address: SocketAddr,
    /// Connections accepted so far.
    accepted: Rc<Cell<usize>>,
    drain: watch::Sender<bool>,
    task: JoinHandle<()>,
    alice: Arc<Identity>,
    bob: Arc<Identity>,
}

impl Node {
    fn start<F: Future<Output = ()> + 'static>(
        handler: impl Fn(Incoming) -> F + Copy + 'static,
    ) -> Self {
        let certificates = Certificates::new("root");
        let alice = Arc::new(certificates.identity(ALICE));
        let bob = Arc::new(certificates.identity(BOB));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        socket.listen(64).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = Listener::from_fd(socket.into()).unwrap();
        let accepted = Rc::new(Cell::new(0));
        let count = Rc::clone(&accepted);
        let (drain, draining) = watch::channel(false);
        let server = Arc::clone(&bob);
        let task = spawn_local(async move {
            let mut sessions = tokio::task::JoinSet::new();
            loop {
                let tcp = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                let (bob, mut draining) = (Arc::clone(&server), draining.clone());
                drop(sessions.spawn_local(async move {
                    let session = tls::accept(tcp, &bob, soon()).await.unwrap();
                    let drained = async move {
                        draining
                            .wait_for(|drain| *drain)
                            .await
                            .map(drop)
                            .unwrap_or_default();
                    };
                    serve(session, drained, handler).await
                }));
            }
        });
        Self {
            address,
            accepted,
            drain,
            task,
            alice,
            bob,
        }
    }

    /// A session whose other end is kept open and never read.
    async fn silent(&self) -> Session {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = Listener::from_fd(socket.into()).unwrap();
        let bob = Arc::clone(&self.bob);
        drop(spawn_local(async move {
            let tcp = listener.accept().await.unwrap();
            let _session = tls::accept(tcp, &bob, soon()).await.unwrap();
            std::future::pending::<()>().await;
        }));
        Self::dial(address, Arc::clone(&self.alice)).await.unwrap()
    }

    fn key(&self) -> PoolKey {
        PoolKey {
            pod: WorkloadUid::new("pod"),
            source: id(ALICE),
            expected: [id(BOB)].into(),
            tunnel: self.address,
        }
    }

    async fn dial(address: SocketAddr, alice: Arc<Identity>) -> Result<Session, DialError> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let tcp = Tcp::connect(socket.into(), address, Duration::from_secs(20)).await;
        let tcp = tcp.map_err(DialError::Connect)?;
        Ok(tls::connect(tcp, &alice, &[id(BOB)], soon()).await?)
    }

    async fn open(&self, pool: &Pool) -> Result<Stream, OpenError> {
        self.open_with(pool, request()).await
    }

    async fn open_with(&self, pool: &Pool, request: ConnectRequest) -> Result<Stream, OpenError> {
        let dial = || Self::dial(self.address, Arc::clone(&self.alice));
        let mut none = FirstBytes::new(&[]);
        pool.open(self.key(), &request, &mut none, dial).await
    }

    /// Asks for a tunnel with first bytes, and tells whether they have left with the request.
    async fn ask(&self, pool: &Pool, first: &[u8]) -> Result<(Stream, bool), OpenError> {
        let dial = || Self::dial(self.address, Arc::clone(&self.alice));
        let mut first = FirstBytes::new(first);
        let opened = pool.open(self.key(), &request(), &mut first, dial).await;
        Ok((opened?, first.have_left()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn request() -> ConnectRequest {
    ConnectRequest::to_address("10.0.0.1:80".parse().unwrap())
}

async fn echo(incoming: Incoming) {
    let (mut reader, mut writer) = incoming.accept(&ConnectResponse::accepted(None)).split();
    while let Ok(Some(piece)) = reader.recv().await {
        if writer.send(&piece).await.is_err() {
            return;
        }
    }
    let _gone = writer.finish();
}

/// Lets every other task run until nothing is left to do for a moment.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "waiting until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
