//! Keeps the plugin in place for as long as the agent runs: networks' own agents write their configurations anew.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tracing::{info, warn};

use super::installation::{Installation, InstallationError};

/// Between looks without a cause: for what inotify does not tell.
const LOOK: Duration = Duration::from_secs(5);
/// Quiet time after a change: whoever writes several files is let finish.
const QUIET: Duration = Duration::from_millis(50);

/// Why the plugin is not in place, for whoever asks; nothing if it is.
type Complaint = Arc<Mutex<Option<String>>>;

/// The keeping thread. Dropping it ends the keeping; the plugin stays, and holds pods back until the next agent runs.
#[derive(Debug)]
pub(crate) struct Keeper {
    installation: Arc<Mutex<Option<Installation>>>,
    complaint: Complaint,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Puts the plugin in place now, and again whenever it is not. `repaired` is told of each time after the first.
    ///
    /// # Errors
    /// No inotify instance, event counter or thread can be had.
    pub(crate) fn start(
        installation: Installation,
        repaired: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let directory = installation.conf_dir.clone();
        let installation = Arc::new(Mutex::new(Some(installation)));
        let (kept, stopped) = (Arc::clone(&installation), Arc::clone(&stop));
        // Before the first look nobody knows.
        let complaint = Arc::new(Mutex::new(Some("it is not in place yet".to_owned())));
        let mut look = Look::new(Arc::clone(&complaint));
        let keep = move || {
            let mut watched = false;
            loop {
                if !watched {
                    let flags = AddWatchFlags::IN_CLOSE_WRITE
                        | AddWatchFlags::IN_MOVE
                        | AddWatchFlags::IN_DELETE
                        | AddWatchFlags::IN_ONLYDIR;
                    // Not there yet, as long as this fails.
                    watched = inotify.add_watch(&directory, flags).is_ok();
                }
                if look.at(&kept) {
                    repaired();
                }
                if !wait(&inotify, &stopped, &mut watched) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("cni-keeper".to_owned())
            .spawn(keep)?;
        Ok(Self {
            installation,
            complaint,
            stop,
            thread: Some(thread),
        })
    }

    /// Why the plugin is not in place, in a sentence; nothing if it is.
    pub(crate) fn complaint(&self) -> Option<String> {
        let complaint = self.complaint.lock();
        complaint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the plugin out, for good. What could not be removed is said in a sentence.
    pub(crate) fn uninstall(&self) -> Option<String> {
        let mut kept = self
            .installation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let outcome = kept.take()?.uninstall();
        outcome.err().map(|error| sentence(&error))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Writing one to a counter at zero cannot fail, and the thread ends at once.
        let _written = self.stop.write(1);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// What the last looks showed.
#[derive(Debug)]
struct Look {
    /// Whether the program has been put in place.
    begun: bool,
    /// Whether the entry has been in a network's configuration.
    chained: bool,
    /// What was said last.
    complaint: Complaint,
}

impl Look {
    fn new(complaint: Complaint) -> Self {
        Self {
            begun: false,
            chained: false,
            complaint,
        }
    }

    /// Puts in place what is not. Gives whether something had been there and was not any more.
    fn at(&mut self, kept: &Mutex<Option<Installation>>) -> bool {
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(installation) = &*kept else {
            return false;
        };
        let done = if self.begun {
            installation.repair()
        } else {
            installation.install()
        };
        match done {
            Ok(changed) => {
                self.begun = true;
                let is_chained = installation.has_network().unwrap_or(false);
                let was_chained = std::mem::replace(&mut self.chained, is_chained);
                if !changed.is_empty() {
                    info!(files = ?changed, "CNI plugin put in place");
                }
                let nothing =
                    || "no network is configured on this node: there is nothing to chain to";
                self.say((!is_chained).then(nothing).map(str::to_owned));
                was_chained && is_chained && !changed.is_empty()
            }
            Err(error) => {
                self.say(Some(sentence(&error)));
                false
            }
        }
    }

    /// Whoever asks is told so from now on; the log once.
    fn say(&self, what: Option<String>) {
        let mut said = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(what) = &what
            && said.as_ref() != Some(what)
        {
            warn!(reason = %what, "CNI plugin not in place");
        }
        *said = what;
    }
}

/// An error with its cause, and what to do about it where that is known.
fn sentence(error: &InstallationError) -> String {
    let cause = std::error::Error::source(error);
    let text = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    if error.is_denied() {
        format!(
            "{text}: the directory has to be root's, because the agent may write into nobody else's"
        )
    } else {
        text
    }
}

/// Waits until there is a reason to look; false if it is time to stop.
fn wait(inotify: &Inotify, stop: &EventFd, watched: &mut bool) -> bool {
    let mut fds = [
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
    ];
    let millis = |wait: Duration| u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
    // An interrupted wait is a look too early.
    let _raised = poll(&mut fds, PollTimeout::from(millis(LOOK)));
    let raised = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    if raised(&fds[0]) {
        return false;
    }
    if raised(&fds[1]) {
        let mut quiet = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let _raised = poll(&mut quiet, PollTimeout::from(millis(QUIET)));
        if raised(&quiet[0]) {
            return false;
        }
        let events = inotify.read_events().unwrap_or_default();
        let is_gone = |mask: AddWatchFlags| mask.contains(AddWatchFlags::IN_IGNORED);
        *watched &= !events.iter().any(|event| is_gone(event.mask));
    }
    true
}
