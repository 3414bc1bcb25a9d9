//! One request on one connection, and its response on the way back.

use ::http::{Request, Response, StatusCode};
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
pub(crate) async fn send_on(
    mut lease: Lease,
    request: Request<Body>,
) -> Result<Answered, SendError> {
    let response = lease.send(request).await?;
    Ok(Answered { response, lease })
}

/// Passes a response on: without the fields of its hop, and with the connection itself where the protocol that
/// was asked for (`wanted`) is granted.
///
/// # Errors
/// [`Refusal::UpstreamReset`] if a protocol is granted that nobody asked for, or the connection has ended; the
/// observer comes back with it.
pub(crate) async fn relay<O: Observer>(
    answered: Answered,
    wanted: Option<&Upgrade>,
    handover: &Handover,
    mut observer: O,
) -> Result<Response<Relayed<O>>, (Refusal, O)> {
    let Answered { response, lease } = answered;
    let (mut parts, body) = response.into_parts();
    let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let granted = switches
        .then(|| upgrade_of(parts.version, &parts.headers))
        .flatten();
    strip(&mut parts.headers, granted.as_ref());
    let body = if switches {
        let other = match wanted.and(granted) {
            Some(_) => lease.switched().await,
            None => None,
        };
        let Some(other) = other else {
            return Err((Refusal::UpstreamReset, observer));
        };
        handover.give(other);
        observer.end(Ending::Complete);
        Relayed::own(Body::Empty)
    } else {
        Relayed::upstream(Body::from(body), lease, observer)
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}
