//! A thread as a worker: which backend carries its sockets.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;

use io_uring::IoUring;
use tokio::task::LocalSet;

use super::buffers::Pool;
use super::driver::Driver;
use super::{probe, socket};

/// What carries a worker's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring: tokio-uring's runtime and a ring of our own for the data.
    Uring,
    /// epoll, where io_uring is not to be had.
    Epoll,
}

/// This thread's backend, for sockets made on it.
#[derive(Clone)]
pub(super) enum Worker {
    Uring(Rc<Driver>),
    Epoll(Rc<Pool>),
}

thread_local! {
    static CURRENT: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

impl Worker {
    pub(super) fn current() -> io::Result<Self> {
        CURRENT
            .with_borrow(Clone::clone)
            .ok_or_else(|| io::Error::other("sockets need a worker, and this thread is none"))
    }

    fn enter(self) -> io::Result<Entered> {
        CURRENT.with_borrow_mut(|current| {
            if current.is_some() {
                return Err(io::Error::other("this thread is a worker already"));
            }
            *current = Some(self);
            Ok(Entered)
        })
    }
}

/// While it lives, this thread is a worker.
struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        // Out of the cell first: the driver's end runs with the cell free.
        let worker = CURRENT.with_borrow_mut(Option::take);
        drop(worker);
    }
}

/// Turns this thread into a worker until `main` is done. Inside, tokio's primitives, timers and
/// `spawn_local` work; tasks still running at the end are dropped. `main` is polled more often than it is
/// woken: what does much belongs into tasks.
///
/// # Errors
///
/// If the backend cannot be set up (`probe` says why), or if the ring fails.
pub fn run<F: Future>(backend: Backend, main: F) -> io::Result<F::Output> {
    match backend {
        Backend::Uring => run_on_ring(probe::data_ring()?, main),
        Backend::Epoll => {
            let _entered = Worker::Epoll(Pool::new()?).enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(LocalSet::new().block_on(&runtime, main))
        }
    }
}

pub(super) fn run_on_ring<F: Future>(ring: IoUring, main: F) -> io::Result<F::Output> {
    let driver = Driver::new(ring, Pool::new()?)?;
    // Dropped last: the runtime, with all its tasks and their sockets, goes before the driver does.
    let _entered = Worker::Uring(Rc::clone(&driver)).enter()?;
    let runtime = probe::runtime()?;
    runtime.block_on(async {
        let mut main = pin!(main);
        let announcements = socket::watch(driver.announcements()?)?;
        let mut failure = tokio::task::spawn_local(driver.drive(announcements));
        tokio::select! {
            biased;
            output = &mut main => Ok(output),
            failure = &mut failure => Err(failure.unwrap_or_else(io::Error::other)),
        }
    })
}
