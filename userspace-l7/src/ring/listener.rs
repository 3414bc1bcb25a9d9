//! A listening socket.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::driver::Driver;
use super::worker::Worker;
use super::{Tcp, socket};

/// A listening TCP socket of this worker.
///
/// The ring waits for connections and accept4(2) takes them: no descriptor ever travels in a completion,
/// where a cancelled or forgotten accept would leak it, and a burst is taken without a ring turn each.
pub struct Listener {
    /// Absent once closed.
    io: RefCell<Option<Io>>,
    closed: Notify,
}

#[derive(Clone)]
enum Io {
    Uring {
        driver: Rc<Driver>,
        file: Rc<OwnedFd>,
    },
    Epoll(Rc<AsyncFd<OwnedFd>>),
}

impl Listener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    ///
    /// If this thread is no worker, or the kernel refuses an option.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        socket::prepare(&fd)?;
        let io = match Worker::current()? {
            Worker::Uring(driver) => Io::Uring {
                driver,
                file: Rc::new(fd),
            },
            Worker::Epoll(_) => Io::Epoll(Rc::new(socket::watch(fd)?)),
        };
        Ok(Self {
            io: RefCell::new(Some(io)),
            closed: Notify::new(),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// `ECANCELED` once closed; the kernel's otherwise (`EMFILE`, `ENOMEM`: the caller waits a little).
    ///
    /// # Cancel safety
    ///
    /// No connection is lost when the future is dropped.
    pub async fn accept(&self) -> io::Result<Tcp> {
        let closed = self.closed.notified();
        let accepted = async {
            // A burst must not starve the connections that are already here.
            tokio::task::coop::consume_budget().await;
            loop {
                let io = self.io.borrow().clone().ok_or_else(cancelled)?;
                match io.try_accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        io.readable().await?;
                    }
                    accepted => return accepted.and_then(Tcp::adopt),
                }
            }
        };
        tokio::select! {
            biased;
            () = closed => Err(cancelled()),
            accepted = accepted => accepted,
        }
    }

    /// Stops listening: a pending `accept` ends. Others who hold the same listening socket (a descriptor
    /// kept for the next agent) go on undisturbed, hence no shutdown(2).
    pub fn close(&self) {
        drop(self.io.take());
        self.closed.notify_waiters();
    }

    /// The address listened on; an IPv4 one as such even on an IPv6 socket.
    ///
    /// # Errors
    ///
    /// `ECANCELED` once closed.
    pub fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        match &*self.io.borrow() {
            Some(Io::Uring { file, .. }) => socket::local_addr(file),
            Some(Io::Epoll(file)) => socket::local_addr(&**file),
            None => Err(cancelled()),
        }
    }
}

impl Io {
    fn try_accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Uring { file, .. } => socket::accept(file),
            Self::Epoll(file) => socket::accept(&**file),
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Uring { driver, file } => driver
                .ready(file, libc::POLLIN)
                .wait()
                .await
                .count()
                .map(drop),
            Self::Epoll(file) => {
                let mut ready = file.readable().await?;
                // Cleared before the attempt that follows, which stops only when the queue is empty.
                ready.clear_ready();
                Ok(())
            }
        }
    }
}

fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

/// Whether an error of accept(2) leaves the listener sound: the peer gave up, or something has run out for the
/// moment.
pub fn is_passing(error: &io::Error) -> bool {
    let passing = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EPERM,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| passing.contains(&errno))
}
