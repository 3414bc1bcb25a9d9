//! L6: judging one request by demands, wherever they are enforced: at the destination, or at the source for a
//! destination whose node does not judge requests.

use std::net::SocketAddr;
use std::time::SystemTime;

use ::http::{HeaderMap, HeaderName, HeaderValue, request};
use tracing::info;

use crate::asking::{Asker, Inquiry, ask_authorizer};
use crate::http::{self, Inflow, Refusal};
use crate::hub::Hub;
use crate::model::{Demands, SpiffeId};
use crate::policy::ext_authz::{CheckedPeer, HeaderChange};
use crate::policy::http::{
    Asked, HttpAllowed, HttpDecision, HttpDenial, HttpRequest, ask_first, judge_http,
};
use crate::policy::jwt::{self, Claims};
use crate::policy::path::NormalizedPath;

const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Who calls whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// The client, as it is proven.
    pub(crate) identity: Option<&'a SpiffeId>,
    pub(crate) source: SocketAddr,
    /// The application.
    pub(crate) destination: SocketAddr,
    /// Whose it is, where it can prove it.
    pub(crate) server: Option<&'a SpiffeId>,
    /// The port that was called.
    pub(crate) port: u16,
    /// Who the waypoint would be that the request goes through.
    pub(crate) waypoint: Option<&'a SpiffeId>,
}

/// A request that may be forwarded.
pub(crate) struct Judged {
    pub(crate) allowed: HttpAllowed,
    /// What those who were asked make of its response.
    pub(crate) response: Vec<HeaderChange>,
}

/// Asks those who have to be asked about a request, proves who its token is from, and judges it: in this order, so
/// that an answer may bring the token, and DENY and ALLOW see what the answers made of the request. What the
/// application gets of the answers and the token is in `parts` then.
///
/// # Errors
/// [`Refusal`]: what to answer.
///
/// # Cancel safety
/// Dropping the future takes questions back.
pub(crate) async fn judge(
    asker: Asker<'_>,
    demands: &Demands,
    call: &Call<'_>,
    (parts, body): (&mut request::Parts, &mut Inflow),
) -> Result<Judged, Refusal> {
    jwt::sanitize(&demands.authentication, &mut parts.headers);
    let first = ask_first(demands, &call.request(asker.hub, parts, None));
    let (response, then) = match first.map_err(Refusal::Denied)? {
        None => (Vec::new(), None),
        Some(ask) => {
            let (authorizers, path) = (ask.authorizers, ask.path);
            // On the heap: most requests wait for nobody, and should not be as large as those that do.
            let answers = Box::pin(ask_all(
                asker,
                &authorizers,
                call.about(&path),
                (parts, body),
            ));
            (answers.await?, Some(ask.then))
        }
    };
    let keys = |keys: &_| asker.hub.keys.of(keys);
    let head = http::head_of(parts);
    let token = jwt::authenticate(&demands.authentication, &keys, &head, SystemTime::now())
        .map_err(Refusal::Unauthenticated)?;
    let request = call.request(asker.hub, parts, token.as_ref());
    let verdict = match then {
        Some(then) => then.judge(demands, &request),
        None => judge_http(demands, &request),
    };
    for observed in &verdict.dry_run {
        info!(source = %call.source, destination = %call.destination, policy = %observed, "dry run");
    }
    for rule in &verdict.audited {
        info!(source = %call.source, destination = %call.destination, policy = %rule, "audit");
    }
    let allowed = match verdict.decision {
        HttpDecision::Allowed(allowed) => allowed,
        HttpDecision::Denied(denial) => return Err(Refusal::Denied(denial)),
        // All who had to be asked were; who turns up after that is refused, not asked.
        HttpDecision::Ask(_) => return Err(Refusal::Denied(HttpDenial::NotAllowed)),
    };
    if let Some(claims) = &token {
        claims.apply(parts);
    }
    if demands.names_clients {
        name_client(call, &mut parts.headers);
    }
    Ok(Judged { allowed, response })
}

/// Asks one after the other, each about the request that the former ones have made of it.
async fn ask_all(
    asker: Asker<'_>,
    authorizers: &[Asked],
    inquiry: Inquiry<'_>,
    (parts, body): (&mut request::Parts, &mut Inflow),
) -> Result<Vec<HeaderChange>, Refusal> {
    let mut response = Vec::new();
    for asked in authorizers {
        // An authorizer is not asked about questions to itself, which would go on for ever.
        if asker.workload.services.contains(&asked.authorizer.service) {
            continue;
        }
        let changes = ask_authorizer(asker, &asked.authorizer, inquiry, (parts, body)).await?;
        response.extend(changes);
    }
    Ok(response)
}

impl<'a> Call<'a> {
    fn request(
        &self,
        hub: &Hub,
        parts: &'a request::Parts,
        token: Option<&'a Claims>,
    ) -> HttpRequest<'a> {
        HttpRequest {
            head: http::head_of(parts),
            normalization: hub.snapshot().path_normalization,
            identity: self.identity,
            source: self.source.ip(),
            // No proxy in front of a client of the mesh is trusted to name another.
            remote: self.source.ip(),
            destination: self.destination,
            service_port: self.port,
            token,
            waypoint_identity: self.waypoint,
        }
    }

    fn about<'i>(&'i self, path: &'i NormalizedPath) -> Inquiry<'i> {
        Inquiry {
            path,
            source: CheckedPeer {
                address: self.source,
                identity: self.identity,
            },
            destination: CheckedPeer {
                address: self.destination,
                identity: self.server,
            },
        }
    }
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
