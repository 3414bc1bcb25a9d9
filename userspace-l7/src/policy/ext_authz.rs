//! What an external authorizer is told of a request, and what its answer means: Envoy's `ext_authz` in both of its
//! protocols. Pure; whoever asks carries the bytes.

mod answer;
mod changes;
mod check;
mod grpc;
mod http;

use std::net::SocketAddr;

use ::http::HeaderName;
pub use answer::{Answer, Rejection};
use bytes::Bytes;
pub use changes::{Changes, HeaderChange, How, apply};
pub use check::{Checked, CheckedPeer, ShownBody};
pub use grpc::{answer as grpc_answer, question as grpc_question};
pub use http::{answer as http_answer, question as http_question};

use crate::model::StringMatch;

/// What is called of authorizers that speak gRPC.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

fn is_named(name: &HeaderName, patterns: &[StringMatch]) -> bool {
    let named = |pattern| super::pattern::match_text(pattern, name.as_str());
    patterns.iter().any(named)
}

#[cfg(test)]
mod tests;
