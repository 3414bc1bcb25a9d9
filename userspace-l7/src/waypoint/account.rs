//! What operators hear of a request: made when its head was read, closed when its response has ended.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use hyper::body::Frame;

use crate::endpoints::Endpoints;
use crate::http::{Ending, Observer};
use crate::model::{HttpRule, NamespacedHostname};
use crate::route::breaker::Permit;
use crate::route::{Target, Transport};
use crate::telemetry::Security;
use crate::telemetry::{
    MessageCount, OpenRequest, RequestDestination, RequestEnd, RequestFlag, RequestFlags,
    RequestProtocol, Upstream,
};
use crate::traffic::Attended;

/// A request's account, and what is known of its end so far.
pub(super) struct Account {
    open: Rc<OpenRequest>,
    messages: Option<MessageCount>,
    status: Option<StatusCode>,
    grpc_status: Option<u16>,
    flags: RequestFlags,
    details: Cow<'static, str>,
    /// Why no connection to an endpoint could begin.
    failure: Option<Rc<str>>,
    rule: Option<Arc<HttpRule>>,
    asked: Option<Asked>,
    attempts: u32,
    /// What the request takes up of its backend's limits, until its account is closed.
    admitted: Option<Permit>,
    retry: Option<Permit>,
    attended: Option<Attended>,
}

/// Who was asked last.
struct Asked {
    host: SocketAddr,
    backend: NamespacedHostname,
    port: u16,
    time: Option<Duration>,
}

impl Account {
    pub(super) fn new(open: OpenRequest) -> Self {
        let is_grpc = open.flow().protocol == RequestProtocol::Grpc;
        Self {
            open: Rc::new(open),
            messages: is_grpc.then(MessageCount::default),
            status: None,
            grpc_status: None,
            flags: RequestFlags::NONE,
            details: Cow::Borrowed("via_upstream"),
            failure: None,
            rule: None,
            asked: None,
            attempts: 0,
            admitted: None,
            retry: None,
            attended: None,
        }
    }

    /// The backend has room for the request.
    pub(super) fn admitted(&mut self, permit: Permit) {
        self.admitted = Some(permit);
    }

    /// There is room for one more retry of the backend's requests.
    pub(super) fn may_retry(&mut self, endpoints: &Endpoints) -> bool {
        // One request is one retry under way, however often it is tried.
        let in_use = &endpoints.group.in_use;
        let limit = endpoints
            .policy
            .limits
            .retries_among(in_use.requests.used());
        let permit = self.retry.take();
        self.retry = permit.or_else(|| in_use.retries.admit(limit));
        if self.retry.is_none() {
            self.flag(RequestFlag::UpstreamOverflow);
        }
        self.retry.is_some()
    }

    /// Who gave the answer, or was asked last.
    pub(super) fn host(&self) -> Option<SocketAddr> {
        self.asked.as_ref().map(|asked| asked.host)
    }

    /// For whoever counts the request's body.
    pub(super) fn open(&self) -> &Rc<OpenRequest> {
        &self.open
    }

    pub(super) fn matched(&mut self, rule: &Arc<HttpRule>) {
        self.rule = Some(Arc::clone(rule));
    }

    pub(super) fn flag(&mut self, flag: RequestFlag) {
        self.flags |= flag;
    }

    pub(super) fn details(&mut self, details: Cow<'static, str>) {
        self.details = details;
    }

    pub(super) fn failed(&mut self, why: &Rc<str>) {
        self.failure = Some(Rc::clone(why));
    }

    /// One more attempt, at this endpoint.
    pub(super) fn asks(
        &mut self,
        target: &Target,
        (backend, port): (&NamespacedHostname, u16),
        attended: Attended,
    ) {
        self.attempts += 1;
        self.attended = Some(attended);
        if let Some(workload) = &target.workload {
            self.open.destination(RequestDestination {
                workload: Arc::clone(workload),
                security: match target.transport {
                    Transport::Hbone { .. } => Security::MutualTls,
                    Transport::Plain => Security::Unknown,
                },
            });
        }
        self.asked = Some(Asked {
            host: target.destination,
            backend: backend.clone(),
            port,
            time: None,
        });
    }

    /// Of the endpoint's addresses it is this one that was reached.
    pub(super) fn reached(&mut self, host: SocketAddr) {
        if let Some(asked) = &mut self.asked {
            asked.host = host;
        }
    }

    /// A response came, this long after the request did.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap, time: Duration) {
        self.status = Some(status);
        self.hear_grpc(headers);
        if let Some(asked) = &mut self.asked {
            asked.time = Some(time);
        }
    }

    /// The request was answered here, with a body of this size.
    pub(super) fn close_own(mut self, status: StatusCode, headers: &HeaderMap, bytes: u64) {
        self.status = Some(status);
        self.hear_grpc(headers);
        self.open.response_bytes(bytes);
        self.close();
    }

    fn hear_grpc(&mut self, headers: &HeaderMap) {
        let told = headers.get("grpc-status");
        let told = told.and_then(|status| status.to_str().ok()?.parse().ok());
        self.grpc_status = told.or(self.grpc_status);
    }

    fn close(&self) {
        self.open.close(&RequestEnd {
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            details: Some(&self.details),
            failure: self.failure.as_deref(),
            route_name: self.rule.as_ref().map(|rule| &*rule.name),
            upstream: self.asked.as_ref().map(|asked| Upstream {
                host: asked.host,
                local: None,
                backend: &asked.backend,
                port: asked.port,
                time: asked.time,
            }),
            attempts: self.attempts,
        });
    }
}

impl Observer for Account {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(bytes) = frame.data_ref() {
            self.open.response_bytes(bytes.len() as u64);
            if let Some(messages) = &mut self.messages {
                self.open.response_messages(messages.feed(bytes));
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.hear_grpc(trailers);
        }
    }

    fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Complete => {}
            Ending::Broken => self.flag(RequestFlag::UpstreamConnectionTermination),
            Ending::Late => self.flag(RequestFlag::UpstreamTimeout),
        }
        self.close();
    }
}
