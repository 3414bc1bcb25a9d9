//! What a request leaves to be done to its response.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{HeaderName, HeaderValue, SERVER};
use tokio::time::Instant;

use crate::http;
use crate::model::{HeaderModifier, HttpRule};
use crate::policy::ext_authz::{self, HeaderChange};
use crate::route::http as route;

use super::affinity::Affinity;
use super::limits::Standing;
use super::phases::{Answer, SERVER_NAME};

const UPSTREAM_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// What is still to be done to a response.
pub(super) struct After {
    pub(super) upgrade: Option<http::Upgrade>,
    pub(super) rule: Option<Arc<HttpRule>>,
    pub(super) backend: HeaderModifier,
    pub(super) origin: Option<HeaderValue>,
    pub(super) deadline: Option<Instant>,
    pub(super) affinity: Affinity,
    pub(super) standing: Standing,
    pub(super) changes: Vec<HeaderChange>,
}

impl After {
    /// What a proxy, the backend and the rule make of a response.
    pub(super) fn decorate(
        &self,
        response: &mut Answer,
        host: Option<SocketAddr>,
        taken: Duration,
    ) {
        let headers = response.headers_mut();
        let millis = HeaderValue::from(u64::try_from(taken.as_millis()).unwrap_or(u64::MAX));
        drop(headers.insert(UPSTREAM_TIME, millis));
        if !headers.contains_key(SERVER) {
            drop(headers.insert(SERVER, SERVER_NAME));
        }
        self.affinity.tell(self.rule.as_ref(), host, headers);
        self.standing.tell(headers);
        ext_authz::apply(&self.changes, headers);
        route::modify(&self.backend, headers);
        if let Some(rule) = &self.rule {
            route::modify(&rule.response_headers, headers);
            if let (Some(cors), Some(origin)) = (&rule.cors, &self.origin) {
                route::cors::decorate(cors, origin, headers);
            }
        }
        if let Some(deadline) = self.deadline {
            response.body_mut().end_by(deadline);
        }
    }
}
