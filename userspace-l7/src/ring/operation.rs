//! Operations in flight: who waits for each, and what it owns until the kernel is done with it.
//!
//! ```text
//!   insert ──► Waiting ──completion──► Done ──Ticket::poll──► gone
//!                 │ Ticket dropped       │ Ticket dropped
//!                 ▼ (cancel queued)      ▼
//!             Abandoned ──completion──► gone
//! ```

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use slab::Slab;

use super::buffers::{RecvBuf, SendBuf, Slot};
use super::driver::Driver;

/// What the kernel said of one operation.
pub(super) struct Completion {
    pub(super) result: i32,
    /// The filled slot, owned from the moment its completion was read.
    pub(super) slot: Option<Slot>,
    /// The socket had more to receive (`IORING_CQE_F_SOCK_NONEMPTY`).
    pub(super) more: bool,
}

impl Completion {
    /// The operation's count, or its error.
    pub(super) fn count(&self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_negative| io::Error::from_raw_os_error(-self.result))
    }

    /// What a receive has brought, or its error.
    pub(super) fn received(self) -> io::Result<RecvBuf> {
        let count = self.count()?;
        let received = self.slot.map(|slot| RecvBuf::filled(slot, count));
        Ok(received.unwrap_or_else(RecvBuf::end))
    }
}

/// An operation in flight. It owns what the kernel uses: the descriptor, so that its number cannot be
/// reused meanwhile, and (once nobody waits any more) the buffer. Small: there is one for each idle connection.
struct Operation {
    state: State,
    #[expect(dead_code, reason = "held open, not used")]
    file: Rc<OwnedFd>,
}

enum State {
    Waiting(Option<Waker>),
    Done(Completion),
    Abandoned(Option<Box<dyn SendBuf>>),
}

/// A ring's operations, by the key that their completions carry. Wakers, descriptors and buffers are let
/// go outside of the cell's borrow: what they run may come back here.
#[derive(Default)]
pub(super) struct Operations(RefCell<Slab<Operation>>);

impl Operations {
    pub(super) fn insert(&self, file: Rc<OwnedFd>) -> usize {
        self.0.borrow_mut().insert(Operation {
            state: State::Waiting(None),
            file,
        })
    }

    pub(super) fn complete(&self, key: usize, completion: Completion) {
        let mut operations = self.0.borrow_mut();
        let Some(operation) = operations.get_mut(key) else {
            return;
        };
        match std::mem::replace(&mut operation.state, State::Done(completion)) {
            State::Waiting(waker) => {
                drop(operations);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Abandoned(buf) => {
                let finished = operations.remove(key);
                drop(operations);
                drop((finished, buf));
            }
            State::Done(_) => {}
        }
    }

    /// Takes the completion if it is there, else remembers whom to wake.
    fn poll(&self, key: usize, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut operations = self.0.borrow_mut();
        let Some(operation) = operations.get_mut(key) else {
            return Poll::Pending;
        };
        match &mut operation.state {
            State::Waiting(Some(waker)) => waker.clone_from(cx.waker()),
            State::Waiting(waiting) => *waiting = Some(cx.waker().clone()),
            State::Done(_) => {
                let operation = operations.remove(key);
                drop(operations);
                if let State::Done(completion) = operation.state {
                    return Poll::Ready(completion);
                }
            }
            State::Abandoned(_) => {}
        }
        Poll::Pending
    }

    /// Nobody waits any more: the operation owns `buf` until it ends. False if it has ended already.
    pub(super) fn abandon(&self, key: usize, buf: Option<Box<dyn SendBuf>>) -> bool {
        let mut operations = self.0.borrow_mut();
        let Some(operation) = operations.get_mut(key) else {
            return false;
        };
        if matches!(operation.state, State::Done(_)) {
            let finished = operations.remove(key);
            drop(operations);
            drop(finished);
            return false;
        }
        let waited = std::mem::replace(&mut operation.state, State::Abandoned(buf));
        drop(operations);
        drop(waited);
        true
    }

    pub(super) fn keys(&self) -> Vec<usize> {
        self.0.borrow().iter().map(|(key, _)| key).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// A waiter's claim on an operation. Dropping it cancels the operation.
pub(super) struct Ticket {
    driver: Rc<Driver>,
    /// Absent once the completion was taken.
    key: Option<usize>,
}

impl Ticket {
    pub(super) fn new(driver: Rc<Driver>, key: usize) -> Self {
        Self {
            driver,
            key: Some(key),
        }
    }

    /// # Cancel safety
    ///
    /// The completion stays with the operation until it is taken here.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        let Some(key) = self.key else {
            return Poll::Pending;
        };
        let completion = ready!(self.driver.operations().poll(key, cx));
        self.key = None;
        Poll::Ready(completion)
    }

    pub(super) async fn wait(mut self) -> Completion {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.driver.abandon(key, None);
        }
    }
}

/// A send in flight, with its buffer.
pub(super) struct Sending<B: SendBuf> {
    ticket: Ticket,
    buf: Option<B>,
}

impl<B: SendBuf> Sending<B> {
    pub(super) fn new(ticket: Ticket, buf: B) -> Self {
        Self {
            ticket,
            buf: Some(buf),
        }
    }

    pub(super) async fn finish(mut self) -> (io::Result<usize>, B) {
        poll_fn(|cx| {
            let completion = ready!(self.ticket.poll(cx));
            match self.buf.take() {
                Some(buf) => Poll::Ready((completion.count(), buf)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<B: SendBuf> Drop for Sending<B> {
    fn drop(&mut self) {
        if let (Some(key), Some(buf)) = (self.ticket.key.take(), self.buf.take()) {
            self.ticket.driver.abandon(key, Some(Box::new(buf)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Operation;

    #[test]
    fn an_operation_is_small() {
        assert_eq!(size_of::<Operation>(), 32);
    }
}
