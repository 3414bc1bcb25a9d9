//! Network namespaces: holding one, and working inside one.
//!
//! Work inside a namespace runs on a thread of its own that ends with the work, so that no thread which
//! serves connections can ever be left in the wrong namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::sys;

/// An open network namespace. It, and every device in it, lives as long as this is held.
#[derive(Debug)]
pub(crate) struct Netns {
    file: OwnedFd,
    cookie: u64,
}

impl Netns {
    /// Opens the namespace that a path names, `/var/run/netns/NAME` or `/proc/PID/ns/net`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(OwnedFd::from(File::open(path)?))
    }

    /// Takes a namespace that is open already.
    pub(crate) fn of(file: OwnedFd) -> io::Result<Self> {
        let cookie = run_in(file.as_fd(), current_cookie)??;
        Ok(Self { file, cookie })
    }

    /// The namespace with this cookie that a path named once; `None` if it is gone, or the path names something else by now.
    ///
    /// # Errors
    ///
    /// When that cannot be known: it may be there.
    pub(crate) fn find(path: &Path, cookie: u64) -> io::Result<Option<Self>> {
        match Self::open(path) {
            Ok(netns) => Ok((netns.cookie == cookie).then_some(netns)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // What a runtime mounts namespaces on stays behind as an empty file: setns(2), "fd refers to a namespace whose
            // type does not match", which is what no namespace at all gets, too.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The namespace's cookie: unlike its inode number never reused before a reboot.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` in the namespace, on a thread made for it.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made or cannot enter the namespace; `work` has not run then.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        run_in(self.file.as_fd(), work)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The cookie of the calling thread's network namespace.
pub(crate) fn current_cookie() -> io::Result<u64> {
    let family = AddressFamily::Inet;
    let probe = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sys::netns_cookie(probe.as_fd())
}

fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let enter_and_work = move || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        let worker = thread::Builder::new().name("netns".to_owned());
        let worker = worker.spawn_scoped(scope, enter_and_work)?;
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
