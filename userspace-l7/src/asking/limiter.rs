//! Asking a rate limit service about one request.

use std::time::Duration;

use super::{Addressee, AskError, Asker};
use crate::http::Version;
use crate::model::NamespacedHostname;
use crate::route::rate_limit::global::{self, METHOD, Ruling};

/// Asks whether a request with these descriptors is within its limits.
///
/// # Errors
/// [`AskError`]: the service has nothing to say.
///
/// # Cancel safety
/// Dropping the future takes the question back; the service may have counted the request.
pub(crate) async fn ask_limiter(
    asker: Asker<'_>,
    (service, port): (&NamespacedHostname, u16),
    timeout: Duration,
    question: &[u8],
) -> Result<Ruling, AskError> {
    let to = Addressee {
        service,
        port,
        version: Some(Version::Http2),
        timeout,
    };
    let message = asker.call(to, METHOD, question).await?;
    global::ruling(&message).ok_or(AskError::Nonsense)
}
