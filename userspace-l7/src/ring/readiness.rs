//! Waiting for a descriptor that is no socket.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use super::socket;

/// A descriptor that says when there is something to read, by whatever means.
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Watches a descriptor.
    ///
    /// # Errors
    /// This thread is no worker, or the kernel cannot watch the descriptor.
    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        socket::watch(fd).map(Self)
    }

    /// Waits until there is something to read. The caller then reads all there is: what was there is not
    /// announced again.
    ///
    /// # Errors
    /// The runtime is shutting down.
    ///
    /// # Cancel safety
    /// No announcement is lost when the future is dropped.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
