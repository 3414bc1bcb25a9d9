//! What an authorizer's answer comes to, in whichever protocol it was given.

use ::http::StatusCode;
use ::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::{Bytes, Changes};
use crate::envoy::is_of_the_hop;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The request passes, changed so.
    Allowed(Changes),
    /// It does not.
    Denied(Rejection),
    /// That is no answer: the authorizer has failed.
    Failed,
}

/// What a client gets in place of the application's response.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// The authorizer's, or 403.
    pub status: StatusCode,
    /// The authorizer's, as far as they are for the client.
    pub headers: HeaderMap,
    /// The authorizer's.
    pub body: Bytes,
}

impl Rejection {
    /// One with these headers, several of one name in their order. What frames a message is ours.
    pub(super) fn new(
        status: StatusCode,
        headers: impl Iterator<Item = (HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Self {
        let mut told = HeaderMap::new();
        for (name, value) in headers.filter(|(name, _)| !is_of_the_hop(name)) {
            let _more = told.append(name, value);
        }
        // "… cannot contain content" (RFC 9110 §15.3.5, §15.4.5).
        let is_bare = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Self {
            status,
            headers: told,
            body: if is_bare { Bytes::new() } else { body },
        }
    }
}

/// Whether a status can end a request, and is one that clients know.
pub(super) fn is_final(status: StatusCode) -> bool {
    (200..600).contains(&status.as_u16())
}
