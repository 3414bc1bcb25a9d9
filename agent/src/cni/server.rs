//! The agent's end of the plugin's socket.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::protocol::{Answer, Command, MOST_BYTES, Outcome, Request, VERSION};

/// How long a plugin has to say what it wants.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// After a connection could not be accepted, for want of file descriptors most likely.
const RECOVERY: Duration = Duration::from_millis(100);

/// Who knows what becomes of pods.
pub(crate) trait Gate: Send + Sync + 'static {
    /// Does what the runtime asks for. Dropped if the plugin gives up.
    fn serve(&self, command: Command) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>>;
}

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for the CNI plugin at {}", path.display())]
pub(crate) struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// A socket that only root may use.
#[derive(Debug)]
pub(crate) struct PluginSocket(UnixListener);

impl PluginSocket {
    /// Listens at `path`, in the place of whoever did before.
    ///
    /// # Errors
    /// [`ListenError`].
    pub(crate) fn open(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError {
            path: path.to_owned(),
            source,
        };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self(listener))
    }

    /// Serves plugins until it is dropped.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub(crate) async fn serve(self, gate: Arc<dyn Gate>) -> io::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.0)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let gate = Arc::clone(&gate);
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &*gate).await {
                            debug!(%error, "the CNI plugin went away");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept the CNI plugin");
                    sleep(RECOVERY).await;
                }
            }
        }
    }
}

async fn converse(mut stream: UnixStream, gate: &dyn Gate) -> io::Result<()> {
    // The mode keeps others out; this keeps out who was handed the socket.
    if stream.peer_cred()?.uid() != 0 {
        return Ok(());
    }
    let mut text = Vec::new();
    {
        let mut limited = (&mut stream).take(MOST_BYTES);
        timeout(REQUEST_WITHIN, limited.read_to_end(&mut text)).await??;
    }
    let outcome = match serde_json::from_slice::<Request>(&text) {
        Ok(request) if request.version == VERSION => gate.serve(request.command).await,
        Ok(request) => refuse(format!(
            "this agent speaks version {VERSION} of the plugin's protocol, not {}: they are of different releases",
            request.version
        )),
        Err(error) => refuse(format!("the plugin's request cannot be read: {error}")),
    };
    let answer = serde_json::to_vec(&Answer::of(outcome))?;
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

fn refuse(reason: String) -> Outcome {
    Outcome::Refused { reason }
}
