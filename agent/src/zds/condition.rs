//! How istio-cni fares, as far as the agent waits for it.

use std::path::PathBuf;

/// How far istio-cni's word is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// How far it has come.
    pub(crate) progress: Progress,
}

/// Stages of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The agent does not know itself yet which pods are to be in the mesh.
    Waiting,
    /// There is none: why, where that is known. Pods that are captured stay so.
    Disconnected(String),
    /// Pods are being listed.
    Listing,
    /// All have been; what follows is news.
    Told,
}

impl Condition {
    /// Why the agent cannot know all pods of its node that are in the mesh, in a sentence; nothing if it does.
    pub(crate) fn complaint(&self) -> Option<String> {
        let socket = self.socket.display();
        match &self.progress {
            Progress::Waiting => Some("it has not been asked yet".to_owned()),
            Progress::Disconnected(why) => Some(format!("{socket}: {why}")),
            Progress::Listing => Some("it has not named all pods yet".to_owned()),
            Progress::Told => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Condition, Progress};

    #[test]
    fn only_a_whole_list_is_enough() {
        for (progress, is_enough) in [
            (Progress::Waiting, false),
            (Progress::Disconnected("nobody listens".to_owned()), false),
            (Progress::Listing, false),
            (Progress::Told, true),
        ] {
            let socket = "/var/run/ztunnel/ztunnel.sock".into();
            let condition = Condition { socket, progress };
            assert_eq!(condition.complaint().is_none(), is_enough, "{condition:?}");
        }
    }
}
