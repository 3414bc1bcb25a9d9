//! What happens to a request, in order. Each phase decides by the mesh as it was when the request arrived.

use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{HeaderName, HeaderValue, LOCATION, ORIGIN, SERVER};
use ::http::{Request, Response, request};
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;

use crate::endpoints::Endpoints;
use crate::http::{self, Answered, Body, Handover, Inflow, Recording, Refusal, Relayed, Version};
use crate::judgement;
use crate::model::{
    AbortAnswer, BackendTarget, HttpAction, HttpRouteEntry, HttpRule, PathNormalization,
    PortRoutes, RequestHead, RetryPolicy, Snapshot, TracingSettings,
};
use crate::policy::{ext_authz, path};
use crate::route::http::{self as route, Filters, Original};
use crate::telemetry::trace::{Sampler, TraceContext};
use crate::telemetry::{RequestFlag, RequestFlow};

use super::account::Account;
use super::affinity::Affinity;
use super::after::After;
use super::anew::Way;
use super::backend::Backend;
use super::client::{Client, name_asked_for};
use super::forward::{self, Destination};
use super::judging::{self, Heads};
use super::limits::{self, Standing};
use super::{grpc, mirror};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What responses say if their application does not (Istio's own; clients and tests look for it).
pub(super) const SERVER_NAME: HeaderValue = HeaderValue::from_static("istio-envoy");

/// A response to the client.
pub(super) type Answer = Response<Relayed<Account>>;

/// Answers one request. Never fails: what cannot be forwarded is answered here.
pub(super) async fn answer(
    client: &Rc<Client>,
    handover: &Handover,
    request: Request<Incoming>,
) -> Answer {
    let exchange = Exchange {
        client,
        handover,
        snapshot: client.hub.snapshot(),
        arrived: Instant::now(),
    };
    let (parts, body) = request.into_parts();
    let is_grpc = http::is_grpc(&parts.headers);
    let mut account = exchange.open(&parts);
    match exchange.run(parts, body, &mut account).await {
        Ok(Outcome::Forwarded(answered, after)) => {
            match exchange.relay(answered, after, account).await {
                Ok(response) => response,
                Err((refusal, account)) => refuse(&refusal, is_grpc, account),
            }
        }
        Ok(Outcome::Here(response)) => own(response, account),
        Err(refusal) => refuse(&refusal, is_grpc, account),
    }
}

/// One request, and what it is decided by.
struct Exchange<'a> {
    client: &'a Rc<Client>,
    handover: &'a Handover,
    snapshot: Arc<Snapshot>,
    arrived: Instant,
}

/// What the phases come to.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the ordinary one, and taken apart at once"
)]
enum Outcome {
    /// A response of a backend.
    Forwarded(Answered, After),
    /// An answer of our own.
    Here(Response<Body>),
}

/// What a request matched; nothing where its port has no routes.
type Matched<'s> = Option<&'s HttpRouteEntry>;

