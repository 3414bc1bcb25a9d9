//! The task that receives, feeds the machine, and watches whether the peer is alive.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::time::{Instant, sleep_until, timeout};

use super::super::error::{ErrorCode, Lost};
use super::{Farewell, Liveness, PARTING, Shared};
use crate::ring::RecvBuf;
use crate::tls::Opener;

/// Receives until the connection ends, and sees to it that the writer ends too.
pub(super) async fn run(shared: Rc<Shared>, mut opener: Opener, liveness: Liveness) {
    let lost = receive(&shared, &mut opener, liveness).await;
    drop(opener);
    let is_cut = matches!(
        lost,
        Lost::Silent | Lost::TakenDown | Lost::Receive(_) | Lost::Send(_)
    );
    conclude(&shared, lost, is_cut);
    if is_cut || timeout(PARTING, part(&shared)).await.is_err() {
        shared.tcp.abort();
    }
}

/// Ends the connection for its streams, and leaves the writer what it still has to say.
fn conclude(shared: &Shared, lost: Lost, is_cut: bool) {
    let mut core = shared.core.borrow_mut();
    match lost {
        _ if is_cut => core.farewell = Farewell::Said,
        Lost::Protocol(error) => core.machine.say_goodbye(error.code),
        Lost::Seal => core.machine.say_goodbye(ErrorCode::INTERNAL_ERROR),
        _ => {}
    }
    core.fail(lost);
    core.wake_writer();
}

async fn receive(shared: &Shared, opener: &mut Opener, liveness: Liveness) -> Lost {
    let Liveness {
        ping_after,
        dead_after,
    } = liveness;
    // What came along with the handshake.
    match take(shared, opener, &mut RecvBuf::from(Vec::new())) {
        Ok(true) => {}
        Ok(false) => return Lost::Closed,
        Err(lost) => return lost,
    }
    let mut heard = Instant::now();
    let mut asked = None;
    // Set again only when it fires: most receives need no timer of their own.
    let mut timer = pin!(sleep_until(heard + ping_after));
    loop {
        let received = tokio::select! {
            biased;
            received = shared.tcp.recv() => received,
            () = timer.as_mut() => {
                let due = asked.map_or_else(|| heard + ping_after, |asked| asked + dead_after);
                if Instant::now() < due {
                    timer.as_mut().reset(due);
                } else if asked.is_some() {
                    return Lost::Silent;
                } else {
                    let now = Instant::now();
                    asked = Some(now);
                    timer.as_mut().reset(now + dead_after);
                    let mut core = shared.core.borrow_mut();
                    core.machine.ping();
                    core.wake_writer();
                }
                continue;
            }
        };
        let mut received = match received {
            Ok(received) if received.is_empty() => return Lost::Closed,
            Ok(received) => received,
            Err(error) => {
                // Whoever took the connection down has said why.
                let lost = shared.core.borrow().lost;
                return lost.unwrap_or_else(|| Lost::Receive(error.kind()));
            }
        };
        if asked.take().is_some() {
            timer.as_mut().reset(Instant::now() + ping_after);
        }
        heard = Instant::now();
        match take(shared, opener, &mut received) {
            Ok(true) => {}
            Ok(false) => return Lost::Closed,
            Err(lost) => return lost,
        }
    }
}

/// Opens and digests what was received. `false`: the peer has closed its direction.
fn take(shared: &Shared, opener: &mut Opener, received: &mut RecvBuf) -> Result<bool, Lost> {
    let mut core = shared.core.borrow_mut();
    let now = std::time::Instant::now();
    let goes_on = opener.open(received, |plaintext| {
        core.machine.input(plaintext, now).map_err(Lost::Protocol)
    });
    core.dispatch();
    if core.machine.has_output() || core.machine.is_drained() || core.sealer.owes_key_update() {
        core.wake_writer();
    }
    goes_on
}

/// Lets the writer say its last, and the peer read it: closing with unread bytes would reset the connection and
/// take the last word along.
async fn part(shared: &Shared) {
    poll_fn(|cx| {
        let mut core = shared.core.borrow_mut();
        if !core.has_writer {
            return Poll::Ready(());
        }
        core.watch(cx);
        Poll::Pending
    })
    .await;
    while let Ok(received) = shared.tcp.recv().await {
        if received.is_empty() {
            break;
        }
    }
}
