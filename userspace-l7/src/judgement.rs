//! L6: judging one request by demands, wherever they are enforced: at the destination, or at the source for a
//! destination whose node does not judge requests.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use ::http::{HeaderMap, HeaderName, HeaderValue, request};
use tracing::info;

use crate::http::{self, Refusal};
use crate::hub::Hub;
use crate::model::{Demands, SpiffeId};
use crate::policy::http::{HttpAllowed, HttpDecision, HttpDenial, HttpRequest, judge_http};
use crate::policy::jwt;

const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Who calls whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// The client, as it is proven.
    pub(crate) identity: Option<&'a SpiffeId>,
    pub(crate) source: IpAddr,
    /// The application.
    pub(crate) destination: SocketAddr,
    /// The port that was called.
    pub(crate) port: u16,
    /// Who the waypoint would be that the request goes through.
    pub(crate) waypoint: Option<&'a SpiffeId>,
}

/// Proves who a request's token is from, and judges the request. What the application gets of the token is in
/// `parts` then.
///
/// # Errors
/// [`Refusal`]: what to answer.
pub(crate) fn judge(
    hub: &Hub,
    demands: &Demands,
    call: &Call<'_>,
    parts: &mut request::Parts,
) -> Result<HttpAllowed, Refusal> {
    jwt::sanitize(&demands.authentication, &mut parts.headers);
    let keys = |keys: &_| hub.keys.of(keys);
    let head = http::head_of(parts);
    let token = jwt::authenticate(&demands.authentication, &keys, &head, SystemTime::now())
        .map_err(Refusal::Unauthenticated)?;
    let verdict = judge_http(
        demands,
        &HttpRequest {
            head,
            normalization: hub.snapshot().path_normalization,
            identity: call.identity,
            source: call.source,
            // No proxy in front of a client of the mesh is trusted to name another.
            remote: call.source,
            destination: call.destination,
            service_port: call.port,
            token: token.as_ref(),
            waypoint_identity: call.waypoint,
        },
    );
    for observed in &verdict.dry_run {
        info!(source = %call.source, destination = %call.destination, policy = %observed, "dry run");
    }
    for rule in &verdict.audited {
        info!(source = %call.source, destination = %call.destination, policy = %rule, "audit");
    }
    let allowed = match verdict.decision {
        HttpDecision::Allowed(allowed) => allowed,
        HttpDecision::Denied(denial) => return Err(Refusal::Denied(denial)),
        // Nobody here can be asked yet, and what cannot be asked is refused.
        HttpDecision::Ask(ask) => {
            let denial = match ask.authorizers.into_iter().next() {
                Some(asked) => HttpDenial::NoAuthorizer(asked.rule),
                None => HttpDenial::NotAllowed,
            };
            return Err(Refusal::Denied(denial));
        }
    };
    if let Some(claims) = &token {
        claims.apply(parts);
    }
    if demands.names_clients {
        name_client(call, &mut parts.headers);
    }
    Ok(allowed)
}

/// Tells the application who calls, in the form of Istio's waypoint, and nothing that a client says of itself.
fn name_client(call: &Call<'_>, headers: &mut HeaderMap) {
    drop(headers.remove(CLIENT_CERT));
    let (Some(client), Some(waypoint)) = (call.identity, call.waypoint) else {
        return;
    };
    if let Ok(named) = HeaderValue::try_from(format!("By={waypoint};URI={client}")) {
        drop(headers.insert(CLIENT_CERT, named));
    }
}