impl Exchange<'_> {
    fn open(&self, parts: &request::Parts) -> Account {
        let service = self.snapshot.services.get(&self.client.service.key);
        let layer7 = self.client.layer7(&self.snapshot);
        let telemetry = layer7.map(|layer7| Arc::clone(&layer7.telemetry));
        let flow = RequestFlow::new(
            Arc::clone(&self.client.recorded),
            Some(Arc::clone(service.unwrap_or(&self.client.service))),
            telemetry.unwrap_or_default(),
            parts,
        );
        Account::new(self.client.hub.metrics.open_request(flow))
    }

    async fn run(
        &self,
        mut parts: request::Parts,
        body: Incoming,
        account: &mut Account,
    ) -> Result<Outcome, Refusal> {
        let client_version = Version::of(parts.version);
        let upgrade = http::wants_upgrade(&parts);
        self.take_in(&mut parts, upgrade.as_ref(), account)?;

        let mut body = Inflow::counted(body, account.open());
        let (matched, standing) = match self.decide(&mut parts, account).await {
            Ok(decided) => decided,
            Err(why) => return Err(self.refuse_first(why, (&mut parts, &mut body)).await),
        };
        let rule = matched.map(|entry| &entry.rule);
        let request = (&mut parts, &mut body);
        if let Some(response) = self.answered_early(matched, request, account).await? {
            return Ok(Outcome::Here(response));
        }
        let origin = parts.headers.get(ORIGIN).cloned();
        let mut affinity = Affinity::of(rule, &parts);
        let (backend, mut endpoints) = match self.choose(matched, &mut affinity, &parts) {
            Ok(chosen) => chosen,
            Err(why) => return Err(self.refuse_first(why, (&mut parts, &mut body)).await),
        };
        let version = match upgrade {
            // A change of protocol exists in HTTP/1.1 only.
            Some(_) => Version::Http1,
            None => backend.version(&self.snapshot, &endpoints.policy, client_version),
        };
        let limit = grpc::timeout(&parts.headers, rule.and_then(|rule| rule.timeout));

        let filters = self.change_first((&backend, matched), &mut parts)?;
        let (client, snapshot) = (self.client, &self.snapshot);
        let judged = ((rule, filters.as_ref()), &mut endpoints.targets);
        let judged = judging::judge(client, snapshot, judged, (parts, &mut body));
        let (mut heads, mut changes) = judged.await?;
        self.admit(&mut endpoints, limit, account).await?;
        let default_retry = RetryPolicy::default();
        let to = Destination {
            service: backend.service,
            port: backend.port,
            version,
            retry: rule.map_or(&default_retry, |rule| &rule.retry),
            endpoints: &endpoints,
        };
        heads.change(filters.as_ref())?;
        let has_copies = rule.is_some_and(|rule| !rule.mirrors.is_empty());
        let (body, recording) = forward::prepare(body, &to, has_copies);
        if let Some(rule) = rule {
            self.mirror(rule, &heads, recording.as_ref(), body.is_end_stream());
        }
        let authority = &self.client.service.key.hostname;
        heads.address(filters.as_ref(), (version, authority));
        let deadline = limit.map(|limit| self.arrived + limit);
        let (parts, variants) = heads.split();
        let way = Way::new(client, &backend, filters.as_ref(), recording.as_ref());
        let answered = {
            let sent = (Request::from_parts(parts, body), variants.as_ref());
            let regard = (&mut affinity, &mut changes);
            let forwarded = pin!(way.forward(&to, sent, regard, account));
            within(deadline, forwarded).await
        };
        let answered =
            answered.inspect_err(|_refused| endpoints.cut_off(account.host(), deadline))?;
        let after = After {
            upgrade,
            rule: rule.map(Arc::clone),
            backend: backend.response_headers(),
            origin,
            deadline,
            affinity,
            standing,
            changes,
        };
        Ok(Outcome::Forwarded(answered, after))
    }

    /// Brings a request that was received into the one form, without what only proxies may say.
    fn take_in(
        &self,
        parts: &mut request::Parts,
        upgrade: Option<&http::Upgrade>,
        account: &Account,
    ) -> Result<(), Refusal> {
        http::receive(parts).map_err(Refusal::Malformed)?;
        http::strip(&mut parts.headers, upgrade);
        // Also where nobody judges what goes on, as of a mirror.
        judgement::disown(&mut parts.headers);
        let _forged = Original::take(&mut parts.headers);
        spell_path(parts, self.snapshot.path_normalization)?;
        self.identify(parts, account);
        Ok(())
    }

    /// The rule that takes a request, and what its limits say.
    async fn decide(
        &self,
        parts: &mut request::Parts,
        account: &mut Account,
    ) -> Result<(Matched<'_>, Standing), Refusal> {
        let matched = self.select(parts)?;
        let rule = matched.map(|entry| &entry.rule);
        if let Some(rule) = rule {
            account.matched(rule);
        }
        if self.is_limited() && !self.has_consumer_routes() {
            // Nobody uses up what others may ask by asking what he may not.
            judging::foresee(self.client, &self.snapshot, parts)?;
        }
        let standing = limits::pass(self.client, &self.snapshot, rule, parts).await?;
        Ok((matched, standing))
    }

    /// The backend that a request goes to, and its endpoints.
    fn choose<'s>(
        &'s self,
        matched: Matched<'s>,
        affinity: &mut Affinity,
        parts: &request::Parts,
    ) -> Result<(Backend<'s>, Endpoints), Refusal> {
        let backend = self.choose_backend(matched, affinity)?;
        let endpoints = backend.endpoints(self.client, &self.snapshot, (affinity, parts))?;
        Ok((backend, endpoints))
    }

    /// Whether the routes that hold for the client are its own namespace's.
    fn has_consumer_routes(&self) -> bool {
        let port = self.client.port(&self.snapshot);
        port.is_some_and(|port| port.has_consumer_routes(self.client.namespace()))
    }

    /// Whether the port has limits.
    fn is_limited(&self) -> bool {
        let port = self.client.port(&self.snapshot);
        port.is_some_and(|port| !port.rate_limits.is_empty())
    }

    /// Has the filters of a consumer route change a request before anybody judges it: they are the client's own, so what they
    /// make of it is what the client asks for. Those of other routes come back: policies are about what was asked of them.
    fn change_first<'f>(
        &self,
        (backend, matched): (&'f Backend<'_>, Matched<'f>),
        parts: &mut request::Parts,
    ) -> Result<Option<Filters<'f>>, Refusal> {
        let filters = matched.map(|entry| backend.filters(entry));
        if !self.has_consumer_routes() {
            return Ok(filters);
        }
        let changed = filters.map_or(Ok(()), |filters| filters.apply(parts));
        changed.map_err(|_why| Refusal::Unrewritable)?;
        Ok(None)
    }

    /// Has a request's endpoints found where only its name tells them, and takes up room there.
    async fn admit(
        &self,
        endpoints: &mut Endpoints,
        limit: Option<Duration>,
        account: &mut Account,
    ) -> Result<(), Refusal> {
        if endpoints.is_asked_for() {
            let looking = endpoints.look_up(&self.client.hub, self.client.namespace());
            // On the heap: most requests have no name to look up.
            let mut looking = Box::pin(async {
                let found = looking.await;
                found.map_err(|why| Refusal::Unresolved(why.to_string().into()))
            });
            within(limit.map(|limit| self.arrived + limit), looking.as_mut()).await?;
        }
        account.admitted(endpoints.admit_request().ok_or(Refusal::Overflow)?);
        Ok(())
    }

    /// Gives a request what tells it apart and says how it came.
    fn identify(&self, parts: &mut request::Parts, account: &Account) {
        let headers = &mut parts.headers;
        if !headers.contains_key(REQUEST_ID) {
            drop(headers.insert(REQUEST_ID, self.client.hub.request_id()));
        }
        if !headers.contains_key(FORWARDED_PROTO) {
            drop(headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http")));
        }
        let layer7 = self.client.layer7(&self.snapshot);
        let unbound = TracingSettings::default();
        let settings = layer7.map_or(&unbound, |layer7| &layer7.telemetry.tracing);
        let mut random = || self.client.hub.random();
        let context = TraceContext::of(headers, &mut Sampler::new(settings, &mut random));
        account.open().trace(context, parts);
        context.inject(&mut parts.headers);
    }

    /// The entry of the port's routes that the request matches.
    fn select(&self, parts: &request::Parts) -> Result<Matched<'_>, Refusal> {
        let _name = name_asked_for(&self.client.service, parts)?;
        let Some(port) = self.client.port(&self.snapshot) else {
            return Ok(None);
        };
        match self.client.routes(port) {
            PortRoutes::None | PortRoutes::Tcp(_) => Ok(None),
            PortRoutes::Http(table) => match route::select(table, &RequestHead::of(parts)) {
                Some(entry) if entry.rule.is_usable => Ok(Some(entry)),
                Some(_) => Err(Refusal::NoBackend),
                None => Err(Refusal::NoRoute),
            },
        }
    }

    /// What a request is refused with that comes no further than here: by who judges it, else for this reason.
    async fn refuse_first(
        &self,
        why: Refusal,
        request: (&mut request::Parts, &mut Inflow),
    ) -> Refusal {
        let judged = Box::pin(judging::judge_here(
            self.client,
            &self.snapshot,
            None,
            request,
        ));
        judged.await.err().unwrap_or(why)
    }

    /// An answer before any backend is asked, to who may ask at all: a fault that was ordered, or the rule's own.
    async fn answered_early(
        &self,
        matched: Matched<'_>,
        (parts, body): (&mut request::Parts, &mut Inflow),
        account: &mut Account,
    ) -> Result<Option<Response<Body>>, Refusal> {
        let fault = matched.and_then(|entry| entry.rule.fault.as_ref());
        let mut choose = |bound| self.client.hub.choose(bound);
        let injected = fault.map(|fault| route::fault::inject(fault, &mut choose));
        let (delay, abort) = injected.map_or((None, None), |one| (one.delay, one.abort));
        let own = self.answered_here(matched, parts);
        let mut changes = Vec::new();
        if abort.is_some() || own.is_some() {
            let (client, snapshot) = (self.client, &self.snapshot);
            let judged = Box::pin(judging::judge_here(client, snapshot, None, (parts, body)));
            changes = judged.await?;
        }
        if let Some(delay) = delay {
            account.flag(RequestFlag::DelayInjected);
            tokio::time::sleep(delay).await;
        }
        let answer = if let Some(answer) = abort {
            account.flag(RequestFlag::FaultInjected);
            account.details(Cow::Borrowed("fault_filter_abort"));
            Some(aborted(answer))
        } else {
            if own.is_some() {
                account.details(Cow::Borrowed("direct_response"));
            }
            own
        };
        Ok(answer.map(|mut response| {
            ext_authz::apply(&changes, response.headers_mut());
            response
        }))
    }

    /// The answer of a rule that needs no backend.
    fn answered_here(
        &self,
        matched: Matched<'_>,
        parts: &request::Parts,
    ) -> Option<Response<Body>> {
        let HttpRouteEntry { matches, rule } = matched?;
        let head = RequestHead::of(parts);
        if let Some(cors) = &rule.cors
            && let Some(headers) = route::cors::preflight(cors, &head)
        {
            let mut response = Response::new(Body::Empty);
            *response.headers_mut() = headers;
            return Some(response);
        }
        match &rule.action {
            HttpAction::Forward(_) => None,
            HttpAction::Respond { status, body } => {
                let body = Bytes::copy_from_slice(body.as_bytes());
                Some(http::plain(*status, body))
            }
            HttpAction::Redirect(redirect) => {
                let port = self.client.dialled.port();
                let (status, location) = route::redirect(redirect, matches, &head, port);
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = status;
                drop(response.headers_mut().insert(LOCATION, location));
                Some(response)
            }
        }
    }

    /// Which service takes the request: one of the rule's by weight, else the one that was dialled.
    fn choose_backend<'s>(
        &'s self,
        matched: Matched<'s>,
        affinity: &Affinity,
    ) -> Result<Backend<'s>, Refusal> {
        let Some(entry) = matched else {
            // As it is now: its ports and ways of spreading may have changed.
            let service = self.snapshot.services.get(&self.client.service.key);
            return Ok(Backend {
                service: service.unwrap_or(&self.client.service),
                port: self.client.dialled.port(),
                reference: None,
            });
        };
        let HttpAction::Forward(backends) = &entry.rule.action else {
            return Err(Refusal::NoBackend);
        };
        let mut choose = |bound| self.client.hub.choose(bound);
        let chosen = affinity
            .backend(self.client, &self.snapshot, backends)
            .or_else(|| route::choose_backend(backends, &mut choose))
            .ok_or(Refusal::NoBackend)?;
        let BackendTarget::Service { service, port, .. } = &chosen.target else {
            return Err(Refusal::NoBackend);
        };
        let service = self
            .snapshot
            .services
            .get(service)
            .ok_or(Refusal::NoBackend)?;
        Ok(Backend {
            service,
            port: *port,
            reference: Some(chosen),
        })
    }

    /// Sends the rule's copies on their way.
    fn mirror(
        &self,
        rule: &HttpRule,
        heads: &Heads,
        recording: Option<&Recording>,
        is_empty: bool,
    ) {
        for one in &rule.mirrors {
            if !route::fault::is_mirrored(one, &mut |bound| self.client.hub.choose(bound)) {
                continue;
            }
            let body = match recording.and_then(Recording::follow) {
                Some(copy) => Body::Recorded(copy),
                None if is_empty => Body::Empty,
                None => continue,
            };
            mirror::send(self.client, &self.snapshot, one, heads, body);
        }
    }

    /// A response on its way back.
    async fn relay(
        &self,
        answered: Answered,
        after: After,
        mut account: Account,
    ) -> Result<Answer, (Refusal, Account)> {
        let taken = self.arrived.elapsed();
        let host = account.host();
        account.answered(
            answered.response.status(),
            answered.response.headers(),
            taken,
        );
        let mut response = if answered.switches() {
            let wanted = after.upgrade.as_ref();
            Box::pin(http::switch(answered, wanted, self.handover, account)).await?
        } else {
            http::relay(answered, account)
        };
        after.decorate(&mut response, host, taken);
        Ok(response)
    }
}

