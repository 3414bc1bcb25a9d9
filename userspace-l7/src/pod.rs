//! L5: a local pod as its worker sees it: a name, and the means to open sockets where the pod lives.

mod phase;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tracing::debug;

use crate::model::WorkloadUid;

pub(crate) use phase::{Course, Follower, Outlook, Phase};

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// The family that can dial `address`.
    pub fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Opens sockets in a pod's network namespace that capture lets pass. The agent implements it, since only
/// it knows how capture recognises its own traffic. Called on worker threads: must not block for long, and
/// must leave the calling thread in its own namespace.
pub trait PodSockets: Send + Sync {
    /// An unconnected TCP socket for the mesh's own traffic: tunnels and plain pass-through.
    ///
    /// # Errors
    /// The socket could not be made (descriptors exhausted, namespace gone).
    fn outbound(&self, family: Family) -> io::Result<OwnedFd>;

    /// An unconnected TCP socket for the leg to the pod's application. The application will see `client`
    /// as its peer.
    ///
    /// # Errors
    /// As [`PodSockets::outbound`].
    fn leg(&self, family: Family, client: SocketAddr) -> io::Result<OwnedFd>;

    /// Called for each connection of the pod's that is held back: whether it goes on without the proxy, because the
    /// kernel can carry it and the mesh lets it go. Those that follow it then do not even come here. Never waits.
    fn consider(&self, opening: &Opening) -> bool;

    /// Endpoints of the service at `dialled` that the kernel gives connections by itself, with their whole share. What
    /// comes to the proxy is the others'.
    fn served_straight(&self, dialled: SocketAddr) -> SmallVec<[SocketAddr; 4]>;

    /// Answers a connection that is held back.
    ///
    /// # Errors
    /// The answer could not be sent. The application then tries again by itself.
    fn answer(&self, opening: &Opening, answer: Answer) -> io::Result<()>;

    /// Has connections to an address held again, which capture has let pass because it answered all the time.
    ///
    /// # Errors
    /// Capture could not be told. It asks again by itself within a second.
    fn hold_again(&self, dialled: SocketAddr) -> io::Result<()>;
}

/// A connection of an application's that capture holds back: its SYN has not been answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The cookie of its pod's network namespace.
    pub netns: u64,
    /// The application's address.
    pub source: SocketAddr,
    /// The address that it dialled.
    pub dialled: SocketAddr,
    /// The SYN's TCP header with its options.
    pub tcp_header: SmallVec<[u8; 64]>,
}

/// What an application hears of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It stands, and the worker accepts it.
    Release,
    /// `ECONNREFUSED`.
    Refuse,
    /// `EHOSTUNREACH`.
    HostUnreachable,
    /// `ENETUNREACH`.
    NetworkUnreachable,
}

/// Where a worker learns of connections that are held back for it. The same connection may come several times:
/// applications send their SYN again.
pub trait Openings: Send {
    /// A descriptor that becomes readable when there is one more.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    fn announcements(&self) -> io::Result<OwnedFd>;

    /// The next one; never waits.
    fn next(&mut self) -> Option<Opening>;
}

/// Runs a task of a pod until the pod ends.
pub(crate) fn until_ended(
    follower: Follower,
    travel: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    UntilEnded { travel, follower }
}

pin_project! {
    /// A struct, since the future of an `async fn` holds what it was given twice: as it came, and where it is awaited.
    struct UntilEnded<F> {
        #[pin]
        travel: F,
        follower: Follower,
    }
}

impl<F: Future<Output = ()>> Future for UntilEnded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.travel.poll(cx).is_pending() {
            ready!(this.follower.poll_reached(Phase::Ended, cx));
            debug!("ended with its pod");
        }
        Poll::Ready(())
    }
}

/// Takes a pod's DNS connections over TCP: the connection, and the resolver that it was for.
pub type TakeDns = dyn Fn(OwnedFd, SocketAddr) + Send + Sync;

/// A pod whose traffic this worker carries.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) uid: WorkloadUid,
    /// The cookie of its network namespace.
    pub(crate) netns: u64,
    pub(crate) sockets: Arc<dyn PodSockets>,
    /// Whom DNS over TCP goes to; without one it is a connection like any other.
    pub(crate) dns: Option<Arc<TakeDns>>,
    /// How far its end has come.
    pub(crate) outlook: Outlook,
}
