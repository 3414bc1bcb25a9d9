//! An HTTP service inside a pod: HTTP/1.1 and HTTP/2 with prior knowledge on each of its ports, on a thread of its own.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::watch;

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

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's, as the kernel says.
    pub peer: SocketAddr,
    /// What it was accepted on.
    pub local: SocketAddr,
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
        let thread = thread::spawn(move || run(&listeners, &answer, &counted, stopped));
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
    answer: &F,
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
            tokio::spawn(accept(listener, answer.clone(), Arc::clone(connections)));
        }
        // An error says that the sender is gone, which is the signal.
        drop(stopped.changed().await);
        listeners.iter().try_for_each(sys::end_listening)
    })
}

async fn accept<F, A, B, E>(
    listener: tokio::net::TcpListener,
    answer: F,
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
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        connections.fetch_add(1, Ordering::Relaxed);
        let (ends, answer) = (Ends { peer, local }, answer.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(ends, request));
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
