//! Cross-origin requests (the Fetch standard's CORS protocol).

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::model::{Cors, OriginMatch, RequestHead};

/// Answers a preflight in the backend's place, with status 200 and these header fields. `None`: the request
/// is no preflight, or comes from elsewhere and is forwarded.
///
/// A preflight from an origin that is not let in gets an answer without CORS fields, which makes the browser
/// refuse (Istio: it is not forwarded).
pub fn preflight(cors: &Cors, head: &RequestHead<'_>) -> Option<HeaderMap> {
    if *head.method != Method::OPTIONS {
        return None;
    }
    let origin = head.headers.get(ORIGIN)?;
    head.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    let mut answer = HeaderMap::new();
    if !allows(cors, origin) {
        return (!cors.forward_unmatched).then_some(answer);
    }
    allow_origin(cors, origin, &mut answer);
    let asked = |name| head.headers.get(name);
    list(
        &mut answer,
        ACCESS_CONTROL_ALLOW_METHODS,
        &cors.allow_methods,
        asked(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| cors.allow_credentials),
    );
    list(
        &mut answer,
        ACCESS_CONTROL_ALLOW_HEADERS,
        &cors.allow_headers,
        asked(ACCESS_CONTROL_REQUEST_HEADERS).filter(|_| cors.allow_credentials),
    );
    if let Some(age) = cors.max_age {
        answer.insert(ACCESS_CONTROL_MAX_AGE, age.as_secs().into());
    }
    Some(answer)
}

/// Tells the browser, in the response to a request from `origin`, whether a script may read it. Fields that
/// the application set itself give way.
pub fn decorate(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    if !allows(cors, origin) {
        return;
    }
    allow_origin(cors, origin, headers);
    list(
        headers,
        ACCESS_CONTROL_EXPOSE_HEADERS,
        &cors.expose_headers,
        None,
    );
}

/// Whether requests of this origin are let in.
fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    cors.allow_origins.iter().any(|allowed| match allowed {
        OriginMatch::Any => true,
        // Browsers send scheme and host in lower case; a route may not (RFC 6454 §4).
        OriginMatch::Exact(exact) => exact.eq_ignore_ascii_case(origin),
        OriginMatch::Wildcard { scheme, suffix } => {
            let host = strip_ignoring_case(origin, scheme);
            host.is_some_and(|host| {
                let label = host.len().checked_sub(suffix.len());
                label.is_some_and(|at| {
                    at > 0
                        && host
                            .get(at..)
                            .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
                })
            })
        }
        OriginMatch::Prefix(prefix) => origin.starts_with(&**prefix),
        OriginMatch::Regex(regex) => regex.is_match(origin),
    })
}

fn strip_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    // The origin itself, even where any is let in: `*` does not go with credentials, and a cache is told.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.append(VARY, HeaderValue::from_static("Origin"));
    headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
    if cors.allow_credentials {
        headers.insert(
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
}

/// Writes a list. `*` is a name like any other where credentials are let in (Fetch §3.3.3), so what was
/// asked for stands in its place then.
fn list(
    headers: &mut HeaderMap,
    name: HeaderName,
    values: &[Arc<str>],
    asked: Option<&HeaderValue>,
) {
    if values.is_empty() {
        return;
    }
    let any = values.iter().any(|value| &**value == "*");
    let value = match asked {
        Some(asked) if any => Some(asked.clone()),
        _ if any => Some(HeaderValue::from_static("*")),
        _ => HeaderValue::from_str(&values.join(", ")).ok(),
    };
    if let Some(value) = value {
        headers.insert(name, value);
    }
}
