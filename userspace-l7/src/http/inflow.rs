//! A body as it comes in, counted on the way.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use crate::telemetry::{MessageCount, OpenRequest, RequestProtocol};

/// A request's body from its client.
#[derive(Debug)]
pub(crate) struct Inflow {
    incoming: Incoming,
    meter: Option<Meter>,
}

/// Counts what a client sends.
#[derive(Debug)]
struct Meter {
    account: Rc<OpenRequest>,
    messages: Option<MessageCount>,
}

impl Inflow {
    /// A body that nobody counts.
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            meter: None,
        }
    }

    /// A body whose bytes, and messages if it is gRPC, are counted.
    pub(crate) fn counted(incoming: Incoming, account: &Rc<OpenRequest>) -> Self {
        let is_grpc = account.flow().protocol == RequestProtocol::Grpc;
        Self {
            incoming,
            meter: Some(Meter {
                account: Rc::clone(account),
                messages: is_grpc.then(MessageCount::default),
            }),
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let (Some(meter), Some(Ok(frame))) = (&mut self.meter, &frame)
            && let Some(bytes) = frame.data_ref()
        {
            meter.account.request_bytes(bytes.len() as u64);
            if let Some(messages) = &mut meter.messages {
                meter.account.request_messages(messages.feed(bytes));
            }
        }
        Poll::Ready(frame)
    }

    /// Whether nothing more will come.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
