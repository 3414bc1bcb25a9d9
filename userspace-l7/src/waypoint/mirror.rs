//! Copies of requests for mirrors: sent and forgotten, a bounded number at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, request};
use hyper::body::Body as _;
use tracing::debug;

use crate::endpoints;
use crate::http::{self, Body, Version};
use crate::model::{BackendTarget, Mirror, Snapshot};
use crate::route::http as route;
use crate::traffic::Wish;
use crate::upstream;

use super::client::{Client, version_towards};
use super::judging::Heads;
use super::outsider;

/// Time that a mirror has for its whole answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends a copy of a request to a mirror, unless too many are under way. Nobody waits for what comes of it.
pub(super) fn send(
    client: &Rc<Client>,
    snapshot: &Arc<Snapshot>,
    mirror: &Mirror,
    heads: &Heads,
    body: Body,
) {
    let BackendTarget::Service {
        service,
        port,
        subset,
    } = &mirror.target
    else {
        return;
    };
    let Ok(permit) = Arc::clone(&client.hub.mirrored).try_acquire_owned() else {
        debug!(mirror = %service, "too many copies are under way");
        return;
    };
    let dressed = |parts: &request::Parts| {
        let mut parts = parts.clone();
        if mirror.shadow_host {
            route::shadow(&mut parts.headers);
        }
        parts
    };
    let (here, there) = (dressed(&heads.here), heads.there.as_ref().map(dressed));
    let (client, snapshot) = (Rc::clone(client), Arc::clone(snapshot));
    let (service, port, subset) = (service.clone(), *port, subset.clone());
    drop(tokio::task::spawn_local(async move {
        let copy = async {
            let service = snapshot.services.get(&service)?;
            let version = version_towards(&snapshot, service, port, Version::of(here.version));
            let towards = client.towards(service, port, subset.as_ref());
            let policy = endpoints::policy(&snapshot, &towards);
            let regard = (policy, Wish::default());
            let chosen =
                endpoints::choose(&client.hub, &snapshot, &client.workload, &towards, regard);
            let mut endpoints = chosen.ok()?;
            outsider::bar(&client, &snapshot, &mut endpoints.targets).ok()?;
            let target = endpoints.targets.first()?;
            let _admitted = endpoints.admit_request()?;
            let _attended = endpoints.group.attend(target.destination);
            let there = there.filter(|_| client.is_judged_at(target));
            let mut parts = there.unwrap_or(here);
            http::send(&mut parts, version, &service.key.hostname);
            let taken = upstream::take(&client.origin(), (&endpoints, target), version, false)
                .await
                .ok()?;
            let request = Request::from_parts(parts, body);
            let answered = http::send_on(taken.lease, request).await.ok()?;
            let mut answer = answered.response.into_body();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx)).await {
                let _unread = frame.ok()?;
            }
            answered.lease.give_back();
            Some(())
        };
        if !matches!(tokio::time::timeout(PATIENCE, copy).await, Ok(Some(()))) {
            debug!(mirror = %service, "a copy was not answered");
        }
        drop(permit);
    }));
}
