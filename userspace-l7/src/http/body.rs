//! Bodies without a box: what is relayed, and the few that are made here.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};

use super::inflow::Inflow;
use super::recording::{NotKept, Replay};

/// A body on its way: frames as they come, each waiting until its reader wants it.
#[derive(Debug)]
pub(crate) enum Body {
    /// None.
    Empty,
    /// All of it; taken with its one frame.
    Whole(Bytes),
    /// From the other side of the proxy.
    Streamed(Inflow),
    /// From the other side of the proxy, and kept for another attempt.
    Recorded(Replay),
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// Its sender broke off.
    #[error("the sender broke off: {0}")]
    Sender(#[from] hyper::Error),
    /// A copy of it lost its original.
    #[error(transparent)]
    Copy(#[from] NotKept),
    /// It took too long.
    #[error("the response took too long")]
    Late,
}

impl From<Inflow> for Body {
    fn from(inflow: Inflow) -> Self {
        // Most requests have none; then nothing has to be kept of hyper's channel.
        if inflow.is_end_stream() {
            Self::Empty
        } else {
            Self::Streamed(inflow)
        }
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self::from(Inflow::new(incoming))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Streamed(inflow) => inflow.poll_frame(cx).map_err(BodyError::from),
            Self::Recorded(replay) => replay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Streamed(inflow) => inflow.is_end_stream(),
            Self::Recorded(replay) => replay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(inflow) => inflow.size_hint(),
            Self::Recorded(replay) => replay.size_hint(),
        }
    }
}
