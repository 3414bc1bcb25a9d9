//! One request to one of a backend's endpoints, as often as its retry policy wants.

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{Method, Request, StatusCode, request};
use hyper::body::Body as _;
use tracing::debug;

use crate::dial::DialError;
use crate::doubt::Doubts;
use crate::endpoints::Endpoints;
use crate::http::{self, Answered, Body, Failure, Inflow, Malformed, Recording, Refusal, Version};
use crate::model::{RetryPolicy, Service};
use crate::route::Target;
use crate::route::http::retry::{self, Attempt};
use crate::route::outlier::Outcome;
use crate::telemetry::RequestFlag;
use crate::upstream::{self, NoConnection};

use super::account::Account;
use super::client::Client;
use super::judging::Heads;

/// Reused connections that may turn out to be closed before one is made anew.
const STALE: u32 = 2;

/// A request, and what is kept of its body as it passes.
type Sent<'a> = (Request<Body>, Option<&'a Recording>);

/// Where a request goes.
pub(super) struct Destination<'a> {
    pub(super) service: &'a Arc<Service>,
    pub(super) port: u16,
    pub(super) version: Version,
    pub(super) retry: &'a RetryPolicy,
    pub(super) endpoints: &'a Endpoints,
}

/// Why a request has no response.
pub(super) enum Unanswered {
    /// It has failed.
    Refused(Refusal),
    /// Nobody took it, and the mesh may be about to say why.
    Untaken(Box<Untaken>),
}

/// A request of which nothing has come to an application.
pub(super) struct Untaken {
    pub(super) request: Request<Body>,
    /// Whether its head is the one for nodes that judge requests.
    pub(super) is_judged_there: bool,
    /// What it is refused with if nothing changes.
    pub(super) refusal: Refusal,
    /// Whether it was tried as often as its policy wants.
    pub(super) is_exhausted: bool,
}

impl Untaken {
    /// What becomes of it without another attempt.
    fn given_up(self, account: &mut Account, doubts: &Doubts) -> Unanswered {
        if doubts.are_any() && self.refusal == Refusal::ConnectFailure {
            return Unanswered::Untaken(Box::new(self));
        }
        Unanswered::Refused(self.refuse(account))
    }

    /// What it is refused with.
    pub(super) fn refuse(self, account: &mut Account) -> Refusal {
        if self.is_exhausted {
            account.flag(RequestFlag::RetriesExhausted);
        }
        self.refusal
    }
}

