//! Where the servers are reached: over TCP, or over a socket that only root may use.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A client's connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where clients come from.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Socket(UnixListener),
}

impl Listener {
    /// The next client.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Cancel safety
    /// No client is lost.
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Socket(listener) => loop {
                let (stream, _nameless) = listener.accept().await?;
                // The mode keeps others out; this keeps out who was handed the socket. An agent is root.
                let us = geteuid().as_raw();
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == us) {
                    return Ok(Box::new(stream));
                }
            },
        }
    }
}

/// Listens at `path`, in the place of whoever did before. Called within a tokio runtime.
///
/// # Errors
/// What the kernel says.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
