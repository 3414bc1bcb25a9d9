//! Small HTTP/1.1 servers: one per purpose, bounded in time, size and number of connections.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::AdminState;
use super::logging::LogControl;
use super::routes;
use super::socket::{self, Listener, Stream};

/// A client that has not sent its header by then is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest request head.
const HEAD_BYTES: usize = 8 * 1024;

/// More clients at once wait in the listener's backlog: a scraper, a probe and a few people use a server.
const CONNECTIONS: usize = 64;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// How long a connection may live in all, so that idle keep-alive clients cannot hold the places for ever.
const CONNECTION_LIFE: Duration = Duration::from_secs(5 * 60);

/// How long requests in flight may take once the servers stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Port of the administration server.
pub const ADMIN_PORT: u16 = 15000;

/// Port of the metrics server.
pub const METRICS_PORT: u16 = 15020;

/// Port of the readiness server.
pub const READINESS_PORT: u16 = 15021;

/// Where the servers listen. An address that this host does not have (a node without IPv6) is left out;
/// one that somebody else has is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Administration: loopback only.
    pub admin: Vec<SocketAddr>,
    /// Administration for root only. Where there is one, the addresses of [`Endpoints::admin`] only show.
    pub socket: Option<PathBuf>,
    /// Metrics.
    pub metrics: Vec<SocketAddr>,
    /// Readiness.
    pub readiness: Vec<SocketAddr>,
}

impl Default for Endpoints {
    /// ztunnel's ports, in both families: administration on loopback, the others on every address.
    fn default() -> Self {
        let loopback = |port| {
            vec![
                (Ipv4Addr::LOCALHOST, port).into(),
                (Ipv6Addr::LOCALHOST, port).into(),
            ]
        };
        let every = |port| {
            vec![
                (Ipv4Addr::UNSPECIFIED, port).into(),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ]
        };
        Self {
            admin: loopback(ADMIN_PORT),
            socket: None,
            metrics: every(METRICS_PORT),
            readiness: every(READINESS_PORT),
        }
    }
}

/// What the servers serve.
#[derive(Clone)]
pub struct Services {
    /// The agent.
    pub state: Arc<dyn AdminState>,
    /// What is scraped.
    pub registry: Arc<Registry>,
    /// The log's level.
    pub log: LogControl,
}

/// A server could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or none of the list is there.
    #[error(
        "cannot listen on {address} for {purpose}: is another agent running in this network namespace?"
    )]
    Listen {
        /// `administration`, `metrics` or `readiness`.
        purpose: &'static str,
        /// The address tried last.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The settings name no address at all.
    #[error("no address to listen on for {purpose}")]
    NoAddress {
        /// `administration`, `metrics` or `readiness`.
        purpose: &'static str,
    },
    /// The socket for root.
    #[error("cannot listen for commands at {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Administration changes the agent, so it is never offered to the network.
    #[error("the administration address {address} is not on loopback")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
}

/// The bound servers.
#[derive(Debug)]
pub struct AdminServer {
    socket: Option<UnixListener>,
    admin: Vec<TcpListener>,
    metrics: Vec<TcpListener>,
    readiness: Vec<TcpListener>,
}

impl AdminServer {
    /// Binds every server in the calling thread's network namespace. Called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`] if an address is taken, a server is left with none, administration is not on loopback, or its
    /// socket cannot be had.
    pub fn bind(endpoints: &Endpoints) -> Result<Self, BindError> {
        if let Some(address) = endpoints.admin.iter().find(|at| !at.ip().is_loopback()) {
            return Err(BindError::NotLoopback { address: *address });
        }
        let at = |path: &PathBuf| {
            socket::listen(path).map_err(|source| BindError::Socket {
                path: path.clone(),
                source,
            })
        };
        Ok(Self {
            // The addresses first: whoever has them is an agent that has the socket, too.
            admin: bind_all("administration", &endpoints.admin)?,
            socket: endpoints.socket.as_ref().map(at).transpose()?,
            metrics: bind_all("metrics", &endpoints.metrics)?,
            readiness: bind_all("readiness", &endpoints.readiness)?,
        })
    }

