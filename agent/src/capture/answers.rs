//! Answers to connections that are held back, sent inside the pod through raw sockets.
//!
//! One socket per family and pod, shared by all workers: a packet is one system call, and the kernel
//! carries the whole handshake out within it. The sockets have capture's mark, so that a released SYN
//! takes the route to `lo` that the first one took. SYNs that go straight to another pod leave by sockets without it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use culvert_ebpf::{MARK_OUTBOUND, RELEASE_PRIORITY};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto,
        setsockopt, socket,
        sockopt::{Mark, Priority},
    },
};

use super::{
    netns::Netns,
    packet::{Syn, Unreachable},
};

/// What becomes of a connection that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The agent's listener takes it.
    Release,
    /// `ECONNREFUSED`.
    Refuse,
    /// `EHOSTUNREACH`.
    HostUnreachable,
    /// `ENETUNREACH`.
    NetworkUnreachable,
}

/// A pod's raw sockets.
#[derive(Debug)]
pub(super) struct Answers {
    /// What they send loops back.
    captured: Raw,
    /// What they send leaves the pod.
    straight: Raw,
}

/// One socket for each family; one that the kernel lacks is `None`.
#[derive(Debug)]
struct Raw {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Raw {
    fn open(mark: u32) -> io::Result<Self> {
        Ok(Self {
            v4: open(AddressFamily::Inet, mark)?,
            v6: open(AddressFamily::Inet6, mark)?,
        })
    }

    /// The socket for packets to an address.
    fn towards(&self, to: SocketAddr) -> io::Result<&OwnedFd> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        Ok(socket.as_ref().ok_or(Errno::EAFNOSUPPORT)?)
    }
}

impl Answers {
    /// Opens the sockets in the pod.
    pub(super) fn open(netns: &Netns) -> io::Result<Self> {
        netns.run(|| {
            Ok(Self {
                captured: Raw::open(MARK_OUTBOUND)?,
                straight: Raw::open(0)?,
            })
        })?
    }

    /// Sends a connection's SYN to where it is for.
    pub(super) fn send_straight(
        &self,
        (source, destination): (SocketAddr, SocketAddr),
        tcp_header: &[u8],
    ) -> io::Result<()> {
        let syn = Syn {
            source,
            destination,
            header: tcp_header,
        };
        let packet = syn.again().ok_or(io::ErrorKind::InvalidInput)?;
        send(self.straight.towards(destination)?, &packet, destination)
    }

    /// Answers the connection that a SYN opens.
    pub(super) fn send(
        &self,
        (source, destination): (SocketAddr, SocketAddr),
        tcp_header: &[u8],
        answer: Answer,
    ) -> io::Result<()> {
        let syn = Syn {
            source,
            destination,
            header: tcp_header,
        };
        let (packet, to) = match answer {
            Answer::Release => (syn.again(), destination),
            Answer::Refuse => (syn.refusal(), source),
            Answer::HostUnreachable => (syn.unreachable(Unreachable::Host), source),
            Answer::NetworkUnreachable => (syn.unreachable(Unreachable::Network), source),
        };
        let packet = packet.ok_or(io::ErrorKind::InvalidInput)?;
        send(self.captured.towards(to)?, &packet, to)
    }
}

fn send(socket: &OwnedFd, packet: &[u8], to: SocketAddr) -> io::Result<()> {
    // A raw socket's port is its protocol, which the packet names itself (raw(7), RFC 3542 §3).
    let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

fn open(family: AddressFamily, mark: u32) -> io::Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Implies that packets come with their header, and receives none (raw(7)).
    let raw = match socket(family, SockType::Raw, flags, SockProtocol::Raw) {
        Err(Errno::EAFNOSUPPORT) if family == AddressFamily::Inet6 => return Ok(None),
        raw => raw?,
    };
    if mark != 0 {
        setsockopt(&raw, Mark, &mark)?;
        setsockopt(&raw, Priority, &RELEASE_PRIORITY.cast_signed())?;
    }
    Ok(Some(raw))
}
