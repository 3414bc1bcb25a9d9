//! A request, as far as an external authorizer is told of it.

use super::{Bytes, SocketAddr};
use crate::model::{RequestHead, SpiffeId};

/// A request that somebody is asked about.
#[derive(Clone, Debug)]
pub struct Checked<'a> {
    /// Its head.
    pub head: RequestHead<'a>,
    /// Its path in the one spelling that policies and the application see. Empty for CONNECT.
    pub path: &'a str,
    /// The version that it came in.
    pub version: ::http::Version,
    /// Who calls.
    pub source: CheckedPeer<'a>,
    /// Who is called.
    pub destination: CheckedPeer<'a>,
    /// Its body, if the authorizer is to see it.
    pub body: Option<ShownBody>,
}

/// One end of the connection that a request came on.
#[derive(Clone, Copy, Debug)]
pub struct CheckedPeer<'a> {
    /// Its address; its port is 0 if it is not known.
    pub address: SocketAddr,
    /// Who it has proven to be.
    pub identity: Option<&'a SpiffeId>,
}

/// What an authorizer sees of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownBody {
    /// Its beginning.
    pub bytes: Bytes,
    /// Whether there is more.
    pub is_partial: bool,
}

impl Checked<'_> {
    /// Path and query.
    pub(super) fn target(&self) -> String {
        match self.head.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.to_owned(),
        }
    }
}

impl ShownBody {
    /// What the authorizer hears in `x-envoy-auth-partial-body`.
    pub(super) fn partial(&self) -> &'static str {
        if self.is_partial { "true" } else { "false" }
    }
}

/// Tells an authorizer that it sees a body, and whether that is all of it.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