    /// The addresses in use, which differ from those asked for where the port was 0.
    ///
    /// # Errors
    /// If the kernel does not tell a listener's address.
    pub fn addresses(&self) -> io::Result<Endpoints> {
        let of = |listeners: &[TcpListener]| -> io::Result<Vec<SocketAddr>> {
            listeners.iter().map(TcpListener::local_addr).collect()
        };
        let path = |socket: &UnixListener| -> Option<PathBuf> {
            Some(socket.local_addr().ok()?.as_pathname()?.to_path_buf())
        };
        Ok(Endpoints {
            socket: self.socket.as_ref().and_then(path),
            admin: of(&self.admin)?,
            metrics: of(&self.metrics)?,
            readiness: of(&self.readiness)?,
        })
    }

    /// Serves until `stop` resolves, then lets requests in flight finish for two seconds.
    pub async fn run(self, services: Services, stop: impl Future<Output = ()> + Send) {
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let admin = match self.socket {
            Some(_) => routes::Server::Showing,
            None => routes::Server::Administration,
        };
        let tcp = |listeners: Vec<TcpListener>| -> Vec<_> {
            listeners.into_iter().map(Listener::Tcp).collect()
        };
        let socket = self.socket.into_iter().map(Listener::Socket).collect();
        for (listeners, server) in [
            (socket, routes::Server::Administration),
            (tcp(self.admin), admin),
            (tcp(self.metrics), routes::Server::Metrics),
            (tcp(self.readiness), routes::Server::Readiness),
        ] {
            for listener in listeners {
                tasks.spawn(accept(listener, server, services.clone(), stopped.clone()));
            }
        }
        drop(stopped);
        stop.await;
        // The receivers are the accept loops themselves; if all are gone there is nobody to tell.
        let _all_gone = stopping.send(true);
        while tasks.join_next().await.is_some() {}
    }
}

fn bind_all(
    purpose: &'static str,
    addresses: &[SocketAddr],
) -> Result<Vec<TcpListener>, BindError> {
    let mut bound = Vec::new();
    let mut missing = BindError::NoAddress { purpose };
    for address in addresses {
        match listen(*address) {
            Ok(listener) => bound.push(listener),
            Err(source) if is_missing(&source) => {
                debug!(%address, purpose, error = %source, "address is not there to be listened on");
                missing = BindError::Listen {
                    purpose,
                    address: *address,
                    source,
                };
            }
            Err(source) => {
                return Err(BindError::Listen {
                    purpose,
                    address: *address,
                    source,
                });
            }
        }
    }
    if bound.is_empty() {
        Err(missing)
    } else {
        Ok(bound)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // Each family has an address of its own in the list, whatever the node's default is.
            setsockopt(&socket, Ipv6V6Only, &true)?;
            socket
        }
    };
    // A restarted agent must not wait for its predecessor's connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the host lacks the address or its whole family.
fn is_missing(error: &io::Error) -> bool {
    let missing = [
        Errno::EADDRNOTAVAIL,
        Errno::EAFNOSUPPORT,
        Errno::EPROTONOSUPPORT,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| missing.contains(&Errno::from_raw(code)))
}

async fn accept(
    listener: Listener,
    server: routes::Server,
    services: Services,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let stop = stopped.clone();
    loop {
        let accepted = tokio::select! {
            () = told(&mut stopped) => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = next(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection = connection(stream, server, services.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, for one: accepting again at once would only spin.
                warn!(%error, "connection cannot be accepted by an admin server");
                tokio::time::sleep(HEADER_TIMEOUT).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is left then is cut off by dropping the set.
    let _in_time = tokio::time::timeout(DRAIN, drained).await;
}

async fn next(
    listener: &Listener,
    places: &Arc<Semaphore>,
) -> io::Result<(Box<dyn Stream>, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    Ok((listener.accept().await?, place))
}

async fn connection(
    stream: Box<dyn Stream>,
    server: routes::Server,
    services: Services,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let services = services.clone();
        async move {
            let answer = routes::answer(
                server,
                request.method(),
                request.uri(),
                request.headers(),
                &services,
            );
            Ok::<Response<Full<Bytes>>, Infallible>(answer.await)
        }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut http = std::pin::pin!(http);
    let life = tokio::time::sleep(CONNECTION_LIFE);
    let mut life = std::pin::pin!(life);
    let ended = tokio::select! {
        ended = &mut http => ended,
        () = told(&mut stop) => {
            http.as_mut().graceful_shutdown();
            http.await
        }
        () = &mut life => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended early");
    }
}

/// Resolves when the servers are to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: then nobody keeps the servers running either.
    let _seen = stop.wait_for(|stopping| *stopping).await;
}
