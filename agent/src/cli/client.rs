//! Asking the agent: HTTP/1.1 on its admin address, and on its socket for what changes it.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::{AdminArgs, CliError, ExplainArgs, LogArgs, SocketArgs, StopArgs};
use crate::admin::{AgentStatus, Explanation, Layer7Dump, Released, SOCKET};
use crate::mesh::status::ObjectStatus;

/// Enough for the dump of a large mesh, and for releasing a node's pods.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often to look whether the agent is gone.
const POLL: Duration = Duration::from_millis(50);

/// Where an agent is asked.
enum At {
    Address(String),
    Socket(PathBuf),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl At {
    fn address(admin: &AdminArgs) -> Self {
        Self::Address(admin.admin.clone())
    }

    /// Where it is changed: over its socket, and if there is none, it is a controller.
    fn changing(admin: &AdminArgs, socket: &SocketArgs) -> Self {
        let socket = socket.run_dir.join(SOCKET);
        if socket.exists() {
            Self::Socket(socket)
        } else {
            Self::address(admin)
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Address(address) => Box::new(TcpStream::connect(address).await?),
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    /// What a request's head calls it.
    fn host(&self) -> &str {
        match self {
            Self::Address(address) => address,
            Self::Socket(_) => "localhost",
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// `GET /config_dump`, as text.
pub(super) fn config_dump(admin: &AdminArgs) -> Result<Bytes, CliError> {
    run(ask(&At::address(admin), Method::GET, "/config_dump"))?
}

/// `GET /status`.
pub(super) fn status(admin: &AdminArgs) -> Result<AgentStatus, CliError> {
    read(admin, "/status")
}

/// `GET /objects`.
pub(super) fn objects(admin: &AdminArgs) -> Result<Vec<ObjectStatus>, CliError> {
    read(admin, "/objects")
}

/// `GET /layer7`.
pub(super) fn layer7(admin: &AdminArgs) -> Result<Layer7Dump, CliError> {
    read(admin, "/layer7")
}

/// `GET /explain`.
pub(super) fn explain(args: &ExplainArgs) -> Result<Explanation, CliError> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("from", &args.from);
    query.append_pair("to", &args.to);
    query.append_pair("method", &args.method);
    query.append_pair("path", &args.path);
    for header in &args.headers {
        query.append_pair("header", header);
    }
    read(&args.admin, &format!("/explain?{}", query.finish()))
}

fn read<T: DeserializeOwned>(admin: &AdminArgs, path: &str) -> Result<T, CliError> {
    let body = run(ask(&At::address(admin), Method::GET, path))??;
    serde_json::from_slice(&body).map_err(|source| CliError::Decode {
        origin: format!("{path} of {}", admin.admin),
        source,
    })
}

/// `POST /logging`: what the agent said.
pub(super) fn log(args: &LogArgs) -> Result<String, CliError> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(level) = &args.level {
        query.append_pair("level", level);
    }
    if args.reset {
        query.append_pair("reset", "true");
    }
    let path = format!("/logging?{}", query.finish());
    let at = At::changing(&args.admin, &args.socket);
    let body = run(ask(&at, Method::POST, &path))??;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Tells the agent to stop and waits until it is gone.
pub(super) fn stop(args: &StopArgs) -> Result<String, CliError> {
    let at = At::changing(&args.admin, &args.socket);
    run(async {
        let mut done = String::new();
        if args.unenrol {
            let released = release(&at).await?;
            if !released.failures.is_empty() {
                return Err(CliError::LeftBehind {
                    failures: released.failures,
                });
            }
            for pod in &released.pods {
                done.push_str("released ");
                done.push_str(pod);
                done.push('\n');
            }
        } else {
            ask(&at, Method::POST, "/quitquitquit").await?;
        }
        gone(&at).await?;
        done.push_str("the agent has stopped\n");
        Ok(done)
    })?
}

async fn release(at: &At) -> Result<Released, CliError> {
    let (status, body) = exchange(at, Method::POST, "/unenrol").await?;
    match serde_json::from_slice(&body) {
        Ok(released) => Ok(released),
        Err(_other_words) => Err(refused(at, "/unenrol", status, &body)),
    }
}

/// Waits before the next look.
pub(super) fn pause(time: Duration) -> Result<(), CliError> {
    // Made inside: a timer wants a runtime to be there.
    run(async { sleep(time).await })
}

/// Resolves when nobody answers there any more.
async fn gone(at: &At) -> Result<(), CliError> {
    let deadline = Instant::now() + PATIENCE;
    while at.connect().await.is_ok() {
        if Instant::now() >= deadline {
            return Err(CliError::StillRuns {
                admin: at.to_string(),
                seconds: PATIENCE.as_secs(),
            });
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn run<F: Future>(work: F) -> Result<F::Output, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    Ok(runtime.map_err(CliError::Start)?.block_on(work))
}

/// One request; anything but 200 is an error.
async fn ask(at: &At, method: Method, path: &str) -> Result<Bytes, CliError> {
    let (status, body) = exchange(at, method, path).await?;
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(refused(at, path, status, &body))
    }
}

fn refused(at: &At, path: &str, status: StatusCode, body: &Bytes) -> CliError {
    CliError::Refused {
        admin: at.to_string(),
        path: path.to_owned(),
        status: status.as_u16(),
        reason: String::from_utf8_lossy(body).trim().to_owned(),
    }
}

async fn exchange(at: &At, method: Method, path: &str) -> Result<(StatusCode, Bytes), CliError> {
    timeout(PATIENCE, exchange_unbounded(at, method, path))
        .await
        .unwrap_or_else(|_elapsed| {
            Err(CliError::Late {
                admin: at.to_string(),
                path: path.to_owned(),
                seconds: PATIENCE.as_secs(),
            })
        })
}

async fn exchange_unbounded(
    at: &At,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), CliError> {
    let unreachable = |source| CliError::Unreachable {
        admin: at.to_string(),
        source,
    };
    let broken = |source| CliError::Broken {
        admin: at.to_string(),
        path: path.to_owned(),
        source,
    };
    let stream = at.connect().await.map_err(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, at.host())
        .body(Empty::<Bytes>::new())
        // An address that connects but cannot stand in a header: a name with odd characters.
        .map_err(|error| unreachable(io::Error::other(error)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::select! {
        answer = answer => answer.map_err(broken),
        // A connection that ends first has nothing more to deliver; its own error says why.
        Err(source) = connection => Err(broken(source)),
    }
}
