//! Where a redirect sends the client.

use http::{HeaderValue, StatusCode};

use super::rewrite::changed_path;
use crate::model::{HttpMatch, Redirect, RedirectPort, RequestHead};

/// The status and `Location` of a redirect that was asked for at this port of a service (Gateway API,
/// `HTTPRequestRedirectFilter`; Envoy's `host_redirect` and `port_redirect`).
pub fn redirect(
    redirect: &Redirect,
    matched: &HttpMatch,
    head: &RequestHead<'_>,
    service_port: u16,
) -> (StatusCode, HeaderValue) {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let authority = redirect.hostname.as_deref().unwrap_or(head.authority);
    let (host, of_authority) = split(authority);
    let well_known = well_known_port(scheme);
    let port = match redirect.port {
        RedirectPort::Number(number) => Some(number),
        RedirectPort::Called => Some(service_port),
        RedirectPort::OfAuthority => {
            // Whoever was called at the old scheme's port is not at that of the new one's.
            let changes_scheme = redirect.hostname.is_none() && scheme != head.scheme;
            let of_old = well_known_port(head.scheme).filter(|_old| changes_scheme);
            of_authority.filter(|port| Some(*port) != of_old)
        }
        RedirectPort::Derived => {
            let of_scheme = redirect.scheme.as_ref().and(well_known);
            of_scheme.or(Some(service_port))
        }
    };
    let path = match &redirect.path {
        Some(change) => changed_path(change, matched, head.path),
        None => head.path.into(),
    };
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = port.filter(|port| well_known != Some(*port)) {
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

/// A host and its port, if it has one; an IPv6 address keeps its brackets.
fn split(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    }
}
