//! A body as it comes in, counted on the way; its beginning may be looked at before it moves on.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use crate::telemetry::{MessageCount, OpenRequest, RequestProtocol};

/// Bytes below which a piece is kept together with the one before: a client that sends its body byte by byte makes us keep
/// bytes, and not a frame and a buffer for each.
const SMALL: usize = 1 << 10;

/// A request's body from its client.
#[derive(Debug)]
pub(crate) struct Inflow {
    /// Nothing where there is no body.
    incoming: Option<Incoming>,
    meter: Option<Meter>,
    /// Read already, and still to be passed on.
    ahead: VecDeque<Frame<Bytes>>,
    has_ended: bool,
}

/// The beginning of a body.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) bytes: Bytes,
    /// Whether more follows.
    pub(crate) is_partial: bool,
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
            incoming: Some(incoming),
            ..Self::empty()
        }
    }

    /// No body.
    pub(crate) fn empty() -> Self {
        Self {
            incoming: None,
            meter: None,
            ahead: VecDeque::new(),
            has_ended: false,
        }
    }

    /// A body whose bytes, and messages if it is gRPC, are counted.
    pub(crate) fn counted(incoming: Incoming, account: &Rc<OpenRequest>) -> Self {
        let is_grpc = account.flow().protocol == RequestProtocol::Grpc;
        Self {
            meter: Some(Meter {
                account: Rc::clone(account),
                messages: is_grpc.then(MessageCount::default),
            }),
            ..Self::new(incoming)
        }
    }

    /// The first bytes, at most so many, for which it waits; they stay in the body.
    ///
    /// # Errors
    /// The sender broke off.
    ///
    /// # Cancel safety
    /// What has been read stays in the body.
    pub(crate) async fn read_ahead(&mut self, max_bytes: usize) -> Result<Beginning, hyper::Error> {
        let mut length: usize = self.ahead.iter().map(data_len).sum();
        while length <= max_bytes && !self.is_read() {
            let Some(frame) = poll_fn(|cx| self.poll_incoming(cx)).await else {
                break;
            };
            let frame = frame?;
            length += data_len(&frame);
            self.keep(frame);
        }
        let mut bytes = BytesMut::with_capacity(length.min(max_bytes));
        for data in self.ahead.iter().filter_map(Frame::data_ref) {
            let room = max_bytes - bytes.len();
            bytes.extend_from_slice(data.get(..room).unwrap_or(data));
        }
        Ok(Beginning {
            bytes: bytes.freeze(),
            is_partial: length > max_bytes,
        })
    }

    /// Keeps a frame for later; a small piece together with the one before.
    fn keep(&mut self, frame: Frame<Bytes>) {
        let piece = frame.data_ref().filter(|data| data.len() < SMALL);
        let before = self.ahead.back_mut().and_then(Frame::data_mut);
        match (piece, before) {
            (Some(piece), Some(before)) => append(before, piece),
            _ => self.ahead.push_back(frame),
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.poll_incoming(cx),
        }
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        if let (Some(meter), Some(Ok(frame))) = (&mut self.meter, &frame)
            && let Some(bytes) = frame.data_ref()
        {
            meter.account.request_bytes(bytes.len() as u64);
            if let Some(messages) = &mut meter.messages {
                meter.account.request_messages(messages.feed(bytes));
            }
        }
        self.has_ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_read(&self) -> bool {
        let incoming = self.incoming.as_ref();
        self.has_ended || incoming.is_none_or(Incoming::is_end_stream)
    }

    /// Whether nothing more will come.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.is_read()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.iter().map(data_len).sum::<usize>() as u64;
        let mut hint = SizeHint::new();
        let incoming = self.incoming.as_ref();
        let rest = incoming.map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(rest.lower() + ahead);
        hint
    }
}

/// Copies only `piece`, unless somebody else reads what is before it.
fn append(before: &mut Bytes, piece: &[u8]) {
    let mut joined = match std::mem::take(before).try_into_mut() {
        Ok(own) => own,
        Err(shared) => BytesMut::from(shared.as_ref()),
    };
    joined.extend_from_slice(piece);
    *before = joined.freeze();
}

fn data_len(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::body::Frame;

    use super::{Inflow, SMALL};

    #[test]
    fn small_pieces_of_what_is_read_ahead_are_kept_together() {
        let mut inflow = Inflow::empty();
        let mut expected = Vec::new();
        let large = [b'-'; SMALL];
        for _ in 0..4 {
            for piece in [&large, &b"a"[..], b"bc", b"d"] {
                inflow.keep(Frame::data(Bytes::copy_from_slice(piece)));
                expected.extend_from_slice(piece);
            }
        }
        let kept: Vec<&[u8]> = inflow
            .ahead
            .iter()
            .filter_map(|frame| frame.data_ref().map(AsRef::as_ref))
            .collect();
        assert_eq!(kept.len(), 4, "{kept:?}");
        assert_eq!(kept.concat(), expected);
    }
}
