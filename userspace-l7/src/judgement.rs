//! L6: judging one request by demands, wherever they are enforced: at the destination, or at the source for a
//! destination whose node does not judge requests.

use std::net::SocketAddr;
use std::time::SystemTime;

use ::http::{HeaderMap, HeaderName, HeaderValue, request};
use smallvec::SmallVec;
use tracing::info;

use crate::asking::{Asker, Inquiry, ask_authorizer};
use crate::http::{Inflow, Refusal};
use crate::hub::Hub;
use crate::model::{Demands, RequestHead, SpiffeId};
use crate::policy::ext_authz::{CheckedPeer, HeaderChange};
use crate::policy::http::{
    AfterAsking, Asked, HttpAllowed, HttpDecision, HttpDenial, HttpDryRun, HttpRequest, ask_first,
    foresee_http, judge_http,
};
use crate::policy::is_for;
use crate::policy::jwt::{self, Claims};
use crate::policy::path::NormalizedPath;
use crate::telemetry::{Metrics, WatchedAction};

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
    /// Who the waypoint would be that the request goes through: told to applications, no matter to policies.
    pub(crate) waypoint: Option<&'a SpiffeId>,
}

/// What a request has to meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demanded<'a> {
    pub(crate) demands: &'a Demands,
    /// The port that was called, as who demands this counts ports.
    pub(crate) port: u16,
}

/// A request that may be forwarded.
pub(crate) struct Judged {
    /// Nothing where nothing was demanded.
    pub(crate) allowed: Option<HttpAllowed>,
    /// What those who were asked make of its response.
    pub(crate) response: Vec<HeaderChange>,
}