/// The path in the one spelling that everybody after us reads.
fn spell_path(parts: &mut request::Parts, spelling: PathNormalization) -> Result<(), Refusal> {
    let path = parts.uri.path();
    if path == "*" {
        return Ok(());
    }
    let spelled = path::normalize(path, spelling).map_err(Refusal::InvalidPath)?;
    http::respell(parts, &spelled).map_err(Refusal::Malformed)
}

/// The answer of a fault that was ordered.
fn aborted(answer: AbortAnswer) -> Response<Body> {
    let text = "fault filter abort";
    match answer {
        AbortAnswer::Http(status) => http::plain(status, Bytes::from_static(text.as_bytes())),
        AbortAnswer::Grpc(code) => http::trailers_only(code, text),
    }
}

/// The response's head, or 504 once the time is over. The future is a large one, which is not to be moved.
async fn within<T>(
    deadline: Option<Instant>,
    forwarded: Pin<&mut impl Future<Output = Result<T, Refusal>>>,
) -> Result<T, Refusal> {
    match deadline {
        None => forwarded.await,
        Some(deadline) => tokio::time::timeout_at(deadline, forwarded)
            .await
            .unwrap_or(Err(Refusal::Timeout)),
    }
}

fn refuse(refusal: &Refusal, is_grpc: bool, mut account: Account) -> Answer {
    if let Some(flag) = refusal.flag() {
        account.flag(flag);
    }
    account.details(refusal.details());
    if let Some(why) = refusal.failure() {
        account.failed(why);
    }
    own(refusal.answer(is_grpc), account)
}

/// An answer of our own; its account is closed with its head.
fn own(mut response: Response<Body>, account: Account) -> Answer {
    let headers = response.headers_mut();
    if !headers.contains_key(SERVER) {
        drop(headers.insert(SERVER, SERVER_NAME));
    }
    let bytes = response.body().size_hint().lower();
    account.close_own(response.status(), response.headers(), bytes);
    response.map(Relayed::own)
}
