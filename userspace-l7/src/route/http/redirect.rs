//! Where a redirect sends the client.

use http::{HeaderValue, StatusCode};

use super::rewrite::changed_path;
use crate::model::{HttpMatch, Redirect, RequestHead};

/// The status and `Location` of a redirect.
///
/// The port is the redirect's own, else the well-known one of a scheme that it sets, else the one that was
/// called; a scheme's well-known port is never spelled out (Gateway API, `HTTPRequestRedirectFilter`).
pub fn redirect(
    redirect: &Redirect,
    matched: &HttpMatch,
    head: &RequestHead<'_>,
    service_port: u16,
) -> (StatusCode, HeaderValue) {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let host = redirect
        .hostname
        .as_deref()
        .unwrap_or_else(|| without_port(head.authority));
    let well_known = well_known_port(scheme);
    let of_scheme = redirect.scheme.as_ref().and(well_known);
    let port = redirect.port.or(of_scheme).unwrap_or(service_port);
    let path = match &redirect.path {
        Some(change) => changed_path(change, matched, head.path),
        None => head.path.into(),
    };
    let mut location = format!("{scheme}://{host}");
    if well_known != Some(port) {
        location.push(':');
        location.push_str(&port.to_string());
    }
    location.push_str(&path);
    if let Some(query) = head.query.filter(|_| !path.contains('?')) {
        location.push('?');
        location.push_str(query);
    }
    // What the client sent has been a header before, and what the route says was checked when it was read;
    // an empty `Location` is still an answer, where a panic would be none.
    let location =
        HeaderValue::from_str(&location).unwrap_or_else(|_| HeaderValue::from_static(""));
    (redirect.status, location)
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A host without its port; an IPv6 address keeps its brackets.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}
