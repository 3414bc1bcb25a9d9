//! What a client is told when no server answers it: one table from cause to status, gRPC status, response
//! flag and body (spec: §2.7, with Envoy's words, which people search for).

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};

use super::body::Body;
use super::target::Malformed;
use crate::policy::Denial;
use crate::policy::ext_authz::Rejection;
use crate::policy::http::HttpDenial;
use crate::policy::jwt::TokenError;
use crate::policy::path::InvalidPath;
use crate::telemetry::RequestFlag;

/// Why a request is answered here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refusal {
    /// Not HTTP that everybody reads in the same way.
    Malformed(Malformed),
    /// The port has routes, and none matches.
    NoRoute,
    /// What matched cannot be used, or names no backend that can.
    NoBackend,
    /// The backend has no endpoint that could take it.
    NoHealthyUpstream,
    /// No endpoint could be reached.
    ConnectFailure,
    /// No connection to an endpoint could begin as its policy wants (TLS, PROXY protocol), and why.
    Unbegun(Rc<str>),
    /// The name that the client asks a wildcard for leads nowhere that it may go, and why.
    Unresolved(Rc<str>),
    /// Its client, who has proven nothing, could not reach any endpoint by itself, and why.
    Barred(Denial),
    /// The server ended the connection without a response.
    UpstreamReset,
    /// What the server sent is no HTTP.
    UpstreamNonsense,
    /// The response took too long.
    Timeout,
    /// An authorization policy refuses it.
    Denied(HttpDenial),
    /// Its path has no one spelling.
    InvalidPath(InvalidPath),
    /// Its token is not accepted.
    Unauthenticated(TokenError),
    /// A rule makes a target of it that is no target.
    Unrewritable,
    /// As much as its backend's traffic policy allows is in use.
    Overflow,
    /// Its bucket is empty; what the answer's fields say of that.
    RateLimited(Vec<(&'static str, u64)>),
    /// A rate limit service says that it is one too many, and in which words.
    OverLimit(Box<OverLimit>),
    /// A rate limit service says nothing, and nothing passes without its word.
    NoRuling,
    /// An external authorizer refuses it, and in which words.
    Rejected(Box<Rejection>),
    /// An external authorizer says nothing, and nothing passes without its word; the status for that.
    NoVerdict(StatusCode),
    /// An external authorizer has to see all of its body, and that is longer than what it may see.
    TooLong,
    /// The node that judges it has to learn what it was before a rule changed it, and that is longer than what can be told.
    HeadTooLong,
}

/// What a rate limit service says to a client.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct OverLimit {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// gRPC status codes, as far as a proxy makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrpcCode {
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// How a cause is told.
struct Telling {
    status: StatusCode,
    grpc: GrpcCode,
    /// Envoy's response flag, where it has one.
    flag: Option<RequestFlag>,
    /// Envoy's response code details.
    details: &'static str,
    body: &'static str,
}

impl Refusal {
    #[expect(
        clippy::too_many_lines,
        reason = "one table, which has to be read as one"
    )]
    fn telling(&self) -> Telling {
        let told = |status, grpc, flag, details, body| Telling {
            status,
            grpc,
            flag,
            details,
            body,
        };
        match self {
            Self::Malformed(_) => told(
                StatusCode::BAD_REQUEST,
                GrpcCode::Internal,
                None,
                "http1.codec_error",
                "",
            ),
            Self::NoRoute => told(
                StatusCode::NOT_FOUND,
                GrpcCode::Unimplemented,
                Some(RequestFlag::NoRoute),
                "route_not_found",
                "",
            ),
            Self::NoBackend => told(
                StatusCode::INTERNAL_SERVER_ERROR,
                GrpcCode::Unavailable,
                None,
                "direct_response",
                "",
            ),
            Self::NoHealthyUpstream => told(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcCode::Unavailable,
                Some(RequestFlag::NoHealthyUpstream),
                "no_healthy_upstream",
                "no healthy upstream",
            ),
            // Whose policy it is, and which, is nothing for a stranger.
            Self::ConnectFailure | Self::Barred(_) => told(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcCode::Unavailable,
                Some(RequestFlag::UpstreamConnectionFailure),
                "upstream_reset_before_response_started{connection_failure}",
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
            ),
            Self::Unbegun(_) => told(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcCode::Unavailable,
                Some(RequestFlag::UpstreamConnectionFailure),
                "upstream_reset_before_response_started{connection_failure}",
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure, transport failure reason: ",
            ),
            Self::Unresolved(_) => told(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcCode::Unavailable,
                Some(RequestFlag::DnsResolutionFailure),
                "dns_resolution_failure",
                "DNS resolution failure",
            ),
            Self::UpstreamReset => told(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcCode::Unavailable,
                Some(RequestFlag::UpstreamConnectionTermination),
                "upstream_reset_before_response_started{connection_termination}",
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            // The one reset that Envoy answers with 502.
            Self::UpstreamNonsense => told(
                StatusCode::BAD_GATEWAY,
                GrpcCode::Unavailable,
                Some(RequestFlag::UpstreamProtocolError),
                "upstream_reset_before_response_started{protocol_error}",
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
            ),
            Self::Timeout => told(
                StatusCode::GATEWAY_TIMEOUT,
                GrpcCode::DeadlineExceeded,
                Some(RequestFlag::UpstreamTimeout),
                "response_timeout",
                "upstream request timeout",
            ),
            Self::Denied(denial) => told(
                denial.status(),
                GrpcCode::PermissionDenied,
                matches!(denial, HttpDenial::NoAuthorizer(_))
                    .then_some(RequestFlag::UnauthorizedExternal),
                "",
                denial.body(),
            ),
            Self::InvalidPath(why) => told(
                why.status(),
                GrpcCode::Internal,
                None,
                "path_normalization_failed",
                "",
            ),
            Self::Unauthenticated(_) => told(
                StatusCode::UNAUTHORIZED,
                GrpcCode::Unauthenticated,
                None,
                "jwt_authn_access_denied",
                "",
            ),
            Self::Unrewritable => told(
                StatusCode::INTERNAL_SERVER_ERROR,
                GrpcCode::Internal,
                None,
                "invalid_rewritten_target",
                "",
            ),
            Self::Overflow => told(
                StatusCode::SERVICE_UNAVAILABLE,
                GrpcCode::Unavailable,
                Some(RequestFlag::UpstreamOverflow),
                "upstream_reset_before_response_started{overflow}",
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            ),
            Self::RateLimited(_) => told(
                StatusCode::TOO_MANY_REQUESTS,
                GrpcCode::Unavailable,
                Some(RequestFlag::RateLimited),
                "local_rate_limited",
                "local_rate_limited",
            ),
            Self::OverLimit(_) => told(
                StatusCode::TOO_MANY_REQUESTS,
                GrpcCode::Unavailable,
                Some(RequestFlag::RateLimited),
                "request_rate_limited",
                "",
            ),
            Self::NoRuling => told(
                StatusCode::INTERNAL_SERVER_ERROR,
                GrpcCode::Unknown,
                Some(RequestFlag::RateLimitServiceError),
                "rate_limiter_error",
                "",
            ),
            Self::Rejected(rejection) => told(
                rejection.status,
                GrpcCode::of(rejection.status),
                Some(RequestFlag::UnauthorizedExternal),
                "ext_authz_denied",
                "",
            ),
            Self::NoVerdict(status) => told(
                *status,
                GrpcCode::of(*status),
                Some(RequestFlag::UnauthorizedExternal),
                "ext_authz_error",
                "",
            ),
            Self::HeadTooLong => told(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                GrpcCode::Unknown,
                None,
                "request_headers_too_large",
                "Request Header Fields Too Large",
            ),
            Self::TooLong => told(
                StatusCode::PAYLOAD_TOO_LARGE,
                GrpcCode::Unknown,
                None,
                "request_payload_too_large",
                "Payload Too Large",
            ),
        }
    }

    /// Envoy's response flag, where it has one.
    pub(crate) fn flag(&self) -> Option<RequestFlag> {
        self.telling().flag
    }

    /// Envoy's response code details.
    pub(crate) fn details(&self) -> Cow<'static, str> {
        match self {
            Self::Denied(denial) => Cow::Owned(denial.to_string()),
            Self::Barred(why) => Cow::Owned(format!(
                "upstream_reset_before_response_started{{connection_failure|{why}}}"
            )),
            Self::Unbegun(why) => Cow::Owned(format!(
                "upstream_reset_before_response_started{{connection_failure|{why}}}"
            )),
            Self::Unresolved(why) => Cow::Owned(format!("dns_resolution_failure{{{why}}}")),
            other => Cow::Borrowed(other.telling().details),
        }
    }

    /// Why a connection to an endpoint could not begin, in words (Envoy's transport failure reason).
    pub(crate) fn failure(&self) -> Option<&Rc<str>> {
        match self {
            Self::Unbegun(why) => Some(why),
            _ => None,
        }
    }

    /// The answer, in gRPC's form to a client that speaks it.
    pub(crate) fn answer(&self, is_grpc: bool) -> Response<Body> {
        let Telling {
            status, grpc, body, ..
        } = self.telling();
        let body = match self {
            Self::Unauthenticated(why) => Bytes::from(why.to_string()),
            Self::Rejected(rejection) => rejection.body.clone(),
            Self::OverLimit(over) => over.body.clone(),
            Self::Unbegun(why) => Bytes::from(format!("{body}{why}")),
            _ => Bytes::from_static(body.as_bytes()),
        };
        let mut response = if is_grpc {
            trailers_only(grpc as u16, &String::from_utf8_lossy(&body))
        } else {
            plain(status, body)
        };
        let headers = response.headers_mut();
        match self {
            Self::Unauthenticated(_) if !is_grpc => {
                // RFC 6750 §3.1; there is no realm to name.
                let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
                drop(headers.insert(WWW_AUTHENTICATE, challenge));
            }
            // Where the next request of an HTTP/1 connection begins is anybody's guess.
            Self::Malformed(_) if !is_grpc => {
                drop(headers.insert(CONNECTION, HeaderValue::from_static("close")));
            }
            // Envoy's word for it: clients in front of us shall not try again at once.
            Self::Overflow => drop(headers.insert(OVERLOADED, HeaderValue::from_static("true"))),
            Self::RateLimited(fields) => {
                for (name, value) in fields {
                    let name = HeaderName::from_static(name);
                    drop(headers.insert(name, HeaderValue::from(*value)));
                }
            }
            Self::OverLimit(over) => replace(headers, &over.headers),
            Self::Rejected(rejection) => replace(headers, &rejection.headers),
            _ => {}
        }
        if is_grpc {
            // A client of gRPC would not read another kind of answer.
            drop(headers.insert(CONTENT_TYPE, GRPC));
        }
        response
    }
}

