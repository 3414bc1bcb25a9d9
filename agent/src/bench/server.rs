//! The server that the generator loads: every protocol on its port, and a count of what it did.

mod http;
mod plain;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::failure::BenchError;
use super::wire::Ports;

/// Connections that may wait to be accepted: a storm of them is a load.
const BACKLOG: u32 = 4096;

/// Names of what is served, from the base port on.
pub const PROTOCOL_PORTS: [&str; 6] = ["http1", "h2", "grpc", "tcp", "bulk", "stats"];

/// How to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerPlan {
    /// Where to listen; `None` for every address there is.
    pub listen: Option<IpAddr>,
    /// On which ports.
    pub ports: Ports,
    /// Threads that serve; each has listeners of its own, among which the kernel spreads connections.
    pub threads: NonZeroUsize,
}

/// What was served on one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Connections taken.
    pub connections: u64,
    /// Those that are open now.
    pub open: u64,
    /// Requests answered, or bulk streams begun.
    pub requests: u64,
    /// Bytes of requests' bodies.
    pub bytes_received: u64,
    /// Bytes of responses' bodies.
    pub bytes_sent: u64,
}

/// What was served, as the stats port shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// HTTP/1.1.
    pub http1: Counters,
    /// HTTP/2.
    pub h2: Counters,
    /// gRPC.
    pub grpc: Counters,
    /// Plain requests.
    pub tcp: Counters,
    /// Bulk streams.
    pub bulk: Counters,
}

/// The counters of one port.
#[derive(Debug, Default)]
struct Meter {
    connections: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
}

impl Meter {
    fn request(&self, received: u64, sent: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes_received.fetch_add(received, Ordering::Relaxed);
        self.bytes_sent.fetch_add(sent, Ordering::Relaxed);
    }

    fn counters(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            connections: of(&self.connections),
            open: of(&self.open),
            requests: of(&self.requests),
            bytes_received: of(&self.bytes_received),
            bytes_sent: of(&self.bytes_sent),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
struct Meters {
    http1: Meter,
    h2: Meter,
    grpc: Meter,
    tcp: Meter,
    bulk: Meter,
}

impl Meters {
    fn served(&self) -> Served {
        Served {
            http1: self.http1.counters(),
            h2: self.h2.counters(),
            grpc: self.grpc.counters(),
            tcp: self.tcp.counters(),
            bulk: self.bulk.counters(),
        }
    }
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Http1,
    H2,
    Grpc,
    Tcp,
    Bulk,
    Stats,
}

impl Service {
    const ALL: [Self; 6] = [
        Self::Http1,
        Self::H2,
        Self::Grpc,
        Self::Tcp,
        Self::Bulk,
        Self::Stats,
    ];

    fn port(self, ports: Ports) -> u16 {
        match self {
            Self::Http1 => ports.http1(),
            Self::H2 => ports.h2(),
            Self::Grpc => ports.grpc(),
            Self::Tcp => ports.tcp(),
            Self::Bulk => ports.bulk(),
            Self::Stats => ports.stats(),
        }
    }

    fn meter(self, meters: &Meters) -> Option<&Meter> {
        match self {
            Self::Http1 => Some(&meters.http1),
            Self::H2 => Some(&meters.h2),
            Self::Grpc => Some(&meters.grpc),
            Self::Tcp => Some(&meters.tcp),
            Self::Bulk => Some(&meters.bulk),
            Self::Stats => None,
        }
    }

    /// Serves one connection to its end. How it ended is the client's business.
    async fn serve(self, stream: TcpStream, meters: Arc<Meters>) {
        let meter = self.meter(&meters);
        if let Some(meter) = meter {
            meter.connections.fetch_add(1, Ordering::Relaxed);
            meter.open.fetch_add(1, Ordering::Relaxed);
        }
        match self {
            Self::Http1 | Self::H2 | Self::Grpc | Self::Stats => {
                http::serve(self, stream, &meters).await;
            }
            // A client that is gone is how connections end.
            Self::Tcp => drop(plain::answer(stream, &meters.tcp).await),
            Self::Bulk => drop(plain::stream(stream, &meters.bulk).await),
        }
        if let Some(meter) = meter {
            meter.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Serves until SIGINT or SIGTERM; `ready` is called once every port is open. Returns what was served.
///
/// # Errors
/// [`BenchError::Listen`] if a port is taken, [`BenchError::Start`] if this process lacks something.
pub fn serve(plan: &ServerPlan, ready: impl FnOnce()) -> Result<Served, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(BenchError::Start)?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(BenchError::Start)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(BenchError::Start)?;
        let running = Running::start(plan)?;
        ready();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        running.stop()
    })
}

/// A server whose ports are open.
pub(super) struct Running {
    meters: Arc<Meters>,
    stop: watch::Sender<bool>,
    threads: Vec<thread::JoinHandle<io::Result<()>>>,
}

impl Running {
    /// Opens every port of every thread, then starts the threads.
    pub(super) fn start(plan: &ServerPlan) -> Result<Self, BenchError> {
        let meters = Arc::new(Meters::default());
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::new();
        for number in 0..plan.threads.get() {
            let mut listeners = Vec::new();
            for service in Service::ALL {
                listeners.push((service, listen(plan.listen, service.port(plan.ports))?));
            }
            let (meters, mut stopped) = (Arc::clone(&meters), stopped.clone());
            let body = move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    for (service, listener) in listeners {
                        let listener = TcpListener::from_std(listener)?;
                        drop(tokio::spawn(accept(service, listener, Arc::clone(&meters))));
                    }
                    // The sender goes with the server.
                    let _gone = stopped.wait_for(|stopped| *stopped).await;
                    Ok(())
                })
            };
            let name = format!("bench-{number}");
            let thread = thread::Builder::new().name(name).spawn(body);
            threads.push(thread.map_err(BenchError::Start)?);
        }
        Ok(Self {
            meters,
            stop,
            threads,
        })
    }

    /// Closes everything and says what was served.
    pub(super) fn stop(self) -> Result<Served, BenchError> {
        let Self {
            meters,
            stop,
            threads,
        } = self;
        stop.send_replace(true);
        for thread in threads {
            let ended = thread.join().map_err(|_panic| BenchError::Thread)?;
            ended.map_err(BenchError::Start)?;
        }
        Ok(meters.served())
    }

    #[cfg(test)]
    pub(super) fn served(&self) -> Served {
        self.meters.served()
    }
}

async fn accept(service: Service, listener: TcpListener, meters: Arc<Meters>) {
    loop {
        match listener.accept().await {
            Ok((stream, _client)) => {
                // A connection on which that fails is over, and its first read says so.
                let _unset = stream.set_nodelay(true);
                drop(tokio::spawn(service.serve(stream, Arc::clone(&meters))));
            }
            // No file is free: the next accept would fail at once.
            Err(_full) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

/// A listener beside those of other threads. Every address means both families where there are both.
fn listen(address: Option<IpAddr>, port: u16) -> Result<std::net::TcpListener, BenchError> {
    let both: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    let address_there_is = match address {
        Some(address) => address,
        None if bind((both, port).into()).is_ok() => both,
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    let at = SocketAddr::new(address_there_is, port);
    bind(at).map_err(|source| BenchError::Listen {
        address: at,
        source,
    })
}

fn bind(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)?.into_std()
}