impl From<Refusal> for Unanswered {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// An attempt without a response.
struct Failed {
    attempt: Attempt<'static>,
    refusal: Refusal,
    /// The request, if no byte of it has left.
    request: Option<Request<Body>>,
    /// Whether a connection that had waited was found closed.
    is_stale: bool,
    /// Why there was no connection.
    unreached: Option<DialError>,
}

/// What another attempt is made of.
struct Again {
    parts: request::Parts,
    body: AgainBody,
}

enum AgainBody {
    Empty,
    Recorded(Recording),
}

impl Again {
    fn request(self) -> Option<Request<Body>> {
        let body = match self.body {
            AgainBody::Empty => Body::Empty,
            AgainBody::Recorded(recording) => Body::Recorded(recording.replay()?),
        };
        Some(Request::from_parts(self.parts, body))
    }
}

/// Sends a request until there is a response that the policy keeps, or no attempt is left. Endpoints that take no tunnels
/// are noted in `doubts`.
pub(super) async fn forward(
    client: &Client,
    to: &Destination<'_>,
    ((mut request, recording), variants): (Sent<'_>, Option<&Heads>),
    (account, doubts): (&mut Account, &mut Doubts),
) -> Result<Answered, Unanswered> {
    let (mut retries, mut stale) = (0, 0);
    loop {
        let target = pick(retries, &to.endpoints.targets, to.retry);
        let target = target.ok_or(Refusal::NoHealthyUpstream)?;
        if let Some(variants) = variants {
            variants.dress(client.is_judged_at(target), &mut request);
        }
        let attended = to.endpoints.group.attend(target.destination);
        account.asks(target, (&to.service.key, to.port), attended);
        let again = remember(&request, recording, to);
        let failed = match attempt(client, target, to, request, stale).await {
            Ok((answered, at)) => {
                account.reached(at);
                let (status, headers) = (answered.response.status(), answered.response.headers());
                let outcome = Outcome::of_response(status, headers);
                to.endpoints.ended(at, outcome);
                let wanted =
                    retry::is_worth_another(to.retry, &Attempt::Response { status, headers });
                match again
                    .filter(|_| wanted && retries < to.retry.attempts)
                    .filter(|_| account.may_retry(to.endpoints))
                    .and_then(Again::request)
                {
                    Some(next) => {
                        drop(answered);
                        request = next;
                        retries += 1;
                        pause(client, to.retry, retries).await;
                        continue;
                    }
                    None => return Ok(answered),
                }
            }
            Err(failed) => failed,
        };
        debug!(destination = %target.destination, refusal = ?failed.refusal, "attempt failed");
        let is_stale = failed.is_stale && stale < STALE;
        if let Some(outcome) = outcome(&failed.refusal)
            && !is_stale
        {
            to.endpoints.ended(target.destination, outcome);
        }
        let unreached = failed.unreached.iter();
        unreached.for_each(|error| doubts.note(target, error));
        let next = failed.request.or_else(|| again.and_then(Again::request));
        let Some(next) = next else {
            return Err(failed.refusal.into());
        };
        if is_stale {
            // The race that every reused connection has: no fault of the endpoint, so no attempt lost.
            stale += 1;
        } else if failed.refusal != Refusal::Overflow
            && retries < to.retry.attempts
            && retry::is_worth_another(to.retry, &failed.attempt)
            && account.may_retry(to.endpoints)
        {
            retries += 1;
            pause(client, to.retry, retries).await;
        } else {
            let untaken = Untaken {
                request: next,
                is_judged_there: client.is_judged_at(target),
                refusal: failed.refusal,
                is_exhausted: retries > 0,
            };
            return Err(untaken.given_up(account, doubts));
        }
        request = next;
    }
}

/// What a refusal says of the endpoint that was asked; `None`: nothing.
fn outcome(refusal: &Refusal) -> Option<Outcome> {
    match refusal {
        Refusal::ConnectFailure
        | Refusal::Unbegun(_)
        | Refusal::UpstreamReset
        | Refusal::UpstreamNonsense => Some(Outcome::LocalFailure),
        // What the client is told.
        Refusal::Timeout => Some(Outcome::Status(StatusCode::GATEWAY_TIMEOUT)),
        _ => None,
    }
}

/// Which target an attempt goes to: the next one, unless the policy keeps to the first.
fn pick<'t>(retries: u32, targets: &'t [Target], retry: &RetryPolicy) -> Option<&'t Target> {
    if retry.same_endpoint {
        return targets.first();
    }
    targets.get(retries as usize % targets.len().max(1))
}

/// Keeps what passes of a body that may have to be sent twice, or that others get a copy of.
pub(super) fn prepare(
    body: Inflow,
    to: &Destination<'_>,
    has_copies: bool,
) -> (Body, Option<Recording>) {
    if body.is_end_stream() {
        return (Body::Empty, None);
    }
    let may_repeat = to.retry.attempts > 0 && repeats_after_sending(to);
    if !may_repeat && !has_copies {
        return (Body::Streamed(body), None);
    }
    let (recording, first) = Recording::new(body);
    (Body::Recorded(first), Some(recording))
}

/// Whether the policy may want another attempt after bytes of the body have left.
fn repeats_after_sending(to: &Destination<'_>) -> bool {
    let on = to.retry.on;
    let by_response = on.gateway_error || on.server_error || on.retriable_4xx || on.rate_limited;
    let by_reset = on.reset || to.retry.per_try_timeout.is_some();
    let by_stream = to.version == Version::Http2;
    by_response || by_reset || by_stream || !to.retry.statuses.is_empty()
}

