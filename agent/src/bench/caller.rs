//! One request after the other on a connection, in each protocol.

mod http;
mod plain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

pub(super) use self::http::Multiplexed;
use self::http::{Http1Caller, MultiplexedCaller, Question};
use self::plain::PlainCaller;
use super::failure::{BenchError, Failure};
use super::plan::{Plan, Protocol};
use super::tally::Moved;

/// Pause between two attempts to reach a server that is waited for.
const RETRY: Duration = Duration::from_millis(200);

/// Who is called, and what is asked.
#[derive(Debug)]
pub(super) struct Callee {
    pub(super) address: SocketAddr,
    pub(super) plan: Plan,
    question: Option<Question>,
}

/// Makes requests on one connection, which it opens when there is none.
pub(super) enum Caller {
    Plain(PlainCaller),
    Http1(Http1Caller),
    Multiplexed(MultiplexedCaller),
}

impl Callee {
    /// Finds the server and makes the first request of it, so that a run does not begin that cannot go well.
    /// Retries for as long as the plan says.
    ///
    /// # Errors
    /// [`BenchError`] if there is no such host, or it does not answer as it should in time.
    pub(super) async fn find(plan: &Plan) -> Result<Arc<Self>, BenchError> {
        let deadline = Instant::now() + plan.wait;
        loop {
            let failed = match Self::try_to_find(plan).await {
                Err(error) => error,
                found => return found,
            };
            if Instant::now() + RETRY >= deadline {
                return Err(failed);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_to_find(plan: &Plan) -> Result<Arc<Self>, BenchError> {
        let resolve = |source| BenchError::Resolve {
            host: plan.target.host.clone(),
            source,
        };
        let looked_up = tokio::net::lookup_host((&*plan.target.host, plan.port()));
        let mut why = "it has no address".to_owned();
        for address in looked_up.await.map_err(resolve)? {
            let callee = Arc::new(Self {
                address,
                plan: plan.clone(),
                question: Question::of(plan)?,
            });
            match tokio::time::timeout(plan.timeout, callee.try_once()).await {
                Ok(Ok(())) => return Ok(callee),
                Ok(Err(failure)) => why = failure.to_string(),
                Err(_elapsed) => why = Failure::Timeout.to_string(),
            }
        }
        Err(BenchError::Unreachable {
            target: plan.target.authority(plan.port()),
            why,
        })
    }

    async fn try_once(self: &Arc<Self>) -> Result<(), Failure> {
        if self.plan.protocol == Protocol::Bulk {
            return self.dial().await.map(drop);
        }
        let mut caller = if self.plan.protocol.is_multiplexed() {
            Multiplexed::new(Arc::clone(self)).caller()
        } else {
            Caller::new(Arc::clone(self))
        };
        caller.call().await.map(drop)
    }

    /// Opens a connection, and says how long it took.
    pub(super) async fn dial(&self) -> Result<(TcpStream, Duration), Failure> {
        let begin = Instant::now();
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| Failure::connect(&error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Failure::connect(&error))?;
        Ok((stream, begin.elapsed()))
    }

    fn question(&self) -> Result<&Question, Failure> {
        let missing = || Failure::Broken("no HTTP request is planned".to_owned());
        self.question.as_ref().ok_or_else(missing)
    }
}

impl Caller {
    /// For protocols with one request at a time on a connection.
    pub(super) fn new(callee: Arc<Callee>) -> Self {
        match callee.plan.protocol {
            Protocol::Http1 => Self::Http1(Http1Caller::new(callee)),
            _ => Self::Plain(PlainCaller::new(callee)),
        }
    }

    /// Opens the connection, unless each request has its own.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no connection.
    pub(super) async fn prepare(&mut self) -> Result<Option<Duration>, Failure> {
        match self {
            Self::Plain(caller) => caller.prepare().await,
            Self::Http1(caller) => caller.prepare().await,
            Self::Multiplexed(caller) => caller.prepare().await,
        }
    }

    /// Makes one request.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up: [`Caller::reset`] before the next one.
    pub(super) async fn call(&mut self) -> Result<Moved, Failure> {
        match self {
            Self::Plain(caller) => caller.call().await,
            Self::Http1(caller) => caller.call().await,
            Self::Multiplexed(caller) => caller.call().await,
        }
    }

    /// Leaves a connection that did not do what it should. Shared ones stay for the others until they are closed.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Plain(caller) => caller.reset(),
            Self::Http1(caller) => caller.reset(),
            Self::Multiplexed(_shared) => {}
        }
    }
}
