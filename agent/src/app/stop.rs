//! When the agent ends: because it is told to, or because a part of it has failed.

use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use userspace_l7::worker::Worker;

use super::state::State;

/// How much of the time to drain is left for what is under way when no new connection is taken any more.
pub(super) const CLOSING: Duration = Duration::from_secs(2);

/// Serves on until no connection is left, or the time is over: the next agent cannot start before this one has ended, and
/// new connections need not wait for those that last.
pub(super) async fn until_idle(workers: &[Worker], patience: Duration) {
    let idle = async {
        for worker in workers {
            worker.idle().await;
        }
    };
    // Those that last longer are ended.
    let _all_ended = tokio::time::timeout(patience, idle).await;
}

/// How often the agent looks whether all of it works.
const LOOK: Duration = Duration::from_secs(1);

/// Resolves with the name of a part that has ended though nobody has told it to. Half an agent would answer some
/// connections and leave others waiting for ever; what has panicked has been logged by then.
pub(super) async fn failure_of<P>(parts: impl Fn() -> P) -> &'static str
where
    P: Iterator<Item = (&'static str, bool)>,
{
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        if let Some((name, _)) = parts().find(|(_, has_ended)| *has_ended) {
            return name;
        }
    }
}

/// Resolves when an administrator or the system wants the agent to stop.
pub(super) async fn told_to_stop(state: &State) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = state.stop_requested() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::failure_of;

    #[tokio::test]
    async fn a_part_that_ends_by_itself_is_named() {
        let looks = Cell::new(0);
        let parts = || {
            looks.set(looks.get() + 1);
            [("capture", false), ("worker", looks.get() == 2)].into_iter()
        };
        assert_eq!(failure_of(parts).await, "worker");
        assert_eq!(looks.get(), 2);
    }
}
