//! One connection to istio-cni: packets with descriptors, each of them ours as soon as it is here.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, sendmsg, socket,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::rights;

/// The longest packet (istio-cni reads and writes through buffers of this size).
pub(super) const LONGEST: usize = 1024;

/// Why a connection cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// No socket can be made.
    #[error("a socket cannot be made: {0}")]
    Make(#[source] io::Error),
    /// Nobody takes the connection.
    #[error("nobody takes the connection: {0}")]
    Connect(#[source] io::Error),
    /// Who listens could hand over anything as a pod's network namespace.
    #[error("who listens there runs as user {0}, not as root")]
    NotRoot(u32),
    /// Nothing can be read.
    #[error("a packet cannot be read: {0}")]
    Receive(#[source] io::Error),
    /// A packet did not fit.
    #[error("a packet is longer than {LONGEST} bytes, or has too many file descriptors")]
    Truncated,
    /// Nothing can be written.
    #[error("an answer cannot be sent: {0}")]
    Send(#[source] io::Error),
    /// The other side has closed the connection.
    #[error("the connection has ended")]
    Ended,
}

/// A packet.
#[derive(Debug)]
pub(super) struct Packet {
    /// At least one.
    pub(super) bytes: Vec<u8>,
    /// What came with it.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A connection. tokio has no type for sockets of `SOCK_SEQPACKET`; it waits for this one as for one of datagrams, and only
/// that.
#[derive(Debug)]
pub(super) struct Socket(UnixDatagram);

impl Socket {
    /// Connects to whoever listens at the path, if that is root.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(super) fn connect(path: &Path) -> Result<Self, SocketError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
        let made = made.map_err(|errno| SocketError::Make(errno.into()))?;
        let address = UnixAddr::new(path);
        let connected = address.and_then(|address| connect(made.as_raw_fd(), &address));
        connected.map_err(|errno| SocketError::Connect(errno.into()))?;
        Self::of(made)
    }

    /// Takes a connected socket over.
    fn of(connected: OwnedFd) -> Result<Self, SocketError> {
        let peer = getsockopt(&connected, PeerCredentials);
        let peer = peer.map_err(|errno| SocketError::Connect(errno.into()))?;
        if peer.uid() != 0 {
            return Err(SocketError::NotRoot(peer.uid()));
        }
        let watched = UnixDatagram::from_std(connected.into());
        Ok(Self(watched.map_err(SocketError::Make)?))
    }

    /// The next packet.
    ///
    /// # Errors
    /// [`SocketError`]. After [`SocketError::Truncated`] the next one can be received.
    ///
    /// # Cancel safety
    /// No packet is lost.
    pub(super) async fn receive(&self) -> Result<Packet, SocketError> {
        let mut bytes = vec![0; LONGEST];
        let received = self
            .0
            .async_io(Interest::READABLE, || rights::receive(&self.0, &mut bytes));
        let received = received.await.map_err(SocketError::Receive)?;
        if received.is_truncated {
            return Err(SocketError::Truncated);
        }
        // A packet without bytes is none of the protocol's, and cannot be told from the end.
        if received.length == 0 {
            return Err(SocketError::Ended);
        }
        bytes.truncate(received.length);
        Ok(Packet {
            bytes,
            descriptors: received.descriptors,
        })
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// [`SocketError::Send`].
    ///
    /// # Cancel safety
    /// It is sent whole or not at all.
    pub(super) async fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = self.0.async_io(Interest::WRITABLE, || {
            let bytes = [IoSlice::new(bytes)];
            Ok(sendmsg::<()>(self.0.as_raw_fd(), &bytes, &[], flags, None)?)
        });
        sent.await.map(drop).map_err(SocketError::Send)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
    };

    use super::{LONGEST, Socket, SocketError};

    fn pair() -> (Socket, OwnedFd) {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_NONBLOCK);
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        (Socket::of(ours).unwrap(), theirs)
    }

    fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() {
            &[]
        } else {
            rights.as_slice()
        };
        let bytes = [IoSlice::new(bytes)];
        sendmsg::<()>(socket.as_raw_fd(), &bytes, rights, MsgFlags::empty(), None).unwrap();
    }

    #[tokio::test]
    async fn packets_come_one_by_one_with_their_descriptors() {
        let (ours, theirs) = pair();
        let null = File::open("/dev/null").unwrap();
        send(&theirs, b"one", &[null.as_raw_fd()]);
        send(&theirs, b"two", &[]);
        let one = ours.receive().await.unwrap();
        assert_eq!((&one.bytes[..], one.descriptors.len()), (&b"one"[..], 1));
        let flags = fcntl(&one.descriptors[0], FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
        let two = ours.receive().await.unwrap();
        assert_eq!((&two.bytes[..], two.descriptors.len()), (&b"two"[..], 0));
        ours.send(b"yes").await.unwrap();
        let mut answer = [0; 8];
        let length = recv(theirs.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert_eq!(&answer[..length], b"yes");
        drop(theirs);
        assert!(matches!(ours.receive().await, Err(SocketError::Ended)));
    }

    #[tokio::test]
    async fn a_packet_that_is_too_long_is_an_error_and_the_next_one_is_none() {
        let (ours, theirs) = pair();
        send(&theirs, &[7; LONGEST + 1], &[]);
        send(&theirs, &[7; LONGEST], &[]);
        assert!(matches!(ours.receive().await, Err(SocketError::Truncated)));
        assert_eq!(ours.receive().await.unwrap().bytes.len(), LONGEST);
    }

    #[tokio::test]
    async fn as_many_descriptors_as_the_kernel_passes_are_received_and_closed() {
        let (ours, theirs) = pair();
        let null = File::open("/dev/null").unwrap();
        send(&theirs, b"many", &[null.as_raw_fd(); 253]);
        assert_eq!(ours.receive().await.unwrap().descriptors.len(), 253);
    }
}
