//! A thread's own ring, and the task that submits to it and reaps from it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use tokio::io::unix::AsyncFd;

use super::buffers::{Pool, SLOT_LEN, SendBuf};
use super::operation::{Completion, Operations, Sending, Ticket};
use super::provided::{GROUP, Provided};
use super::socket;

/// User data of cancellations, whose own completions mean nothing. No slab key reaches it.
const CANCELLATION: u64 = u64::MAX;
/// Enters per turn before other tasks get the thread: the kernel runs at most 20 pieces of deferred work
/// per enter (`IO_LOCAL_TW_DEFAULT_MAX`, Linux 6.13), so one is not always enough.
const ENTERS_PER_TURN: usize = 8;
/// Pieces of deferred work that one enter is sure to run, if there are as many (`IO_LOCAL_TW_DEFAULT_MAX`).
const WORK_PER_ENTER: usize = 20;
/// Turns in a row before epoll gets a look: well under a millisecond.
const TURNS_PER_YIELD: usize = 32;
/// Whether the flag that silences announcements may be used. The kernel's store of the mark and its load
/// of the flag have a full barrier between them only where locked instructions are one.
const QUIET_WHILE_AWAKE: bool = cfg!(target_arch = "x86_64");
/// `IORING_RECVSEND_POLL_FIRST` (Linux 5.19): wait for data before trying to receive.
const POLL_FIRST: u16 = 1 << 0;

/// What one pass over the queues did.
enum Pass {
    Nothing,
    Submitted,
    Finished,
}

/// A thread's own ring.
pub(super) struct Driver {
    // The order matters: closing the ring ends the registration of `provided`'s memory.
    ring: RefCell<IoUring>,
    provided: Rc<Provided>,
    operations: Operations,
    /// Entries to submit, in order. The queue shared with the kernel is filled from here.
    queued: RefCell<VecDeque<squeue::Entry>>,
    reaped: RefCell<Vec<cqueue::Entry>>,
    /// Present while the driving task sleeps: whoever queues an entry wakes it.
    parked: RefCell<Option<Waker>>,
}

impl Driver {
    pub(super) fn new(ring: IoUring, pool: Rc<Pool>) -> io::Result<Rc<Self>> {
        let provided = Provided::register(&ring, pool)?;
        Ok(Rc::new(Self {
            ring: RefCell::new(ring),
            provided: Rc::new(provided),
            operations: Operations::default(),
            queued: RefCell::default(),
            reaped: RefCell::default(),
            parked: RefCell::default(),
        }))
    }

