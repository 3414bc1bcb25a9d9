//! L2: addresses of the names that clients of a wildcard ask for. Workers have no resolver of their own: whoever runs them
//! gives them one.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::route::named::{Forbidden, Name};

/// As long as a client waits for its name to be looked up: as long as stub resolvers wait for one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a question. Dropped, it is taken back.
pub type Looking = Pin<Box<dyn Future<Output = Result<Arc<[IpAddr]>, NoAddress>> + Send>>;

/// Looks names up, for as long as each answer holds.
pub trait Names: Send + Sync {
    /// Asks for the addresses of a name; never none. May be called on any thread, and answers on it.
    fn look_up(&self, name: &Name) -> Looking;
}

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// So says its zone.
    #[error("it does not exist, or has no address")]
    Nonexistent,
    /// The resolvers say nothing of use.
    #[error("no resolver knows")]
    Unanswered,
    /// The time is over.
    #[error("no resolver has answered in time")]
    Late,
    /// The bound is reached.
    #[error("too many names are being looked up")]
    Overflow,
}

/// Why nobody is connected by the name that a client says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("the client says no name that {0} stands for")]
    Unnamed(Arc<str>),
    #[error("{name} cannot be looked up: {source}")]
    NoAddress { name: Name, source: NoAddress },
    #[error("{name} leads to {address}, {why}: nobody is connected there")]
    Forbidden {
        name: Name,
        address: IpAddr,
        why: Forbidden,
    },
}

/// Looks a name up, in time.
///
/// # Errors
/// [`NoAddress`].
///
/// # Cancel safety
/// Dropping the future takes the question back.
pub(crate) async fn look_up(names: &dyn Names, name: &Name) -> Result<Arc<[IpAddr]>, NoAddress> {
    let found = tokio::time::timeout(PATIENCE, names.look_up(name)).await;
    let found = found.unwrap_or(Err(NoAddress::Late))?;
    if found.is_empty() {
        return Err(NoAddress::Nonexistent);
    }
    Ok(found)
}

/// Knows no name.
#[cfg(test)]
pub(crate) struct Nameless;

#[cfg(test)]
impl Names for Nameless {
    fn look_up(&self, _name: &Name) -> Looking {
        Box::pin(std::future::ready(Err(NoAddress::Nonexistent)))
    }
}
