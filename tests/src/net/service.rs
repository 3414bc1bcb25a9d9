//! An HTTP service inside a pod: HTTP/1.1 and HTTP/2 with prior knowledge on each of its ports, on a thread of its own.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::sys;
use crate::lab::Pod;

/// Any error.
type Broken = Box<dyn std::error::Error + Send + Sync>;

/// A running service; dropping it closes its ports and connections, as the end of a process would.
pub struct Service {
    connections: Arc<AtomicUsize>,
    // Taken by drop: closing it ends the serving thread.
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The two ends of a connection, and what came before its first request.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The client's, as the kernel says.
    pub peer: SocketAddr,
    /// What it was accepted on.
    pub local: SocketAddr,
    /// The header of the PROXY protocol, as text.
    pub proxied: Option<String>,
    /// What was asked for in TLS.
    pub tls: Option<TlsEnds>,
}

/// What a client asked for in TLS, and who it proved to be.
#[derive(Clone, Debug)]
pub struct TlsEnds {
    /// The server's name.
    pub server_name: Option<String>,
    /// The protocol that was agreed on.
    pub alpn: Option<String>,
    /// Whether it has shown a certificate.
    pub has_certificate: bool,
}

/// What a service wants before requests.
#[derive(Clone, Default)]
pub struct Front {
    /// A header of the PROXY protocol.
    pub proxy: bool,
    /// TLS.
    pub tls: Option<Arc<ServerConfig>>,
}

/// A connection, whatever it is inside of.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Connection for C {}

impl Front {
    async fn pass(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
    ) -> Result<(Ends, Box<dyn Connection>)> {
        let mut ends = Ends {
            peer,
            local: stream.local_addr()?,
            proxied: None,
            tls: None,
        };
        if self.proxy {
            ends.proxied = Some(proxy_header(&mut stream).await?);
        }
        let Some(config) = &self.tls else {
            return Ok((ends, Box::new(stream)));
        };
        let stream = TlsAcceptor::from(Arc::clone(config)).accept(stream).await?;
        let (_, tls) = stream.get_ref();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ends.tls = Some(TlsEnds {
            server_name: tls.server_name().map(str::to_owned),
            alpn: tls.alpn_protocol().map(text),
            has_certificate: tls.peer_certificates().is_some(),
        });
        Ok((ends, Box::new(stream)))
    }
}

/// Reads a header of either version: a line of text, or `v2 <source> <destination>`.
async fn proxy_header(stream: &mut TcpStream) -> Result<String> {
    let mut head = vec![0; 12];
    stream.read_exact(&mut head).await?;
    if head.starts_with(b"PROXY ") {
        while !head.ends_with(b"\r\n") {
            head.push(stream.read_u8().await?);
        }
        return Ok(String::from_utf8_lossy(&head).trim_end().to_owned());
    }
    ensure!(
        head == b"\r\n\r\n\0\r\nQUIT\n",
        "no header of the PROXY protocol: {head:?}"
    );
    let (command, family) = (stream.read_u8().await?, stream.read_u8().await?);
    let mut rest = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut rest).await?;
    ensure!(
        (command, family, rest.len()) == (0x21, 0x11, 12),
        "{command:x} {family:x} {rest:?}"
    );
    let address =
        |at: usize| std::net::Ipv4Addr::from([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    Ok(format!(
        "v2 {}:{} {}:{}",
        address(0),
        port(8),
        address(4),
        port(10)
    ))
}

impl Service {
    /// Answers requests on ports of a pod, on all its addresses. An error in place of an answer cuts the connection.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn start<F, A, B, E>(pod: &Pod, ports: &[u16], answer: F) -> Result<Self>
    where
        F: Fn(Ends, Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Broken>,
        E: Into<Broken> + 'static,
    {
        Self::start_behind(Front::default(), pod, ports, answer)
    }

    /// The same, for clients that begin their connections in a certain way; others are not answered.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn start_behind<F, A, B, E>(
        front: Front,
        pod: &Pod,
        ports: &[u16],
        answer: F,
    ) -> Result<Self>
    where
        F: Fn(Ends, Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Broken>,
        E: Into<Broken> + 'static,
    {
        let listeners = pod.run(|| {
            let listen = |port: &u16| {
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))
                    .with_context(|| format!("cannot listen on {port}"))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            ports.iter().map(listen).collect::<Result<Vec<_>>>()
        })?;
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let (stop, stopped) = watch::channel(());
        let thread = thread::spawn(move || run(&listeners, (&front, &answer), &counted, stopped));
        Ok(Self {
            connections,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run<F, A, B, E>(
    listeners: &[TcpListener],
    (front, answer): (&Front, &F),
    connections: &Arc<AtomicUsize>,
    mut stopped: watch::Receiver<()>,
) -> Result<()>
where
    F: Fn(Ends, Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Broken>,
    E: Into<Broken> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for a service")?;
    // What still runs when this returns is dropped with the runtime, as a process that ends drops its sockets.
    runtime.block_on(async {
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
            let served = (front.clone(), answer.clone());
            tokio::spawn(accept(listener, served, Arc::clone(connections)));
        }
        // An error says that the sender is gone, which is the signal.
        drop(stopped.changed().await);
        listeners.iter().try_for_each(sys::end_listening)
    })
}

async fn accept<F, A, B, E>(
    listener: tokio::net::TcpListener,
    (front, answer): (Front, F),
    connections: Arc<AtomicUsize>,
) where
    F: Fn(Ends, Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Broken>,
    E: Into<Broken> + 'static,
{
    // A client that gave up before it was accepted is its own affair.
    while let Ok((stream, peer)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let (front, answer) = (front.clone(), answer.clone());
        tokio::spawn(async move {
            let Ok((ends, stream)) = front.pass(stream, peer).await else {
                return;
            };
            let service = service_fn(move |request| answer(ends.clone(), request));
            let server = auto::Builder::new(TokioExecutor::new());
            // A failure is the scenario's business, which sees the client's end of it.
            drop(
                server
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}
