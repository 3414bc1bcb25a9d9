//! Why a question has no answer.

use crate::http::SendError;
use crate::model::NamespacedHostname;
use crate::upstream::NoConnection;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the mesh has no service {0}")]
    NoService(NamespacedHostname),
    #[error("no endpoint of it can be asked")]
    NoEndpoint,
    #[error("as many requests are under way to it as its DestinationRule allows")]
    Overflow,
    #[error("it cannot be reached: {0}")]
    Unreachable(#[from] NoConnection),
    #[error(transparent)]
    NoResponse(#[from] SendError),
    #[error("its answer breaks off: {0}")]
    Broken(#[source] hyper::Error),
    #[error("its answer is too long")]
    TooLong,
    #[error("it takes too long to answer")]
    Late,
    #[error("it answers the call with HTTP status {0}")]
    HttpStatus(http::StatusCode),
    #[error("it answers the call with gRPC status {0}")]
    GrpcStatus(i32),
    #[error("its answer is none of its protocol's")]
    Nonsense,
    #[error("the request cannot be put into a question")]
    Unaskable,
}

impl AskError {
    /// Whether who was asked cannot have heard the question.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}
