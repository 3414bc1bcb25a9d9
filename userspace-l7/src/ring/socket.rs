//! Plain system calls on sockets. None of them blocks: every socket here is non-blocking.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{SockAddr, SockAddrStorage, SockRef, TcpKeepalive};
use tokio::io::unix::AsyncFd;

use super::buffers::RecvBuf;

/// Keepalive as ztunnel sets it: a dead peer is noticed after 180 s + 9 * 180 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(180);
const KEEPALIVE_PROBES: u32 = 9;

/// Options of every connection. Accepted sockets inherit all of them from their listener (tcp(7)) except
/// `O_NONBLOCK`, which accept4 sets.
pub(super) fn prepare(fd: &OwnedFd) -> io::Result<()> {
    prepare_within(fd)?;
    SockRef::from(fd).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// As [`prepare`], for a connection that does not leave its network namespace.
pub(super) fn prepare_within(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)
}

/// What comes right behind bytes that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// Nothing that is known.
    No,
    /// The end of our direction, which can leave in the same segment: they wait for it (`MSG_MORE`, send(2)).
    ByTheEnd,
}

/// Tries to send; the count may be short.
pub(super) fn send(fd: &impl AsFd, bytes: &[u8], followed: Followed) -> io::Result<usize> {
    let more = match followed {
        Followed::No => 0,
        Followed::ByTheEnd => libc::MSG_MORE,
    };
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more;
    retrying(|| SockRef::from(fd).send_with_flags(bytes, flags))
}

/// Tries to send several pieces as one; the count may be short.
pub(super) fn send_vectored(fd: &impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    retrying(|| match slices {
        [one] => SockRef::from(fd).send_with_flags(one, flags),
        several => SockRef::from(fd).send_vectored_with_flags(several, flags),
    })
}

/// Tries to receive into `buf`, which keeps what came: nothing at the end of the stream. True if the
/// socket may have more.
pub(super) fn recv(fd: &impl AsFd, mut buf: RecvBuf) -> io::Result<(RecvBuf, bool)> {
    let room = buf.len();
    let received = retrying(|| (&*SockRef::from(fd)).read(&mut buf))?;
    buf.truncate(received);
    Ok((buf, received == room))
}

/// What has arrived by now, as far as `buf` has room; 0 at the end of the stream.
pub(super) fn recv_now(fd: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    retrying(|| (&*SockRef::from(fd)).read(buf))
}

/// Whether a byte has arrived that was not received, which stays: 1 or, at the end of the stream, 0.
pub(super) fn peek(fd: &impl AsFd) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    retrying(|| SockRef::from(fd).recv_with_flags(&mut [MaybeUninit::uninit()], flags))
}

/// Starts a connection, or asks how one does that was started. `WouldBlock` while it is under way.
pub(super) fn connect(fd: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    match SockRef::from(fd).connect(&SockAddr::from(to)) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINPROGRESS | libc::EALREADY)
            ) =>
        {
            Err(io::ErrorKind::WouldBlock.into())
        }
        other => other,
    }
}

/// How the connection attempt ended.
pub(super) fn connected(fd: &impl AsFd) -> io::Result<()> {
    SockRef::from(fd).take_error()?.map_or(Ok(()), Err)
}

/// Takes one connection. Errors that only concern a connection which broke while it was queued are passed
/// over, as accept(2) advises.
pub(super) fn accept(listener: &impl AsFd) -> io::Result<OwnedFd> {
    let fd = listener.as_fd().as_raw_fd();
    let (address, len) = (std::ptr::null_mut(), std::ptr::null_mut());
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    loop {
        // SAFETY: the descriptor is borrowed and so open; accept4 allows null for both the address and its
        // length when the caller wants neither.
        let accepted = unsafe { libc::accept4(fd, address, len, flags) };
        if accepted >= 0 {
            // SAFETY: a descriptor that accept4 has just made, which nothing else knows.
            return Ok(unsafe { OwnedFd::from_raw_fd(accepted) });
        }
        let error = io::Error::last_os_error();
        if !matches!(
            error.raw_os_error(),
            Some(
                libc::EINTR
                    | libc::ECONNABORTED
                    | libc::EPROTO
                    | libc::ENETDOWN
                    | libc::ENOPROTOOPT
                    | libc::EHOSTDOWN
                    | libc::ENONET
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH
            )
        ) {
            return Err(error);
        }
    }
}

/// Ends the connection with a reset, at once and whatever else holds the socket. Unsent bytes are gone.
pub(super) fn reset(fd: &impl AsFd) {
    let socket = SockRef::from(fd);
    // Should the disconnect below be refused, closing resets too.
    let _lingering = socket.set_linger(Some(Duration::ZERO));
    // connect(2): "Some protocol sockets may dissolve the association by connecting to an address with
    // the sa_family member of sockaddr set to AF_UNSPEC". Linux `tcp_disconnect` sends the reset.
    let unspecified = SockAddrStorage::zeroed();
    let len = unspecified.size_of();
    // SAFETY: all zero is an address of the family AF_UNSPEC (0), and `len` is the storage's own size.
    let unspecified = unsafe { SockAddr::new(unspecified, len) };
    let _disconnected = socket.connect(&unspecified);
}

/// The local address, an IPv4 one as such even on an IPv6 socket.
pub(super) fn local_addr(fd: &impl AsFd) -> io::Result<SocketAddr> {
    canonical(&SockRef::from(fd).local_addr()?)
}

/// The peer's address, an IPv4 one as such even on an IPv6 socket.
pub(super) fn peer_addr(fd: &impl AsFd) -> io::Result<SocketAddr> {
    canonical(&SockRef::from(fd).peer_addr()?)
}

/// Where the connection went before a rule of this host redirected it, as connection tracking knows; the local address if
/// no rule did.
pub(super) fn original_destination(fd: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(fd);
    let local = local_addr(fd)?;
    // Each family has its own option, and a mapped IPv4 address its family's.
    canonical(&if local.is_ipv4() {
        socket.original_dst_v4()?
    } else {
        socket.original_dst_v6()?
    })
}

/// Puts a descriptor under the runtime's epoll.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and names the same descriptor for as long as it lives, and the
    // `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register(fd) };
    watched.map_err(|error| error.into_parts().1)
}

/// A descriptor for the kernel to announce completions on.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that eventfd has just made, which nothing else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn canonical(address: &SockAddr) -> io::Result<SocketAddr> {
    let address = address.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    Ok(match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    })
}

fn retrying<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
