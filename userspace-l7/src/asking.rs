//! L6: asking another service about a request, on behalf of a local pod, and waiting for all of its answer.
//!
//! Who asks is the pod for whose sake the request is decided: at the destination the application's, at the source
//! the client's. The question leaves from that pod's network namespace with that pod's identity, through a tunnel
//! if the service is in the mesh, so network policies and authorization policies of the service that is asked see a pod
//! of the mesh and nobody else's rights are lent. (In Istio they see the waypoint's.) Questions go straight to the
//! service's endpoints, under its DestinationRule, and not through layer 7 of its own: an authorizer that is behind
//! a waypoint is not asked about being asked.

mod authorizer;
mod error;
mod limiter;
mod unary;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Request, StatusCode};
use bytes::{Bytes, BytesMut};
use hyper::body::Body as _;
use tokio::time::Instant;
use tracing::{debug, warn};

pub(crate) use authorizer::{Inquiry, ask_authorizer};
pub(crate) use error::AskError;
pub(crate) use limiter::ask_limiter;

use crate::endpoints::{self, Endpoints};
use crate::http::{self, Body, Version};
use crate::hub::Hub;
use crate::model::{NamespacedHostname, Workload};
use crate::pod::Pod;
use crate::route::outlier::Outcome;
use crate::route::{Target, Towards};
use crate::traffic::Wish;
use crate::upstream::{self, Origin};

/// Longest answer that is listened to. A page to log in at is a few hundred thousand bytes at most.
const MAX_ANSWER: usize = 1 << 20;

/// Who asks.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) pod: &'a Pod,
    pub(crate) workload: &'a Arc<Workload>,
}

/// Who is asked, and for how long at most.
#[derive(Clone, Copy)]
struct Addressee<'a> {
    service: &'a NamespacedHostname,
    port: u16,
    /// What it speaks; `None`: what its port declares, else HTTP/1.1.
    version: Option<Version>,
    timeout: Duration,
}

/// A whole answer.
struct Heard {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Asker<'_> {
    /// Tells operators that a service does not answer: each time by a counter, now and then in the log.
    pub(crate) fn report(
        &self,
        service: &dyn std::fmt::Display,
        error: &AskError,
        fail_open: bool,
    ) {
        self.hub.metrics.unanswered(service, fail_open);
        if let Some(more) = self.hub.silences.admit(Instant::now()) {
            warn!(%service, %error, fail_open, more, "a service that is asked about requests does not answer");
        }
    }

    /// Sends a question to one of a service's endpoints, to another if that cannot be reached, and hears the answer.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// Dropping the future takes the question back.
    async fn ask(&self, to: Addressee<'_>, question: Request<Bytes>) -> Result<Heard, AskError> {
        let answered = self.ask_one_of(to, question);
        let waited = tokio::time::timeout(to.timeout, answered).await;
        waited.unwrap_or(Err(AskError::Late))
    }

    async fn ask_one_of(
        &self,
        to: Addressee<'_>,
        question: Request<Bytes>,
    ) -> Result<Heard, AskError> {
        let snapshot = self.hub.snapshot();
        let service = snapshot.services.get(to.service);
        let service = service.ok_or_else(|| AskError::NoService(to.service.clone()))?;
        let mut address = upstream::own_address(self.workload);
        address.set_port(to.port);
        let towards = Towards {
            service,
            subset: None,
            address,
        };
        let declared = || upstream::declared_version(&snapshot, service, to.port);
        let version = to.version.or_else(declared).unwrap_or(Version::Http1);
        let regard = (endpoints::policy(&snapshot, &towards), Wish::default());
        let endpoints = endpoints::choose(self.hub, &snapshot, self.workload, &towards, regard)
            .map_err(|_none| AskError::NoEndpoint)?;
        let _admitted = endpoints.admit_request().ok_or(AskError::Overflow)?;
        let (mut parts, body) = question.into_parts();
        http::send(&mut parts, version, &service.key.hostname);
        let origin = Origin {
            hub: self.hub,
            pod: self.pod,
            workload: self.workload,
            source: None,
            service,
            claimed: None,
            legs: None,
        };
        let mut failed = AskError::NoEndpoint;
        for target in &endpoints.targets {
            let question = || {
                let body = if body.is_empty() {
                    Body::Empty
                } else {
                    Body::Whole(body.clone())
                };
                Request::from_parts(parts.clone(), body)
            };
            match ask_endpoint(&origin, (&endpoints, target), version, question).await {
                Ok(heard) => return Ok(heard),
                // It may have heard the question; only who cannot have heard it is passed over.
                Err(error) if !error.is_unreachable() => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Asks one endpoint; a second time if a connection that had waited turns out to be closed. Nothing depends on a
/// question being asked once.
async fn ask_endpoint(
    origin: &Origin<'_>,
    (endpoints, target): (&Endpoints, &Target),
    version: Version,
    question: impl Fn() -> Request<Body>,
) -> Result<Heard, AskError> {
    let _attended = endpoints.group.attend(target.destination);
    let mut fresh = false;
    loop {
        let taken = match upstream::take(origin, (endpoints, target), version, fresh).await {
            Ok(taken) => taken,
            Err(error) => {
                debug!(destination = %target.destination, %error, "no connection to ask over");
                endpoints.ended(target.destination, Outcome::LocalFailure);
                return Err(error.into());
            }
        };
        let is_reused = taken.is_reused;
        let heard = hear(taken, question()).await;
        match &heard {
            Ok(heard) => {
                let outcome = Outcome::of_response(heard.status, &heard.headers);
                endpoints.ended(target.destination, outcome);
            }
            Err(_) if is_reused && !fresh => {
                fresh = true;
                continue;
            }
            Err(_) => endpoints.ended(target.destination, Outcome::LocalFailure),
        }
        return heard;
    }
}

async fn hear(taken: upstream::Taken, question: Request<Body>) -> Result<Heard, AskError> {
    let answered = http::send_on(taken.lease, question).await?;
    let (parts, mut body) = answered.response.into_parts();
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(AskError::Broken)?;
        match frame.into_data() {
            Ok(data) => {
                if bytes.len() + data.len() > MAX_ANSWER {
                    return Err(AskError::TooLong);
                }
                bytes.extend_from_slice(&data);
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    answered.lease.give_back();
    Ok(Heard {
        status: parts.status,
        headers: parts.headers,
        body: bytes.freeze(),
        trailers,
    })
}
