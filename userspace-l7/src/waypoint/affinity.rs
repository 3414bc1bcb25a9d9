//! What keeps a client's requests at one endpoint: the session of its route (HTTPRoute `sessionPersistence`), or
//! a hash of what its backend's policy names (DestinationRule `consistentHash`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::header::{HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use ::http::request;

use crate::endpoints;
use crate::model::{
    BackendTarget, Balance, HashKey, HttpRule, RequestHead, SessionCarrier, Snapshot,
    TrafficPolicy, WeightedBackend,
};
use crate::route::http::session::Session;
use crate::route::{self, spread};
use crate::traffic::Wish;

use super::client::Client;

/// Where a request belongs, and what its client is told of that.
#[derive(Default)]
pub(super) struct Affinity {
    session: Option<Session>,
    /// A cookie that was made for its hash.
    cookie: Option<HeaderValue>,
}

impl Affinity {
    /// The session that a request says it belongs to.
    pub(super) fn of(rule: Option<&Arc<HttpRule>>, parts: &request::Parts) -> Self {
        let rules = rule.and_then(|rule| rule.session.as_ref());
        let now = SystemTime::now();
        Self {
            session: rules.and_then(|rules| Session::of(rules, &RequestHead::of(parts), now)),
            cookie: None,
        }
    }

    /// The backend of the session's endpoint: a session stays where its first request went, whatever the
    /// weights (GEP-1619, "Traffic Splitting").
    pub(super) fn backend<'r>(
        &self,
        client: &Client,
        snapshot: &Snapshot,
        backends: &'r [WeightedBackend],
    ) -> Option<&'r WeightedBackend> {
        let endpoint = self.session?.endpoint;
        let serves = |backend: &&WeightedBackend| {
            let BackendTarget::Service {
                service,
                port,
                subset,
            } = &backend.target
            else {
                return false;
            };
            let Some(service) = snapshot.services.get(service) else {
                return false;
            };
            let towards = client.towards(service, *port, subset.as_ref());
            let policy = endpoints::policy(snapshot, &towards);
            let nearness = policy.nearness.as_ref();
            let candidates = route::candidates(snapshot, &client.workload, &towards, nearness);
            let mut addresses = candidates.iter().map(|candidate| candidate.address);
            backend.weight > 0 && addresses.any(|address| address == endpoint)
        };
        backends.iter().find(serves)
    }

    /// What the choice of an endpoint has to regard. Makes the cookie that the policy's hash is of, if the client
    /// has none yet.
    pub(super) fn wish(
        &mut self,
        client: &Client,
        policy: &TrafficPolicy,
        parts: &request::Parts,
    ) -> Wish {
        let session = self.session.map(|session| session.endpoint);
        let Balance::ConsistentHash { key, .. } = &policy.balance else {
            return Wish {
                session,
                hash: None,
            };
        };
        let head = RequestHead::of(parts);
        let mut hash = spread::request_hash(key, &head, client.source.ip());
        if let HashKey::Cookie {
            name,
            path,
            ttl: Some(ttl),
        } = key
            && hash.is_none()
        {
            let value = format!("{:016x}", client.hub.random());
            hash = Some(spread::hash(value.as_bytes()));
            self.cookie = cookie(&format!("{name}={value}"), path.as_deref(), *ttl);
        }
        Wish { session, hash }
    }

    /// Adds to a response what brings the client's next request to `endpoint`, which gave it.
    pub(super) fn tell(
        &self,
        rule: Option<&Arc<HttpRule>>,
        endpoint: Option<SocketAddr>,
        headers: &mut HeaderMap,
    ) {
        if let Some(cookie) = &self.cookie {
            let _more = headers.append(SET_COOKIE, cookie.clone());
        }
        let rules = rule.and_then(|rule| rule.session.as_ref());
        let (Some(rules), Some(endpoint)) = (rules, endpoint) else {
            return;
        };
        let now = SystemTime::now();
        let known = self.session.filter(|session| session.endpoint == endpoint);
        let is_told = rules.carrier != SessionCarrier::Header && rules.idle_timeout.is_none();
        if known.is_some() && is_told {
            return;
        }
        let session = known.unwrap_or_else(|| Session::begin(endpoint, now));
        let (name, value) = session.field(rules, now);
        if let Ok(name) = HeaderName::try_from(name) {
            let _more = headers.append(name, value);
        }
    }
}

/// A cookie as Envoy makes it; without an age it ends with the browser's session.
fn cookie(pair: &str, path: Option<&str>, ttl: Duration) -> Option<HeaderValue> {
    let age = match ttl.as_secs() {
        0 => String::new(),
        seconds => format!("; Max-Age={seconds}"),
    };
    let path = path.map_or_else(String::new, |path| format!("; Path={path}"));
    HeaderValue::try_from(format!("{pair}{age}{path}; HttpOnly")).ok()
}
