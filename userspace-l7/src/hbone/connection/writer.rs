//! The task that sends what has been sealed.

use std::future::poll_fn;
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::super::error::Lost;
use super::{Core, Farewell, OUTGOING, Records, Shared};

/// The largest buffer that is used again for the next batch: as much as may wait, and what its records add.
const KEPT: usize = OUTGOING + (128 << 10);

/// Sends batch after batch until the connection has nothing more to say.
pub(super) async fn run(shared: Rc<Shared>) {
    let mut spare = Vec::new();
    while let Some(batch) = poll_fn(|cx| shared.core.borrow_mut().poll_batch(&mut spare, cx)).await
    {
        let (sent, batch) = shared.tcp.send(batch).await;
        if let Err(error) = sent {
            let mut core = shared.core.borrow_mut();
            core.farewell = Farewell::Said;
            core.fail(Lost::Send(error.kind()));
            break;
        }
        if batch.capacity() <= KEPT {
            spare = batch;
            spare.clear();
        }
    }
    let mut core = shared.core.borrow_mut();
    core.farewell = Farewell::Said;
    core.has_writer = false;
    core.wake_watchers();
    drop(core);
    // The peer may be gone already, and needs no telling then.
    let _gone = shared.tcp.shutdown_write();
}

impl Core {
    /// Everything that is ready to leave; `None` after the last word. `spare` becomes the next buffer.
    fn poll_batch(&mut self, spare: &mut Vec<u8>, cx: &Context<'_>) -> Poll<Option<Vec<u8>>> {
        if self.farewell == Farewell::Said {
            return Poll::Ready(None);
        }
        if self.machine.is_drained() && self.farewell == Farewell::Open {
            self.farewell = Farewell::Due;
        }
        let Self {
            machine,
            sealer,
            outgoing,
            ..
        } = self;
        let mut records = Records {
            sealer,
            outgoing,
            failed: false,
        };
        machine.output(&mut records);
        let mut failed = records.failed || sealer.finish(outgoing).is_err();
        if self.farewell == Farewell::Due {
            self.farewell = Farewell::Said;
            let last_word = match self.lost {
                Some(Lost::Tls(error)) => sealer.fail(outgoing, error),
                _ => sealer.close(outgoing),
            };
            failed |= last_word.is_err();
        }
        if failed {
            self.fail(Lost::Seal);
            return Poll::Ready(None);
        }
        if self.outgoing.is_empty() {
            // An idle tunnel holds no buffer.
            *spare = Vec::new();
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let batch = mem::replace(&mut self.outgoing, mem::take(spare));
        self.wake_next_sender();
        Poll::Ready(Some(batch))
    }
}
