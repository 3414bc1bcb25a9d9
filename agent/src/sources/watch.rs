//! Watches a directory of manifests in a thread of its own, so that reading and compiling never hold up
//! anything else.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::manifests::Manifests;
use super::update::Update;

/// Quiet time after which a burst of changes counts as over.
const QUIET: Duration = Duration::from_millis(15);
/// Longest wait for a burst to end, or for a writer to close its file: a policy has to hold within a second.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between looks without a cause: for what inotify does not tell, such as files behind links.
const POLL: Duration = Duration::from_secs(5);
/// Between looks while the directory is not there.
const RETRY: Duration = Duration::from_millis(500);

/// A watched directory. Dropping it ends the watching.
#[derive(Debug)]
pub struct ManifestWatch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl ManifestWatch {
    /// Reads `directory`, and again whenever it changed. `take` is called from the watching thread with
    /// each news, at once with the first state even if it is empty.
    ///
    /// # Errors
    /// No inotify instance, event counter or thread can be had.
    pub fn start(
        directory: PathBuf,
        mut take: impl FnMut(Update, &Manifests) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let stopped = Arc::clone(&stop);
        let watching = move || {
            let mut watcher = Watcher {
                inotify,
                watch: None,
                burst: Burst::default(),
            };
            let mut manifests = Manifests::new(directory);
            let first = watcher.look(&mut manifests);
            let nothing = || Update {
                changes: Vec::new(),
                problems: Arc::default(),
                noticed: None,
            };
            take(first.unwrap_or_else(nothing), &manifests);
            while watcher.wait(&stopped) {
                if let Some(update) = watcher.look(&mut manifests) {
                    take(update, &manifests);
                }
            }
        };
        let thread = thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(watching)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ManifestWatch {
    fn drop(&mut self) {
        // Writing one to a counter at zero cannot fail, and the thread ends at once.
        let _written = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// What happened since the last look.
#[derive(Debug, Default)]
struct Burst {
    touched: BTreeSet<OsString>,
    /// Written to, and not closed yet.
    open: BTreeSet<OsString>,
    began: Option<Instant>,
}

struct Watcher {
    inotify: Inotify,
    watch: Option<WatchDescriptor>,
    burst: Burst,
}

impl Watcher {
    fn look(&mut self, manifests: &mut Manifests) -> Option<Update> {
        if self.watch.is_none() {
            // Watched before it is read, so that nothing falls between. While this fails the directory is
            // not there, and the scan says so.
            let flags = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MODIFY
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_ATTRIB
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            self.watch = self.inotify.add_watch(manifests.directory(), flags).ok();
        }
        let burst = std::mem::take(&mut self.burst);
        let update = manifests.scan(&burst.touched)?;
        Some(Update {
            noticed: burst.began,
            ..update
        })
    }

    /// Waits until there is a reason to look; false if it is time to stop.
    fn wait(&mut self, stop: &EventFd) -> bool {
        let idle = if self.watch.is_some() { POLL } else { RETRY };
        loop {
            let timeout = match self.burst.began {
                None => idle,
                Some(began) => {
                    let left = PATIENCE.saturating_sub(began.elapsed());
                    if left.is_zero() {
                        return true;
                    }
                    if self.burst.open.is_empty() {
                        QUIET.min(left)
                    } else {
                        left
                    }
                }
            };
            match ready(self.inotify.as_fd(), stop.as_fd(), timeout) {
                Ready::Stop => return false,
                Ready::Nothing => return true,
                Ready::Events => self.read_events(),
            }
        }
    }

    fn read_events(&mut self) {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            // Without events the regular look still sees changes.
            Err(_) => Vec::new(),
        };
        self.burst.began.get_or_insert_with(Instant::now);
        for event in events {
            let ended = AddWatchFlags::IN_IGNORED
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF;
            if event.mask.intersects(ended) {
                if let Some(watch) = self.watch.take() {
                    let _already_gone = self.inotify.rm_watch(watch);
                }
                continue;
            }
            let Some(name) = event.name else { continue };
            if event.mask.contains(AddWatchFlags::IN_MODIFY) {
                self.burst.open.insert(name.clone());
            } else {
                self.burst.open.remove(&name);
            }
            self.burst.touched.insert(name);
        }
    }
}

enum Ready {
    Events,
    Stop,
    Nothing,
}

fn ready(inotify: BorrowedFd<'_>, stop: BorrowedFd<'_>, timeout: Duration) -> Ready {
    let deadline = Instant::now() + timeout;
    let mut fds = [
        PollFd::new(stop, PollFlags::POLLIN),
        PollFd::new(inotify, PollFlags::POLLIN),
    ];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that it never turns around at once.
        let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(millis)) {
            Err(Errno::EINTR) => {}
            Err(_) | Ok(0) => return Ready::Nothing,
            Ok(_) => break,
        }
    }
    let raised = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    match fds.each_ref().map(raised) {
        [true, _] => Ready::Stop,
        [false, true] => Ready::Events,
        [false, false] => Ready::Nothing,
    }
}
