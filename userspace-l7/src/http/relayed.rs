//! What a client gets back: a response's body on its way through, with the connection that it comes from and
//! whoever keeps account of it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::{Body, BodyError};
use super::pool::Lease;

/// Keeps account of a response. Dropped without an ending, its client has gone away.
pub(crate) trait Observer: Unpin {
    /// A frame is on its way to the client.
    fn frame(&mut self, frame: &Frame<Bytes>);

    /// Nothing more will come; told once.
    fn end(&mut self, ending: Ending);
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// In order.
    Complete,
    /// Its server broke off.
    Broken,
    /// Its time was over.
    Late,
}

/// Nobody keeps account.
impl Observer for () {
    fn frame(&mut self, _frame: &Frame<Bytes>) {}

    fn end(&mut self, _ending: Ending) {}
}

/// A response's body. At its end the upstream connection becomes free; dropped before that, it is cancelled.
pub(crate) struct Relayed<O> {
    body: Body,
    lease: Option<Lease>,
    observer: Option<O>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<O: Observer> Relayed<O> {
    /// A body that comes through `lease`.
    pub(crate) fn upstream(body: Body, lease: Lease, observer: O) -> Self {
        let mut relayed = Self {
            body,
            lease: Some(lease),
            observer: Some(observer),
            deadline: None,
        };
        relayed.settle_if_ended();
        relayed
    }

    /// A body of our own, whose account is settled already.
    pub(crate) fn own(body: Body) -> Self {
        Self {
            body,
            lease: None,
            observer: None,
            deadline: None,
        }
    }

    /// Breaks the body off if it lasts longer.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        if self.observer.is_some() {
            self.deadline = Some(Box::pin(sleep_until(deadline)));
        }
    }

    fn settle_if_ended(&mut self) {
        if self.body.is_end_stream() {
            self.settle(Ending::Complete);
        }
    }

    fn settle(&mut self, ending: Ending) {
        self.deadline = None;
        if let Some(lease) = self.lease.take()
            && ending == Ending::Complete
        {
            lease.give_back();
        }
        if let Some(mut observer) = self.observer.take() {
            observer.end(ending);
        }
    }
}

impl<O: Observer> hyper::body::Body for Relayed<O> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.settle(Ending::Late);
            return Poll::Ready(Some(Err(BodyError::Late)));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(observer) = &mut this.observer {
                    observer.frame(frame);
                }
                this.settle_if_ended();
            }
            None => this.settle(Ending::Complete),
            // The client must see the cut: hyper ends its connection on this, too.
            Some(Err(_)) => this.settle(Ending::Broken),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
