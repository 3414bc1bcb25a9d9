//! What a worker is told, in the order in which it is to do it.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

use super::Attachment;
use crate::connections::LiveConnection;
use crate::model::{Snapshot, WorkloadUid};
use crate::telemetry::ChangeUnderWay;

/// One thing to do.
pub(super) enum Command {
    Publish(Publication),
    Attach(Box<Attachment>),
    Part(WorkloadUid, Duration, oneshot::Sender<()>),
    Detach(WorkloadUid, oneshot::Sender<()>),
    Connections(oneshot::Sender<Vec<LiveConnection>>),
    Idle(oneshot::Sender<()>),
    Drain(Duration),
}

/// A mesh to follow, and the changes that are over once it is followed.
pub(super) struct Publication {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) changes: SmallVec<[Arc<ChangeUnderWay>; 1]>,
}

/// The commands that have not been done.
pub(super) struct Inbox {
    queue: mpsc::UnboundedReceiver<Command>,
    /// Taken from the queue already.
    next: Option<Command>,
}

impl Inbox {
    pub(super) fn new(queue: mpsc::UnboundedReceiver<Command>) -> Self {
        Self { queue, next: None }
    }

    /// The next command; `None` when nobody is left to give one. Of meshes that wait behind each other only the last is
    /// given, with the changes of all: a worker that has fallen behind need not follow every mesh that there was.
    ///
    /// # Cancel safety
    /// No command is lost.
    pub(super) async fn next(&mut self) -> Option<Command> {
        let command = match self.next.take() {
            Some(command) => command,
            None => self.queue.recv().await?,
        };
        let Command::Publish(mut publication) = command else {
            return Some(command);
        };
        while let Ok(behind) = self.queue.try_recv() {
            match behind {
                Command::Publish(newer) => {
                    publication.snapshot = newer.snapshot;
                    publication.changes.extend(newer.changes);
                }
                other => {
                    self.next = Some(other);
                    break;
                }
            }
        }
        Some(Command::Publish(publication))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{mpsc, oneshot};
    use tokio::time::Instant;

    use super::{Command, Inbox, Publication};
    use crate::model::{MeshSettings, Snapshot, TrustDomain};
    use crate::telemetry::{ChangeUnderWay, Metrics};

    fn publication(generation: u64, change: &Arc<ChangeUnderWay>) -> Command {
        let mut snapshot = Snapshot::empty(MeshSettings {
            trust_domain: TrustDomain::new("td").unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster: "k".into(),
            network: "".into(),
        });
        snapshot.generation = generation;
        Command::Publish(Publication {
            snapshot: Arc::new(snapshot),
            changes: [Arc::clone(change)].into_iter().collect(),
        })
    }

    /// The generation and how many changes it stands for, or `None` for another command.
    async fn next(inbox: &mut Inbox) -> Option<(u64, usize)> {
        match inbox.next().await.unwrap() {
            Command::Publish(next) => Some((next.snapshot.generation, next.changes.len())),
            _ => None,
        }
    }

    #[tokio::test]
    async fn of_meshes_in_a_row_the_last_is_followed_and_ends_the_changes_of_all() {
        let (commands, queue) = mpsc::unbounded_channel();
        let mut inbox = Inbox::new(queue);
        let change = Metrics::new().change(Instant::now());
        let send = |command| assert!(commands.send(command).is_ok());
        send(publication(1, &change));
        send(publication(2, &change));
        send(publication(3, &change));
        send(Command::Idle(oneshot::channel().0));
        send(publication(4, &change));
        assert_eq!(next(&mut inbox).await, Some((3, 3)));
        assert_eq!(next(&mut inbox).await, None, "the order is kept");
        assert_eq!(next(&mut inbox).await, Some((4, 1)));
        send(publication(5, &change));
        assert_eq!(next(&mut inbox).await, Some((5, 1)));
        drop(commands);
        assert!(inbox.next().await.is_none());
        assert_eq!(Arc::strong_count(&change), 1);
    }
}
