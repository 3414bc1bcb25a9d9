//! The head of an HTTP request as decisions see it, whatever version it came in.

use std::borrow::Cow;

use http::header::HOST;
use http::{HeaderMap, HeaderName, Method, request};

/// A request's head, borrowed from whoever parsed it.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// `:authority` or `Host`, with its port if it carries one; may be empty.
    pub authority: &'a str,
    /// Path without its query. Only a CONNECT's is empty.
    pub path: &'a str,
    /// What stands behind the first `?`.
    pub query: Option<&'a str>,
    /// Header fields.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestHead<'a> {
    /// The head of a request that has its target in origin form and its authority in `Host`, as every request has between
    /// two hops here.
    pub fn of(parts: &'a request::Parts) -> Self {
        let authority = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        Self {
            method: &parts.method,
            scheme: "http",
            authority: authority.unwrap_or_default(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
        }
    }

    /// A header's value as matches see it: several fields of one name are one list, joined by commas
    /// (RFC 9110 §5.3). Bytes outside UTF-8 become U+FFFD rather than hide the field: a DENY for what
    /// stands before them still holds.
    pub fn header(&self, name: &HeaderName) -> Option<Cow<'_, str>> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next()?.as_bytes();
        let Some(second) = values.next() else {
            return Some(String::from_utf8_lossy(first));
        };
        let mut joined = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        }
        Some(String::from_utf8_lossy(&joined).into_owned().into())
    }
}
