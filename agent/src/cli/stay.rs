//! What `culvert uninstall --stay` does when all is removed: it stands in the agent's place, ready, until it is told to
//! stop, so that a rollout ends when every node is clean.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;

/// Where the agent says that it is ready.
const READINESS_PORT: u16 = 15021;

pub(super) fn run() -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Start)?;
    runtime.block_on(stand()).map_err(CliError::Start)
}

async fn stand() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen().await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                // A probe that breaks off is the prober's business.
                tokio::spawn(async move { drop(connection.await) });
            }
        }
    }
}

/// On every address of both families, or of the one that there is.
async fn listen() -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, READINESS_PORT)).await {
        Ok(listener) => Ok(listener),
        Err(_no_ipv6) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, READINESS_PORT)).await,
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(
        "nothing of culvert is left on this node\n",
    )))
}
