//! Pure: what a packet of istio-cni's asks for, in the course of one connection.
//!
//! ```text
//!  Listing ── Add, Keep, Del ─▶ Listing ── SnapshotSent ─▶ Told ── Add, Keep, Del ─▶ Told
//! ```

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message as _;

use super::message::{AddWorkload, Payload, WorkloadRequest};

/// A packet that is none of the protocol's. What it was about cannot be known, so neither can what is missing from a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// No protobuf message, or of another kind.
    #[error("it is no request: {0}")]
    Undecodable(prost::DecodeError),
    /// A request of which nothing is known here, such as one of a later version.
    #[error("it asks for nothing that is known here")]
    Unknown,
    /// It names no pod.
    #[error("it has no uid")]
    NoUid,
    /// `Add` without a network namespace, or anything with what is not its own.
    #[error("it has {found} file descriptors, and {expected} belong to it")]
    Descriptors {
        /// How many came with it.
        found: usize,
        /// How many should have.
        expected: usize,
    },
    /// A second end of the list.
    #[error("the list of pods had ended before")]
    EndedTwice,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take the pod whose network namespace has come with the packet.
    Add {
        /// Its UID.
        uid: Arc<str>,
        /// Its Kubernetes namespace and name.
        name: Option<(Arc<str>, Arc<str>)>,
    },
    /// The pod stays what it is.
    Keep(Arc<str>),
    /// Let the pod go.
    Del(Arc<str>),
    /// Let everyone go who is none of these.
    End(BTreeSet<Arc<str>>),
}

/// What has been said on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// These have been mentioned, and more may be.
    Listing(BTreeSet<Arc<str>>),
    /// Everyone has been; from now on it is changes.
    Told,
}

impl Default for Session {
    fn default() -> Self {
        Self::Listing(BTreeSet::new())
    }
}

impl Session {
    /// Takes a packet that came with so many file descriptors.
    ///
    /// # Errors
    /// [`Malformed`]; nothing has changed.
    pub(super) fn take(&mut self, packet: &[u8], descriptors: usize) -> Result<Step, Malformed> {
        let request = WorkloadRequest::decode(packet).map_err(Malformed::Undecodable)?;
        let payload = request.payload.ok_or(Malformed::Unknown)?;
        let expected = usize::from(matches!(payload, Payload::Add(_)));
        if descriptors != expected {
            let found = descriptors;
            return Err(Malformed::Descriptors { found, expected });
        }
        match payload {
            Payload::Add(add) => self.add(add),
            Payload::Keep(keep) => {
                let uid = uid(keep.uid)?;
                self.mention(&uid);
                Ok(Step::Keep(uid))
            }
            Payload::Del(del) => {
                let uid = uid(del.uid)?;
                if let Self::Listing(mentioned) = self {
                    mentioned.remove(&uid);
                }
                Ok(Step::Del(uid))
            }
            Payload::SnapshotSent(_) => match std::mem::replace(self, Self::Told) {
                Self::Listing(mentioned) => Ok(Step::End(mentioned)),
                Self::Told => Err(Malformed::EndedTwice),
            },
        }
    }

    fn add(&mut self, add: AddWorkload) -> Result<Step, Malformed> {
        let uid = uid(add.uid)?;
        self.mention(&uid);
        let name = add.workload_info;
        let name = name.map(|info| (info.namespace.into(), info.name.into()));
        Ok(Step::Add { uid, name })
    }

    fn mention(&mut self, uid: &Arc<str>) {
        if let Self::Listing(mentioned) = self {
            mentioned.insert(Arc::clone(uid));
        }
    }
}