/// What a second attempt needs, where there may be one after the first has begun to leave: whatever the method, since the
/// endpoint's node may answer that no byte has come to the application.
fn remember(
    request: &Request<Body>,
    recording: Option<&Recording>,
    to: &Destination<'_>,
) -> Option<Again> {
    if !request.body().is_end_stream() && !repeats_after_sending(to) {
        return None;
    }
    let body = match (request.body(), recording) {
        (Body::Empty, _) => AgainBody::Empty,
        (_, Some(recording)) => AgainBody::Recorded(recording.clone()),
        (_, None) => return None,
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    Some(Again { parts, body })
}

async fn attempt(
    client: &Client,
    target: &Target,
    to: &Destination<'_>,
    request: Request<Body>,
    stale: u32,
) -> Result<(Answered, SocketAddr), Failed> {
    let Some(limit) = to.retry.per_try_timeout else {
        return attempt_once(client, target, to, request, stale).await;
    };
    let one = Box::pin(attempt_once(client, target, to, request, stale));
    let timed = tokio::time::timeout(limit, one).await;
    timed.unwrap_or(Err(Failed {
        attempt: Attempt::PerTryTimeout,
        refusal: Refusal::Timeout,
        request: None,
        is_stale: false,
        unreached: None,
    }))
}

/// An answer, and which of the target's addresses it is from.
async fn attempt_once(
    client: &Client,
    target: &Target,
    to: &Destination<'_>,
    request: Request<Body>,
    stale: u32,
) -> Result<(Answered, SocketAddr), Failed> {
    let is_repeatable = is_repeatable(request.method()) && request.body().is_end_stream();
    let taken = match upstream::take(
        &client.origin(),
        (to.endpoints, target),
        to.version,
        stale >= STALE,
    )
    .await
    {
        Ok(taken) => taken,
        Err(error) => {
            debug!(destination = %target.destination, %error, "no connection");
            return Err(Failed {
                attempt: Attempt::ConnectFailure,
                refusal: refusal(&error),
                request: Some(request),
                is_stale: false,
                unreached: match error {
                    NoConnection::Dial(error) => Some(error),
                    _ => None,
                },
            });
        }
    };
    let failed = match http::send_on(taken.lease, request).await {
        Ok(mut answered) => {
            let told = http::take_told(answered.response.headers_mut());
            return match told.filter(|_| target.is_judged_there()) {
                Some(refusal) => Err(unanswered(refusal)),
                None => Ok((answered, taken.at)),
            };
        }
        Err(failed) => failed,
    };
    debug!(destination = %target.destination, %failed, "no response");
    let (attempt, is_stale) = match failed.failure {
        Failure::Unsent => (Attempt::ConnectFailure, taken.is_reused),
        Failure::Refused => (Attempt::RefusedStream, false),
        // "a client … can retry … automatically" if it is idempotent and the connection was one that had
        // waited (RFC 9110 §9.2.2).
        Failure::Reset => (Attempt::Reset, taken.is_reused && is_repeatable),
        Failure::Nonsense => (Attempt::Reset, false),
        Failure::Sender => (Attempt::Unfinished, false),
    };
    Err(Failed {
        attempt,
        refusal: match failed.failure {
            Failure::Unsent => Refusal::ConnectFailure,
            Failure::Refused | Failure::Reset => Refusal::UpstreamReset,
            Failure::Nonsense => Refusal::UpstreamNonsense,
            Failure::Sender => Refusal::Malformed(Malformed::Body),
        },
        request: failed.request.map(|request| *request),
        is_stale,
        unreached: None,
    })
}

/// An attempt that came to the endpoint's node, and no further.
fn unanswered(refusal: Refusal) -> Failed {
    Failed {
        attempt: match refusal {
            Refusal::ConnectFailure | Refusal::Unbegun(_) => Attempt::ConnectFailure,
            _ => Attempt::Reset,
        },
        refusal,
        request: None,
        is_stale: false,
        unreached: None,
    }
}

fn refusal(error: &NoConnection) -> Refusal {
    match error {
        NoConnection::Overflow => Refusal::Overflow,
        NoConnection::Dial(error) => match error.reason() {
            Some(why) => Refusal::Unbegun(why),
            None => Refusal::ConnectFailure,
        },
        NoConnection::Late | NoConnection::Handshake(_) => Refusal::ConnectFailure,
    }
}

/// Whether doing it twice is doing it once (RFC 9110 §9.2.2).
fn is_repeatable(method: &Method) -> bool {
    method.is_idempotent()
}

async fn pause(client: &Client, policy: &RetryPolicy, retries: u32) {
    let pause = retry::pause(policy, retries, &mut |bound| client.hub.choose(bound));
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}
