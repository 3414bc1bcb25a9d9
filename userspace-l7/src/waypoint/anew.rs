//! A request's way to an endpoint, which is decided anew where nobody has taken the request because nodes do not agree on
//! whether the endpoint is in the mesh. It then goes where the mesh says next; where that is nobody who judges requests, it
//! is judged here as the endpoint's node would have judged it.

use std::sync::Arc;

use ::http::Request;

use crate::doubt::Doubts;
use crate::endpoints::Endpoints;
use crate::http::{self, Answered, Body, Inflow, Recording, Refusal};
use crate::model::Snapshot;
use crate::policy::ext_authz::HeaderChange;
use crate::route::Target;
use crate::route::http::{Filters, Original};

use super::account::Account;
use super::affinity::Affinity;
use super::backend::Backend;
use super::client::Client;
use super::forward::{self, Destination, Unanswered, Untaken};
use super::judging::{self, Heads};

/// How a request is sent on.
pub(super) struct Way<'a> {
    client: &'a Client,
    backend: &'a Backend<'a>,
    filters: Option<&'a Filters<'a>>,
    recording: Option<&'a Recording>,
}

impl<'a> Way<'a> {
    pub(super) fn new(
        client: &'a Client,
        backend: &'a Backend<'a>,
        filters: Option<&'a Filters<'a>>,
        recording: Option<&'a Recording>,
    ) -> Self {
        Self {
            client,
            backend,
            filters,
            recording,
        }
    }

    /// As [`forward::forward`]; `changes` is what is to be made of the response by then.
    pub(super) async fn forward(
        &self,
        to: &Destination<'_>,
        (request, variants): (Request<Body>, Option<&Heads>),
        (affinity, changes): (&mut Affinity, &mut Vec<HeaderChange>),
        account: &mut Account,
    ) -> Result<Answered, Refusal> {
        let mut doubts = Doubts::default();
        let sent = ((request, self.recording), variants);
        let sent = forward::forward(self.client, to, sent, (account, &mut doubts)).await;
        match sent {
            Ok(answered) => Ok(answered),
            Err(Unanswered::Refused(refusal)) => Err(refusal),
            // On the heap: hardly any request comes here.
            Err(Unanswered::Untaken(untaken)) => {
                let again = (to, *untaken, doubts);
                Box::pin(self.forward_anew(again, (affinity, changes), account)).await
            }
        }
    }

    async fn forward_anew(
        &self,
        (to, mut untaken, mut doubts): (&Destination<'_>, Untaken, Doubts),
        (affinity, changes): (&mut Affinity, &mut Vec<HeaderChange>),
        account: &mut Account,
    ) -> Result<Answered, Refusal> {
        while doubts.settle(&self.client.hub).await {
            let snapshot = self.client.hub.snapshot();
            let (request, endpoints) = self.decide(&snapshot, untaken, affinity, changes).await?;
            let to = Destination {
                endpoints: &endpoints,
                ..*to
            };
            let sent = ((request, self.recording), None);
            match forward::forward(self.client, &to, sent, (account, &mut doubts)).await {
                Ok(answered) => return Ok(answered),
                Err(Unanswered::Refused(refusal)) => return Err(refusal),
                Err(Unanswered::Untaken(next)) => untaken = *next,
            }
        }
        Err(untaken.refuse(account))
    }

    /// The request and its endpoints as the mesh has them now: all of one kind, judged here or there, so that the request
    /// has one head.
    async fn decide(
        &self,
        snapshot: &Arc<Snapshot>,
        untaken: Untaken,
        affinity: &mut Affinity,
        changes: &mut Vec<HeaderChange>,
    ) -> Result<(Request<Body>, Endpoints), Refusal> {
        let Untaken {
            request,
            is_judged_there: was_judged_there,
            refusal,
            ..
        } = untaken;
        let (parts, body) = request.into_parts();
        let regard = (affinity, &parts);
        let mut endpoints = self.backend.endpoints(self.client, snapshot, regard)?;
        let is_judged = |target: &Target| self.client.is_judged_at(target);
        let is_judged_there = was_judged_there && endpoints.targets.first().is_some_and(is_judged);
        endpoints
            .targets
            .retain(|target| is_judged(target) == is_judged_there);
        let request = Request::from_parts(parts, body);
        match endpoints.targets.first() {
            None => Err(refusal),
            Some(target) if was_judged_there && !is_judged_there => {
                let judged = self.judge(snapshot, target, request, refusal).await?;
                *changes = judged.1;
                Ok((judged.0, endpoints))
            }
            Some(_) => Ok((request, endpoints)),
        }
    }

    /// Judges a request here whose head is the one for nodes that judge it. What is to be made of the response comes back.
    async fn judge(
        &self,
        snapshot: &Snapshot,
        target: &Target,
        request: Request<Body>,
        refusal: Refusal,
    ) -> Result<(Request<Body>, Vec<HeaderChange>), Refusal> {
        let version = http::Version::of(request.version());
        let (mut parts, body) = request.into_parts();
        http::receive(&mut parts).map_err(Refusal::Malformed)?;
        let original = Original::take(&mut parts.headers);
        if let Some(original) = &original {
            parts = original.before(&parts);
        }
        let (mut inflow, kept) = match body {
            Body::Streamed(inflow) => (inflow, None),
            // What is being recorded cannot be shown to anybody else.
            Body::Recorded(_) if judging::asks_about(self.client, snapshot) => return Err(refusal),
            body => (Inflow::empty(), Some(body)),
        };
        let judged = (&mut parts, &mut inflow);
        let changes = judging::judge_here(self.client, snapshot, Some(target), judged).await?;
        // Without the original, what was judged is what the filters have made of it, if anything.
        if let Some(filters) = self.filters.filter(|_| original.is_some()) {
            let applied = filters.apply(&mut parts);
            applied.map_err(|_why| Refusal::Unrewritable)?;
        }
        let authority = &self.client.service.key.hostname;
        http::send(&mut parts, version, authority);
        let body = kept.unwrap_or_else(|| Body::from(inflow));
        Ok((Request::from_parts(parts, body), changes))
    }
}
