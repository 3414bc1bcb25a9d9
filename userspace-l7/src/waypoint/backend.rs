//! Which service a request goes to, and what its backend reference says besides.

use std::sync::Arc;

use ::http::request;

use crate::endpoints::{self, Endpoints};
use crate::http::{Refusal, Version};
use crate::model::{
    BackendTarget, HeaderModifier, HttpRouteEntry, Service, Snapshot, TrafficPolicy,
    WeightedBackend,
};
use crate::route::http::Filters;

use super::affinity::Affinity;
use super::client::{Client, name_asked_for, version_towards};
use super::outsider;

/// A rule's backend, or the service that was dialled.
pub(super) struct Backend<'s> {
    pub(super) service: &'s Arc<Service>,
    pub(super) port: u16,
    /// Nothing where no rule named it.
    pub(super) reference: Option<&'s WeightedBackend>,
}

impl Backend<'_> {
    /// Its endpoints for this request, as its traffic policy and the request's affinity want them.
    pub(super) fn endpoints(
        &self,
        client: &Client,
        snapshot: &Snapshot,
        (affinity, parts): (&mut Affinity, &request::Parts),
    ) -> Result<Endpoints, Refusal> {
        let towards = client.towards(self.service, self.port, self.subset());
        let policy = endpoints::policy(snapshot, &towards);
        if let Some(name) = name_asked_for(self.service, parts)? {
            let found = endpoints::by_name(&client.hub, &towards, policy, name);
            return found.map_err(|_no_port| Refusal::NoHealthyUpstream);
        }
        let wish = affinity.wish(client, &policy, parts);
        let regard = (policy, outsider::wish(client, wish));
        let chosen = endpoints::choose(&client.hub, snapshot, &client.workload, &towards, regard);
        let mut chosen = chosen.map_err(|_none| Refusal::NoHealthyUpstream)?;
        outsider::bar(client, snapshot, &mut chosen.targets)?;
        Ok(chosen)
    }

    /// What a request that matched an entry passes on its way to it.
    pub(super) fn filters<'f>(&'f self, entry: &'f HttpRouteEntry) -> Filters<'f> {
        Filters {
            matched: &entry.matches,
            rule: &entry.rule,
            backend: self.reference.map(|one| &one.request_headers),
            is_shadow: false,
        }
    }

    fn subset(&self) -> Option<&Arc<str>> {
        match &self.reference?.target {
            BackendTarget::Service { subset, .. } => subset.as_ref(),
            BackendTarget::Invalid { .. } => None,
        }
    }

    /// What is spoken to it if no change of protocol is asked for.
    pub(super) fn version(
        &self,
        snapshot: &Snapshot,
        policy: &TrafficPolicy,
        client: Version,
    ) -> Version {
        if policy.upgrade_to_http2 {
            return Version::Http2;
        }
        version_towards(snapshot, self.service, self.port, client)
    }

    /// What its reference makes of a response.
    pub(super) fn response_headers(&self) -> HeaderModifier {
        let modifier = self.reference.map(|reference| &reference.response_headers);
        modifier.cloned().unwrap_or_default()
    }
}