impl GrpcCode {
    /// The status that an HTTP status stands for (gRPC's "HTTP to gRPC Status Code Mapping").
    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502..=504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// Puts headers in the place of those of the same names; several of one name stay several.
pub(crate) fn replace(headers: &mut HeaderMap, others: &HeaderMap) {
    for name in others.keys() {
        drop(headers.remove(name));
        for value in others.get_all(name) {
            let _more = headers.append(name, value.clone());
        }
    }
}

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// A text of our own.
pub(crate) fn plain(status: StatusCode, body: Bytes) -> Response<Body> {
    let has_body = !body.is_empty();
    let mut response = Response::new(if has_body {
        Body::Whole(body)
    } else {
        Body::Empty
    });
    *response.status_mut() = status;
    if has_body {
        let text = HeaderValue::from_static("text/plain");
        drop(response.headers_mut().insert(CONTENT_TYPE, text));
    }
    response
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A gRPC response that has a status and no message ("Trailers-Only" of the gRPC protocol).
pub(crate) fn trailers_only(code: u16, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    drop(headers.insert(CONTENT_TYPE, GRPC));
    drop(headers.insert(GRPC_STATUS, HeaderValue::from(code)));
    let message = percent_encoded(message);
    if !message.is_empty()
        && let Ok(message) = HeaderValue::from_str(&message)
    {
        drop(headers.insert(GRPC_MESSAGE, message));
    }
    response
}

/// `grpc-message` is percent-encoded where it is not printable ASCII, and at `%` (gRPC over HTTP/2).
fn percent_encoded(message: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Whether a message is gRPC's, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[cfg(test)]
mod tests;