    /// Receives once into a provided buffer; `wait_first` when the socket is known to be empty.
    pub(super) fn recv(self: &Rc<Self>, file: &Rc<OwnedFd>, wait_first: bool) -> Ticket {
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), SLOT_LEN)
            .buf_group(GROUP)
            .ioprio(if wait_first { POLL_FIRST } else { 0 })
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.start(entry, file)
    }

    /// Waits until one of the poll(2) `events` (or an error) holds for the descriptor.
    pub(super) fn ready(self: &Rc<Self>, file: &Rc<OwnedFd>, events: libc::c_short) -> Ticket {
        let events = u32::from(events.cast_unsigned());
        self.start(
            opcode::PollAdd::new(types::Fd(file.as_raw_fd()), events).build(),
            file,
        )
    }

    /// Sends the bytes of `buf` from `offset` on; the count may still fall short.
    pub(super) async fn send<B: SendBuf>(
        self: &Rc<Self>,
        file: &Rc<OwnedFd>,
        buf: B,
        offset: usize,
    ) -> (io::Result<usize>, B) {
        let bytes = &buf.bytes()[offset..];
        let len = u32::try_from(bytes.len()).unwrap_or(1 << 30);
        let entry = opcode::Send::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), len)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        Sending::new(self.start(entry, file), buf).finish().await
    }

    /// Queues an entry whose buffer, if it has one, the caller keeps alive until the completion.
    fn start(self: &Rc<Self>, entry: squeue::Entry, file: &Rc<OwnedFd>) -> Ticket {
        let key = self.operations.insert(Rc::clone(file));
        self.push(entry.user_data(key as u64));
        Ticket::new(Rc::clone(self), key)
    }

    pub(super) fn operations(&self) -> &Operations {
        &self.operations
    }

    fn push(&self, entry: squeue::Entry) {
        self.queued.borrow_mut().push_back(entry);
        let sleeper = self.parked.take();
        if let Some(waker) = sleeper {
            waker.wake();
        }
    }

    /// Nobody waits for the operation any more: it owns `buf`, and the kernel shall end it.
    pub(super) fn abandon(&self, key: usize, buf: Option<Box<dyn SendBuf>>) {
        if self.operations.abandon(key, buf) {
            // The key cannot name a later operation by the time the kernel reads this: keys are freed
            // when a completion is read, and an entry that reuses one is queued behind this one.
            self.push(
                opcode::AsyncCancel::new(key as u64)
                    .build()
                    .user_data(CANCELLATION),
            );
        }
    }

    /// A descriptor on which the kernel announces completions; `drive` wants it watched.
    pub(super) fn announcements(&self) -> io::Result<OwnedFd> {
        let eventfd = socket::eventfd()?;
        self.ring
            .borrow()
            .submitter()
            .register_eventfd(eventfd.as_raw_fd())?;
        Ok(eventfd)
    }

    /// Drives the ring for as long as the worker runs; returns only if the ring fails.
    pub(super) async fn drive(self: Rc<Self>, announcements: AsyncFd<OwnedFd>) -> io::Error {
        match self.drive_until_failure(&announcements).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn drive_until_failure(
        &self,
        announcements: &AsyncFd<OwnedFd>,
    ) -> io::Result<Infallible> {
        loop {
            self.announce(false);
            let mut turns = 0;
            // Awake while completions come: a pass of the driver behind each pass of the tasks.
            while self.turn()? {
                turns += 1;
                if turns % TURNS_PER_YIELD == 0 {
                    // Goes through epoll: timers and the world outside of the ring get their share.
                    tokio::task::yield_now().await;
                } else {
                    let mut yielded = false;
                    poll_fn(|cx| {
                        if std::mem::replace(&mut yielded, true) {
                            return Poll::Ready(());
                        }
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    })
                    .await;
                }
            }
            self.announce(true);
            if !self.look_again()? {
                poll_fn(|cx| self.poll_work(announcements, cx)).await?;
            }
        }
    }

    /// A last look before the driver sleeps, with announcements on: what it does not find comes with one of its own.
    /// True if anything was finished.
    ///
    /// The kernel's mark of waiting work is believed here only, for as many enters as that work can need. It says no
    /// more than that there was some: `io_req_local_work_add` queues first and marks then, and an enter between the two
    /// runs the work and leaves the mark behind, until the next work comes. Who takes such a mark for work turns for
    /// nothing meanwhile, and lets no other task of the thread run.
    fn look_again(&self) -> io::Result<bool> {
        for _ in 0..=self.operations.len() / WORK_PER_ENTER {
            self.provided.refill();
            if let Pass::Finished = self.enter(0)? {
                return Ok(true);
            }
            let is_marked = self.ring.borrow_mut().submission().taskrun();
            if !is_marked {
                break;
            }
        }
        Ok(false)
    }

    /// Turns announcements on before the driver sleeps, and off while it is awake and looks anyway: each
    /// would cost the kernel an eventfd signal and us an `epoll_wait` that returns for nothing.
    fn announce(&self, on: bool) {
        let mut ring = self.ring.borrow_mut();
        let completions = ring.completion();
        if on {
            completions.enable_eventfd();
            // Pairs with `io_req_local_work_add`, which marks the work before it looks at the flag: either
            // it sees the flag, or `look_again` sees the mark.
            fence(Ordering::SeqCst);
        } else if QUIET_WHILE_AWAKE {
            completions.disable_eventfd();
        }
    }

    /// Ready once there may be something to do.
    fn poll_work(
        &self,
        announcements: &AsyncFd<OwnedFd>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // Edge-triggered and never read: the counter would need centuries to fill. The readiness is
        // cleared before the turn, so that whatever completes after that raises a new edge.
        if let Poll::Ready(guard) = announcements.poll_read_ready(cx) {
            guard?.clear_ready();
            return Poll::Ready(Ok(()));
        }
        let waiting = {
            let mut ring = self.ring.borrow_mut();
            let (_, submissions, completions) = ring.split();
            submissions.cq_overflow() || !completions.is_empty()
        };
        if waiting || !self.queued.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        *self.parked.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Submits what is queued and completes what is finished. True if anything was finished.
    fn turn(&self) -> io::Result<bool> {
        let mut finished = false;
        for _ in 0..ENTERS_PER_TURN {
            self.provided.refill();
            match self.enter(0)? {
                Pass::Nothing => break,
                Pass::Submitted => {}
                Pass::Finished => finished = true,
            }
        }
        Ok(finished)
    }

    /// One pass over both queues, waiting for `want` completions.
    fn enter(&self, want: usize) -> io::Result<Pass> {
        let mut reaped = self.reaped.take();
        {
            let mut ring = self.ring.borrow_mut();
            let (submitter, mut submissions, mut completions) = ring.split();
            self.fill(&mut submissions);
            submissions.sync();
            let queued = !submissions.is_empty();
            if want > 0 || queued || submissions.taskrun() || submissions.cq_overflow() {
                match submitter.submit_and_wait(want) {
                    Ok(_) => {}
                    // The kernel is short of room or of memory, or a signal came: completions make room,
                    // and what was not submitted stays queued.
                    Err(e)
                        if matches!(
                            e.raw_os_error(),
                            Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                        ) => {}
                    Err(e) => return Err(e),
                }
            }
            completions.sync();
            reaped.extend(&mut completions);
            if reaped.is_empty() {
                self.reaped.replace(reaped);
                return Ok(if queued {
                    Pass::Submitted
                } else {
                    Pass::Nothing
                });
            }
        }
        for cqe in reaped.drain(..) {
            self.complete(&cqe);
        }
        self.reaped.replace(reaped);
        Ok(Pass::Finished)
    }

    fn fill(&self, submissions: &mut squeue::SubmissionQueue<'_>) {
        let mut queued = self.queued.borrow_mut();
        while let Some(entry) = queued.front() {
            // SAFETY: `start` documents who keeps the entry's buffer alive: `Sending`, then the operation;
            // receives and polls name no memory. The descriptor is the operation's.
            if unsafe { submissions.push(entry) }.is_err() {
                return;
            }
            queued.pop_front();
        }
    }

    fn complete(&self, cqe: &cqueue::Entry) {
        if cqe.user_data() == CANCELLATION {
            return;
        }
        let result = cqe.result();
        if result == -libc::ENOBUFS {
            self.provided.exhausted();
        }
        let slot = cqueue::buffer_select(cqe.flags()).and_then(|id| self.provided.taken(id));
        let completion = Completion {
            result,
            slot,
            more: cqueue::sock_nonempty(cqe.flags()),
        };
        if let Ok(key) = usize::try_from(cqe.user_data()) {
            self.operations.complete(key, completion);
        }
    }
}

impl Drop for Driver {
    /// Every operation ends before the memory it may use goes away. All of them can be cancelled, so this
    /// takes no longer than the kernel's cancellation.
    fn drop(&mut self) {
        for key in self.operations.keys() {
            self.abandon(key, None);
        }
        while !self.operations.is_empty() {
            if let Err(error) = self.enter(1) {
                tracing::error!(%error, "io_uring did not finish its operations");
                // Leaked rather than freed under a kernel that may still use it: what operations send, and the slots that
                // they receive into. Closing the ring only begins to end them: `io_ring_ctx_wait_and_kill` leaves the rest
                // to a work item that nobody can wait for.
                Box::leak(Box::new((
                    std::mem::take(&mut self.operations),
                    Rc::clone(&self.provided),
                )));
                return;
            }
        }
    }
}