/// Asks those who have to be asked about a request, proves who its token is from, and judges it: in this order, so
/// that an answer may bring the token, and DENY and ALLOW see what the answers made of the request. It has to meet every
/// one of `demanded`. What the application gets of the answers and the token is in `parts` then.
///
/// # Errors
/// [`Refusal`]: what to answer.
///
/// # Cancel safety
/// Dropping the future takes questions back.
pub(crate) async fn judge(
    asker: Asker<'_>,
    demanded: &[Demanded<'_>],
    call: &Call<'_>,
    (parts, body): (&mut request::Parts, &mut Inflow),
) -> Result<Judged, Refusal> {
    // Before all else, as Envoy does: policies and authorizers see what the application will.
    let names_clients = demanded.iter().any(|one| one.demands.names_clients);
    name_client(call, names_clients, &mut parts.headers);
    for one in demanded {
        jwt::sanitize(&one.demands.authentication, &mut parts.headers);
    }
    let mut response = Vec::new();
    let mut after = SmallVec::<[Option<AfterAsking>; 1]>::new();
    for one in demanded {
        let first = ask_first(one.demands, &call.request(asker.hub, one.port, parts, None));
        let Some(ask) = first.map_err(Refusal::Denied)? else {
            after.push(None);
            continue;
        };
        let (authorizers, path) = (ask.authorizers, ask.path);
        let inquiry = call.about(&path);
        // On the heap: most requests wait for nobody, and should not be as large as those that do.
        let answers = Box::pin(ask_all(
            asker,
            &authorizers,
            inquiry,
            (&mut *parts, &mut *body),
        ));
        response.extend(answers.await?);
        after.push(Some(ask.then));
    }
    let mut tokens = SmallVec::<[Option<Claims>; 1]>::new();
    let mut allowed = None;
    for (one, then) in demanded.iter().zip(after) {
        let (token, path) = decide(asker.hub, one, then, call, parts)?;
        tokens.push(token);
        allowed.get_or_insert(path);
    }
    for token in tokens.iter().flatten() {
        token.apply(parts);
    }
    Ok(Judged { allowed, response })
}

/// Judges a request that all have been asked about: the token that it brought comes back with the permission.
fn decide(
    hub: &Hub,
    one: &Demanded<'_>,
    then: Option<AfterAsking>,
    call: &Call<'_>,
    parts: &request::Parts,
) -> Result<(Option<Claims>, HttpAllowed), Refusal> {
    let demands = one.demands;
    let keys = |keys: &_| hub.keys.of(keys);
    let head = RequestHead::of(parts);
    let token = jwt::authenticate(&demands.authentication, &keys, &head, SystemTime::now())
        .map_err(Refusal::Unauthenticated)?;
    let request = call.request(hub, one.port, parts, token.as_ref());
    let verdict = match then {
        Some(then) => then.judge(demands, &request),
        None => judge_http(demands, &request),
    };
    for observed in &verdict.dry_run {
        count(&hub.metrics, observed);
        info!(source = %call.source, destination = %call.destination, policy = %observed, "dry run");
    }
    for rule in &verdict.audited {
        info!(source = %call.source, destination = %call.destination, policy = %rule, "audit");
    }
    match verdict.decision {
        HttpDecision::Allowed(allowed) => Ok((token, allowed)),
        HttpDecision::Denied(denial) => Err(Refusal::Denied(denial)),
        // All who had to be asked were; who turns up after that is refused, not asked.
        HttpDecision::Ask(_) => Err(Refusal::Denied(HttpDenial::NotAllowed)),
    }
}

fn count(metrics: &Metrics, observed: &HttpDryRun) {
    let (rule, action, is_denied) = match observed {
        HttpDryRun::WouldDeny(rule) => (Some(rule), WatchedAction::Deny, true),
        HttpDryRun::WouldAllow(rule) => (Some(rule), WatchedAction::Allow, false),
        HttpDryRun::WouldNotAllow => (None, WatchedAction::Allow, true),
    };
    metrics.watched(rule.map(|rule| &rule.policy), action, is_denied);
}

/// Whether a request would be refused, as far as that can be told without asking anybody and without keys that may be
/// missing here: by whoever judges it with them.
///
/// # Errors
/// [`Refusal::Denied`].
pub(crate) fn foresee(
    hub: &Hub,
    one: &Demanded<'_>,
    call: &Call<'_>,
    parts: &request::Parts,
) -> Result<(), Refusal> {
    let demands = one.demands;
    if demands.authorization.is_empty() {
        return Ok(());
    }
    let keys = |keys: &_| hub.keys.of(keys);
    let head = RequestHead::of(parts);
    let token = jwt::authenticate(&demands.authentication, &keys, &head, SystemTime::now());
    let is_token_known = token.is_ok();
    let token = token.unwrap_or_default();
    let request = call.request(hub, one.port, parts, token.as_ref());
    foresee_http(demands, &request, is_token_known).map_err(Refusal::Denied)
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
        let authorizer = (&asked.authorizer.service, asked.authorizer.port);
        if is_for(
            &asker.hub.snapshot(),
            inquiry.destination.address,
            authorizer,
        ) {
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
        port: u16,
        parts: &'a request::Parts,
        token: Option<&'a Claims>,
    ) -> HttpRequest<'a> {
        HttpRequest {
            head: RequestHead::of(parts),
            normalization: hub.snapshot().path_normalization,
            identity: self.identity,
            source: self.source.ip(),
            destination: self.destination,
            service_port: port,
            token,
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

/// Takes away what a client says of its own certificate (Envoy's `SANITIZE`); tells the application who calls in its
/// stead, in the form of Istio's waypoint, where it is to be told.
fn name_client(call: &Call<'_>, is_told: bool, headers: &mut HeaderMap) {
    disown(headers);
    let (true, Some(client), Some(waypoint)) = (is_told, call.identity, call.waypoint) else {
        return;
    };
    if let Ok(named) = HeaderValue::try_from(format!("By={waypoint};URI={client}")) {
        drop(headers.insert(CLIENT_CERT, named));
    }
}

/// Takes away what only a proxy may say: whose certificate the client has shown.
pub(crate) fn disown(headers: &mut HeaderMap) {
    drop(headers.remove(CLIENT_CERT));
}