fn uid(text: String) -> Result<Arc<str>, Malformed> {
    if text.is_empty() {
        return Err(Malformed::NoUid);
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::message::{
        AddWorkload, DelWorkload, KeepWorkload, Payload, SnapshotSent, WorkloadInfo,
        WorkloadRequest,
    };
    use super::{Malformed, Session, Step};

    fn packet(payload: Payload) -> Vec<u8> {
        let payload = Some(payload);
        WorkloadRequest { payload }.encode_to_vec()
    }

    fn add(uid: &str) -> Vec<u8> {
        let workload_info = Some(WorkloadInfo {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
        });
        packet(Payload::Add(AddWorkload {
            uid: uid.to_owned(),
            workload_info,
        }))
    }

    fn keep(uid: &str) -> Vec<u8> {
        let uid = uid.to_owned();
        packet(Payload::Keep(KeepWorkload { uid }))
    }

    fn del(uid: &str) -> Vec<u8> {
        let uid = uid.to_owned();
        packet(Payload::Del(DelWorkload { uid }))
    }

    fn end() -> Vec<u8> {
        packet(Payload::SnapshotSent(SnapshotSent {}))
    }

    fn uids<const N: usize>(uids: [&str; N]) -> BTreeSet<Arc<str>> {
        uids.into_iter().map(Arc::from).collect()
    }

    #[test]
    fn the_wire_format_is_istios() {
        // Field 1 with 16 bytes: of these, field 1 is the uid, field 2 who it is.
        let bytes = [
            b"\x0a\x12\x0a\x03u-1\x12\x0b\x0a\x03web\x12\x04shop".as_slice(),
            b"\x12\x05\x12\x03u-1",
            b"\x1a\x00",
            b"\x2a\x05\x0a\x03u-1",
        ];
        let name = || Some(("shop".into(), "web".into()));
        let uid = || Arc::<str>::from("u-1");
        let steps = [
            Step::Add {
                uid: uid(),
                name: name(),
            },
            Step::Del(uid()),
            Step::End(BTreeSet::new()),
            Step::Keep(uid()),
        ];
        for (bytes, step) in bytes.into_iter().zip(steps) {
            let descriptors = usize::from(matches!(step, Step::Add { .. }));
            assert_eq!(Session::default().take(bytes, descriptors), Ok(step));
        }
    }

    #[test]
    fn who_is_mentioned_before_the_end_stays() {
        let mut session = Session::default();
        let mut take = |packet: &[u8], descriptors| session.take(packet, descriptors).unwrap();
        take(&add("added"), 1);
        take(&keep("kept"), 0);
        take(&add("gone"), 1);
        take(&add("added"), 1);
        assert_eq!(take(&del("gone"), 0), Step::Del("gone".into()));
        assert_eq!(take(&end(), 0), Step::End(uids(["added", "kept"])));
        // What follows is news, each by itself.
        assert!(matches!(take(&add("later"), 1), Step::Add { .. }));
        assert_eq!(take(&del("added"), 0), Step::Del("added".into()));
        assert_eq!(session, Session::Told);
    }

    #[test]
    fn a_pod_that_istio_cni_knows_by_its_uid_only_is_taken() {
        let nameless = packet(Payload::Add(AddWorkload {
            uid: "u-1".to_owned(),
            workload_info: None,
        }));
        let step = Session::default().take(&nameless, 1).unwrap();
        let uid = "u-1".into();
        assert_eq!(step, Step::Add { uid, name: None });
    }

    #[test]
    fn what_is_no_request_is_refused_and_changes_nothing() {
        let mut told = Session::default();
        told.take(&end(), 0).unwrap();
        let descriptors = |found, expected| Malformed::Descriptors { found, expected };
        for (mut session, packet, count, expected) in [
            (Session::default(), vec![], 0, Some(Malformed::Unknown)),
            // NoSnapshotPresent, of a version before the first.
            (
                Session::default(),
                b"\x22\x00".to_vec(),
                0,
                Some(Malformed::Unknown),
            ),
            (Session::default(), b"\x0a\xff".to_vec(), 1, None),
            (Session::default(), b"\x0a\x02\x0a\x05".to_vec(), 1, None),
            (Session::default(), add(""), 1, Some(Malformed::NoUid)),
            (Session::default(), keep(""), 0, Some(Malformed::NoUid)),
            (Session::default(), add("u"), 0, Some(descriptors(0, 1))),
            (Session::default(), add("u"), 2, Some(descriptors(2, 1))),
            (Session::default(), del("u"), 1, Some(descriptors(1, 0))),
            (Session::default(), end(), 1, Some(descriptors(1, 0))),
            (told, end(), 0, Some(Malformed::EndedTwice)),
        ] {
            let before = session.clone();
            let refused = session.take(&packet, count).unwrap_err();
            assert_eq!(session, before, "{packet:?}");
            match expected {
                Some(expected) => assert_eq!(refused, expected, "{packet:?}"),
                None => assert!(matches!(refused, Malformed::Undecodable(_)), "{packet:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(packets: Vec<(Vec<u8>, u8)>) {
            let mut session = Session::default();
            for (packet, descriptors) in packets {
                let before = session.clone();
                if session.take(&packet, descriptors.into()).is_err() {
                    prop_assert_eq!(&session, &before);
                }
            }
        }
    }
}
