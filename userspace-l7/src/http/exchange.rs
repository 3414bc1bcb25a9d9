//! One request on one connection, and its response on the way back.

use ::http::{Request, Response, StatusCode, response};
use hyper::body::Incoming;

use super::body::Body;
use super::client::SendError;
use super::forwarding::{Upgrade, strip, upgrade_of};
use super::pool::Lease;
use super::refusal::Refusal;
use super::relayed::{Ending, Observer, Relayed};
use super::server::Handover;

/// A response, and the connection that its body still comes through.
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
}

/// Sends a request and waits for the head of its response.
///
/// # Errors
/// As [`Lease::send`].
///
/// # Cancel safety
/// As [`Lease::send`].
pub(crate) fn send_on(
    mut lease: Lease,
    request: Request<Body>,
) -> impl Future<Output = Result<Answered, SendError>> {
    let sent = lease.send(request);
    async move {
        let response = sent.await?;
        Ok(Answered { response, lease })
    }
}

impl Answered {
    /// Whether the connection is no longer HTTP with this response: it is for [`switch`] then.
    pub(crate) fn switches(&self) -> bool {
        self.response.status() == StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Passes a response on, without the fields of its hop.
pub(crate) fn relay<O: Observer>(answered: Answered, observer: O) -> Response<Relayed<O>> {
    let Answered { response, lease } = answered;
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers, None);
    let body = Relayed::upstream(Body::from(body), lease, observer);
    passed_on(parts, body)
}

/// Passes on a response that switches the protocol, and the connection itself, where it is the protocol that
/// was asked for (`wanted`).
///
/// # Errors
/// [`Refusal::UpstreamNonsense`] if a protocol is granted that nobody asked for, [`Refusal::UpstreamReset`] if the connection
/// has ended; the observer comes back with it.
pub(crate) async fn switch<O: Observer>(
    answered: Answered,
    wanted: Option<&Upgrade>,
    handover: &Handover,
    mut observer: O,
) -> Result<Response<Relayed<O>>, (Refusal, O)> {
    let Answered { response, lease } = answered;
    let (mut parts, _body) = response.into_parts();
    let granted = upgrade_of(parts.version, &parts.headers);
    strip(&mut parts.headers, granted.as_ref());
    if wanted.and(granted).is_none() {
        return Err((Refusal::UpstreamNonsense, observer));
    }
    let Some(other) = lease.switched().await else {
        return Err((Refusal::UpstreamReset, observer));
    };
    handover.give(other);
    observer.end(Ending::Complete);
    Ok(passed_on(parts, Relayed::own(Body::Empty)))
}

fn passed_on<O>(parts: response::Parts, body: Relayed<O>) -> Response<Relayed<O>> {
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}
