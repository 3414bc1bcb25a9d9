//! Asking the agent: HTTP/1.1 on its admin address.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{AdminArgs, CliError, ExplainArgs, LogArgs, StopArgs};
use crate::admin::{AgentStatus, Explanation, Layer7Dump, Released};
use crate::mesh::status::ObjectStatus;

/// Enough for the dump of a large mesh, and for releasing a node's pods.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often to look whether the agent is gone.
const POLL: Duration = Duration::from_millis(50);

/// `GET /config_dump`, as text.
pub(super) fn config_dump(admin: &AdminArgs) -> Result<Bytes, CliError> {
    run(ask(admin, Method::GET, "/config_dump"))?
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
    let body = run(ask(admin, Method::GET, path))??;
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
    let body = run(ask(&args.admin, Method::POST, &path))??;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Tells the agent to stop and waits until it is gone.
pub(super) fn stop(args: &StopArgs) -> Result<String, CliError> {
    run(async {
        let mut done = String::new();
        if args.unenrol {
            let released = release(&args.admin).await?;
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
            ask(&args.admin, Method::POST, "/quitquitquit").await?;
        }
        gone(&args.admin).await?;
        done.push_str("the agent has stopped\n");
        Ok(done)
    })?
}

async fn release(admin: &AdminArgs) -> Result<Released, CliError> {
    let (status, body) = exchange(admin, Method::POST, "/unenrol").await?;
    match serde_json::from_slice(&body) {
        Ok(released) => Ok(released),
        Err(_other_words) => Err(refused(admin, "/unenrol", status, &body)),
    }
}

/// Waits before the next look.
pub(super) fn pause(time: Duration) -> Result<(), CliError> {
    // Made inside: a timer wants a runtime to be there.
    run(async { sleep(time).await })
}

/// Resolves when nobody answers on the admin address any more.
async fn gone(admin: &AdminArgs) -> Result<(), CliError> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(&admin.admin).await.is_ok() {
        if Instant::now() >= deadline {
            return Err(CliError::StillRuns {
                admin: admin.admin.clone(),
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
async fn ask(admin: &AdminArgs, method: Method, path: &str) -> Result<Bytes, CliError> {
    let (status, body) = exchange(admin, method, path).await?;
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(refused(admin, path, status, &body))
    }
}

fn refused(admin: &AdminArgs, path: &str, status: StatusCode, body: &Bytes) -> CliError {
    CliError::Refused {
        admin: admin.admin.clone(),
        path: path.to_owned(),
        status: status.as_u16(),
        reason: String::from_utf8_lossy(body).trim().to_owned(),
    }
}

async fn exchange(
    admin: &AdminArgs,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), CliError> {
    timeout(PATIENCE, exchange_unbounded(admin, method, path))
        .await
        .unwrap_or_else(|_elapsed| {
            Err(CliError::Late {
                admin: admin.admin.clone(),
                path: path.to_owned(),
                seconds: PATIENCE.as_secs(),
            })
        })
}

async fn exchange_unbounded(
    admin: &AdminArgs,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), CliError> {
    let unreachable = |source| CliError::Unreachable {
        admin: admin.admin.clone(),
        source,
    };
    let broken = |source| CliError::Broken {
        admin: admin.admin.clone(),
        path: path.to_owned(),
        source,
    };
    let stream = TcpStream::connect(&admin.admin)
        .await
        .map_err(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, &admin.admin)
        .body(Empty::<Bytes>::new())
        // An address that connects but cannot stand in a header: a name with odd characters.
        .map_err(|error| unreachable(std::io::Error::other(error)))?;
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
