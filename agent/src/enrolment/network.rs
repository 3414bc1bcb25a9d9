//! A pod's network as the proxy sees it: its sockets, and what the kernel may carry without the proxy.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;
use userspace_l7::model::WorkloadUid;
use userspace_l7::pod::{Answer, Family, Opening, Openings, PodSockets};

use crate::capture::{self, Sockets};
use crate::direct::Direct;

/// Lent to workers.
pub(super) struct Network {
    pub(super) uid: WorkloadUid,
    pub(super) sockets: Arc<Sockets>,
    /// `None` where the kernel cannot account for what it carries.
    pub(super) direct: Option<Direct>,
}

impl PodSockets for Network {
    fn outbound(&self, family: Family) -> io::Result<OwnedFd> {
        self.sockets.outbound(capture_family(family))
    }

    fn leg(&self, family: Family, client: SocketAddr) -> io::Result<OwnedFd> {
        self.sockets.leg(capture_family(family), client)
    }

    fn consider(&self, opening: &Opening) -> bool {
        let direct = self.direct.as_ref();
        direct.is_some_and(|direct| direct.consider(&self.uid, opening, &self.sockets))
    }

    fn served_straight(&self, dialled: SocketAddr) -> SmallVec<[SocketAddr; 4]> {
        let direct = self.direct.as_ref();
        direct
            .map(|direct| direct.served_straight(&self.uid, dialled))
            .unwrap_or_default()
    }

    fn answer(&self, opening: &Opening, answer: Answer) -> io::Result<()> {
        let answer = match answer {
            Answer::Release => capture::Answer::Release,
            Answer::Refuse => capture::Answer::Refuse,
            Answer::HostUnreachable => capture::Answer::HostUnreachable,
            Answer::NetworkUnreachable => capture::Answer::NetworkUnreachable,
        };
        self.sockets
            .answer(opening.source, opening.dialled, &opening.tcp_header, answer)
    }

    fn hold_again(&self, dialled: SocketAddr) -> io::Result<()> {
        self.sockets.hold_again(dialled)
    }
}

impl Openings for capture::Openings {
    fn announcements(&self) -> io::Result<OwnedFd> {
        Self::announcements(self)
    }

    fn next(&mut self) -> Option<Opening> {
        let syn = Self::next(self)?;
        Some(Opening {
            netns: syn.key.netns_cookie,
            source: syn.source(),
            dialled: syn.destination(),
            tcp_header: syn.tcp_header().into(),
        })
    }
}

fn capture_family(family: Family) -> capture::Family {
    match family {
        Family::V4 => capture::Family::V4,
        Family::V6 => capture::Family::V6,
    }
}
